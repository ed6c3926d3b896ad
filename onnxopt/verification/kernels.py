"""Kernels judged without a GPU: their own PTX is run on the CPU and compared with float64 by the numeric rule.

What this shows is called emulated: the instructions that the compiler made compute what the tables say, in several
orders of threads. It shows neither speed nor what a GPU's memory model would allow.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import gcd
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxopt.emulate import CpuKernel, Uninitialised, build_cpu_kernel
from onnxopt.kernels.compilation import CompiledKernel
from onnxopt.kernels.launch import MERGE_PARAMETERS, MERGE_WARPS, attention_launch, merge_launch, parameter_names
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
from onnxopt.verification.kernel_sample import sample_jobs, sample_merges
from onnxopt.verification.lane_orders import OTHER, among_others, judged_runs, no_table

Array = npt.NDArray[Any]

# Ascending, descending, and shuffled: a missing barrier may show in one of them only.
ORDERS = (0, 1, 2)
# Scores that a sample of jobs computes, and partial results that a sample of merges reads.
PAIRS = 60_000
PIECES = 4_000


@dataclass(frozen=True)
class KernelCheck:
    """What running one kernel on the CPU showed: a judgement for each order of lanes and output."""

    architecture: str
    jobs: int
    batch: int
    orders: tuple[int, ...]
    judgements: tuple[Judgement, ...]

    @property
    def passed(self) -> bool:
        """Whether every output agreed in every order."""
        return all(judgement.passed for judgement in self.judgements)

    def worst(self) -> Judgement:
        """The judgement that is furthest off, as a share of what is allowed."""
        return max(self.judgements, key=Judgement.severity)


def check_attention(
    compiled: CompiledKernel,
    kernel: Mapping[str, Any],
    tables: Mapping[str, Array],
    *,
    batch: int = 2,
    seed: int = 0,
    pairs: int = PAIRS,
    orders: Sequence[int] = ORDERS,
    cache: Path | None = None,
) -> KernelCheck:
    """Run an attention kernel's PTX on the CPU over a telling sample of its jobs, in several orders of lanes.

    ``pairs`` limits the scores that the sample computes. Raises :class:`onnxopt.OnnxOptError` with the PTX's line where
    the kernel reads or writes what it must not, diverges or does not end.
    """
    part = {**tables, "jobs": np.ascontiguousarray(tables["jobs"][sample_jobs(kernel, tables, pairs)])}
    operands = draw_operands(kernel, batch, seed)
    program = build_cpu_kernel(compiled.ptx, compiled.source.entry, cache)
    judgements: list[Judgement] = []
    for order in orders:
        found = _emulated(program, compiled, kernel, part, operands, order)
        judgements += judge_attention(kernel, part, operands, found)
    return KernelCheck(compiled.architecture, len(part["jobs"]), batch, tuple(orders), tuple(judgements))


def _emulated(
    program: CpuKernel,
    compiled: CompiledKernel,
    kernel: Mapping[str, Any],
    tables: Mapping[str, Array],
    operands: Operands,
    order: int,
) -> tuple[Array, ...]:
    """The outputs, batch x elements in float32, of one run; elements that no job writes are NaN."""
    batch, element = len(operands.q), kernel["element"]
    outputs = poisoned_outputs(kernel, batch)
    given: dict[str, Any] = {name: np.ascontiguousarray(table) for name, table in tables.items()}
    given |= {name: stored(element, getattr(operands, name)) for name in ("q", "k", "v")}
    if "biases" in given:
        given["biases"] = stored(element, np.asarray(tables["biases"], np.float32))
    given |= {"weight": operands.weight, OTHER: no_table(), "batch": np.int32(batch)}
    given |= {name: Uninitialised(array) for name, array in outputs.items()}
    launch = attention_launch(kernel, len(tables["jobs"]), batch, compiled.report)
    program.run(
        grid=(launch.grid, 1, 1),
        block=(launch.block, 1, 1),
        shared_bytes=launch.shared_bytes,
        arguments=[given[name] for name in among_others(parameter_names(kernel), tables, compiled.source)],
        order=order,
    )
    return tuple(loaded("fp32" if kernel["split"] else element, array) for array in outputs.values())


def check_merge(
    compiled: CompiledKernel,
    kernel: Mapping[str, Any],
    merges: Array,
    *,
    batch: int = 2,
    seed: int = 0,
    pieces: int = PIECES,
    orders: Sequence[int] = ORDERS,
    cache: Path | None = None,
) -> KernelCheck:
    """Run a merging kernel's PTX on the CPU on random partial results; otherwise as :func:`check_attention`.

    A sample of the lines of ``merges`` is computed, among them the shortest and the longest, and one without slots.
    """
    # Blocks beyond the sample are not launched, so its lines stand in front.
    number = MERGE_WARPS // gcd(batch, MERGE_WARPS)
    chosen = sample_merges(merges, kernel["value_width"], pieces, multiple_of=number)
    others = np.setdiff1d(np.arange(len(merges)), chosen)
    sampled, lines = merges[chosen], np.ascontiguousarray(merges[np.concatenate([chosen, others])])
    rng = np.random.default_rng(seed)
    slots, width = kernel["slots"], kernel["value_width"]
    partial = rng.standard_normal((batch, slots, width), dtype=np.float32)
    lse = rng.standard_normal((batch, slots), dtype=np.float32) * np.float32(4)
    launch = merge_launch(len(sampled), batch)
    element = kernel["element"]
    judgements = judged_runs(
        compiled,
        launch,
        among_others(MERGE_PARAMETERS, ("merges",), compiled.source),
        {"partial": partial, "lse": lse, "merges": lines, "batch": batch},
        lambda: stored(element, np.full((batch, kernel["y"][0]), np.nan, np.float32)),
        lambda found: judge_merge(kernel, {"merges": sampled}, partial, lse, loaded(element, found.array)),
        orders,
        cache,
    )
    return KernelCheck(compiled.architecture, len(sampled), batch, tuple(orders), judgements)
