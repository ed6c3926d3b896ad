"""Where vectors stand in the tensors that hold them, in elements of one batch element."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod

import numpy as np

from onnxopt.discover.attention_site import AttentionSite
from onnxopt.discover.operand import Operand
from onnxopt.plan.tables.pieces import MOST_ENTRIES, NoTables

Shapes = Mapping[str, Sequence[int]]


@dataclass(frozen=True)
class TensorLayout:
    """``elements`` of one batch element, and how far neighbouring channels of a vector are apart."""

    elements: int
    stride: int

    def to_json(self) -> list[int]:
        """As in the configuration."""
        return [self.elements, self.stride]


@dataclass(frozen=True)
class Placed:
    """Offsets of vectors for each head: ``shifts[h] + relative[h, i]``, where that is not -1."""

    layout: TensorLayout
    shifts: np.ndarray
    relative: np.ndarray


def operand_layout(operand: Operand, shapes: Shapes) -> TensorLayout:
    """The layout of the tensor that holds an operand's vectors, of all its sources joined.

    ``shapes`` has the shapes of tensors with channels first. Raises :class:`NoTables` where several of them would have
    to be joined, or where a batch element is too large.
    """
    first = [s for s in operand.sources if s.channel_axis == 1]
    elements = sum(s.rows * s.channels for s in operand.sources)
    if not first:
        return _checked(elements, 1, operand.sources[0].tensor)
    source = first[0]
    if len(operand.sources) > 1:
        raise NoTables(f"{source.tensor!r} has its channels first and is only one of several tensors of an operand")
    if source.tensor not in shapes:
        raise NoTables(f"the shape of {source.tensor!r}, which has its channels first, is not known")
    return _checked(elements, prod(shapes[source.tensor][2:]), source.tensor)


def output_layout(site: AttentionSite) -> TensorLayout:
    """The layout of a site's output."""
    shape = site.output_shape
    axis = site.channel_axis % len(shape)
    return _checked(prod(shape) // site.batch, prod(shape[axis + 1 :]), site.output)


def _checked(elements: int, stride: int, tensor: str) -> TensorLayout:
    if elements > MOST_ENTRIES:
        raise NoTables(f"{tensor!r} has {elements:,} elements a batch element; kernels address {MOST_ENTRIES:,}")
    return TensorLayout(elements, stride)


def offsets(vectors: np.ndarray, width: int, channels: int, layout: TensorLayout) -> np.ndarray:
    """The element of the first channel of each vector; -1 stays -1. ``channels`` are those of a row of the tensor."""
    if layout.stride == 1:
        return np.where(vectors >= 0, vectors * width, -1)
    row, block = np.divmod(vectors, channels // width)
    window, position = np.divmod(row, layout.stride)
    first = window * channels * layout.stride + block * width * layout.stride + position
    return np.where(vectors >= 0, first, -1)


def placed(vectors: np.ndarray, width: int, channels: int, layout: TensorLayout) -> Placed:
    """Offsets of heads x vectors, with the smallest of each head as its shift."""
    own = offsets(vectors.astype(np.int64), width, channels, layout)
    lowest = np.where(own >= 0, own, np.iinfo(np.int64).max).min(axis=1, initial=np.iinfo(np.int64).max)
    shifts = np.where((own >= 0).any(axis=1), lowest, 0)
    return Placed(layout, shifts, np.where(own >= 0, own - shifts[:, None], -1))


def place_operand(operand: Operand, vectors: np.ndarray, shapes: Shapes) -> Placed:
    """Offsets of an operand's vectors, heads x vectors."""
    return placed(vectors, operand.width, operand.sources[0].channels, operand_layout(operand, shapes))


@dataclass(frozen=True)
class Destinations:
    """Where results go: ``first`` is the first place of every result; ``further`` lists the others, result and place.

    ``zeros`` are the offsets of blocks that no result reaches. Offsets are absolute, in the order of the slots;
    ``order`` has all blocks of the output as (result or -1, offset).
    """

    first: Placed
    further: np.ndarray
    zeros: np.ndarray
    order: np.ndarray


def destinations(site: AttentionSite, computed: np.ndarray) -> Destinations:
    """Where the results of a site go; ``computed`` (heads x rows) says which ones there are."""
    layout = output_layout(site)
    slots = site.slots.reshape(-1).astype(np.int64)
    channels = site.slots.shape[1] * site.v.width
    where = offsets(np.arange(len(slots)), site.v.width, channels, layout)
    slots = np.where((slots >= 0) & computed.reshape(-1)[slots], slots, -1)
    live = np.flatnonzero(slots >= 0)
    results, index = np.unique(slots[live], return_index=True)
    own = np.full(site.heads * site.rows, -1, np.int64)
    own[results] = where[live[index]]
    again = np.delete(live, index)
    by_head = own.reshape(site.heads, site.rows)
    present = by_head >= 0
    shifts = np.where(
        present.any(axis=1), np.where(present, by_head, np.iinfo(np.int64).max).min(axis=1, initial=2**62), 0
    )
    first = Placed(layout, shifts, np.where(present, by_head - shifts[:, None], -1))
    return Destinations(
        first,
        np.stack([slots[again], where[again]], axis=1),
        where[slots < 0],
        np.stack([slots, where], axis=1),
    )
