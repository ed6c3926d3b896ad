"""How a step of a convolution algorithm is launched: its grid, and its arguments in order, each checked."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any

from onnxopt.kernels.algorithm_source import algorithm_source, winograd_tiles
from onnxopt.kernels.arguments import Launch, Tensor, Wanted, check_report, checked_grid, ordered_arguments
from onnxopt.kernels.conv_launch import sum_conv_arguments, sum_conv_launch, sum_conv_parameters
from onnxopt.kernels.report import ResourceReport
from onnxopt.plan.algorithms.tiles import DEPTH_BYTES, PIECE_BYTES
from onnxopt.plan.roofline import ELEMENT_BYTES

# What a step reads first, and its output where that is not y.
_READS = {
    "ConvProduct": "columns",
    "ConvShiftAdd": "products",
    "WinogradOutput": "products",
}
_WITHOUT_WEIGHTS = ("ConvUnfold", "ConvShiftAdd", "WinogradInput", "WinogradOutput")
_MADE = {"ConvUnfold": "columns", "WinogradInput": "transformed"}
_RAW = {"ConvProduct": "products", "ConvSlices": "partial"}


def algorithm_launch(operator: str, kernel: Mapping[str, Any], batch: int, report: ResourceReport) -> Launch:
    """One block for every job of every batch element; ``report`` is that of the compiled kernel.

    Raises InputError where the configuration is not supported, the batch is not at least 1, the grid is too large, or
    the report is about another number of threads.
    """
    if operator == "SumConv":
        return sum_conv_launch(kernel, batch)
    algorithm_source(operator, kernel)
    threads = _threads(operator, kernel)
    check_report(threads, report)
    jobs = algorithm_jobs(operator, kernel)
    return Launch(checked_grid(operator, {"jobs": jobs, "batch": batch}, jobs * batch), threads, report.dynamic_shared)


def algorithm_jobs(operator: str, kernel: Mapping[str, Any]) -> int:
    """Blocks for one batch element, for any operator but ``SumConv``, whose blocks do not end with one."""
    if operator == "ConvProduct":
        tiles = _up(kernel["rows"], kernel["block_rows"]) * _up(kernel["positions"], kernel["block_positions"])
        return int(kernel["matrices"] * tiles)
    outputs, positions = kernel["output_channels"], prod(kernel["output_size"])
    if operator == "ConvScalar":
        return int(outputs * _up(positions, kernel["threads"] * kernel["own_positions"]))
    if operator in ("ConvDirect", "ConvSlices"):
        depth, height, width = kernel["output_size"]
        tiles = depth * _up(height, kernel["tile_height"]) * _up(width, kernel["tile_width"])
        own = outputs // kernel["groups"]
        return int(tiles * _up(own, kernel["block_outputs"]) * kernel.get("slices", 1))
    if operator == "ConvUnfold":
        pieces = kernel["pitch"] // (PIECE_BYTES // ELEMENT_BYTES[kernel["element"]])
        return _up(kernel["input_channels"] * prod(kernel["kernel"]) * pieces, kernel["threads"])
    if operator == "WinogradInput":
        return _up(kernel["input_channels"] * kernel["pitch"], kernel["threads"])
    if operator == "WinogradOutput":
        return _up(outputs * winograd_tiles(kernel), kernel["threads"])
    return _up(outputs * positions, kernel["threads"])


def algorithm_parameters(operator: str, kernel: Mapping[str, Any]) -> tuple[str, ...]:
    """The parameters of a step's entry, in order: its operands, its tables, ``batch``, its output.

    The first is ``x``, or what the step before it made: the step's own ``inputs`` name the tensor that is given for it.
    """
    if operator == "SumConv":
        return sum_conv_parameters(kernel)
    raw = kernel.get("raw", False)
    made = _MADE.get(operator) or (_RAW[operator] if raw else "y")
    finished = made == "y"
    return (
        _READS.get(operator, "x"),
        *(["residual"] if finished and kernel["residual"] else []),
        *([] if operator in _WITHOUT_WEIGHTS else ["w"]),
        *(["b"] if finished else []),
        "batch",
        made,
    )


def algorithm_arguments(
    operator: str, kernel: Mapping[str, Any], tensors: Mapping[str, Tensor], batch: int
) -> list[Any]:
    """The arguments of a step in the order of :func:`algorithm_parameters`, ``batch`` as a number.

    ``tensors`` has every input and the output by its parameter's name. Raises InputError where the configuration is
    not supported, and where one is missing, superfluous, or of another type or size than the configuration says.
    """
    if operator == "SumConv":
        return sum_conv_arguments(kernel, tensors, batch)
    algorithm_source(operator, kernel)
    names = algorithm_parameters(operator, kernel)
    element, raw = kernel["element"], kernel.get("raw", False)
    sizes = algorithm_sizes(operator, kernel)
    wanted = {
        name: Wanted("float32" if name in ("products", "partial") else element, (batch, sizes[name]), True, True)
        for name in names
        if name in sizes and name not in ("w", "b")
    }
    if "w" in names:
        wanted["w"] = Wanted(element, (sizes["w"],), flat=True)
    if not raw:
        wanted["b"] = Wanted("float32", (sizes["b"],))
    return ordered_arguments(operator, names, wanted, tensors, batch, {})


def algorithm_sizes(operator: str, kernel: Mapping[str, Any]) -> dict[str, int]:
    """Elements of each parameter that a step may have, of tensors those of one batch element; not for ``SumConv``."""
    if operator == "ConvProduct":
        matrices, rows, positions = kernel["matrices"], kernel["rows"], kernel["positions"]
        step = DEPTH_BYTES // ELEMENT_BYTES[kernel["element"]]
        results = matrices * rows * positions
        return {
            "columns": matrices * kernel["depth"] * kernel["pitch"],
            "w": matrices * rows * _up(kernel["depth"], step) * step,
            "b": rows,
            **dict.fromkeys(("residual", "products", "y"), results),
        }
    inputs, outputs, taps = kernel["input_channels"], kernel["output_channels"], prod(kernel["kernel"])
    y = outputs * prod(kernel["output_size"])
    sizes = {"x": inputs * prod(kernel["input_size"]), "b": outputs, "residual": y, "y": y}
    if operator == "ConvScalar":
        sizes["w"] = outputs * taps * inputs
    elif operator in ("ConvDirect", "ConvSlices"):
        own = outputs // kernel["groups"]
        sizes["w"] = inputs * taps * _up(own, kernel["block_outputs"]) * kernel["block_outputs"]
        sizes["partial"] = y * kernel.get("slices", 1)
    elif operator == "ConvUnfold":
        sizes["columns"] = inputs * taps * kernel["pitch"]
    elif operator == "ConvShiftAdd":
        sizes["products"] = taps * outputs * prod(kernel["input_size"])
    else:
        entries = (kernel["tile"] + 2) ** 2
        sizes["products"] = entries * outputs * winograd_tiles(kernel)
        sizes["transformed"] = entries * inputs * kernel.get("pitch", 0)
    return sizes


def _threads(operator: str, kernel: Mapping[str, Any]) -> int:
    if operator == "ConvProduct":
        return 32 * int(kernel["warps"])
    if operator in ("ConvDirect", "ConvSlices"):
        return 32 * int(kernel["block_outputs"] // kernel["own_outputs"] * kernel["position_warps"])
    return int(kernel["threads"])


def _up(count: int, size: int) -> int:
    """How many pieces of a size hold a count."""
    return -(-int(count) // int(size))
