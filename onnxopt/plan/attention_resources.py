"""What one block of an attention kernel takes, counted from its fragments and tiles before any compiler is asked.

Registers are those that the compiler (NVRTC 13.0) was seen to need without local memory, for the most demanding tables
that a site may have; shared memory is laid out as the kernel's sources lay it out, as if there were all of them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from onnxopt.plan.roofline import ELEMENT_BYTES, SMALL_SHARED_BYTES
from onnxopt.target.variant import AttentionVariant, Element, Resources

QUERY_REGISTERS = 32
"""Queries stay in registers up to this many of a thread, else they are read from shared memory for every tile."""

# Registers of a thread beside its fragments: addresses, row maxima and sums, loop counters.
_BASE_REGISTERS = 44
# With wgmma no warp copies for itself.
_GROUP_BASE_REGISTERS = 40
# Swapped, with more queries than this, their maxima, sums and factors no longer come and go one after the other; and
# each further product of 64 channels takes some.
_FEW_QUERIES = 48
_PANEL_REGISTERS = 16
# With queries on the M side of mma there are also the bit rows and biases of the tile.
_TILE_REGISTERS = 4
_SPLIT_REGISTERS = 16
# Swapped queries are read two blocks of eight at a time; of an odd number, 24 queries, some are read and not needed.
_ODD_BLOCK_REGISTERS = 8
_REGISTER_UNIT = 8

# As in cuda/attention/wgmma_pipeline.cuh: registers that the producer keeps, more where it copies element by element.
_PRODUCER_REGISTERS = 40
_THREE_GROUPS_PRODUCER_REGISTERS = 32
_ELEMENTS_PRODUCER_REGISTERS = 56
# What consumers can have of a block that is alone on its multiprocessor, for 1, 2 and 3 warpgroups of them: a thread
# names at most 255, and 384 or 512 threads start with 168 or 128 each. Of the 232 of two warpgroups the compiler was
# seen to lack some in shapes that are counted with more than 224.
_CONSUMER_REGISTERS = (248, 224, 160)
_MORE_THAN_ANY = 256

_PIECE_BYTES = 16
_TILE_ALIGNMENT = 1024
_LIST_ALIGNMENT = 128


@dataclass(frozen=True)
class AttentionShape:
    """One variant at given head sizes; ``d`` and ``dv`` are these as products pad them."""

    variant: AttentionVariant
    width: int
    value_width: int
    element: Element

    @property
    def bytes(self) -> int:
        """Of an element."""
        return ELEMENT_BYTES[self.element]

    @property
    def d(self) -> int:
        """Padded width of queries and keys."""
        return _up(self.width, 16)

    @property
    def dv(self) -> int:
        """Padded width of the values; the M side of a swapped wgmma takes 64 of them."""
        return _up(self.value_width, 64 if self.variant.swapped and self.variant.path == "wgmma" else 16)

    @property
    def query_registers(self) -> float:
        """Registers for a thread's part of the queries, if they stay there."""
        v = self.variant
        if v.path == "wgmma":
            return np.inf
        words = self.bytes / 4
        return v.rows * self.d / 32 * words if v.swapped else v.rows / v.warps * self.d / 32 * words

    def resources(self) -> Resources:
        """The estimate."""
        v = self.variant
        if v.path == "wgmma":
            shared = self._swapped_group_bytes() if v.swapped else self._group_bytes()
            return Resources(self._group_registers(), shared, v.threads)
        return Resources(self._registers(), self._swapped_bytes() if v.swapped else self._bytes(), v.threads)

    def _bytes(self) -> int:
        v = self.variant
        row_block = v.rows * max(self.d, self.dv)
        tiles = v.stages * v.keys * (self.d + self.dv)
        masks = 4 * v.rows * -(-v.keys // 32)
        # Keys, values and columns of run-time weights; then each key's column again, with its weight.
        lists = v.stages * (masks + 8 * v.keys) + max(v.stages, 2) * 3 * 4 * v.keys
        smallest = (v.rows, v.keys, v.stages) == (16, 16, 1)
        if smallest and self.bytes * (row_block + tiles) + lists > SMALL_SHARED_BYTES:
            # Its values take the place of the keys, so that it fits a block's small share.
            tiles = v.keys * max(self.d, self.dv)
        return self.bytes * (row_block + tiles) + lists

    def _swapped_bytes(self) -> int:
        """The walk's tiles, then in their place what the warps give one another at the end."""
        v = self.variant
        maxima = 4 * v.warps * v.rows
        walk = self.bytes * (v.rows * self.d + v.stages * v.keys * (self.d + self.dv)) + maxima
        # Sums come in blocks of 8 channels, of which one at least, with a gap of 4, has room.
        merge = _up(2 * maxima, _LIST_ALIGNMENT) + self.bytes * v.rows * self.dv + maxima * (8 + 4)
        return max(walk, merge)

    def _group_bytes(self) -> int:
        v = self.variant
        return self._tiles_end(self.bytes * v.rows * max(self.d, self.dv))

    def _swapped_group_bytes(self) -> int:
        """The rows, the weights on their way between the products, the tiles, and maxima and sums of the rows."""
        v = self.variant
        rows = _up(self.bytes * v.rows * max(self.d, _up(self.value_width, 16)), _TILE_ALIGNMENT)
        return self._tiles_end(rows + self.bytes * v.rows * v.keys) + 8 * v.rows * (v.warps // 4 + 1)

    def _tiles_end(self, begin: int) -> int:
        """Where tiles end that begin behind so many bytes: keys, values, run-time weights and four barriers a stage."""
        v = self.variant
        keys = v.stages * v.keys
        values = _up(_up(begin, _TILE_ALIGNMENT) + self.bytes * keys * self.d, _TILE_ALIGNMENT)
        return values + self.bytes * keys * self.dv + 8 * keys + 4 * 8 * v.stages

    def _registers(self) -> int:
        v = self.variant
        words = self.bytes / 4
        queries = self.query_registers if self.query_registers <= QUERY_REGISTERS else 8
        lane_rows = v.rows / 32 if v.swapped else v.rows / v.warps / 32
        scores = v.keys / v.warps * v.rows / 32 if v.swapped else lane_rows * v.keys
        odd = _ODD_BLOCK_REGISTERS if v.rows % 16 and v.rows > 8 else 0
        other = odd if v.swapped else _TILE_REGISTERS
        split = _SPLIT_REGISTERS if self.element == "fp32" else 0
        fragments = lane_rows * self.dv + scores * (1 + words) + queries
        return _up(int(np.ceil(fragments)) + other + split + _BASE_REGISTERS, _REGISTER_UNIT)

    def _group_registers(self) -> int:
        """Consumers and producer share the block's registers, so that what counts is what they take together."""
        v = self.variant
        groups = v.warps // 4
        if v.swapped:
            queries = v.rows / 2 if v.rows <= _FEW_QUERIES else v.rows
            fragments = self.dv * v.rows / 128 + queries + _PANEL_REGISTERS * (self.dv // 64 - 1)
        else:
            fragments = self.dv / 2 + v.keys / 2 * (1 + self.bytes / 4)
        consumer = _up(int(np.ceil(fragments)) + _GROUP_BASE_REGISTERS, _REGISTER_UNIT)
        if consumer > _CONSUMER_REGISTERS[groups - 1]:
            return _MORE_THAN_ANY
        return _up(-(-(groups * consumer + self._producer_registers()) // (groups + 1)), _REGISTER_UNIT)

    def _producer_registers(self) -> int:
        if self.width * self.bytes % _PIECE_BYTES or self.value_width * self.bytes % _PIECE_BYTES:
            return _ELEMENTS_PRODUCER_REGISTERS
        return _THREE_GROUPS_PRODUCER_REGISTERS if self.variant.warps == 12 else _PRODUCER_REGISTERS


def _up(value: int, unit: int) -> int:
    return -(-value // unit) * unit
