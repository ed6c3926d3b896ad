"""The numeric rule for convolution kernels: random operands, what they should give, and how far off a kernel may be.

Needs nothing but NumPy, so that a GPU's results are judged where they arise.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxopt.validate.reference_conv import ConvOutput, group_conv_output, sum_conv
from onnxopt.verification.kernel_rule import Judgement, judged, rounded_to, stored

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class ConvOperands:
    """Random tensors of one operator, batch x elements in float32 with the values that the compute type can hold.

    ``data`` is x, or the partial rows that a sum adds up. Where an operator is ``split``, the residual is its sum's.
    """

    data: Array
    residual: Array | None


def draw_conv_operands(kernel: Mapping[str, Any], batch: int, seed: int) -> ConvOperands:
    """Normal x and residual as the configuration's ``kernel`` describes them."""
    rng = np.random.default_rng(seed)
    x = _normal(rng, _kept(kernel), batch, kernel["input_channels"] * prod(kernel["input_size"]))
    return ConvOperands(x, _residual(rng, kernel, batch))


def draw_sum_operands(kernel: Mapping[str, Any], batch: int, seed: int) -> ConvOperands:
    """Normal partial rows and residual for the ``kernel`` of a sum's configuration."""
    rng = np.random.default_rng(seed)
    partial = _normal(rng, "fp32", batch, kernel["slots"] * prod(kernel["output_size"]))
    return ConvOperands(partial, _residual(rng, kernel, batch))


def poisoned_output(kernel: Mapping[str, Any], batch: int) -> Array:
    """An array for the output, batch x elements, filled with NaN: a poison that what is not written keeps."""
    split = kernel.get("split", False)
    rows = kernel["slots"] if split else kernel["output_channels"]
    poison = np.full((batch, rows * prod(kernel["output_size"])), np.nan, np.float32)
    return poison if split else stored(kernel["element"], poison)


def expected_conv(kernel: Mapping[str, Any], tables: Mapping[str, Array], operands: ConvOperands) -> ConvOutput:
    """What the lines of ``jobs`` write, in float64; ``w`` of bf16 may be its bits."""
    return _computed(kernel, tables, operands, np.float64, "fp32")


def plain_conv(kernel: Mapping[str, Any], tables: Mapping[str, Array], operands: ConvOperands) -> Array:
    """The same from a plain implementation in the compute type: products of its numbers, all else in float32.

    In the ordinary lanes operands are float32 whatever the tensors' type.
    """
    element = "fp32" if kernel["variants"][0]["path"] == "lanes" else kernel["element"]
    values = _computed(kernel, tables, operands, np.float32, element).values
    return values if kernel["split"] else rounded_to(_kept(kernel), values)


def judge_group_conv(
    kernel: Mapping[str, Any], tables: Mapping[str, Array], operands: ConvOperands, found: Array
) -> Judgement:
    """The judgement of the output; ``found`` is batch x elements, and must be NaN still where no job writes."""
    expected = expected_conv(kernel, tables, operands)
    plain = plain_conv(kernel, tables, operands)
    values, written = np.asarray(found).reshape(plain.shape), expected.written == 1
    judgement = judged(expected.values[written], plain[written], values[written])
    stray = np.argwhere(~written & ~np.isnan(values))
    if not len(stray) or not judgement.passed:
        return judgement
    place = tuple(int(i) for i in stray[0])
    return replace(judgement, problem=f"element {place} was written, which no job of the launch should do")


def judge_sum_conv(
    kernel: Mapping[str, Any], tables: Mapping[str, Array], operands: ConvOperands, found: Array
) -> Judgement:
    """The judgement of ``y`` of a sum; ``found`` is batch x elements."""
    expected = sum_conv(kernel, tables, operands.data, operands.residual)
    plain = rounded_to(_kept(kernel), sum_conv(kernel, tables, operands.data, operands.residual, np.float32))
    return judged(expected, plain, np.asarray(found).reshape(expected.shape))


def _kept(kernel: Mapping[str, Any]) -> str:
    """The type whose values tensors can hold: those of tf32 are float32."""
    return "fp32" if kernel["element"] == "tf32" else str(kernel["element"])


def _normal(rng: np.random.Generator, element: str, batch: int, elements: int) -> Array:
    return rounded_to(element, rng.standard_normal((batch, elements), dtype=np.float32))


def _residual(rng: np.random.Generator, kernel: Mapping[str, Any], batch: int) -> Array | None:
    elements = kernel["output_channels"] * prod(kernel["output_size"])
    return _normal(rng, _kept(kernel), batch, elements) if kernel["residual"] else None


def _computed(
    kernel: Mapping[str, Any],
    tables: Mapping[str, Array],
    operands: ConvOperands,
    dtype: npt.DTypeLike,
    element: str,
) -> ConvOutput:
    """What the jobs write, with operands of products rounded to ``element``, which fp32 leaves as they are."""
    given = {**tables, "w": weight_values(kernel, tables["w"])}
    residual = None if kernel["split"] else operands.residual

    def rounded(values: Array) -> Array:
        return values if element == "fp32" else rounded_to(element, values)

    return group_conv_output(kernel, given, operands.data, residual, dtype, rounded)


def weight_values(kernel: Mapping[str, Any], w: Array) -> Array:
    """Packed weights as float32; those of bf16 may be given as their bits in uint16."""
    if kernel["element"] == "bf16" and w.dtype == np.uint16:
        return (w.astype(np.uint32) << 16).view(np.float32)
    return np.asarray(w, np.float32)
