"""Whether the tables of a block of convolutions address only what exists, as ``docs/tables.md`` says."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any

import numpy as np

from onnxopt.validate.failure import PlanError
from onnxopt.validate.launch import Array, Pieces, check_present, check_zero, rounded

_NAME = "ConvBlock"
_COLUMNS = 8
_OUTPUT_GRANULE, _INPUT_GRANULE = 8, 16


def validate_block_launch(kernel: Mapping[str, Any], tables: Mapping[str, Array]) -> None:
    """Prove that every piece lies in its table, that channels, rows and slots exist, that every slot that is read has
    been written or is 0, and that every element of the output is written once.

    ``kernel`` is that part of the configuration, ``tables`` are all inputs behind x. Raises :class:`PlanError`.
    """
    wanted = {
        "w": (True, "float"),
        "b": (True, "float32"),
        **dict.fromkeys(("jobs", "parts", "outputs", "inputs"), (True, "int32")),
        **dict.fromkeys(("input_scales", "input_shifts"), (bool(kernel["prologue"]), "float32")),
    }
    check_present(_NAME, tables, wanted)
    for name in ("jobs", "parts"):
        if tables[name].ndim != 2 or tables[name].shape[1] != _COLUMNS:
            raise PlanError(f"{_NAME}: {name} have the shape {tables[name].shape}, expected ({name}, {_COLUMNS})")
    for table, other in (("b", "outputs"), ("input_scales", "inputs"), ("input_shifts", "inputs")):
        if table in tables and len(tables[table]) != len(tables[other]):
            raise PlanError(f"{_NAME}: {table!r} has {len(tables[table])} entries, {other!r} {len(tables[other])}")
    check_zero(_NAME, tables["jobs"], np.s_[6:])
    check_zero(_NAME, tables["parts"], np.s_[5:])
    stage_of = _check_jobs(kernel, tables)
    for number in range(len(kernel["stages"])):
        _check_parts(kernel, tables, number, np.flatnonzero(stage_of == number))
    begins = {tuple(job[2:6]) for job in tables["jobs"].tolist()}
    for begin, *counts in sorted(begins):
        _check_slots(kernel, tables, begin, counts)
    _check_written(kernel, tables)


def _check_jobs(kernel: Mapping[str, Any], tables: Mapping[str, Array]) -> Array:
    """The stage of every line of parts; jobs have rows and parts that exist."""
    stages, lines = len(kernel["stages"]), len(tables["parts"])
    height = kernel["stages"][-1]["output_size"][0]
    found = np.full(lines, -1)
    for number, job in enumerate(tables["jobs"].tolist()):
        row, rows, begin, counts = job[0], job[1], job[2], job[3:6]
        if not 1 <= rows <= kernel["rows"] or row < 0 or row + rows > height:
            raise PlanError(
                f"{_NAME}, job {number}: {rows} rows from {row} on; allowed: 1 to {kernel['rows']} of {height}"
            )
        if min(counts[:stages]) < 1 or any(counts[stages:]):
            raise PlanError(f"{_NAME}, job {number}: {counts} parts; expected some in each of {stages} stages alone")
        if begin < 0 or begin + sum(counts) > lines or sum(counts) > kernel["parts"]:
            raise PlanError(
                f"{_NAME}, job {number}: {sum(counts)} parts from {begin} on; there are {lines}, of which a job has "
                f"{kernel['parts']} at most"
            )
        own = np.repeat(np.arange(3), counts)
        known = found[begin : begin + len(own)]
        if np.any((known >= 0) & (known != own)):
            raise PlanError(f"{_NAME}, job {number}: a part of it is one of another stage elsewhere")
        found[begin : begin + len(own)] = own
    if np.any(found < 0):
        raise PlanError(f"{_NAME}: part {int(np.argmin(found))} is in no job")
    return found


def _check_parts(kernel: Mapping[str, Any], tables: Mapping[str, Array], number: int, lines: Array) -> None:
    """The pieces of one stage's parts."""
    stages, shape = kernel["stages"], kernel["shape"]
    stage, last = stages[number], number == len(stages) - 1
    output_begin, outputs, input_begin, inputs, weight_begin = tables["parts"][lines].astype(np.int64)[:, :5].T
    most = 8 * shape["blocks"] * shape["columns"] if number == 0 else np.iinfo(np.int32).max
    if np.any((outputs < 1) | (outputs > most)) or np.any(inputs < 0):
        raise PlanError(f"{_NAME}, stage {number}: a part of {outputs.max()} outputs; allowed: 1 to {most}")
    high, wide = rounded(outputs, np.array(_OUTPUT_GRANULE)), rounded(inputs, np.array(_INPUT_GRANULE))
    pieces = Pieces(_NAME, "outputs", tables["outputs"], 4)
    pieces.check(output_begin, outputs, high)
    pieces.padding(output_begin, outputs, high, -1)
    Pieces(_NAME, "b", tables["b"], 4).padding(output_begin, outputs, high, 0)
    limit = kernel["output_channels"] if last else stage["slots"] - 8
    if pieces.largest(output_begin, outputs).max(initial=-1) >= limit:
        raise PlanError(f"{_NAME}, stage {number}: an output goes beyond the {limit} places that there are")
    taps = prod(stage["kernel"])
    need = taps * high if stage["path"] == "channelwise" else taps * high * wide
    Pieces(_NAME, "w", tables["w"], 8).check(weight_begin, need, need)
    if number == 0:
        given = Pieces(_NAME, "inputs", tables["inputs"], 4)
        given.check(input_begin, inputs, wide)
        given.padding(input_begin, inputs, wide, -1)
        if given.largest(input_begin, inputs).max(initial=-1) >= kernel["input_channels"]:
            raise PlanError(f"{_NAME}: an input reads a channel beyond the {kernel['input_channels']} of x")
    else:
        reach = high if stage["path"] == "channelwise" else wide
        askew = 8 if stage["path"] == "channelwise" else 16
        slots = stages[number - 1]["slots"] - 8
        if np.any((input_begin < 0) | (input_begin % askew != 0) | (input_begin + reach > slots)):
            raise PlanError(f"{_NAME}, stage {number}: a part reads slots beyond the {slots} that there are, or askew")


