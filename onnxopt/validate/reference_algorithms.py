"""The steps of the convolution algorithms in NumPy, from their configuration and inputs alone, as
``docs/algorithms.md`` describes them, and the convolution that each algorithm as a whole must be.

Nothing here comes from the code that makes steps or packs weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxopt.validate.failure import PlanError
from onnxopt.validate.reference_conv import activated, sum_conv

Array = npt.NDArray[Any]

# A. Lavin and S. Gray, "Fast algorithms for convolutional neural networks" (2016), points 0, 1, -1, (2, -2,) infinity.
WINOGRAD_INPUT: Mapping[int, Array] = {
    2: np.array([[1, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, 1, 0, -1]], np.float64),
    4: np.array(
        [
            [4, 0, -5, 0, 1, 0],
            [0, -4, -4, 1, 1, 0],
            [0, 4, -4, -1, 1, 0],
            [0, -2, -1, 2, 1, 0],
            [0, 2, -1, -2, 1, 0],
            [0, 4, 0, -5, 0, 1],
        ],
        np.float64,
    ),
}
"""B^T by the size of an output tile."""
WINOGRAD_OUTPUT: Mapping[int, Array] = {
    2: np.array([[1, 1, 1, 0], [0, 1, -1, -1]], np.float64),
    4: np.array([[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]], np.float64),
}
"""A^T by the size of an output tile."""
WINOGRAD_FILTER: Mapping[int, Array] = {
    2: np.array([[2, 0, 0], [1, 1, 1], [1, -1, 1], [0, 0, 2]]) / 2,
    4: np.array([[6, 0, 0], [-4, -4, -4], [-4, 4, -4], [1, 2, 4], [1, -2, 4], [0, 0, 24]]) / 24,
}
"""G by the size of an output tile."""


def layer_output(
    layer: Mapping[str, Any],
    x: Array,
    weights: Array,
    b: Array,
    residual: Array | None = None,
    activation: str = "none",
    dtype: npt.DTypeLike = np.float64,
) -> Array:
    """The convolution itself: batch x output channels x positions.

    ``layer`` is a geometry as in a configuration; ``weights`` are outputs x inputs of a group x taps, or with the
    taps' axes.
    """
    groups, outputs = layer["groups"], layer["output_channels"]
    own = np.asarray(weights).reshape(groups, outputs // groups, -1, prod(layer["kernel"])).astype(dtype)
    data = np.asarray(x).reshape(len(x), groups, own.shape[2], -1).astype(dtype)
    sums = np.zeros((len(data), groups, own.shape[1], prod(layer["output_size"])), dtype)
    for tap, shifted in enumerate(_shifted(layer, data)):
        sums += own[:, :, :, tap] @ shifted
    return finished(activation, sums.reshape(len(data), outputs, -1), b, residual)


def finished(activation: str, sums: Array, b: Array, residual: Array | None) -> Array:
    """What follows the sums (batch x channels x positions) of a step that makes ``y``."""
    values = sums + np.asarray(b).astype(sums.dtype)[:, None]
    if residual is not None:
        values = values + np.asarray(residual).reshape(values.shape).astype(sums.dtype)
    return activated(activation, values)


def step_output(
    operator: str, kernel: Mapping[str, Any], inputs: Mapping[str, Array], dtype: npt.DTypeLike = np.float64
) -> Array:
    """What a step makes, batch x its shape in the specification. ``inputs`` are by the names of its parameters.

    Computed in ``dtype``. Raises :class:`PlanError` for an operator that is no step.
    """
    if operator == "SumConv":
        return sum_conv(kernel, inputs, inputs["partial"], inputs.get("residual"), dtype)
    if operator not in STEPS:
        raise PlanError(f"an operator {operator!r} is no step of an algorithm; allowed: {', '.join(STEPS)}, SumConv")
    given = {name: np.asarray(array).astype(dtype) for name, array in inputs.items()}
    result = STEPS[operator](kernel, given)
    if "b" in given:
        result = finished(kernel["activation"], result, given["b"], given.get("residual"))
    return result


def _scalar(kernel: Mapping[str, Any], given: Mapping[str, Array]) -> Array:
    """``w`` is outputs x taps x inputs."""
    x = _planes(kernel, given["x"])
    w = given["w"].reshape(kernel["output_channels"], prod(kernel["kernel"]), kernel["input_channels"])
    return _tap_sums(kernel, x, w.transpose(0, 2, 1))


def _unfold(kernel: Mapping[str, Any], given: Mapping[str, Array]) -> Array:
    """Batch x (inputs x taps) x pitch."""
    x = _planes(kernel, given["x"])
    columns = np.stack(list(_shifted(kernel, x)), axis=2)
    columns = columns.reshape(len(x), -1, columns.shape[-1])
    return _wide(columns, kernel["pitch"])


def _product(kernel: Mapping[str, Any], given: Mapping[str, Array]) -> Array:
    """Batch x matrices x rows x positions, or what ``y`` is where sums are finished."""
    matrices, rows, depth = kernel["matrices"], kernel["rows"], kernel["depth"]
    columns = given["columns"].reshape(-1, matrices, depth, kernel["pitch"])[..., : kernel["positions"]]
    w = given["w"].reshape(matrices, rows, -1)[..., :depth]
    result = w @ columns
    return result if kernel["raw"] else result[:, 0]


def _shift_add(kernel: Mapping[str, Any], given: Mapping[str, Array]) -> Array:
    """``products`` are batch x taps x outputs x positions of x."""
    taps, outputs = prod(kernel["kernel"]), kernel["output_channels"]
    products = given["products"].reshape(-1, taps, outputs, prod(kernel["input_size"]))
    result = np.zeros((len(products), outputs, prod(kernel["output_size"])), products.dtype)
    for tap, (places, inside) in enumerate(_places(kernel)):
        result += np.where(inside, products[:, tap][..., places], 0)
    return result


def _direct(kernel: Mapping[str, Any], given: Mapping[str, Array]) -> Array:
    """``w`` is inputs x taps x outputs in whole blocks."""
    x = _planes(kernel, given["x"])
    w = given["w"].reshape(kernel["input_channels"], prod(kernel["kernel"]), -1)[..., : kernel["output_channels"]]
    return _tap_sums(kernel, x, w.transpose(2, 0, 1))


def _slices(kernel: Mapping[str, Any], given: Mapping[str, Array]) -> Array:
    """Batch x (slices x outputs) x positions; ``w`` is inputs x taps x multipliers in whole blocks."""
    x = _planes(kernel, given["x"])
    inputs, groups, slices = kernel["input_channels"], kernel["groups"], kernel["slices"]
    multipliers = kernel["output_channels"] // groups
    w = given["w"].reshape(inputs, prod(kernel["kernel"]), -1)[..., :multipliers].transpose(2, 0, 1)
    planes = []
    for number in range(slices):
        own = slice(number * inputs // slices, (number + 1) * inputs // slices)
        planes.append(_tap_sums(kernel, x[:, own], w[:, own]))
    return np.concatenate(planes, axis=1)


def _winograd_input(kernel: Mapping[str, Any], given: Mapping[str, Array]) -> Array:
    """Batch x entries x inputs x pitch."""
    size, (down, across) = kernel["tile"], _tiles(kernel)
    x = given["x"].reshape(-1, kernel["input_channels"], *kernel["input_size"][1:])
    high, wide = (down * size + 2, across * size + 2)
    padded = np.zeros((*x.shape[:2], high, wide), x.dtype)
    top, left = kernel["pads"][1:]
    rows, columns = min(x.shape[2], high - top), min(x.shape[3], wide - left)
    padded[..., top : top + rows, left : left + columns] = x[..., :rows, :columns]
    tiles = np.lib.stride_tricks.sliding_window_view(padded, (size + 2, size + 2), (2, 3))[:, :, ::size, ::size]
    transform = WINOGRAD_INPUT[size].astype(x.dtype)
    result = transform @ tiles @ transform.T
    result = np.moveaxis(result.reshape(*x.shape[:2], down * across, -1), -1, 1)
    return _wide(result, kernel["pitch"])


def _winograd_output(kernel: Mapping[str, Any], given: Mapping[str, Array]) -> Array:
    """``products`` are batch x entries x outputs x tiles."""
    size, (down, across) = kernel["tile"], _tiles(kernel)
    products = given["products"].reshape(-1, size + 2, size + 2, kernel["output_channels"], down, across)
    transform = WINOGRAD_OUTPUT[size].astype(products.dtype)
    tiles = np.einsum("ai,nijodq,cj->nodaqc", transform, products, transform, optimize=True)
    _, height, width = kernel["output_size"]
    whole = tiles.reshape(len(products), kernel["output_channels"], down * size, across * size)
    return np.asarray(whole[..., :height, :width].reshape(len(products), kernel["output_channels"], -1))


STEPS: Mapping[str, Callable[[Mapping[str, Any], Mapping[str, Array]], Array]] = {
    "ConvScalar": _scalar,
    "ConvUnfold": _unfold,
    "ConvProduct": _product,
    "ConvShiftAdd": _shift_add,
    "ConvDirect": _direct,
    "ConvSlices": _slices,
    "WinogradInput": _winograd_input,
    "WinogradOutput": _winograd_output,
}
"""The operators that are a step of an algorithm and nothing else."""


def _tap_sums(layer: Mapping[str, Any], planes: Array, w: Array) -> Array:
    """Batch x outputs x positions from planes and w, outputs x inputs x taps."""
    result = np.zeros((len(planes), len(w), prod(layer["output_size"])), planes.dtype)
    for tap, shifted in enumerate(_shifted(layer, planes)):
        result += w[:, :, tap] @ shifted
    return result


def _planes(layer: Mapping[str, Any], x: Array) -> Array:
    return x.reshape(-1, layer["input_channels"], prod(layer["input_size"]))


def _shifted(layer: Mapping[str, Any], planes: Array) -> Iterator[Array]:
    """For every tap what it meets at each output position; zeros outside of x."""
    for places, inside in _places(layer):
        yield np.where(inside, planes[..., places], 0)


def _places(layer: Mapping[str, Any]) -> Iterator[tuple[Array, Array]]:
    """For every tap the position in x of each output position, and whether it lies inside; 0 where it does not."""
    where = np.indices(layer["output_size"]).reshape(3, -1)
    strides, pads, dilations = (np.array(layer[name])[:, None] for name in ("strides", "pads", "dilations"))
    size = np.array(layer["input_size"])[:, None]
    for tap in np.ndindex(*layer["kernel"]):
        at = where * strides - pads + np.array(tap)[:, None] * dilations
        inside = np.all((at >= 0) & (at < size), axis=0)
        at = np.where(inside, at, 0)
        yield np.ravel_multi_index(tuple(at), layer["input_size"]), inside


def _tiles(kernel: Mapping[str, Any]) -> tuple[int, int]:
    """Winograd tiles down and across."""
    down, across = (-(-size // kernel["tile"]) for size in kernel["output_size"][1:])
    return down, across


def _wide(rows: Array, pitch: int) -> Array:
    """Rows padded with zeros to the pitch."""
    return np.pad(rows, [(0, 0)] * (rows.ndim - 1) + [(0, pitch - rows.shape[-1])])
