"""Kernels of blocks of convolutions, judged without a GPU: their own PTX run on the CPU and compared with float64.

What this shows is called emulated, as in :mod:`onnxopt.verification.kernels`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxopt.kernels.block_source import conv_block_launch, conv_block_parameters
from onnxopt.kernels.compilation import CompiledKernel
from onnxopt.validate.reference_block import conv_block_output
from onnxopt.verification.conv_rule import ConvOperands, weight_values
from onnxopt.verification.kernel_rule import Judgement, judged, loaded, rounded_to, stored
from onnxopt.verification.kernels import ORDERS, KernelCheck
from onnxopt.verification.lane_orders import among_others, judged_runs

Array = npt.NDArray[Any]

PRODUCTS = 4_000_000
_PART_BEGIN, _STAGE_COLUMNS = 2, 3


def check_conv_block(
    compiled: CompiledKernel,
    kernel: Mapping[str, Any],
    tables: Mapping[str, Array],
    *,
    batch: int = 2,
    seed: int = 0,
    products: int = PRODUCTS,
    orders: Sequence[int] = ORDERS,
    cache: Path | None = None,
) -> KernelCheck:
    """Run a block's PTX on the CPU over a telling sample of its jobs, in several orders of lanes.

    ``products`` limits the multiply-adds that the sample computes for each batch element. Raises
    :class:`onnxopt.OnnxOptError` with the PTX's line where the kernel reads or writes what it must not, diverges or
    does not end.
    """
    part = {**tables, "jobs": np.ascontiguousarray(tables["jobs"][sample_block_jobs(kernel, tables, products)])}
    operands = draw_block_operands(kernel, batch, seed)
    element = kernel["element"]
    given: dict[str, Any] = {name: np.ascontiguousarray(table) for name, table in part.items()}
    given |= {"w": stored(element, weight_values(kernel, part["w"])), "x": stored(element, operands.data)}
    if operands.residual is not None:
        given["residual"] = stored(element, operands.residual)
    given["batch"] = batch
    launch = conv_block_launch(kernel, len(part["jobs"]), batch, compiled.report)
    expected, plain = expected_block(kernel, part, operands)
    judgements = judged_runs(
        compiled,
        launch,
        among_others(conv_block_parameters(kernel), tables, compiled.source),
        given,
        lambda: stored(element, np.full((batch, prod(expected[0].shape[1:])), np.nan, np.float32)),
        lambda found: judge_block(expected, plain, loaded(element, found.array)),
        orders,
        cache,
    )
    return KernelCheck(compiled.architecture, len(part["jobs"]), batch, tuple(orders), judgements)


def draw_block_operands(kernel: Mapping[str, Any], batch: int, seed: int) -> ConvOperands:
    """Normal x and residual as the configuration's ``kernel`` describes them."""
    rng, stages = np.random.default_rng(seed), kernel["stages"]

    def drawn(elements: int) -> Array:
        return rounded_to(kernel["element"], rng.standard_normal((batch, elements), dtype=np.float32))

    x = drawn(kernel["input_channels"] * prod(stages[0]["input_size"]))
    residual = drawn(kernel["output_channels"] * prod(stages[-1]["output_size"])) if kernel["residual"] else None
    return ConvOperands(x, residual)


def expected_block(
    kernel: Mapping[str, Any], tables: Mapping[str, Array], operands: ConvOperands
) -> tuple[tuple[Array, Array], Array]:
    """What the lines of ``jobs`` write in float64 and where, and the same by a plain implementation.

    The plain one has sums in float32, and its inputs, what lies between stages and its results in the compute type, as
    single kernels would.
    """
    element = kernel["element"]
    given = {**tables, "w": weight_values(kernel, tables["w"])}
    exact = conv_block_output(kernel, given, operands.data, operands.residual)
    plain = conv_block_output(
        kernel, given, operands.data, operands.residual, np.float32, lambda values: rounded_to(element, values)
    )
    return (exact.values, exact.written == 1), rounded_to(element, plain.values)


def judge_block(expected: tuple[Array, Array], plain: Array, found: Array) -> Judgement:
    """The judgement of ``y``; it must be NaN still where no job writes."""
    exact, written = expected
    values = np.asarray(found).reshape(exact.shape)
    judgement = judged(exact[written], plain[written], values[written])
    stray = np.argwhere(~written & ~np.isnan(values))
    if not len(stray) or not judgement.passed:
        return judgement
    place = tuple(int(i) for i in stray[0])
    return replace(judgement, problem=f"element {place} was written, which no job of the launch should do")


def sample_block_jobs(kernel: Mapping[str, Any], tables: Mapping[str, Array], products: int) -> Array:
    """Numbers of jobs, ascending: the cheapest of every kind, as many as ``products`` multiply-adds allow.

    Jobs are of one kind if they have as many rows, the same borders of the image, and parts of the same sizes. There
    is at least one job, whatever that takes.
    """
    height = kernel["stages"][-1]["output_size"][0]
    found: dict[tuple[Any, ...], tuple[int, int]] = {}
    for number, job in enumerate(tables["jobs"].tolist()):
        counts = tuple(job[_STAGE_COLUMNS : _STAGE_COLUMNS + 3])
        lines = tables["parts"][job[_PART_BEGIN] : job[_PART_BEGIN] + sum(counts)]
        kind = (job[1], job[0] == 0, job[0] + job[1] == height, counts, lines[:, [1, 3]].tobytes())
        found.setdefault(kind, (_products(kernel, job, lines), number))
    chosen: list[int] = []
    spent = 0
    for cost, number in sorted(found.values()):
        if not chosen or spent + cost <= products:
            chosen.append(number)
            spent += cost
    return np.array(sorted(chosen))


def _products(kernel: Mapping[str, Any], job: list[int], lines: Array) -> int:
    """Multiply-adds of a job."""
    rows, total, end = job[1], 0, len(lines)
    for number in range(len(kernel["stages"]) - 1, -1, -1):
        stage, count = kernel["stages"][number], job[_STAGE_COLUMNS + number]
        own = lines[end - count : end].astype(np.int64)
        inputs = 1 if stage["path"] == "channelwise" else own[:, 3]
        total += rows * stage["output_size"][1] * prod(stage["kernel"]) * int((own[:, 1] * inputs).sum())
        end -= count
        rows = (rows - 1) * stage["strides"][0] + (stage["kernel"][0] - 1) * stage["dilations"][0] + 1
    return total
