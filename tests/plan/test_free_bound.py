"""The bound over all orders is below every way to put rows together."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxopt.discover.attention_site import KeyLists
from onnxopt.plan import free_bound
from onnxopt.plan.free_bound import fewest_pairs
from onnxopt.plan.strips import coded
from tests.plan.patterns import Rows, band, chunk_windows, hidden_blocks, key_lists, neighbourhoods, random_mask

few_rows = st.lists(st.lists(st.integers(0, 9), max_size=7), min_size=1, max_size=7)
granules = st.lists(st.tuples(st.sampled_from([1, 2, 3, 8]), st.sampled_from([1, 2, 4, 16])), min_size=1, max_size=3)


def optimum(rows: Rows, shapes: list[tuple[int, int]], longest: int) -> int:
    """The fewest pairs over all partitions of the rows into sets of at most ``longest``."""
    codes = [{(key, own.index(key) - at) for at, key in enumerate(own)} for own in map(sorted, rows)]

    def area(members: tuple[int, ...]) -> int:
        keys = len(set().union(*(codes[i] for i in members)))
        return min(-(-len(members) // tall) * tall * -(-keys // wide) * wide for tall, wide in shapes)

    @cache
    def best(left: int) -> int:
        if not left:
            return 0
        first = left & -left
        rest = left ^ first
        results = []
        more = rest
        while True:
            chosen = more | first
            members = tuple(i for i in range(len(rows)) if chosen >> i & 1)
            if len(members) <= longest:
                results.append(area(members) + best(left ^ chosen))
            if not more:
                return min(results)
            more = (more - 1) & rest

    return best((1 << len(rows)) - 1)


@given(few_rows, granules, st.sampled_from([1, 2, 3, 128]))
def test_no_partition_of_the_rows_computes_less(rows: Rows, shapes: list[tuple[int, int]], longest: int) -> None:
    lists = key_lists(rows)
    bound = fewest_pairs(np.arange(len(rows)), lists, coded(lists), shapes, longest)
    assert bound <= optimum(rows, shapes, longest)
    assert bound >= sum(map(len, rows))


@given(few_rows, granules)
def test_without_shared_keys_being_counted_it_is_still_a_bound(rows: Rows, shapes: list[tuple[int, int]]) -> None:
    lists = key_lists(rows)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(free_bound, "_PRODUCTS", 0)
        coarse = fewest_pairs(np.arange(len(rows)), lists, coded(lists), shapes)
    assert sum(map(len, rows)) <= coarse <= fewest_pairs(np.arange(len(rows)), lists, coded(lists), shapes)


@given(few_rows, granules, st.data())
def test_rows_that_are_not_planned_do_not_count(rows: Rows, shapes: list[tuple[int, int]], data: st.DataObject) -> None:
    lists = key_lists(rows)
    some = sorted(data.draw(st.sets(st.integers(0, len(rows) - 1), min_size=1)))
    bound = fewest_pairs(np.array(some), lists, coded(lists), shapes)
    assert bound <= optimum([rows[i] for i in some], shapes, 128)


def test_disjoint_and_equal_rows_are_bounded_exactly() -> None:
    lists, _ = hidden_blocks(5, 16, 32)
    assert fewest_pairs(np.arange(80), lists, coded(lists), [(16, 16)]) == 5 * 16 * 32
    lists = key_lists([[i] for i in range(6)])
    # A row alone takes a whole granule of each; six of them share one.
    assert fewest_pairs(np.arange(6), lists, coded(lists), [(8, 16)]) <= 128


@pytest.mark.parametrize(
    ("lists", "rows"),
    [
        (neighbourhoods(20, 5, 1), 401),
        (chunk_windows(28, 7), 784),
        (random_mask(150, 200, 0.1), 150),
        (band(300, 9), 300),
    ],
    ids=["neighbourhoods", "chunks", "random", "band"],
)
def test_more_granules_only_lower_it(lists: KeyLists, rows: int) -> None:
    codes, every = coded(lists), np.arange(rows)
    both = fewest_pairs(every, lists, codes, [(8, 16), (16, 64)])
    each = [fewest_pairs(every, lists, codes, [granule]) for granule in ((8, 16), (16, 64))]
    assert int(lists.lengths.sum()) <= both <= min(each)
