"""Greedy extraction of dense blocks from a sparse matrix, as published planners of sparse attention do it.

From the first entry that no block covers yet, a block grows right and down for as long as enough of it is needed. What
it grows over may lie in other blocks already: nothing keeps the cover exact.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.sparse import csr_matrix

# The density at or above which a block keeps growing, as in the published artifact of tile-aware scheduling.
LEAST_DENSITY = 0.6
# Entries of a matrix of distinct rows and columns that may be searched.
_MOST_ENTRIES = 1 << 28


@dataclass(frozen=True)
class Blocks:
    """Blocks by their first row and column, rows, columns and needed entries, which count in every block.

    Columns are numbered in the order that was made for them.
    """

    top: np.ndarray
    left: np.ndarray
    rows: np.ndarray
    columns: np.ndarray
    needed: np.ndarray

    @property
    def full(self) -> np.ndarray:
        """Whether all entries of a block are needed."""
        return np.asarray(self.needed == self.rows * self.columns)

    def covers(self) -> np.ndarray:
        """For each row, up to the last one that is in any, in how many blocks it is."""
        change = np.zeros(int((self.top + self.rows).max(initial=0)) + 1, np.int64)
        np.add.at(change, self.top, 1)
        np.add.at(change, self.top + self.rows, -1)
        return np.cumsum(change)[:-1]


def greedy_blocks(members: csr_matrix, owner: np.ndarray, least: float = LEAST_DENSITY) -> Blocks | None:
    """The blocks of a matrix whose row ``i``, in this order, is row ``owner[i]`` of ``members``.

    Columns are ordered by where the rows that need them stand in the mean. Neighbouring rows that are alike grow as
    one, and so do columns. None where the matrix is too big even so.
    """
    starts = np.flatnonzero(np.concatenate([np.ones(min(1, len(owner)), bool), owner[1:] != owner[:-1]]))
    tall = np.diff(np.append(starts, len(owner)))
    matrix = members[owner[starts]].tocsc()
    matrix.sort_indices()
    matrix, wide = _distinct_columns(matrix, starts + (tall - 1) / 2, tall)
    if matrix.shape[0] * matrix.shape[1] > _MOST_ENTRIES:
        return None
    return _extracted(matrix.toarray().astype(bool), tall, wide, least)


def _distinct_columns(matrix: csr_matrix, place: np.ndarray, tall: np.ndarray) -> tuple[csr_matrix, np.ndarray]:
    """The distinct columns of a matrix (compressed by columns), ordered by the mean place of their rows; how many."""
    kinds: dict[bytes, int] = {}
    first: list[int] = []
    amount: list[int] = []
    for column in range(matrix.shape[1]):
        rows = matrix.indices[matrix.indptr[column] : matrix.indptr[column + 1]]
        if len(rows):
            number = kinds.setdefault(rows.tobytes(), len(kinds))
            if number == len(first):
                first.append(column)
                amount.append(0)
            amount[number] += 1
    kept = matrix[:, first]
    mean = ((tall * place) @ kept) / np.maximum(1, tall @ kept)
    order = np.argsort(mean, kind="stable")
    return kept[:, order], np.array(amount, np.int64)[order]


def _extracted(matrix: np.ndarray, tall: np.ndarray, wide: np.ndarray, least: float) -> Blocks:
    needed = np.zeros((matrix.shape[0] + 1, matrix.shape[1] + 1), np.int64)
    needed[1:, 1:] = matrix
    needed[1:, 1:] *= tall[:, None]
    needed[1:, 1:] *= wide[None, :]
    np.cumsum(needed, axis=0, out=needed)
    np.cumsum(needed, axis=1, out=needed)
    rows, columns = (np.concatenate([[0], np.cumsum(sizes)]).tolist() for sizes in (tall, wide))
    left = matrix.copy()
    found: list[tuple[int, ...]] = []
    for top in range(matrix.shape[0]):
        begin = 0
        while begin < matrix.shape[1]:
            begin += int(left[top, begin:].argmax())
            if not left[top, begin]:
                break
            bottom, end, inside = _grown(needed, rows, columns, top, begin, least)
            size = (rows[bottom] - rows[top], columns[end] - columns[begin])
            found.append((rows[top], columns[begin], *size, inside))
            left[top:bottom, begin:end] = False
            begin = end
    return Blocks(*np.array(found, np.int64).reshape(-1, 5).T)


def _grown(
    needed: np.ndarray, rows: list[int], columns: list[int], top: int, begin: int, least: float
) -> tuple[int, int, int]:
    """Where the block from (top, begin) ends below and to the right, and how many entries in it are needed."""
    bottom, end = top + 1, begin + 1
    inside = _inside(needed, top, bottom, begin, end)
    growing = True
    while growing:
        growing = False
        for down in (0, 1):
            below, beside = bottom + down, end + 1 - down
            if below >= len(rows) or beside >= len(columns):
                continue
            wider = _inside(needed, top, below, begin, beside)
            if wider >= least * (rows[below] - rows[top]) * (columns[beside] - columns[begin]):
                bottom, end, inside, growing = below, beside, wider, True
    return bottom, end, inside


def _inside(needed: np.ndarray, top: int, bottom: int, begin: int, end: int) -> int:
    return int(needed[bottom, end] - needed[top, end] - needed[bottom, begin] + needed[top, begin])
