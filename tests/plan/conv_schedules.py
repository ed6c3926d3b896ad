"""Convolution schedules cut by hand, for tests of what reads them."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import numpy as np

from onnxopt.discover.conv_site import BoolArray
from onnxopt.plan.schedule import ConvPart, ConvSchedule, Forecast, Proof
from onnxopt.plan.tables import ConvWork
from onnxopt.target.variant import ConvVariant, Element

MMA = ConvVariant("mma", 16, 16, 64, 2, 2)
WGMMA = ConvVariant("wgmma", 64, 32, 128, 4, 3)
LANES = ConvVariant("lanes", 4, 1, 32, 1, 1)
VARIANTS = (MMA, WGMMA, LANES)


def links_of(work: ConvWork) -> BoolArray:
    """Outputs x inputs: whether any weight of the slice is not zero."""
    return np.asarray(work.weights.reshape(*work.weights.shape[:2], -1).any(axis=2))


def conv_scheduled(
    work: ConvWork,
    variants: Sequence[ConvVariant] = (MMA,),
    *,
    seed: int | None = None,
    pieces: int = 1,
    images: int = 1,
    element: Element = "fp32",
) -> ConvSchedule:
    """Outputs in order, or with a seed in random parts; the inputs of each part cut into ``pieces`` parts."""
    rng = np.random.default_rng(seed)
    links = links_of(work)
    outputs = np.flatnonzero(links.any(axis=1))
    if seed is not None:
        outputs = rng.permutation(outputs)
    parts: list[ConvPart] = []
    first = 0
    while first < len(outputs):
        number = int(rng.integers(len(variants))) if seed is not None else 0
        size = variants[number].outputs if seed is None else int(rng.integers(1, variants[number].outputs + 1))
        own = outputs[first : first + size]
        first += size
        inputs = np.flatnonzero(links[own].any(axis=0))
        if seed is not None:
            inputs = rng.permutation(inputs)
        parts += [ConvPart(own, piece, number) for piece in np.array_split(inputs, min(pieces, len(inputs)))]
    pixels = images * prod(work.output_size)
    jobs = [(p, t) for p, part in enumerate(parts) for t in range(-(-pixels // variants[part.variant].pixels))]
    table = np.array(jobs, np.int32).reshape(-1, 2)
    computed = sum(_area(part, variants[part.variant]) for part in parts)
    return ConvSchedule(
        "waste",
        element,
        tuple(variants),
        1,
        tuple(parts),
        table if seed is None else rng.permutation(table),
        "as is",
        int(links.sum()),
        computed,
        Forecast(10.0, 1.0, 0.3, False),
        Proof(float(computed), 0.0, "none", "feasible", 0, "cut by hand; 0 is a bound of everything"),
    )


def _area(part: ConvPart, variant: ConvVariant) -> int:
    outputs = -(-len(part.outputs) // variant.output_granule) * variant.output_granule
    return outputs * -(-len(part.inputs) // variant.input_granule) * variant.input_granule
