"""Few inputs of many outputs: what is excluded does not exist."""

from __future__ import annotations

from itertools import combinations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxopt.plan.partition.bits import count_bits, words_of
from onnxopt.plan.partition.problem import CostTable
from onnxopt.plan.partition.share_bound import share_bound
from onnxopt.plan.partition.union_bound import UnionBound


@settings(max_examples=100, deadline=None)
@given(st.integers(2, 11), st.integers(2, 90), st.integers(0, 10_000))
def test_exclusions_against_all_subsets(outputs: int, inputs: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    links = rng.random((outputs, inputs)) < rng.choice([0.1, 0.3, 0.7])
    links[:, 0] |= ~links.any(axis=1)
    search = UnionBound(links, outputs)
    for k in range(1, outputs + 1):
        least = min(int(links[list(rows)].any(axis=0).sum()) for rows in combinations(range(outputs), k))
        assert search.least[k] <= least
        assert search.excludes(k, least - 1)
        assert search.excludes(k, least) is False
        for base in (2, 3, 4):
            assert search.excludes(k, least - 1, base=base)


def test_a_search_that_takes_too_long_gives_no_answer() -> None:
    links = np.random.default_rng(0).random((60, 100)) < 0.3
    assert UnionBound(links, 8).excludes(8, 70, limit=1000) is None


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.integers(0, 100_000_000))
def test_shares_never_exceed_a_known_partition(seed: int, work: int) -> None:
    rng = np.random.default_rng(seed)
    links = rng.random((24, 40)) < 0.3
    links[:, 0] |= ~links.any(axis=1)
    table = CostTable.of(lambda p, q: -(-p // 4) * 4 * (-(-q // 8) * 8), 8, 40)
    for _ in range(20):
        parts = np.array_split(rng.permutation(24), 6)
        value = sum(table.of_part(len(part), int(links[part].any(axis=0).sum())) for part in parts)
        assert share_bound(links, table, value / 24, work) <= value


def test_bits_are_counted_over_words() -> None:
    rows = np.random.default_rng(0).random((9, 200)) < 0.5
    assert count_bits(words_of(rows)).tolist() == rows.sum(axis=1).tolist()
