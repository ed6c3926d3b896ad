"""Run an entry's kernels on a device with random operands and judge the results by the numeric rule."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxopt.kernels.launch import MERGE_WARPS, parameter_names
from onnxopt.measure.job.content import Code, Entry, Job
from onnxopt.measure.job.device import Device, Launch
from onnxopt.verification.kernel_rule import (
    Judgement,
    Operands,
    draw_operands,
    judge_attention,
    judge_merge,
    loaded,
    poisoned_outputs,
    stored,
)
from onnxopt.verification.kernel_sample import sample_jobs

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Loaded:
    """An entry on a device: its launches over one set of operands, and where the results are."""

    launches: tuple[Launch, ...]
    outputs: tuple[tuple[Any, Array], ...]


def check_entry(job: Job, entry: Entry, device: Device, seed: int, pairs: int) -> list[Judgement]:
    """Judge every output of an entry.

    On a GPU the whole launch runs; of large ones the reference computes a telling sample of jobs, with about ``pairs``
    scores, and only what these write is judged.
    """
    tables = job.tables(entry)
    emulated = device.architecture == "emulated"
    sample = sample_jobs(entry.kernel, tables, pairs)
    part = {**tables, "jobs": np.ascontiguousarray(tables["jobs"][sample])}
    operands = draw_operands(entry.kernel, entry.batch, seed)
    # A CPU computes the sample only; a GPU everything, so that every block is seen to end without a fault.
    load = load_entry(job, entry, device, part if emulated else tables, operands)
    device.run(load.launches[:1])
    element = "fp32" if entry.kernel["split"] else entry.kernel["element"]
    kept = load.outputs[:2] if entry.kernel["split"] else load.outputs[:1]
    found = [loaded(element, device.download(handle, like)) for handle, like in kept]
    if not emulated:
        found = [_only_written(entry, tables, part, values) for values in found]
    judgements = judge_attention(entry.kernel, part, operands, found)
    if entry.merge is not None and (not emulated or len(sample) == len(tables["jobs"])):
        device.run(load.launches[1:])
        handle, like = load.outputs[-1]
        merged = loaded(entry.kernel["element"], device.download(handle, like))
        partial = found[0].reshape(entry.batch, entry.kernel["slots"], entry.kernel["value_width"])
        judgements.append(judge_merge(merge_kernel(entry), tables, partial, found[1], merged))
    return judgements


def merge_kernel(entry: Entry) -> Mapping[str, Any]:
    """The configuration of the merging kernel of an entry that has one."""
    assert entry.merge_kernel is not None
    return entry.merge_kernel


def load_entry(job: Job, entry: Entry, device: Device, tables: Mapping[str, Array], operands: Operands) -> Loaded:
    """Upload tables, operands and poisoned outputs; one launch, or two where key lists are split."""
    kernel, batch = entry.kernel, entry.batch
    given: dict[str, Any] = {name: device.upload(table) for name, table in tables.items() if name != "merges"}
    for name in ("q", "k", "v"):
        given[name] = device.upload(stored(kernel["element"], getattr(operands, name)))
    if operands.weight is not None:
        given["weight"] = device.upload(operands.weight)
    given["batch"] = np.int32(batch)
    outputs = poisoned_outputs(kernel, batch)
    handles = {name: device.upload(array, output=True) for name, array in outputs.items()}
    code = job.code(entry.attention, device.architecture)
    arguments = tuple((given | handles)[name] for name in parameter_names(kernel))
    launches = [_launch(entry.attention, code, len(tables["jobs"]) * batch, arguments)]
    results = [(handles[name], array) for name, array in outputs.items()]
    if entry.merge is not None:
        merge = merge_kernel(entry)
        y = stored(merge["element"], np.full((batch, merge["y"][0]), np.nan, np.float32))
        handle = device.upload(y, output=True)
        lines = tables["merges"]
        arguments = (handles["partial"], handles["lse"], device.upload(lines), np.int32(batch), handle)
        grid = -(-len(lines) * batch // MERGE_WARPS)
        launches.append(_launch(entry.merge, job.code(entry.merge, device.architecture), grid, arguments))
        results.append((handle, y))
    return Loaded(tuple(launches), tuple(results))


def _launch(code: Code, binary: bytes, grid: int, arguments: tuple[Any, ...]) -> Launch:
    return Launch(binary, code.entry, grid, code.block, code.shared_bytes, arguments)


def _only_written(entry: Entry, tables: Mapping[str, Array], part: Mapping[str, Array], values: Array) -> Array:
    """The results with poison wherever no job of the sample writes: the others are compared by nobody."""
    kernel = entry.kernel
    if len(part["jobs"]) == len(tables["jobs"]):
        return values
    per_vector = values.shape[1] == kernel["slots"] if kernel["split"] else False
    places = written_places(kernel, part, per_vector)
    result = np.full_like(values, np.nan)
    result[:, places] = values[:, places]
    return result


def written_places(kernel: Mapping[str, Any], tables: Mapping[str, Array], per_vector: bool) -> Array:
    """Elements of one batch element that the jobs write; numbers of vectors where ``per_vector``."""
    vectors = []
    for line in tables["jobs"].tolist():
        own = tables["results"][line[2] : line[2] + line[3]].astype(np.int64)
        vectors.append(own[own >= 0] + line[11])
        if line[13]:
            vectors.append(tables["extras"][line[12] : line[12] + line[13], 1].astype(np.int64))
    begins = np.concatenate(vectors)
    if per_vector:
        return begins
    channels = np.arange(kernel["value_width"])
    if kernel["split"]:
        return np.ravel(begins[:, None] * kernel["value_width"] + channels)
    return np.ravel(begins[:, None] + channels * kernel["y"][1])