def _check_slots(kernel: Mapping[str, Any], tables: Mapping[str, Array], begin: int, counts: list[int]) -> None:
    """Within one job every slot is written once at most, and what stands behind a part's inputs is written by none."""
    stages = kernel["stages"]
    written = np.zeros(0, np.int64)
    for number in range(len(stages)):
        lines = tables["parts"][begin : begin + counts[number]].tolist()
        begin += counts[number]
        if number:
            for line in lines:
                own = line[1] if stages[number]["path"] == "channelwise" else line[3]
                granule = 8 if stages[number]["path"] == "channelwise" else _INPUT_GRANULE
                behind = np.s_[line[2] + own : line[2] + -(-own // granule) * granule]
                if written[behind].any():
                    raise PlanError(f"{_NAME}, stage {number}: slots behind the inputs of a part hold something")
        if number == len(stages) - 1:
            return
        written = np.zeros(stages[number]["slots"], np.int64)
        for line in lines:
            places = tables["outputs"][line[0] : line[0] + line[1]]
            if stages[number]["path"] == "channelwise" and (
                places[0] % 8 or not np.array_equal(places, places[0] + np.arange(len(places)))
            ):
                raise PlanError(f"{_NAME}, stage {number}: the slots of a channelwise part do not ascend one by one")
            np.add.at(written, places[places >= 0], 1)
        if written.max() > 1:
            raise PlanError(f"{_NAME}, stage {number}: slot {int(written.argmax())} is written {written.max()} times")


def _check_written(kernel: Mapping[str, Any], tables: Mapping[str, Array]) -> None:
    height = kernel["stages"][-1]["output_size"][0]
    steps = np.zeros((kernel["output_channels"], height + 1), np.int64)
    for job in tables["jobs"].tolist():
        begin = job[2] + sum(job[3 : 2 + len(kernel["stages"])])
        for line in tables["parts"][begin : begin + job[2 + len(kernel["stages"])]].tolist():
            places = tables["outputs"][line[0] : line[0] + line[1]]
            np.add.at(steps, (places[places >= 0], job[0]), 1)
            np.add.at(steps, (places[places >= 0], job[0] + job[1]), -1)
    times = np.cumsum(steps, axis=1)[:, :-1]
    wrong = np.argwhere(times != 1)
    if len(wrong):
        channel, row = wrong[0]
        raise PlanError(
            f"{_NAME}: row {row} of channel {channel} is written {times[channel, row]} times, expected once"
        )
