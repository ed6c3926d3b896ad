"""Checks of tables that several operators share: types, sizes, pieces."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxopt.validate.failure import PlanError

Array = npt.NDArray[Any]
_LARGEST = 2**31 - 1
_TYPES = {"int32": ("int32",), "float32": ("float32",), "float": ("float16", "bfloat16", "float32")}


def check_present(operator: str, tables: Mapping[str, Array], wanted: Mapping[str, tuple[bool, str]]) -> None:
    """Whether exactly the wanted tables are there, in order, each of its type and not empty.

    ``wanted`` says for each name whether it is present and of which type: ``int32``, ``float32``, or ``float`` for a
    compute type. Raises :class:`PlanError`.
    """
    names = [name for name, (present, _) in wanted.items() if present]
    if list(tables) != names:
        raise PlanError(f"{operator}: its tables are {', '.join(tables)}, expected {', '.join(names)}")
    for name, table in tables.items():
        allowed = _TYPES[wanted[name][1]]
        if table.dtype.name not in allowed:
            raise PlanError(f"{operator}: table {name!r} is {table.dtype}, expected {' or '.join(allowed)}")
        if not 0 < table.size <= _LARGEST:
            raise PlanError(f"{operator}: table {name!r} has {table.size} entries, expected 1 to {_LARGEST}")


class Pieces:
    """The pieces of a table that jobs name; ``jobs`` counts from 0 in messages."""

    def __init__(self, operator: str, name: str, table: Array, aligned: int) -> None:
        self.operator, self.name, self.table, self.aligned = operator, name, table, aligned

    def check(self, begins: Array, counts: Array, padded: Array) -> None:
        """Pieces with their padding lie in the table and begin at a multiple of ``aligned`` entries."""
        wrong = np.flatnonzero((counts < 0) | (begins < 0) | (begins.astype(np.int64) + padded > len(self.table)))
        if wrong.size:
            job = int(wrong[0])
            most = padded[job] if counts[job] >= 0 else counts[job]
            raise PlanError(
                f"{self.operator}, job {job}: {most} entries of {self.name!r} from {begins[job]} on, which has "
                f"{len(self.table)}"
            )
        askew = np.flatnonzero(begins % self.aligned)
        if askew.size:
            job = int(askew[0])
            raise PlanError(
                f"{self.operator}, job {job}: its piece of {self.name!r} begins at {begins[job]}, no multiple of "
                f"{self.aligned}"
            )

    def largest(self, begins: Array, counts: Array) -> Array:
        """The largest entry of every piece, -1 for pieces of none; entries below -1 raise :class:`PlanError`."""
        values = np.append(self.table, -1).astype(np.int64)
        result = np.full(len(begins), -1, np.int64)
        some = np.flatnonzero(counts > 0)
        if not some.size:
            return result
        pieces, inverse = np.unique(np.stack([begins[some], counts[some]], axis=1), axis=0, return_inverse=True)
        edges = np.stack([pieces[:, 0], pieces[:, 0] + pieces[:, 1]], axis=1).reshape(-1)
        lowest = np.minimum.reduceat(values, edges)[::2]
        if lowest.min() < -1:
            job = int(some[np.flatnonzero(lowest[inverse.reshape(-1)] < -1)[0]])
            raise PlanError(f"{self.operator}, job {job}: an entry of {self.name!r} is {lowest.min()}, below -1")
        result[some] = np.maximum.reduceat(values, edges)[::2][inverse.reshape(-1)]
        return result

    def padding(self, begins: Array, counts: Array, padded: Array, value: float) -> None:
        """What stands between the end of a piece and that of its padding has one value."""
        for job in np.unique(np.stack([begins, counts, padded], axis=1), axis=0, return_index=True)[1].tolist():
            own = self.table[begins[job] + counts[job] : begins[job] + padded[job]]
            if np.any(own != value):
                raise PlanError(
                    f"{self.operator}, job {job}: behind its piece of {self.name!r} stands {own[own != value][0]}, "
                    f"expected {value}"
                )


def all_entries(table: Array, begins: Array, counts: Array) -> tuple[Array, Array]:
    """The entries of all pieces, one after the other, and the job of each."""
    job = np.repeat(np.arange(len(begins)), counts)
    first = np.cumsum(counts) - counts
    place = np.repeat(begins.astype(np.int64) - first, counts) + np.arange(int(counts.sum()))
    return table[place], job


def rounded(counts: Array, granule: Array) -> Array:
    """Counts rounded up to whole granules."""
    return -(-counts // granule) * granule


def check_zero(operator: str, jobs: Array, columns: slice) -> None:
    """Reserved columns are 0."""
    wrong = np.argwhere(jobs[:, columns] != 0)
    if len(wrong):
        raise PlanError(f"{operator}, job {wrong[0][0]}: a reserved column is not 0")


def check_range(operator: str, word: str, values: Array, limit: int) -> None:
    """Values from 0 to below a limit, one a job."""
    wrong = np.flatnonzero((values < 0) | (values >= limit))
    if wrong.size:
        job = int(wrong[0])
        raise PlanError(f"{operator}, job {job}: {word} {values[job]} does not exist, there are {limit}")


def check_written_once(operator: str, what: str, written: Array, count: int) -> None:
    """Every number below ``count`` is written exactly once."""
    beyond = written[(written < 0) | (written >= count)]
    if beyond.size:
        raise PlanError(f"{operator}: {what} {beyond[0]} is written, but there are {count}")
    times = np.bincount(written, minlength=count)
    wrong = np.flatnonzero(times != 1)
    if wrong.size:
        raise PlanError(f"{operator}: {what} {wrong[0]} is written {times[wrong[0]]} times, expected once")
