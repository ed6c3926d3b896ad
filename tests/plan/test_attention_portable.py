"""Plans of the portable form compute every needed pair once, and are no worse than plain ones."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxopt.discover.attention_site import AttentionSite, KeyLists
from onnxopt.plan.attention import filled_rows, plan_attention
from onnxopt.plan.buckets import best_buckets
from onnxopt.plan.rates import CpuRates
from onnxopt.plan.schedule import Objective
from onnxopt.plan.strips import coded, count_needed, cut_evenly, make_strip
from onnxopt.target import load_target
from onnxopt.validate import validate_attention_plan
from tests.plan.patterns import (
    Rows,
    any_rows,
    band,
    chunk_windows,
    hidden_blocks,
    key_lists,
    neighbourhoods,
    random_mask,
    site_of,
)

OBJECTIVES: tuple[Objective, ...] = ("time", "waste")


@lru_cache
def rates() -> CpuRates:
    profile = load_target("cpu").cpu
    assert profile is not None
    return CpuRates.of(profile)


def plain(site: AttentionSite, objective: Objective) -> float:
    """What strips of 64 rows in the order of rows cost, in the best buckets."""
    total = 0.0
    for number, lists in enumerate(site.lists):
        heads = int(np.count_nonzero(site.head_lists == number))
        biased = bool((site.head_bias[site.head_lists == number] >= 0).any())
        codes = coded(lists)
        strips = [make_strip(rows, lists, codes) for rows in cut_evenly(filled_rows(site), 64)]
        masked = biased or not all(strip.full for strip in strips)

        def time(count: np.ndarray, rows: np.ndarray, keys: np.ndarray, h: int = heads, m: bool = masked) -> np.ndarray:
            return rates().attention(count * h, rows, keys, site.head_dim, site.v.width, m)

        def pairs(count: np.ndarray, rows: np.ndarray, keys: np.ndarray) -> np.ndarray:
            return np.asarray(count * rows * keys)

        shapes = [len(s.rows) for s in strips], [len(s.keys) for s in strips]
        total += best_buckets(*shapes, time)[1] if objective == "time" else heads * best_buckets(*shapes, pairs)[1]
    return total


def check(site: AttentionSite, objective: Objective) -> None:
    plan = plan_attention(site, rates(), objective)
    validate_attention_plan(site, plan)
    assert plan.needed == count_needed([site.lists_of(head) for head in range(site.heads)])
    assert plan.needed <= plan.computed and plan.waste >= 1.0
    assert plan.bound_us <= plan.cost_us * (1 + 1e-9)
    assert plan.candidates >= len(plan.parts)
    value = plan.cost_us if objective == "time" else plan.computed
    assert value <= plain(site, objective) * (1 + 1e-6) + 1e-2


@given(any_rows, any_rows, st.booleans(), st.sampled_from(OBJECTIVES))
def test_any_patterns_are_covered_and_no_worse_than_plain(
    first: Rows, second: Rows, biased: bool, objective: Objective
) -> None:
    rows = min(len(first), len(second))
    lists = [key_lists(first[:rows]), key_lists(second[:rows])]
    check(site_of(lists, 12, [0, 1, 0], biased=biased), objective)


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize(
    ("lists", "keys"),
    [
        (neighbourhoods(16, 5, 1), 257),
        (chunk_windows(28, 7), 785),
        (random_mask(150, 100, 0.15), 100),
        (hidden_blocks(9, 20, 12)[0], 108),
        (band(300, 8), 300),
        (key_lists([list(range(97))] * 97), 97),
    ],
    ids=["neighbourhoods", "chunks", "random", "hidden", "band", "dense"],
)
def test_known_patterns_are_covered_and_no_worse_than_plain(lists: KeyLists, keys: int, objective: Objective) -> None:
    check(site_of([lists], keys, [0, 0]), objective)


def test_hidden_blocks_are_found() -> None:
    lists, _ = hidden_blocks(9, 16, 12)
    plan = plan_attention(site_of([lists], 108), rates(), "waste")
    assert plan.waste == 1.0


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_same_site_is_planned_the_same_way(objective: Objective) -> None:
    site = site_of([neighbourhoods(12, 5)], 144)
    first, second = (plan_attention(site, rates(), objective) for _ in range(2))
    assert repr(first) == repr(second)
    assert [s.rows.tolist() for p in first.parts for s in p.strips] == [
        s.rows.tolist() for p in second.parts for s in p.strips
    ]
