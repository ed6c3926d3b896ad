"""Convolution kernels judged without a GPU: their own PTX is run on the CPU and compared with float64.

What this shows is called emulated, as in :mod:`onnxopt.verification.kernels`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxopt.kernels.compilation import CompiledKernel
from onnxopt.kernels.conv_launch import (
    group_conv_launch,
    group_conv_parameters,
    sum_conv_launch,
    sum_conv_parameters,
)
from onnxopt.kernels.launch import Launch
from onnxopt.verification.conv_rule import (
    ConvOperands,
    draw_conv_operands,
    draw_sum_operands,
    judge_group_conv,
    judge_sum_conv,
    poisoned_output,
    weight_values,
)
from onnxopt.verification.conv_sample import sample_conv_jobs
from onnxopt.verification.kernel_rule import Judgement, loaded, stored
from onnxopt.verification.kernels import ORDERS, KernelCheck
from onnxopt.verification.lane_orders import among_others, judged_runs

Array = npt.NDArray[Any]

PRODUCTS = 2_000_000


def check_group_conv(
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
    """Run a convolution kernel's PTX on the CPU over a telling sample of its jobs, in several orders of lanes.

    ``products`` limits the multiply-adds that the sample computes for each batch element. Raises
    :class:`onnxopt.OnnxOptError` with the PTX's line where the kernel reads or writes what it must not, diverges or
    does not end.
    """
    part = {**tables, "jobs": np.ascontiguousarray(tables["jobs"][sample_conv_jobs(kernel, tables, products)])}
    operands = draw_conv_operands(kernel, batch, seed)
    element = kernel["element"]
    given = {name: np.ascontiguousarray(table) for name, table in part.items()}
    given |= {"w": stored(element, weight_values(kernel, part["w"])), "x": stored(element, operands.data)}
    launch = group_conv_launch(kernel, len(part["jobs"]), batch, compiled.report)
    judgements = _runs(
        (compiled, launch, among_others(group_conv_parameters(kernel), tables, compiled.source)),
        (kernel, operands, given),
        lambda found: judge_group_conv(kernel, part, operands, found),
        orders,
        cache,
    )
    return KernelCheck(compiled.architecture, len(part["jobs"]), batch, tuple(orders), judgements)


def check_sum_conv(
    compiled: CompiledKernel,
    kernel: Mapping[str, Any],
    tables: Mapping[str, Array],
    *,
    batch: int = 2,
    seed: int = 0,
    orders: Sequence[int] = ORDERS,
    cache: Path | None = None,
) -> KernelCheck:
    """Run a sum kernel's PTX on the CPU on random partial rows; otherwise as :func:`check_group_conv`."""
    operands = draw_sum_operands(kernel, batch, seed)
    given = {name: np.ascontiguousarray(table) for name, table in tables.items()}
    launch = sum_conv_launch(kernel, batch)
    judgements = _runs(
        (compiled, launch, among_others(sum_conv_parameters(kernel), tables, compiled.source)),
        (kernel, operands, {**given, "partial": operands.data}),
        lambda found: judge_sum_conv(kernel, tables, operands, found),
        orders,
        cache,
    )
    return KernelCheck(compiled.architecture, launch.grid, batch, tuple(orders), judgements)


def _runs(
    program: tuple[CompiledKernel, Launch, tuple[str, ...]],
    inputs: tuple[Mapping[str, Any], ConvOperands, Mapping[str, Array]],
    judge: Callable[[Array], Judgement],
    orders: Sequence[int],
    cache: Path | None,
) -> tuple[Judgement, ...]:
    """A judgement of the output for each order of lanes, elements that no thread writes being NaN."""
    compiled, launch, names = program
    kernel, operands, tables = inputs
    batch, element = len(operands.data), kernel["element"]
    given: dict[str, Any] = {**tables, "batch": batch}
    if operands.residual is not None:
        given["residual"] = stored(element, operands.residual)
    kept = "fp32" if names[-1] == "partial" else element
    return judged_runs(
        compiled,
        launch,
        names,
        given,
        lambda: poisoned_output(kernel, batch),
        lambda found: judge(loaded(kept, found.array)),
        orders,
        cache,
    )
