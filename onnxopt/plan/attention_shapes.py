"""Every shape that the attention kernel's source could be compiled in; which are worth it depends on the head size."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

from onnxopt.target.variant import AttentionVariant, Element


@lru_cache(maxsize=32)
def candidates(architecture: str, element: Element) -> tuple[AttentionVariant, ...]:
    """The shapes for an architecture such as ``sm_90`` and a compute type."""
    # Swapped, the weights are turned over by an instruction for 16-bit numbers.
    halves = element in ("fp16", "bf16")
    result = [v for v in _mma_candidates(2 if architecture == "sm_75" else 3) if halves or not v.swapped]
    # wgmma reads 32-bit operands in one layout only, which the values do not have.
    if architecture == "sm_90" and halves:
        result += _wgmma_candidates()
    return tuple(result)


def _mma_candidates(most_stages: int) -> Iterator[AttentionVariant]:
    for warps in (1, 2, 4, 8):
        for stages in range(1, most_stages + 1):
            for m in (1, 2):
                for keys in (16, 32, 64, 96, 128):
                    yield AttentionVariant("mma", 16 * warps * m, keys, warps, stages)
                for rows in (8, 16, 24, 32, 48, 64):
                    yield AttentionVariant("mma", rows, 16 * warps * m, warps, stages, swapped=True)


def _wgmma_candidates() -> Iterator[AttentionVariant]:
    for groups in (1, 2, 3):
        for stages in (2, 3):
            for keys in (64, 80, 96, 112, 128, 144, 160, 176):
                yield AttentionVariant("wgmma", 64 * groups, keys, 4 * groups, stages)
            for rows in (8, 16, 32, 48, 64, 96, 128):
                yield AttentionVariant("wgmma", rows, 64 * groups, 4 * groups, stages, swapped=True)
