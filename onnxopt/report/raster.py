"""Which rows need which columns, counted in the cells of a small picture, whatever the size of the matrix.

Rows that need the same columns form a class, and a class is counted once, so that 65,537 queries that share one list
of 65,537 keys cost no more than one of them. No array is made that has an entry for every pair.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from onnxopt.discover.attention_site import KeyLists
from onnxopt.discover.conv_site import BoolArray, ConvPart, IntArray

MAX_CELLS = 256
Levels = NDArray[np.uint8]

# Entries of the arrays that are made on the way: some tens of megabytes.
_CHUNK = 1 << 21


@dataclass(frozen=True)
class Axis:
    """``size`` rows or columns in cells of ``step`` each; the last cell may hold fewer."""

    size: int
    step: int

    @staticmethod
    def of(size: int, max_cells: int = MAX_CELLS) -> Axis:
        """The finest axis of at most ``max_cells`` cells of one width."""
        return Axis(size, max(1, -(-size // max_cells)))

    @property
    def cells(self) -> int:
        """How many cells there are."""
        return -(-self.size // self.step)

    def extents(self) -> IntArray:
        """Rows or columns in each cell."""
        edges = np.minimum(np.arange(self.cells + 1) * self.step, self.size)
        return np.asarray(np.diff(edges), np.int64)


@dataclass(frozen=True, eq=False)
class Classes:
    """Rows by what they need: row ``r`` needs the columns of class ``row_class[r]``.

    ``columns(a, b)`` gives the columns of the classes a to b - 1, one class after the other and ascending within each;
    ``lengths`` says how many each class has. Columns may repeat.
    """

    row_class: IntArray
    lengths: IntArray
    columns: Callable[[int, int], NDArray[np.integer]]

    @property
    def pairs(self) -> int:
        """Needed (row, column) pairs, repetitions included."""
        return int(self.lengths[self.row_class].sum())


def classes_of_lists(lists: KeyLists, computed: NDArray[np.int64]) -> Classes:
    """The key lists of a head; a class is a list, and the rows that are not ``computed`` need nothing."""
    row_class = np.full(len(lists.row_list), len(lists.offsets) - 1, np.int64)
    row_class[computed] = lists.row_list[computed]
    offsets = np.append(lists.offsets, lists.offsets[-1])
    return Classes(
        row_class,
        np.diff(offsets).astype(np.int64),
        lambda start, stop: lists.keys[offsets[start] : offsets[stop]],
    )


def classes_of_parts(outputs: int, parts: tuple[ConvPart, ...]) -> Classes:
    """The connectivity of a convolution with its own channel numbers; every output is a class."""
    parts = tuple(sorted(parts, key=lambda part: part.first_output))
    lengths = np.zeros(outputs, np.int64)
    for part in parts:
        lengths[part.first_output : part.first_output + len(part.live)] = part.live.sum(axis=1)

    def columns(start: int, stop: int) -> NDArray[np.integer]:
        found = [_live_inputs(part, start, stop) for part in parts]
        return np.concatenate(found) if found else np.empty(0, np.int64)

    return Classes(np.arange(outputs), lengths, columns)


def _live_inputs(part: ConvPart, start: int, stop: int) -> IntArray:
    outputs, width = part.live.shape
    begin = max(0, start - part.first_output)
    end = max(begin, min(outputs, stop - part.first_output))
    rows, places = np.nonzero(part.live[begin:end])
    group = (rows + begin) // (outputs // part.groups)
    return np.asarray(part.first_input + group * width + places, np.int64)


def classes_of_matrix(links: BoolArray) -> Classes:
    """The rows of a small boolean matrix; every row is a class."""
    return Classes(
        np.arange(len(links)),
        links.sum(axis=1).astype(np.int64),
        lambda start, stop: np.nonzero(links[start:stop])[1],
    )


def count_cells(
    classes: Classes, row_place: IntArray, column_place: IntArray, rows: Axis, columns: Axis
) -> NDArray[np.int64]:
    """How many needed pairs lie in each cell (rows.cells x columns.cells).

    ``row_place`` and ``column_place`` say where each row and column stands on its axis.
    """
    result = np.zeros((rows.cells, columns.cells), np.int64)
    code, times = np.unique(classes.row_class * rows.cells + row_place // rows.step, return_counts=True)
    owner, cell = code // rows.cells, code % rows.cells
    column_cell = column_place // columns.step
    for start, stop in _chunks(classes.lengths, columns.cells):
        first, last = np.searchsorted(owner, [start, stop])
        if first == last:
            continue
        place = np.repeat(np.arange(stop - start), classes.lengths[start:stop]) * columns.cells
        place += column_cell[classes.columns(start, stop)]
        histogram = np.bincount(place, minlength=(stop - start) * columns.cells).reshape(stop - start, columns.cells)
        members = csr_array(
            (times[first:last], (cell[first:last], owner[first:last] - start)), shape=(rows.cells, stop - start)
        )
        result += members @ histogram
    return result


def _chunks(lengths: IntArray, cells: int) -> Iterator[tuple[int, int]]:
    """Runs of classes whose columns and histograms stay small; at least one class each."""
    total = np.concatenate([[0], np.cumsum(lengths)])
    start = 0
    while start < len(lengths):
        by_columns = int(np.searchsorted(total, total[start] + _CHUNK, side="right")) - 1
        stop = max(start + 1, min(by_columns, start + _CHUNK // cells, len(lengths)))
        yield start, stop
        start = stop


def density_levels(counts: NDArray[np.int64], rows: Axis, columns: Axis) -> Levels:
    """Counts as shares of each cell's pairs: 0 for none, else 1 to 255 for all (or more, where pairs repeat)."""
    area = rows.extents()[:, None] * columns.extents()[None, :]
    share = np.minimum(1.0, counts / area)
    return np.where(counts > 0, np.maximum(1, np.rint(255 * share)), 0).astype(np.uint8)
