"""Strips with their keys on the M side, emulated: every kind of table, type and architecture of that path."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onnxopt.discover.attention_site import AttentionSite, EmptyRow
from onnxopt.errors import InputError
from onnxopt.kernels.compiler import compile_kernel
from onnxopt.kernels.source import attention_source
from onnxopt.plan.tables import RuntimeWeights, attention_tables
from onnxopt.target.variant import AttentionVariant, Element
from onnxopt.verification.kernels import check_attention
from tests.kernels.small import attention_kernel
from tests.plan.schedules import scheduled
from tests.plan.sites import Wish, key_lists, made_site

SMALL = Wish(rows=40, keys=110, width=16, value_width=16)


def swapped(rows: int, warps: int, granules: int = 1, stages: int = 2) -> AttentionVariant:
    """A shape of so many granules of 16 keys for each warp and tile."""
    return AttentionVariant("mma", rows, 16 * warps * granules, warps, stages, swapped=True)


def check(
    site: AttentionSite,
    shapes: dict[str, tuple[int, ...]],
    variants: tuple[AttentionVariant, ...],
    cache: Path,
    element: Element = "fp16",
    architecture: str = "sm_80",
    split_keys: int = 0,
    weights: RuntimeWeights | None = None,
) -> dict[str, Any]:
    """Plan, compile, run and judge a site; the configuration of its kernel."""
    schedule = scheduled(site, variants, seed=1, split_keys=split_keys, element=element)
    tables = attention_tables(site, schedule, shapes=shapes, weights=weights)
    config = tables.configuration()["kernel"]
    compiled = compile_kernel(attention_source(config, 1), architecture, cache)
    found = check_attention(compiled, config, tables.arrays(), pairs=6_000, cache=cache)
    assert found.passed, found.worst().explain()
    return dict(config)


@pytest.fixture
def cache(programs: Path) -> Path:
    return programs


def test_masks_biases_phantoms_repeats_and_zeros(cache: Path) -> None:
    wish = replace(SMALL, bias=True, phantoms=True, scattered=True, repeats=True, zeros=True, grouped=True, most=2)
    config = check(*made_site(wish, 1), (swapped(24, 2, 2),), cache)
    assert config["masks"] and config["biases"] and config["extras"] and config["own_values"]


def test_rows_without_keys_and_widths_that_are_no_whole_chunks(cache: Path) -> None:
    wish = replace(SMALL, width=17, value_width=9, packed=False, own_patterns=True, empty=EmptyRow.NAN)
    check(*made_site(wish, 1), (swapped(16, 1, stages=1),), cache, "bf16")


def test_channels_first(cache: Path) -> None:
    check(*made_site(replace(SMALL, channels_first=True, batch=2), 1), (swapped(16, 2, stages=3),), cache)


def test_split_keys(cache: Path) -> None:
    wish = replace(SMALL, bias=True, value_width=24, packed=False)
    config = check(*made_site(wish, 1), (swapped(16, 2),), cache, "bf16", split_keys=48)
    assert config["split"]


def test_runtime_weights(cache: Path) -> None:
    site, shapes = made_site(replace(SMALL, bias=True), 1)
    columns = np.random.default_rng(0).permutation(110)
    weights = RuntimeWeights("policy", 110, columns, columns[:40].copy(), (0.01, 0.5))
    check(replace(site, runtime=("policy",)), shapes, (swapped(16, 2),), cache, weights=weights)


def test_copies_by_way_of_registers_and_short_products(cache: Path) -> None:
    check(*made_site(replace(SMALL, bias=True), 1), (swapped(8, 4),), cache, "fp16", "sm_75")


@pytest.mark.parametrize("split_keys", [0, 64])
def test_some_exponentials_without_the_special_function_unit(split_keys: int, cache: Path) -> None:
    """Full tiles alone have polynomials; sums whose logarithm is stored have none."""
    site, shapes = made_site(SMALL, 1)
    full = tuple(key_lists(np.ones((SMALL.rows, SMALL.keys), np.int64)) for _ in site.lists)
    site = replace(site, lists=full, scale=np.array([0.3, -0.4]))
    config = check(site, shapes, (swapped(16, 2),), cache, architecture="sm_90a", split_keys=split_keys)
    assert not config["masks"]


@pytest.mark.parametrize(
    ("rows", "width", "architecture"), [(64, 64, "sm_75"), (64, 64, "sm_90a"), (32, 128, "sm_80"), (16, 256, "sm_120")]
)
def test_the_largest_shapes_stay_in_registers(rows: int, width: int, architecture: str) -> None:
    """``compile_kernel`` refuses spills; the sums take 128 registers a thread here."""
    config = attention_kernel(
        variants=(swapped(rows, 4, stages=1),), width=width, value_width=width, biases=True, extras=True
    )
    assert compile_kernel(attention_source(config, 1), architecture).report.registers <= 255


def test_other_types_are_refused() -> None:
    with pytest.raises(InputError, match="'swapped' does not take fp32; allowed with it: fp16, bf16"):
        attention_source(attention_kernel(element="fp32", variants=(swapped(16, 2),)), 1)
