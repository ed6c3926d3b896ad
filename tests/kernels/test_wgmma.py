"""What is particular to strips on wgmma: warpgroups without rows or keys, halves of tiles, every layout, two walks."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from onnxopt.discover.attention_site import AttentionSite, EmptyRow
from onnxopt.kernels.compiler import compile_kernel
from onnxopt.kernels.source import attention_source
from onnxopt.plan.tables import RuntimeWeights, attention_tables
from onnxopt.target.variant import AttentionVariant, Element
from onnxopt.verification.kernels import KernelCheck, check_attention
from tests.plan.schedules import scheduled
from tests.plan.sites import Wish, made_site


def tall(rows: int, keys: int, stages: int = 2) -> AttentionVariant:
    """Queries on the M side."""
    return AttentionVariant("wgmma", rows, keys, rows // 16, stages)


def swapped(rows: int, keys: int, stages: int = 2) -> AttentionVariant:
    """Keys on the M side."""
    return AttentionVariant("wgmma", rows, keys, keys // 16, stages, swapped=True)


@dataclass(frozen=True)
class Case:
    """A site and the shapes of its kernel; ``seed`` is that of a schedule of random strips."""

    wish: Wish
    variants: tuple[AttentionVariant, ...]
    element: Element = "fp16"
    weighted: bool = False
    split: int = 0
    seed: int | None = None


def wish(rows: int, keys: int, width: int, value_width: int = 0, *, heads: int = 1, **more: object) -> Wish:
    sizes = {"heads": heads, "rows": rows, "keys": keys, "width": width, "value_width": value_width or width}
    return Wish(**{**sizes, "packed": not value_width, **more})  # type: ignore[arg-type]


CASES = {
    "a warpgroup without rows": Case(wish(100, 90, 32, own_patterns=True), (tall(192, 64, 3),)),
    "a warpgroup without keys": Case(wish(40, 230, 32, own_patterns=True), (swapped(48, 192),), "bf16"),
    "half of a tile": Case(wish(50, 110, 48, 80, own_patterns=True), (tall(64, 80),)),
    "two shapes in one kernel": Case(wish(50, 90, 32, bias=True), (tall(64, 64), swapped(16, 64)), seed=3),
    "run-time weights": Case(wish(70, 90, 32), (tall(64, 64),), weighted=True),
    "run-time weights, swapped": Case(wish(30, 90, 32), (swapped(32, 64),), weighted=True),
}

# Widths of all layouts in shared memory, and every number of columns on the N side.
FURTHER = {
    **{f"keys {n}": Case(wish(64, 2 * n - 9, 16), (tall(64, n),)) for n in (64, 80, 96, 112, 128, 144, 160, 176)},
    **{f"rows {n}": Case(wish(n, 140, 16), (swapped(n, 64),)) for n in (8, 16, 32, 48, 64, 96, 128)},
    **{f"width {d}": Case(wish(64, 150, d, dv), (tall(64, 64),)) for d, dv in ((64, 16), (16, 96), (96, 112))},
    **{f"width {d}": Case(wish(16, 150, d, dv), (swapped(16, 64),)) for d, dv in ((128, 72), (24, 192), (256, 256))},
    "widest": Case(wish(64, 150, 256), (tall(64, 64),)),
    "three stages": Case(wish(128, 700, 32, own_patterns=True), (tall(128, 64, 3),)),
    "three stages, swapped": Case(wish(16, 700, 32, own_patterns=True), (swapped(16, 128, 3),)),
    "partial results": Case(wish(70, 300, 32, own_patterns=True, empty=EmptyRow.NAN), (tall(64, 80),), split=100),
    "partial results, swapped": Case(wish(30, 500, 32, empty=EmptyRow.NAN), (swapped(32, 128),), split=200),
    "run-time weights of masked pairs": Case(wish(70, 90, 32, own_patterns=True), (tall(128, 64),), weighted=True),
    "run-time weights over groups": Case(wish(30, 300, 32), (swapped(32, 192),), weighted=True),
}


def runtime_weights(site: AttentionSite, keys: int) -> RuntimeWeights:
    """Some rows see a key of their own with weight 1 whatever its run-time weight."""
    rows = np.arange(site.rows)
    return RuntimeWeights("w", keys + 3, np.arange(keys), np.where(rows % 3 == 0, rows % keys, -1), (1e-3, 1e-2))


def checked(case: Case, programs: Path) -> KernelCheck:
    site, shapes = made_site(case.wish, seed=1)
    schedule = scheduled(site, case.variants, seed=case.seed, split_keys=case.split, element=case.element)
    weights = runtime_weights(site, case.wish.keys) if case.weighted else None
    tables = attention_tables(site, schedule, shapes=shapes, weights=weights)
    kernel = tables.kernel.to_json()
    compiled = compile_kernel(attention_source(kernel, 1), "sm_90a", programs)
    return check_attention(compiled, kernel, tables.arrays(), batch=1, cache=programs)


@pytest.mark.parametrize("name", CASES)
def test_strips_on_wgmma(name: str, programs: Path) -> None:
    check = checked(CASES[name], programs)
    assert check.passed, check.worst().explain()


@pytest.mark.slow
@pytest.mark.parametrize("name", FURTHER)
def test_further_strips_on_wgmma(name: str, programs: Path) -> None:
    check = checked(FURTHER[name], programs)
    assert check.passed, check.worst().explain()
