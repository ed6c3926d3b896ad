"""The shapes in which the group-convolution kernel could be compiled."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

from onnxopt.target.variant import ConvVariant, Element


@lru_cache(maxsize=32)
def conv_shapes(architecture: str, element: Element) -> tuple[ConvVariant, ...]:
    """Every shape that the kernel's source could be compiled in; which are worth it depends on the convolution."""
    result = [*_lanes_shapes(), *_mma_shapes(2 if architecture == "sm_75" else 3)]
    if architecture == "sm_90" and element in ("fp16", "bf16"):
        result += _wgmma_shapes()
    return tuple(result)


def _lanes_shapes() -> Iterator[ConvVariant]:
    for warps in (2, 4, 8):
        for each in (1, 2, 4):
            for outputs in (1, 4, 8):
                for inputs in (1, 4, 8):
                    yield ConvVariant("lanes", outputs, inputs, 32 * warps * each, warps, 1)


def _mma_shapes(most_stages: int) -> Iterator[ConvVariant]:
    for warps in (2, 4, 8):
        for each in (16, 32):
            for outputs in (8, 16, 32, 64, 128):
                for inputs in (16, 32, 64):
                    for stages in range(1, most_stages + 1):
                        yield ConvVariant("mma", outputs, inputs, each * warps, warps, stages)


def _wgmma_shapes() -> Iterator[ConvVariant]:
    for groups in (1, 2):
        for outputs in (16, 32, 64, 128, 256):
            for inputs in (32, 64):
                for stages in (2, 3):
                    yield ConvVariant("wgmma", outputs, inputs, 64 * groups, 4 * groups, stages)
