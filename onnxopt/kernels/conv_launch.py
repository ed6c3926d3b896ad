"""How a compiled convolution kernel is launched: its grid, and its arguments in order, each checked."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any

from onnxopt.kernels.arguments import Launch, Tensor, Wanted, check_report, checked_grid, ordered_arguments
from onnxopt.kernels.conv_source import conv_variants, group_conv_source, sum_conv_source
from onnxopt.kernels.report import ResourceReport

CONV_JOB_COLUMNS = 12
SUM_THREADS = 256
"""Threads of a block of the sum kernel, each with one element of ``y``."""


def group_conv_launch(kernel: Mapping[str, Any], jobs: int, batch: int, report: ResourceReport) -> Launch:
    """One block for every job of every group of ``images`` batch elements; ``report`` is that of the compiled kernel.

    Raises InputError where the grid is empty or too large, or the report is about another number of threads.
    """
    threads = conv_variants(kernel)[0].threads
    check_report(threads, report)
    groups = -(-batch // kernel["images"])
    blocks = checked_grid("GroupConv", {"jobs": jobs, "batch": batch}, jobs * groups)
    return Launch(blocks, threads, report.dynamic_shared)


def sum_conv_launch(kernel: Mapping[str, Any], batch: int) -> Launch:
    """A thread for every element of ``y``. Raises InputError as :func:`group_conv_launch` does."""
    elements = batch * _elements(kernel, "output_channels", "output_size")
    blocks = checked_grid("SumConv", {"batch": batch}, -(-elements // SUM_THREADS))
    return Launch(blocks, SUM_THREADS, 0)


def group_conv_parameters(kernel: Mapping[str, Any]) -> tuple[str, ...]:
    """The parameters of a convolution kernel's entry, in order: its operands, its tables, ``batch``, its output.

    With ``split`` the second operator has bias and residual.
    """
    conditions = {
        "b": not kernel["split"],
        "residual": kernel["residual"] and not kernel["split"],
        "input_scales": kernel["prologue"],
        "input_shifts": kernel["prologue"],
        "extras": kernel["extras"],
    }
    inputs = ("x", "residual", "w", "b", "jobs", "outputs", "inputs", "input_scales", "input_shifts", "extras")
    return (
        *(name for name in inputs if conditions.get(name, True)),
        "batch",
        "partial" if kernel["split"] else "y",
    )


def sum_conv_parameters(kernel: Mapping[str, Any]) -> tuple[str, ...]:
    """The parameters of the sum kernel's entry, in order: its operands, its tables, ``batch``, ``y``."""
    return ("partial", *(["residual"] if kernel["residual"] else []), "b", "sum_begin", "sum_rows", "batch", "y")


def group_conv_arguments(kernel: Mapping[str, Any], tensors: Mapping[str, Tensor], batch: int) -> list[Any]:
    """The arguments of a convolution kernel in the order of :func:`group_conv_parameters`, ``batch`` as a number.

    ``tensors`` has every input and output by name. Raises InputError where the configuration is not supported, and
    where one is missing, superfluous, or of another type or shape than the configuration says.
    """
    group_conv_source(kernel, resident=1)
    element = kernel["element"]
    y = (batch, _elements(kernel, "output_channels", "output_size"))
    wanted = {
        "x": Wanted(element, (batch, _elements(kernel, "input_channels", "input_size")), flat=True),
        "w": Wanted(element, (None,)),
        "b": Wanted("float32", (None,)),
        "residual": Wanted(element, y, flat=True),
        "jobs": Wanted("int32", (None, CONV_JOB_COLUMNS)),
        **{name: Wanted("int32", (None,)) for name in ("outputs", "inputs")},
        **{name: Wanted("float32", (None,)) for name in ("input_scales", "input_shifts")},
        "extras": Wanted("int32", (None, 2)),
        "partial": _partial(kernel, batch),
        "y": Wanted(element, y, flat=True),
    }
    parallel = {"b": "outputs", "input_scales": "inputs", "input_shifts": "inputs"}
    return ordered_arguments("GroupConv", group_conv_parameters(kernel), wanted, tensors, batch, parallel)


def sum_conv_arguments(kernel: Mapping[str, Any], tensors: Mapping[str, Tensor], batch: int) -> list[Any]:
    """The arguments of the sum kernel in the order of :func:`sum_conv_parameters`; as :func:`group_conv_arguments`."""
    sum_conv_source(kernel)
    channels = kernel["output_channels"]
    y = (batch, _elements(kernel, "output_channels", "output_size"))
    wanted = {
        "partial": _partial(kernel, batch),
        "b": Wanted("float32", (channels,)),
        "residual": Wanted(kernel["element"], y, flat=True),
        "sum_begin": Wanted("int32", (channels + 1,)),
        "sum_rows": Wanted("int32", (None,)),
        "y": Wanted(kernel["element"], y, flat=True),
    }
    return ordered_arguments("SumConv", sum_conv_parameters(kernel), wanted, tensors, batch, {})


def _partial(kernel: Mapping[str, Any], batch: int) -> Wanted:
    return Wanted("float32", (batch, _elements(kernel, "slots", "output_size")), flat=True)


def _elements(kernel: Mapping[str, Any], channels: str, size: str) -> int:
    count: int = kernel[channels] * prod(kernel[size])
    return count
