"""Mask and bias tiles of strips: distinct ones in a pool each, and the lines that name them."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from onnxopt.plan.tables.compute_type import in_type
from onnxopt.plan.tables.marks import Needed
from onnxopt.plan.tables.pieces import Pool
from onnxopt.target.variant import AttentionVariant

WORD = 32


@dataclass
class TilePools:
    """The tables ``tiles``, ``masks`` and ``biases`` while they grow; biases are in the type ``dtype``."""

    dtype: np.dtype
    lines: Pool = field(init=False)
    masks: Pool = field(init=False)
    biases: Pool = field(init=False)
    _full: dict[int, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.lines = Pool.of_int32(-1, width=2)
        self.masks = Pool.of_int32(0)
        self.biases = Pool([self.dtype], [0])

    def full(self, tiles: int) -> int:
        """Where lines of so many full tiles begin."""
        if tiles not in self._full:
            self._full[tiles] = self.lines.add(np.full((tiles, 2), -1))
        return self._full[tiles]

    def strip(
        self,
        variant: AttentionVariant,
        shape: tuple[int, int],
        needed: Needed,
        bias: np.ndarray | None,
        nan: np.ndarray,
    ) -> int:
        """Where the lines of a strip begin.

        ``shape`` is its rows and keys, ``bias`` the bias of the head's pairs, ``nan`` the rows that need nothing.
        """
        rows, keys = shape
        tiles = -(-keys // variant.keys)
        wide = (variant.rows, tiles * variant.keys)
        bits = np.zeros(wide, bool)
        bits[needed.row, needed.place] = True
        bits[np.flatnonzero(nan)] = False
        masks = self._masks(variant, bits, rows, keys)
        added = np.full(tiles, -1)
        if bias is not None:
            values = np.zeros(wide, np.float32)
            values[needed.row, needed.place] = bias[needed.source]
            values[~bits] = 0.0
            added = self._biases(variant, values, rows, keys)
        return self.lines.add(np.stack([masks, added], axis=1))

    def _masks(self, variant: AttentionVariant, bits: np.ndarray, rows: int, keys: int) -> np.ndarray:
        oriented = _m_side_first(variant, bits)
        begins = np.full(len(oriented), -1)
        lanes = -(-oriented.shape[2] // WORD) * WORD
        padded = np.zeros((*oriented.shape[:2], lanes), bool)
        padded[:, :, : oriented.shape[2]] = oriented
        words = np.packbits(padded, axis=2, bitorder="little").view("<u4").view("<i4")
        for tile in range(len(oriented)):
            first = tile * variant.keys
            if not bits[:rows, first : min(keys, first + variant.keys)].all():
                begins[tile] = self.masks.add(words[tile, : _m_rows(variant, rows, keys - first)].reshape(-1))
        return begins

    def _biases(self, variant: AttentionVariant, values: np.ndarray, rows: int, keys: int) -> np.ndarray:
        oriented = _m_side_first(variant, in_type(values, self.dtype))
        begins = np.full(len(oriented), -1)
        for tile in np.flatnonzero(oriented.astype(bool).any(axis=(1, 2))).tolist():
            height = _m_rows(variant, rows, keys - tile * variant.keys)
            begins[tile] = self.biases.add(oriented[tile, :height].reshape(-1))
        return begins


def _m_side_first(variant: AttentionVariant, values: np.ndarray) -> np.ndarray:
    """Rows x all keys as tiles x M side x N side."""
    tiles = values.reshape(len(values), -1, variant.keys)
    return np.ascontiguousarray(tiles.transpose(1, 2, 0) if variant.swapped else tiles.transpose(1, 0, 2))


def _m_rows(variant: AttentionVariant, rows: int, keys: int) -> int:
    """Rows on the M side of a tile, as they are stored."""
    if variant.swapped:
        return -(-min(keys, variant.keys) // variant.key_granule) * variant.key_granule
    return -(-rows // variant.row_granule) * variant.row_granule
