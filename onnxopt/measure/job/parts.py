"""Tables of a convolution's parts that are all alike, for measuring one tile shape: gathered inputs of one geometry."""

from __future__ import annotations

from math import lcm, prod
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxopt.plan.tables.conv_types import ConvKernel
from onnxopt.target.variant import ConvVariant, Element

Array = npt.NDArray[Any]

# Channels that inputs are gathered from, and different parts: together with the positions more than an L1 cache holds.
_CHANNELS = 512
_PARTS = 16
_COLUMNS = 32
_LEAST_POSITIONS = 1024
_ALIGNED_BYTES = 16


def part_tables(
    variant: ConvVariant, element: Element, taps: tuple[int, int, int], outputs: int, inputs: int
) -> tuple[ConvKernel, dict[str, Array]]:
    """Tables of 16 parts with ``outputs`` outputs and ``inputs`` distinct random inputs each, and their kernel.

    A kernel of ``taps`` along each axis (odd, padded to keep the size) moves over an image whose positions are whole
    tiles of the variant. Channels come first; weights are normal over the root of how many are added up.
    """
    rng = np.random.default_rng(0)
    positions = lcm(_LEAST_POSITIONS, variant.pixels)
    size = (1, positions // _COLUMNS, _COLUMNS)
    kernel = ConvKernel(
        element=element,
        variants=(variant,),
        layout="first",
        input_channels=_CHANNELS,
        output_channels=_PARTS * outputs,
        input_size=size,
        output_size=size,
        kernel=taps,
        strides=(1, 1, 1),
        dilations=(1, 1, 1),
        pads=(taps[0] // 2, taps[1] // 2, taps[2] // 2),
        images=1,
        activation="none",
        input_activation="none",
        prologue=False,
        residual=False,
        extras=False,
        slots=0,
    )
    high, wide = _multiple(outputs, variant.output_granule), _multiple(inputs, variant.input_granule)
    packed = np.zeros((_PARTS, prod(taps), high, wide), np.float32)
    scale = np.float32(1 / np.sqrt(inputs * prod(taps)))
    packed[:, :, :outputs, :inputs] = scale * rng.standard_normal((_PARTS, prod(taps), outputs, inputs))
    weights = _aligned(
        packed.reshape(_PARTS, -1), 0, np.float16 if element == "fp16" else np.float32, _entries(element)
    )
    channels = np.stack([np.sort(rng.permutation(_CHANNELS)[:inputs]) for _ in range(_PARTS)])
    rows = np.arange(_PARTS * outputs).reshape(_PARTS, outputs)
    tiles = {
        "w": weights,
        "b": _aligned(rng.standard_normal((_PARTS, outputs)), 0, np.float32, max(4, variant.output_granule)),
        "outputs": _aligned(rows, -1, np.int32, max(4, variant.output_granule)),
        "inputs": _aligned(channels, -1, np.int32, max(4, variant.input_granule)),
    }
    jobs = np.zeros((positions // variant.pixels, _PARTS, 12), np.int32)
    jobs[..., 2], jobs[..., 4], jobs[..., 7] = outputs, inputs, variant.pixels
    for column, name in ((1, "outputs"), (3, "inputs"), (5, "w")):
        jobs[..., column] = np.arange(_PARTS) * tiles[name].shape[1]
    jobs[..., 6] = (np.arange(len(jobs)) * variant.pixels)[:, None]
    flat = {name: table.ravel() for name, table in tiles.items()} | {"jobs": jobs.reshape(-1, 12)}
    return kernel, {name: flat[name] for name in ("w", "b", "jobs", "outputs", "inputs")}


def _entries(element: Element) -> int:
    """Entries of a compute type in 16 bytes."""
    return _ALIGNED_BYTES // (2 if element in ("fp16", "bf16") else 4)


def _aligned(values: Array, fill: int, dtype: npt.DTypeLike, step: int) -> Array:
    """One row a part, padded to whole steps."""
    result = np.full((len(values), _multiple(values.shape[1], step)), fill, dtype)
    result[:, : values.shape[1]] = values
    return result


def _multiple(value: int, granule: int) -> int:
    return -(-value // granule) * granule
