"""How far off convolution algorithms may be: by the numeric rule, and Winograd by a bound of its own.

Needs nothing but NumPy, so that a GPU's results are judged where they arise.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxopt.validate.reference_algorithms import (
    WINOGRAD_FILTER,
    WINOGRAD_INPUT,
    WINOGRAD_OUTPUT,
    layer_output,
    step_output,
)
from onnxopt.verification.kernel_rule import Judgement, judged, rounded_to

Array = npt.NDArray[Any]

MATRIX_STEPS = ("ConvProduct",)
"""Steps whose operands are rounded to the compute type; the others multiply in float32 whatever tensors hold."""
MATRIX_ALGORITHMS = ("kn2row", "im2col", "winograd_2x2", "winograd_4x4")

# Largest relative error of a product of two entries: that of both operands, of their storage, and for fp32 of what
# three products of tf32 leave out.
_PRODUCT_ERROR = {
    "fp16": 2 * 2.0**-11,
    "bf16": 2 * 2.0**-8,
    "tf32": 2 * (2.0**-11 + 2.0**-24),
    "fp32": 2 * (2.0**-21 + 2.0**-24) + 2.0**-22,
}
_STORED_ERROR = {"fp16": 2.0**-11, "bf16": 2.0**-8, "tf32": 2.0**-24, "fp32": 2.0**-24}
# Below its normal numbers fp16 has an absolute error instead.
_UNDERFLOW = {"fp16": 2.0**-25}
_FLOAT = 2.0**-24
# A matrix unit may cut a sum off instead of rounding it.
_ACCUMULATED = 2.0**-23
# Additions in float32 that a number passes through in both axes of the input's and of the output's transform.
_TRANSFORM_STEPS = {2: 2 + 4, 4: 4 + 6}
_SLOPE = {"none": 1.0, "relu": 1.0, "hardswish": 1.5, "silu": 1.1}
# Bias, residual and an activation's own operations.
_FINISH_STEPS = 8
_SECOND_ORDER = 1.01


@dataclass(frozen=True)
class LayerOperands:
    """Random tensors of one layer in float32, with the values that the compute type can hold; the bias is float32."""

    x: Array
    weights: Array
    b: Array
    residual: Array | None


def draw_layer(layer: Mapping[str, Any], element: str, residual: bool, batch: int, seed: int) -> LayerOperands:
    """Normal tensors; weights are scaled so that sums stay near 1."""
    rng = np.random.default_rng(seed)
    kept = "fp32" if element == "tf32" else element
    inputs, outputs, taps = layer["input_channels"], layer["output_channels"], prod(layer["kernel"])
    own = inputs // layer["groups"]
    y = (batch, outputs, prod(layer["output_size"]))

    def normal(*shape: int, scale: float = 1.0) -> Array:
        return rounded_to(kept, rng.standard_normal(shape, dtype=np.float32) * np.float32(scale))

    return LayerOperands(
        normal(batch, inputs, prod(layer["input_size"])),
        normal(outputs, own, taps, scale=(own * taps) ** -0.5),
        rng.standard_normal(outputs, dtype=np.float32),
        normal(*y) if residual else None,
    )


def judge_step(
    operator: str,
    kernel: Mapping[str, Any],
    inputs: Mapping[str, Array],
    output_type: str,
    found: Array,
    written: Array | None = None,
) -> Judgement:
    """The judgement of one step on the inputs that it was given, by the names of its parameters, as float32.

    ``output_type`` is what its output holds, a compute type or ``float32``. Only elements that are ``written`` count,
    by default all.
    """
    expected = step_output(operator, kernel, inputs)
    plain = _kept(
        output_type, step_output(operator, kernel, _operands(operator, kernel["element"], inputs), np.float32)
    )
    found = np.asarray(found).reshape(expected.shape)
    if written is None:
        return judged(expected, plain, found)
    own = written.reshape(expected.shape)
    return judged(expected[own], plain[own], found[own])


def judge_layer(
    name: str, layer: Mapping[str, Any], element: str, activation: str, operands: LayerOperands, found: Array
) -> Judgement:
    """The judgement of ``y`` of a whole algorithm against the convolution in float64, by the numeric rule.

    Winograd may have twice the error of a plain implementation of Winograd, and no element may be further off than
    :func:`winograd_bound` says.
    """
    expected = _layer(layer, activation, operands)
    found = np.asarray(found, np.float64).reshape(expected.shape)
    if name.startswith("winograd"):
        plain = _kept(element, plain_winograd(name, layer, element, activation, operands))
        bound = winograd_bound(name, layer, element, activation, operands)
        return _within(judged(expected, plain, found), expected, bound, found)
    rounding = element if name in MATRIX_ALGORITHMS else "fp32"
    given = LayerOperands(
        rounded_to(rounding, operands.x), rounded_to(rounding, operands.weights), operands.b, operands.residual
    )
    return judged(expected, _kept(element, _layer(layer, activation, given, np.float32)), found)


def plain_winograd(
    name: str, layer: Mapping[str, Any], element: str, activation: str, operands: LayerOperands
) -> Array:
    """``y`` from a plain implementation in the compute type: both factors rounded to it, all else in float32."""
    size = int(name[-1])
    inputs, outputs = layer["input_channels"], layer["output_channels"]
    entries, tiles = (size + 2) ** 2, prod(-(-n // size) for n in layer["output_size"][1:])
    g = WINOGRAD_FILTER[size]
    filters = operands.weights.astype(np.float64).reshape(outputs, inputs, 3, 3)
    w = np.einsum("ak,oikl,bl->aboi", g, filters, g, optimize=True)
    kernel = {**layer, "tile": size, "pitch": tiles, "activation": activation}
    product = {"matrices": entries, "rows": outputs, "depth": inputs, "positions": tiles, "pitch": tiles, "raw": True}
    columns = step_output("WinogradInput", kernel, {"x": operands.x}, np.float32)
    factors = {"columns": rounded_to(element, columns), "w": rounded_to(element, w.astype(np.float32))}
    given = {"products": step_output("ConvProduct", product, factors, np.float32), "b": operands.b}
    if operands.residual is not None:
        given["residual"] = operands.residual
    return step_output("WinogradOutput", kernel, given, np.float32)


def bound_share(
    name: str, layer: Mapping[str, Any], element: str, activation: str, operands: LayerOperands
) -> float | None:
    """The largest of :func:`winograd_bound` as a share of the largest ``y``; None for other algorithms."""
    if not name.startswith("winograd"):
        return None
    scale = np.abs(_layer(layer, activation, operands)).max()
    return float(winograd_bound(name, layer, element, activation, operands).max() / scale)


def winograd_bound(
    name: str, layer: Mapping[str, Any], element: str, activation: str, operands: LayerOperands
) -> Array:
    """The largest error that Winograd can make at each element of ``y``: batch x channels x positions.

    First order, by running every number's absolute value through the algorithm with the absolute values of its
    matrices, as Barabasz, Anderson, Soodhalter and Gregg do for whole tiles ("Error analysis and improving the accuracy
    of Winograd convolution for deep neural networks", ACM TOMS 46(4), 2020); ``docs/algorithms.md`` has the derivation.
    """
    size = int(name[-1])
    inputs = layer["input_channels"]
    by_filter, by_input = np.abs(WINOGRAD_FILTER[size]), np.abs(WINOGRAD_INPUT[size])
    filters = np.abs(operands.weights.astype(np.float64)).reshape(-1, inputs, 3, 3)
    u = np.einsum("ak,oikl,bl->aboi", by_filter, filters, by_filter, optimize=True)
    patches = _patches(layer, size, np.abs(operands.x.astype(np.float64)))
    v = np.einsum("ai,nijct,bj->nabct", by_input, patches, by_input, optimize=True)
    sums = _returned(layer, size, np.einsum("aboi,nabit->nabot", u, v, optimize=True))
    lost = u.sum(3)[None, ..., None] + v.sum(3)[:, :, :, None]
    below = _returned(layer, size, np.broadcast_to(lost, (*v.shape[:3], u.shape[2], v.shape[4])))
    terms = inputs * (3 if element == "fp32" else 1)
    share = _PRODUCT_ERROR[element] + terms * _ACCUMULATED + _TRANSFORM_STEPS[size] * _FLOAT
    underflow = _UNDERFLOW.get(element, 0.0)
    added = np.abs(operands.b.astype(np.float64))[:, None] + (
        0.0 if operands.residual is None else np.abs(operands.residual.astype(np.float64))
    )
    before = share * sums + underflow * below + _FINISH_STEPS * _FLOAT * (sums + added)
    after = _STORED_ERROR[element] * np.abs(_layer(layer, activation, operands)) + underflow
    return np.asarray(_SECOND_ORDER * (_SLOPE[activation] * before + after))


def _patches(layer: Mapping[str, Any], size: int, x: Array) -> Array:
    """Batch x side x side x inputs x tiles: what each tile reads, zeros outside of x."""
    _, height, width = layer["input_size"]
    down, across = (-(-n // size) for n in layer["output_size"][1:])
    planes = x.reshape(len(x), layer["input_channels"], height, width)
    side = size + 2
    raw = np.zeros((len(x), side, side, layer["input_channels"], down * across))
    for i, j, tile in np.ndindex(side, side, down * across):
        row = tile // across * size + i - layer["pads"][1]
        column = tile % across * size + j - layer["pads"][2]
        if 0 <= row < height and 0 <= column < width:
            raw[:, i, j, :, tile] = planes[:, :, row, column]
    return raw


def _returned(layer: Mapping[str, Any], size: int, sums: Array) -> Array:
    """Batch x outputs x positions, by the absolute values of the output's transform."""
    transform = np.abs(WINOGRAD_OUTPUT[size])
    down, across = (-(-n // size) for n in layer["output_size"][1:])
    _, height, width = layer["output_size"]
    tiles = np.einsum("ai,nijot,bj->notab", transform, sums, transform, optimize=True)
    whole = tiles.reshape(*tiles.shape[:2], down, across, size, size).transpose(0, 1, 2, 4, 3, 5)
    whole = whole.reshape(*tiles.shape[:2], down * size, across * size)
    return np.asarray(whole[..., :height, :width].reshape(*tiles.shape[:2], -1))


def _within(judgement: Judgement, expected: Array, bound: Array, found: Array) -> Judgement:
    """A judgement that also fails where an element is further off than its bound."""
    wrong = np.argwhere(~(np.abs(found - expected) <= bound))
    if not len(wrong) or judgement.problem:
        return judgement
    place = tuple(int(i) for i in wrong[0])
    problem = (
        f"element {place} is {found[place]:.6g}, expected {expected[place]:.6g}; allowed: an error of "
        f"{bound[place]:.3g} ({len(wrong):,} are further off)"
    )
    return replace(judgement, problem=problem)


def _operands(operator: str, element: str, inputs: Mapping[str, Array]) -> dict[str, Array]:
    """As a plain implementation's products take them."""
    if operator not in MATRIX_STEPS:
        return dict(inputs)
    return {name: rounded_to(element, a) if name in ("columns", "w") else a for name, a in inputs.items()}


def _kept(output_type: str, values: Array) -> Array:
    return rounded_to("fp32" if output_type in ("tf32", "float32") else output_type, values)


def _layer(
    layer: Mapping[str, Any], activation: str, operands: LayerOperands, dtype: npt.DTypeLike = np.float64
) -> Array:
    return layer_output(layer, operands.x, operands.weights, operands.b, operands.residual, activation, dtype)
