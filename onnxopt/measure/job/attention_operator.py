"""Attention in a job: one kernel, or two where key lists are split."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from onnxopt.kernels.launch import MERGE_WARPS, parameter_names
from onnxopt.measure.job.content import Entry, Job
from onnxopt.measure.job.device import Device
from onnxopt.measure.job.operator import (
    Array,
    Kernel,
    Loaded,
    Output,
    Tables,
    launch_of,
    poisoned,
    second_kernel,
    where_written,
)
from onnxopt.verification.kernel_rule import (
    Judgement,
    Operands,
    draw_operands,
    judge_attention,
    judge_merge,
    poisoned_outputs,
    stored,
)
from onnxopt.verification.kernel_sample import sample_jobs


class AttentionOperator:
    """SparseAttention, with MergeAttention behind it where ``split``."""

    def sample(self, kernel: Kernel, tables: Tables, work: int) -> Array:
        return sample_jobs(kernel, tables, work)

    def draw(self, kernel: Kernel, batch: int, seed: int) -> Operands:
        return draw_operands(kernel, batch, seed)

    def load(self, job: Job, entry: Entry, device: Device, tables: Tables, operands: Operands) -> Loaded:
        kernel, batch, element = entry.kernel, entry.batch, entry.kernel["element"]
        given: dict[str, Any] = {name: device.upload(_held(element, name, table)) for name, table in tables.items()}
        for name in ("q", "k", "v"):
            given[name] = device.upload(stored(element, getattr(operands, name)))
        if operands.weight is not None:
            given["weight"] = device.upload(operands.weight)
        given["batch"] = np.int32(batch)
        kept = "fp32" if kernel["split"] else element
        outputs = {name: poisoned(like, device, kept) for name, like in poisoned_outputs(kernel, batch).items()}
        given |= {name: output.handle for name, output in outputs.items()}
        arguments = tuple(given[name] for name in parameter_names(kernel))
        launches = [launch_of(job, entry.first, device, len(tables["jobs"]) * batch, arguments)]
        merged: Output | None = None
        if entry.second is not None:
            merge = second_kernel(entry)
            y = stored(merge["element"], np.full((batch, merge["y"][0]), np.nan, np.float32))
            merged = poisoned(y, device, merge["element"])
            arguments = (*(given[name] for name in ("partial", "lse", "merges", "batch")), merged.handle)
            grid = -(-len(tables["merges"]) * batch // MERGE_WARPS)
            launches.append(launch_of(job, entry.second, device, grid, arguments))
        return Loaded(tuple(launches), tuple(outputs.values()), merged)

    def only_written(self, kernel: Kernel, tables: Tables, found: Sequence[Array]) -> list[Array]:
        return [where_written(values, _written(kernel, tables, values.shape)) for values in found]

    def judge(self, kernel: Kernel, tables: Tables, operands: Operands, found: Sequence[Array]) -> list[Judgement]:
        return judge_attention(kernel, tables, operands, found)

    def judge_second(
        self, entry: Entry, tables: Tables, operands: Operands, parts: Sequence[Array], y: Array
    ) -> Judgement:
        partial = parts[0].reshape(entry.batch, entry.kernel["slots"], entry.kernel["value_width"])
        return judge_merge(second_kernel(entry), tables, partial, parts[1], y)

    def moved_bytes(self, kernel: Kernel) -> int:
        size = 2 if kernel["element"] in ("fp16", "bf16") else 4
        return size * sum(int(kernel[name][0]) for name in ("q", "k", "v", "y"))


def _held(element: str, name: str, table: Array) -> Array:
    """A table as the kernel reads it; biases of bf16 travel as float32."""
    return stored(element, np.asarray(table, np.float32)) if name == "biases" else table


def _written(kernel: Kernel, tables: Tables, shape: tuple[int, ...]) -> Array:
    """Which elements of an output the jobs write, batch x elements."""
    per_vector = bool(kernel["split"]) and shape[1] == kernel["slots"]
    written = np.zeros(shape, bool)
    written[:, written_places(kernel, tables, per_vector)] = True
    return written


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
