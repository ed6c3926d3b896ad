"""Whether the tables of a convolution address only what exists, as ``docs/tables.md`` says."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any

import numpy as np

from onnxopt.validate.failure import PlanError
from onnxopt.validate.launch import Array, Pieces, check_present, check_range, check_zero, rounded

_COLUMNS = 12
# Where a job has its outputs and its extras.
_CHANNELS = [1, 2, 8, 9]


def validate_conv_launch(
    kernel: Mapping[str, Any],
    tables: Mapping[str, Array],
    summed: tuple[Mapping[str, Any], Mapping[str, Array]] | None = None,
) -> None:
    """Prove that every job's pieces lie in their tables, that channels and positions exist, and that every element of
    the output is written once.

    ``kernel`` is that part of the configuration, ``tables`` are all inputs behind x; ``summed`` is the same pair of
    the second operator where there is one. Raises :class:`PlanError`.
    """
    name = "GroupConv"
    wanted = {
        "w": (True, "float"),
        "b": (not kernel["split"], "float32"),
        "jobs": (True, "int32"),
        "outputs": (True, "int32"),
        "inputs": (True, "int32"),
        "input_scales": (kernel["prologue"], "float32"),
        "input_shifts": (kernel["prologue"], "float32"),
        "extras": (kernel["extras"], "int32"),
    }
    check_present(name, tables, wanted)
    jobs = tables["jobs"]
    if jobs.ndim != 2 or jobs.shape[1] != _COLUMNS:
        raise PlanError(f"{name}: jobs have the shape {jobs.shape}, expected (jobs, {_COLUMNS})")
    check_range(name, "variant", jobs[:, 0], len(kernel["variants"]))
    check_zero(name, jobs, np.s_[10:])
    _check_pieces(name, kernel, tables)
    _check_written(name, kernel, tables)
    if kernel["split"] != (summed is not None):
        raise PlanError(f"{name}: a sum belongs to split outputs and to nothing else")
    if summed is not None:
        _check_sum(kernel, *summed)


def _check_pieces(name: str, kernel: Mapping[str, Any], tables: Mapping[str, Array]) -> None:
    jobs = tables["jobs"].astype(np.int64)

    def of(field: str) -> Array:
        return np.array([int(v[field]) for v in kernel["variants"]], np.int64)[jobs[:, 0]]

    _, output_begin, outputs, input_begin, inputs, weight_begin, pixel_begin, pixels = jobs[:, :8].T
    for word, counts, most in (("outputs", outputs, of("outputs")), ("pixels", pixels, of("pixels"))):
        wrong = np.flatnonzero((counts < 1) | (counts > most))
        if wrong.size:
            job = int(wrong[0])
            raise PlanError(f"{name}, job {job}: {counts[job]} {word}, its variant takes 1 to {most[job]}")
    total = kernel["images"] * prod(kernel["output_size"])
    if np.any((pixel_begin < 0) | (pixel_begin + pixels > total)):
        job = int(np.argmax((pixel_begin < 0) | (pixel_begin + pixels > total)))
        raise PlanError(f"{name}, job {job}: {pixels[job]} pixels from {pixel_begin[job]} on, but there are {total}")
    high, wide = rounded(outputs, of("output_granule")), rounded(inputs, of("input_granule"))
    for table, begins, counts, padded, limit in (
        ("outputs", output_begin, outputs, high, kernel["slots"] if kernel["split"] else kernel["output_channels"]),
        ("inputs", input_begin, inputs, wide, kernel["input_channels"]),
    ):
        pieces = Pieces(name, table, tables[table], 4)
        pieces.check(begins, counts, padded)
        pieces.padding(begins, counts, padded, -1)
        largest = pieces.largest(begins, counts)
        if largest.max(initial=-1) >= limit:
            job = int(np.argmax(largest))
            raise PlanError(f"{name}, job {job}: channel {largest[job]} of {table!r}, but there are {limit}")
    parallel = {"b": "outputs", "input_scales": "inputs", "input_shifts": "inputs"}
    for table, other in parallel.items():
        if table in tables and len(tables[table]) != len(tables[other]):
            raise PlanError(f"{name}: {table!r} has {len(tables[table])} entries, {other!r} {len(tables[other])}")
    need = prod(kernel["kernel"]) * high * wide
    Pieces(name, "w", tables["w"], max(1, 16 // tables["w"].dtype.itemsize)).check(weight_begin, need, need)


def _check_written(name: str, kernel: Mapping[str, Any], tables: Mapping[str, Array]) -> None:
    """Every pixel of every channel is written once: the pixels of the jobs that write it follow one another."""
    positions = kernel["images"] * prod(kernel["output_size"])
    channels = kernel["slots"] if kernel["split"] else kernel["output_channels"]
    jobs = tables["jobs"].astype(np.int64)
    lost = np.flatnonzero((jobs[:, 8] < 0) | (jobs[:, 9] < 0) | ((jobs[:, 9] > 0) & ("extras" not in tables)))
    if lost.size:
        number = int(lost[0])
        raise PlanError(f"{name}, job {number}: {jobs[number, 9]} extras from {jobs[number, 8]} on do not exist")
    most = int(((jobs[:, 2] + jobs[:, 9]) * jobs[:, 7]).sum())
    if most < channels * positions:
        raise PlanError(f"{name}: all jobs write {most} elements at most, expected {channels * positions}")
    # Jobs that write the same channels are looked at together: there are far fewer parts than jobs.
    _, first, part = np.unique(jobs[:, _CHANNELS], axis=0, return_index=True, return_inverse=True)
    members = np.split(np.argsort(part.reshape(-1), kind="stable"), np.cumsum(np.bincount(part.reshape(-1)))[:-1])
    writers: list[list[int]] = [[] for _ in range(channels)]
    for index in np.argsort(first).tolist():
        for channel in _places(name, tables, int(first[index]), channels).tolist():
            writers[channel].append(index)
    known: dict[tuple[int, ...], tuple[int, int] | None] = {}
    for channel, parts in enumerate(map(tuple, writers)):
        if parts not in known:
            own = np.concatenate([np.empty(0, np.int64), *(members[index] for index in parts)])
            known[parts] = _not_once(jobs[own, 6], jobs[own, 7], positions)
        wrong = known[parts]
        if wrong is not None:
            raise PlanError(f"{name}: pixel {wrong[0]} of channel {channel} is written {wrong[1]} times, expected once")


def _not_once(begins: Array, counts: Array, positions: int) -> tuple[int, int] | None:
    """The first position that intervals do not cover once, and how often they do; None where there is none."""
    order = np.argsort(begins, kind="stable")
    starts, ends = begins[order], (begins + counts)[order]
    if len(starts) and starts[0] == 0 and ends[-1] == positions and np.array_equal(starts[1:], ends[:-1]):
        return None
    steps = np.zeros(positions + 1, np.int64)
    np.add.at(steps, begins, 1)
    np.add.at(steps, begins + counts, -1)
    times = np.cumsum(steps)[:-1]
    pixel = int(np.argmax(times != 1))
    return pixel, int(times[pixel])


def _places(name: str, tables: Mapping[str, Array], number: int, channels: int) -> Array:
    """The channels that a job writes, one as often as it is written."""
    job = tables["jobs"][number].tolist()
    own = tables["outputs"][job[1] : job[1] + job[2]]
    places = own[own >= 0]
    if job[9]:
        lines = tables["extras"][job[8] : job[8] + job[9]]
        outside = (lines[:, 0] < 0) | (lines[:, 0] >= job[2]) | (lines[:, 1] < 0) | (lines[:, 1] >= channels)
        if job[8] < 0 or len(lines) < job[9] or np.any(outside):
            raise PlanError(f"{name}, job {number}: an extra names an output or channel that does not exist")
        places = np.concatenate([places, lines[:, 1]])
    return np.asarray(places)


def _check_sum(kernel: Mapping[str, Any], summed: Mapping[str, Any], tables: Mapping[str, Array]) -> None:
    name = "SumConv"
    check_present(name, tables, {"b": (True, "float32"), "sum_begin": (True, "int32"), "sum_rows": (True, "int32")})
    begins, rows, channels = tables["sum_begin"], tables["sum_rows"], summed["output_channels"]
    if summed["slots"] != kernel["slots"]:
        raise PlanError(f"{name}: {summed['slots']} partial rows, but the first operator makes {kernel['slots']}")
    if len(begins) != channels + 1 or len(tables["b"]) != channels:
        raise PlanError(f"{name}: {len(begins)} beginnings and {len(tables['b'])} biases for {channels} channels")
    if begins[0] != 0 or np.any(np.diff(begins) < 0) or begins[-1] > len(rows):
        raise PlanError(f"{name}: the beginnings do not ascend from 0 to at most {len(rows)}")
    wrong = np.flatnonzero((rows < 0) | (rows >= summed["slots"]))
    if wrong.size:
        raise PlanError(f"{name}: partial row {rows[wrong[0]]} does not exist, there are {summed['slots']}")
    lost = np.setdiff1d(np.arange(summed["slots"]), rows[: begins[-1]])
    if lost.size:
        raise PlanError(f"{name}: partial row {lost[0]} is in no channel")
