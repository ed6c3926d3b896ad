"""Whether the tables of an attention address only what exists, as ``docs/tables.md`` says; nothing of the site is read.

What they compute is a matter of the reference; this is what keeps a launch from reading or writing elsewhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from onnxopt.validate.failure import PlanError
from onnxopt.validate.launch import (
    Array,
    Pieces,
    all_entries,
    check_present,
    check_range,
    check_written_once,
    check_zero,
    rounded,
)

_COLUMNS = 16


def validate_attention_launch(
    kernel: Mapping[str, Any],
    tables: Mapping[str, Array],
    merge: tuple[Mapping[str, Any], Mapping[str, Array]] | None = None,
) -> None:
    """Prove that every job's pieces lie in their tables, every offset in its tensor, and that every element of the
    output is written once.

    ``kernel`` is that part of the configuration; ``merge`` the same pair of the second operator where key lists are
    split. Raises :class:`PlanError`.
    """
    _Launch(kernel, tables).check()
    if kernel["split"] != (merge is not None):
        raise PlanError("SparseAttention: a merge belongs to split keys and to nothing else")
    if merge is not None:
        _check_merge(kernel, *merge)


class _Launch:
    def __init__(self, kernel: Mapping[str, Any], tables: Mapping[str, Array]) -> None:
        self.kernel, self.tables, self.name = kernel, tables, "SparseAttention"
        tiled, weighed = kernel["masks"] or kernel["biases"], kernel["weights"]
        wanted = {
            "jobs": (True, "int32"),
            "rows": (True, "int32"),
            "results": (True, "int32"),
            "keys": (True, "int32"),
            "values": (kernel["own_values"], "int32"),
            "tiles": (tiled, "int32"),
            "masks": (kernel["masks"], "int32"),
            "biases": (kernel["biases"], "float"),
            "scales": (True, "float32"),
            "extras": (kernel["extras"], "int32"),
            "columns": (weighed, "int32"),
            "diagonals": (weighed, "int32"),
            "epsilons": (weighed, "float32"),
        }
        check_present(self.name, tables, wanted)
        self.jobs = tables["jobs"]
        if self.jobs.ndim != 2 or self.jobs.shape[1] != _COLUMNS:
            raise PlanError(f"{self.name}: jobs have the shape {self.jobs.shape}, expected (jobs, {_COLUMNS})")
        check_range(self.name, "variant", self.jobs[:, 0], len(kernel["variants"]))
        check_range(self.name, "head", self.jobs[:, 1], min(kernel["heads"], len(tables["scales"])))
        check_zero(self.name, self.jobs, np.s_[14:])

    def of(self, field: str) -> Array:
        """A figure of every job's variant."""
        return np.array([int(v[field]) for v in self.kernel["variants"]], np.int64)[self.jobs[:, 0]]

    def check(self) -> None:
        _, _, row_begin, rows, key_begin, keys, value_begin, tile_begin = self.jobs[:, :8].T.astype(np.int64)
        q_shift, k_shift, v_shift, y_shift, extra_begin, extras = self.jobs[:, 8:14].T.astype(np.int64)
        check_range(self.name, "number of rows", rows - 1, int(self.of("rows").max()))
        if np.any(rows > self.of("rows")):
            raise PlanError(f"{self.name}, job {int(np.argmax(rows > self.of('rows')))}: too many rows for its variant")
        tall, wide = rounded(rows, self.of("row_granule")), rounded(keys, self.of("key_granule"))
        kernel, value_table = self.kernel, "values" if self.kernel["own_values"] else "keys"
        width, value_width = kernel["width"], kernel["value_width"]
        self._offsets("rows", row_begin, rows, tall, q_shift, "q", width)
        self._offsets("keys", key_begin, keys, wide, k_shift, "k", width)
        self._offsets(value_table, value_begin, keys, wide, v_shift, "v", value_width)
        if not kernel["own_values"] and np.any(value_begin != key_begin):
            raise PlanError(f"{self.name}: a job's values begin elsewhere than its keys, though they share a table")
        results = Pieces(self.name, "results", self.tables["results"], 4)
        results.check(row_begin, rows, tall)
        results.padding(row_begin, rows, tall, -1)
        results.largest(row_begin, rows)
        self._written(row_begin, rows, y_shift, extra_begin, extras)
        self._check_tiles(tile_begin, rows, keys)
        if kernel["weights"]:
            self._check_weights(row_begin, rows, key_begin, keys)

    def _offsets(
        self, table: str, begins: Array, counts: Array, padded: Array, shifts: Array, tensor: str, width: int
    ) -> None:
        pieces = Pieces(self.name, table, self.tables[table], 4)
        pieces.check(begins, counts, padded)
        pieces.padding(begins, counts, padded, -1)
        largest = pieces.largest(begins, counts)
        elements, stride = self.kernel[tensor]
        last = np.where(largest >= 0, largest + shifts + (width - 1) * stride, 0)
        wrong = np.flatnonzero((last >= elements) | (shifts < 0))
        if wrong.size:
            job = int(wrong[0])
            raise PlanError(
                f"{self.name}, job {job}: element {last[job]} of {tensor!r} is read, but there are {elements}"
            )

    def _written(self, row_begin: Array, rows: Array, shifts: Array, extra_begin: Array, extras: Array) -> None:
        """Every element of the output is written once."""
        places, job = all_entries(self.tables["results"], row_begin, rows)
        live = places >= 0
        written = places[live].astype(np.int64) + shifts[job[live]]
        if self.kernel["extras"]:
            pieces = Pieces(self.name, "extras", self.tables["extras"], 2)
            pieces.check(extra_begin, extras, extras)
            lines, owner = all_entries(self.tables["extras"], extra_begin, extras)
            check_range(self.name, "extra row", np.where(lines[:, 0] < rows[owner], lines[:, 0], -1), 2**31)
            written = np.concatenate([written, lines[:, 1]])
        if self.kernel["split"]:
            check_written_once(self.name, "slot", written, self.kernel["slots"])
        else:
            _check_output(self.name, self.kernel, written)

    def _check_tiles(self, begins: Array, rows: Array, keys: Array) -> None:
        if "tiles" not in self.tables:
            return
        counts = rounded(keys, self.of("keys")) // self.of("keys")
        Pieces(self.name, "tiles", self.tables["tiles"], 2).check(begins, counts, counts)
        lines, job = all_entries(self.tables["tiles"], begins, counts)
        tile = np.arange(len(job)) - np.repeat(np.cumsum(counts) - counts, counts)
        own_keys = np.minimum(self.of("keys")[job], keys[job] - tile * self.of("keys")[job])
        swapped = self.of("swapped")[job] == 1
        tall = np.where(
            swapped,
            rounded(own_keys, self.of("key_granule")[job]),
            rounded(rows[job], self.of("row_granule")[job]),
        )
        wide = np.where(swapped, self.of("rows")[job], self.of("keys")[job])
        for column, name, need in ((0, "masks", tall * -(-wide // 32)), (1, "biases", tall * wide)):
            used = np.flatnonzero(lines[:, column] != -1)
            if not used.size:
                continue
            if name not in self.tables:
                raise PlanError(f"{self.name}, job {job[used[0]]}: a tile has {name}, but there is no such table")
            aligned = max(1, 16 // self.tables[name].dtype.itemsize)
            begin = lines[used, column].astype(np.int64)
            wrong = np.flatnonzero((begin < 0) | (begin % aligned != 0) | (begin + need[used] > len(self.tables[name])))
            if wrong.size:
                at = int(used[wrong[0]])
                raise PlanError(
                    f"{self.name}, job {job[at]}, tile {tile[at]}: {need[at]} entries of {name!r} from "
                    f"{lines[at, column]} on, which has {len(self.tables[name])} (pieces begin at multiples of "
                    f"{aligned})"
                )

    def _check_weights(self, row_begin: Array, rows: Array, key_begin: Array, keys: Array) -> None:
        for table, begins, counts in (("columns", key_begin, keys), ("diagonals", row_begin, rows)):
            pieces = Pieces(self.name, table, self.tables[table], 4)
            pieces.check(begins, counts, counts)
            largest = pieces.largest(begins, counts)
            if largest.max(initial=-1) >= self.kernel["columns"]:
                raise PlanError(
                    f"{self.name}, job {int(np.argmax(largest))}: column {largest.max()} of the run-time weights does "
                    f"not exist, there are {self.kernel['columns']}"
                )
        entries, _ = all_entries(self.tables["columns"], key_begin, keys)
        if np.any(entries < 0):
            raise PlanError(f"{self.name}: a key has no column of the run-time weights")


def _check_output(operator: str, kernel: Mapping[str, Any], written: Array) -> None:
    """Offsets of vectors fill the output exactly: each begins at a whole block of channels, and none is missing."""
    elements, stride = kernel["y"]
    width = kernel["value_width"]
    beyond = written[(written < 0) | (written + (width - 1) * stride >= elements)]
    if beyond.size:
        raise PlanError(f"{operator}: element {beyond[0]} of 'y' begins a result, but there are {elements}")
    block, within = np.divmod(written, stride * width)
    askew = within[within >= stride]
    if askew.size:
        raise PlanError(f"{operator}: a result begins {askew[0]} elements behind a block of {width} channels")
    check_written_once(operator, "vector", block * stride + within, elements // width)


def _check_merge(kernel: Mapping[str, Any], merge: Mapping[str, Any], tables: Mapping[str, Array]) -> None:
    check_present("MergeAttention", tables, {"merges": (True, "int32")})
    for name in ("slots", "value_width"):
        if merge[name] != kernel[name]:
            raise PlanError(f"MergeAttention: {name} {merge[name]}, but the first operator has {kernel[name]}")
    first, count, offset, reserved = tables["merges"].T.astype(np.int64)
    wrong = np.flatnonzero((first < 0) | (count < 0) | (first + count > merge["slots"]) | (reserved != 0))
    if wrong.size:
        line = int(wrong[0])
        raise PlanError(
            f"MergeAttention, line {line}: {count[line]} slots from {first[line]} on, but there are {merge['slots']}"
        )
    _check_output("MergeAttention", merge, offset)
