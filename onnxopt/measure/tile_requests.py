"""What `onnxopt profile` measures: shapes of kernels, each on strips or parts that are all alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, Literal, get_args

import numpy as np

from onnxopt.kernels.conv_source import conv_variants
from onnxopt.kernels.source import attention_variants
from onnxopt.measure.job.build import Request
from onnxopt.measure.job.parts import part_tables
from onnxopt.measure.job.strips import strip_tables
from onnxopt.plan.attention_cost import AttentionCost
from onnxopt.plan.group_conv_cost import GroupConvCost
from onnxopt.target import GpuProfile
from onnxopt.target.tile_records import SCHEMA
from onnxopt.target.variant import AttentionVariant, ConvVariant, Element

Kind = Literal["attention", "conv"]
KINDS: tuple[Kind, ...] = get_args(Kind)

WIDTHS = (32, 48, 64, 128)
"""Head sizes of vision transformers."""

KERNELS = ((1, 1, 1), (1, 3, 3))
POSITIONS = (49, 784)
"""Kernels and numbers of positions of the convolutions in image classifiers: late and early layers at batch 1."""

# Whole tiles of keys, or steps over inputs, of the short and the long strips and parts.
_LENGTHS = (1, 4)


@dataclass(frozen=True)
class AttentionShape:
    """A shape of the attention kernel for a compute type and the widths of keys and values."""

    element: Element
    widths: tuple[int, int]
    variant: AttentionVariant


@dataclass(frozen=True)
class ConvShape:
    """A shape of the convolution kernel for a compute type and a number of taps along each axis."""

    element: Element
    taps: tuple[int, int, int]
    variant: ConvVariant


Shape = AttentionShape | ConvShape


def catalogue(gpu: GpuProfile, elements: Sequence[Element], kinds: Sequence[Kind] = KINDS) -> list[Shape]:
    """Every shape that the planner chooses from for typical heads and convolutions.

    Records must not choose what is measured, so the cost models are asked without them. Raises InputError where the
    GPU lacks a type.
    """
    shapes: list[Shape] = []
    for element in elements:
        if "attention" in kinds:
            for width in WIDTHS:
                variants = AttentionCost.of(gpu, width, width, element).variants()
                shapes += [AttentionShape(element, (width, width), variant) for variant in variants]
        if "conv" in kinds:
            for taps in KERNELS:
                costs = [GroupConvCost.of(gpu, prod(taps), positions, element) for positions in POSITIONS]
                chosen = sorted({variant for cost in costs for variant in cost.variants()})
                shapes += [ConvShape(element, taps, variant) for variant in chosen]
    return shapes


def shapes_of(requests: Sequence[Request], kinds: Sequence[Kind] = KINDS) -> list[Shape]:
    """The distinct shapes of the kernels that some operators use, in the order of their first use."""
    found: dict[Shape, None] = {}
    for request in requests:
        kernel: Any = request.kernel
        if request.kind not in kinds:
            continue
        if request.kind == "conv":
            own: list[Shape] = [ConvShape(kernel["element"], tuple(kernel["kernel"]), v) for v in conv_variants(kernel)]
        else:
            widths = (kernel["width"], kernel["value_width"])
            own = [AttentionShape(kernel["element"], widths, v) for v in attention_variants(kernel)]
        found.update(dict.fromkeys(own))
    return list(found)


def tile_requests(gpu: GpuProfile, shapes: Sequence[Shape]) -> list[Request]:
    """The measurements of some shapes: on short and long strips, plain and masked, or on parts of few and many inputs.

    Raises InputError where the GPU lacks a type.
    """
    requests: list[Request] = []
    for shape in shapes:
        for length in _LENGTHS:
            if isinstance(shape, ConvShape):
                requests.append(_conv_request(gpu, shape, length * shape.variant.inputs))
            else:
                keys = length * shape.variant.keys
                requests += [_attention_request(gpu, shape, keys, masked) for masked in (False, True)]
    return requests


def _attention_request(gpu: GpuProfile, shape: AttentionShape, keys: int, masked: bool) -> Request:
    variant, element, widths = shape.variant, shape.element, shape.widths
    cost = AttentionCost.of(gpu, *widths, element)
    rows, resident = variant.rows, cost.occupancy([variant])
    kernel, tables = strip_tables(variant, element, widths, rows, keys, masked=masked)
    width = f"d{widths[0]}" if widths[0] == widths[1] else f"d{widths[0]},{widths[1]}"
    name = f"{element} {width} {variant.describe()} {rows}x{keys}{' masked' if masked else ''}"
    predicted = float(cost.strip_us(variant, np.array(rows), np.array(keys), resident, masked))
    pairs = rows * keys * len(tables["jobs"])
    bound = cost.bound_us(float(pairs), 0.0)
    record = _record("attention", gpu, element, variant, list(widths), [rows, keys], masked, resident)
    return Request(
        name, "attention", "tile", kernel.to_json(), tables, None, resident, 1, pairs, pairs, predicted, bound, record
    )


def _conv_request(gpu: GpuProfile, shape: ConvShape, inputs: int) -> Request:
    variant, element, taps = shape.variant, shape.element, prod(shape.taps)
    outputs = variant.outputs
    kernel, tables = part_tables(variant, element, shape.taps, outputs, inputs)
    cost = GroupConvCost.of(gpu, taps, prod(kernel.output_size), element)
    resident = cost.occupancy([variant])
    name = f"{element} {'x'.join(map(str, shape.taps))} {variant.describe()} {outputs}x{inputs}"
    predicted = float(cost.part_us(variant, np.array(outputs), np.array(inputs), resident))
    connections = kernel.output_channels * inputs
    bound = cost.bound_us(float(connections), 0.0)
    record = _record("conv", gpu, element, variant, [taps], [outputs, inputs], False, resident)
    return Request(
        *(name, "conv", "tile", kernel.to_json(), tables, None, resident, 1),
        *(connections, connections, predicted, bound, record),
    )


def _record(
    kind: Kind,
    gpu: GpuProfile,
    element: Element,
    variant: AttentionVariant | ConvVariant,
    widths: list[int],
    extent: list[int],
    masked: bool,
    resident: int,
) -> dict[str, Any]:
    """The fields of a tuning record that do not come from measuring."""
    return {
        "schema": SCHEMA,
        "kind": kind,
        "architecture": gpu.architecture,
        "element": element,
        "variant": variant.describe(),
        "widths": widths,
        "extent": extent,
        "masked": masked,
        "resident": resident,
        "threads": variant.threads,
    }
