"""One step of a convolution algorithm judged without a GPU: its PTX is run on the CPU on its own tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxopt.emulate import Uninitialised
from onnxopt.kernels.algorithm_launch import algorithm_arguments, algorithm_jobs, algorithm_launch, algorithm_parameters
from onnxopt.kernels.compilation import CompiledKernel
from onnxopt.plan.roofline import ELEMENT_BYTES
from onnxopt.verification.algorithm_rule import judge_step
from onnxopt.verification.kernel_rule import Judgement, loaded, rounded_to, stored
from onnxopt.verification.kernels import ORDERS, KernelCheck
from onnxopt.verification.lane_orders import among_others, judged_runs

Array = npt.NDArray[Any]

PRODUCTS = 20_000_000
"""Multiply-adds that the blocks of one run compute together, about."""

_MOVED_COST = 64
"""Multiply-adds that cost as much as moving an element by itself."""


def check_step(
    compiled: CompiledKernel,
    operator: str,
    kernel: Mapping[str, Any],
    tables: Mapping[str, Array],
    *,
    batch: int = 2,
    seed: int = 0,
    products: int = PRODUCTS,
    orders: Sequence[int] = ORDERS,
    cache: Path | None = None,
) -> KernelCheck:
    """Run a step's PTX on the CPU on random tensors and its own tables, in several orders of lanes.

    Of a step that computes more than ``products`` the first blocks are run, and what they write is judged. Raises
    :class:`onnxopt.OnnxOptError` with the PTX's line where the kernel reads or writes what it must not, diverges or
    does not end.
    """
    launch = algorithm_launch(operator, kernel, batch, compiled.report)
    jobs = min(algorithm_jobs(operator, kernel), max(1, products // (batch * _job_products(operator, kernel))))
    parameters = algorithm_parameters(operator, kernel)
    *names, made = (name for name in parameters if name != "batch")
    inputs, given = _drawn(operator, kernel, tables, names, batch, seed)
    output_type = "float32" if made in ("products", "partial") else kernel["element"]
    kept = "fp32" if output_type == "float32" else output_type
    count = step_elements(operator, kernel)[1]
    whole = jobs * batch == launch.grid

    def output() -> Array:
        return stored(kept, np.full((batch, count), np.nan, np.float32))

    def judge(found: Uninitialised) -> Judgement:
        times = np.asarray(found.writes).reshape(batch * count, -1)
        written = None if whole else times.max(axis=1) > 0
        judgement = judge_step(operator, kernel, inputs, output_type, loaded(kept, found.array), written)
        return _written_once(judgement, times, whole)

    # What the launcher would refuse is refused here too.
    algorithm_arguments(operator, kernel, {**given, made: output()}, batch)
    part = replace(launch, grid=jobs * batch)
    own = among_others(parameters, tables, compiled.source)
    judgements = judged_runs(compiled, part, own, {**given, "batch": batch}, output, judge, orders, cache)
    return KernelCheck(compiled.architecture, jobs, batch, tuple(orders), judgements)


def step_elements(operator: str, kernel: Mapping[str, Any]) -> tuple[int, int]:
    """Elements that a step reads of tensors, the residual apart, and that it makes, for one batch element."""
    if operator == "ConvProduct":
        matrices = kernel["matrices"]
        return matrices * kernel["depth"] * kernel["pitch"], matrices * kernel["rows"] * kernel["positions"]
    inputs, outputs, taps = kernel["input_channels"], kernel["output_channels"], prod(kernel["kernel"])
    x, y = inputs * prod(kernel["input_size"]), outputs * prod(kernel["output_size"])
    if operator == "ConvUnfold":
        return x, inputs * taps * kernel["pitch"]
    if operator == "ConvShiftAdd":
        return taps * outputs * prod(kernel["input_size"]), y
    if operator == "WinogradInput":
        return x, (kernel["tile"] + 2) ** 2 * inputs * kernel["pitch"]
    if operator == "WinogradOutput":
        tiles = prod(-(-n // kernel["tile"]) for n in kernel["output_size"][1:])
        return (kernel["tile"] + 2) ** 2 * outputs * tiles, y
    return x, y * kernel["slices"] if kernel.get("raw") else y


def _job_products(operator: str, kernel: Mapping[str, Any]) -> int:
    """What a block computes for one batch element, about."""
    if operator == "ConvProduct":
        return int(kernel["block_rows"] * kernel["block_positions"] * kernel["depth"])
    reads = kernel["input_channels"] * prod(kernel["kernel"])
    if operator == "ConvScalar":
        return int(kernel["threads"] * kernel["own_positions"] * reads)
    if operator in ("ConvDirect", "ConvSlices"):
        positions = 32 * kernel["own_positions"] * kernel["position_warps"]
        return int(kernel["block_outputs"] * positions * max(1, reads // kernel.get("slices", 1)))
    each = prod(kernel["kernel"]) if operator == "ConvShiftAdd" else (kernel.get("tile", 0) + 2) ** 2
    values = 16 // ELEMENT_BYTES[kernel["element"]] if operator == "ConvUnfold" else each
    return int(kernel["threads"] * values * _MOVED_COST)


def _drawn(
    operator: str, kernel: Mapping[str, Any], tables: Mapping[str, Array], names: Sequence[str], batch: int, seed: int
) -> tuple[dict[str, Array], dict[str, Array]]:
    """The inputs by the names of their parameters, as float32 for the reference, and as the kernel reads them."""
    rng = np.random.default_rng(seed)
    element = kernel["element"]
    kept = "fp32" if element == "tf32" else element
    read, made = step_elements(operator, kernel)
    inputs: dict[str, Array] = {}
    given: dict[str, Array] = {}
    for name in names:
        if name in tables:
            inputs[name] = tables[name].astype(np.float32)
            given[name] = inputs[name] if name == "b" else stored(element, inputs[name])
            continue
        own = "fp32" if name == "products" else kept
        count = made if name == "residual" else read
        inputs[name] = rounded_to(own, rng.standard_normal((batch, count), dtype=np.float32))
        given[name] = stored(own, inputs[name])
    return inputs, given


def _written_once(judgement: Judgement, times: Array, whole: bool) -> Judgement:
    """Elements are written once, byte by byte; all of them where all blocks were run."""
    wrong = np.flatnonzero(np.any(times != 1, axis=1) if whole else times.max(axis=1) > 1)
    if not len(wrong) or not judgement.passed:
        return judgement
    problem = f"element {int(wrong[0])} was written {int(times[wrong[0]].max())} times, expected once"
    return replace(judgement, problem=problem)
