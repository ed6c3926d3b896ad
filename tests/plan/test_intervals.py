"""Unions of intervals against sets, and the cheapest cutting against all cuttings."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from onnxopt.plan import unions
from onnxopt.plan.intervals import LONGEST, Intervals, cheapest_cuts, chosen, intervals_of, rows_of
from onnxopt.plan.strips import coded
from onnxopt.plan.unions import union_sizes
from tests.plan.patterns import Rows, any_rows, key_lists


def union_of(rows: Rows) -> int:
    """Keys of the union, each as often as the row that needs it most often."""
    most: Counter[int] = Counter()
    for row in rows:
        most |= Counter(row)
    return most.total()


def long_rows(draw: st.DrawFn) -> Rows:
    """Up to three times the longest interval of rows, drawn from few lists so that runs are long."""
    kinds = draw(any_rows)
    runs = draw(st.lists(st.tuples(st.integers(0, len(kinds) - 1), st.integers(1, 60)), min_size=1, max_size=8))
    return [kinds[kind] for kind, length in runs for _ in range(length)]


many_rows = st.composite(long_rows)()


def check(intervals: Intervals, ordered: Rows) -> None:
    for end, step in np.argwhere(intervals.rows > 0).tolist():
        rows = ordered[intervals.cuts[end - step - 1] : intervals.cuts[end]]
        assert intervals.rows[end, step] == len(rows)
        assert intervals.keys[end, step] == union_of(rows)
        assert intervals.needed[end, step] == sum(map(len, rows))
        assert intervals.full[end, step] == all(Counter(row) == Counter(rows[0]) for row in rows)


@given(any_rows, st.randoms(use_true_random=False), st.integers(1, 30))
def test_every_interval_has_the_union_of_its_rows(rows: Rows, random: object, longest: int) -> None:
    lists = key_lists(rows)
    order = np.arange(len(rows))
    random.shuffle(order)  # type: ignore[attr-defined]
    intervals = intervals_of(order, lists, coded(lists), longest)
    ordered = [rows[i] for i in order]
    check(intervals, ordered)
    cuts = intervals.cuts.tolist()
    found = {(cuts[e - s - 1], cuts[e]) for e, s in np.argwhere(intervals.rows > 0).tolist()}
    assert found == {(a, b) for a in cuts for b in cuts if 0 < b - a <= longest}


@given(many_rows, st.sampled_from([None, 4, 12, 40]))
def test_long_runs_and_thinned_cuts_have_the_same_unions(rows: Rows, most_cuts: int | None) -> None:
    lists = key_lists(rows)
    intervals = intervals_of(np.arange(len(rows)), lists, coded(lists), most_cuts=most_cuts)
    assert intervals.cuts[0] == 0 and intervals.cuts[-1] == len(rows)
    assert (np.diff(intervals.cuts) > 0).all() and np.diff(intervals.cuts).max() < 40
    assert intervals.rows.max() <= LONGEST
    sample = np.argwhere(intervals.rows > 0)[::7].tolist()
    for end, step in sample:
        part = rows[intervals.cuts[end - step - 1] : intervals.cuts[end]]
        assert (intervals.rows[end, step], intervals.keys[end, step]) == (len(part), union_of(part))
        assert intervals.needed[end, step] == sum(map(len, part))


@pytest.mark.parametrize("most_cuts", [None, 2, 3, 5, 100])
@pytest.mark.parametrize("count", [1, 2, 7, 8, 9, 17])
def test_cuts_begin_at_the_first_row_and_end_at_the_last(count: int, most_cuts: int | None) -> None:
    lists = key_lists([[i, i + 1] for i in range(count)])
    cuts = intervals_of(np.arange(count), lists, coded(lists), most_cuts=most_cuts).cuts
    assert cuts[0] == 0 and cuts[-1] == count and (np.diff(cuts) > 0).all()


@pytest.mark.parametrize("longest", [8, 16, 24, 32, 128])
def test_thinned_cuts_lie_no_further_apart_than_an_interval_is_long(longest: int) -> None:
    for rows in ([[0]] * 500, [[i] for i in range(500)], [[i // 5] for i in range(500)]):
        lists = key_lists(rows)
        intervals = intervals_of(np.arange(500), lists, coded(lists), longest, most_cuts=3)
        assert np.diff(intervals.cuts).max() <= longest
        assert (intervals.rows[1:, 0] > 0).all()


def test_cuts_are_where_lists_change_and_every_eight_rows_between() -> None:
    lists = key_lists([[0]] * 540 + [[1]] * 3 + [[0]] * 18)
    within = [*range(0, 540, 8), 540, 543, 551, 559]
    cuts = intervals_of(np.arange(561), lists, coded(lists)).cuts.tolist()
    assert cuts == sorted({*within, *range(0, 561, 8), 561})
    # With too many places, those that follow no list are left out first.
    assert intervals_of(np.arange(561), lists, coded(lists), most_cuts=75).cuts.tolist() == [*within, 561]


def test_few_rows_may_be_cut_anywhere() -> None:
    lists = key_lists([[0]] * 20 + [[1]] * 3 + [[0]] * 8)
    assert intervals_of(np.arange(31), lists, coded(lists)).cuts.tolist() == list(range(32))


@given(any_rows, st.integers(1, 30))
def test_union_sizes_of_all_windows_of_rows(rows: Rows, longest: int) -> None:
    lists = key_lists(rows)
    sizes = union_sizes(lists.row_list, coded(lists), longest)
    for begin, length in product(range(len(rows)), range(longest)):
        if begin + length < len(rows):
            assert sizes[begin, length] == union_of(rows[begin : begin + length + 1])


@given(many_rows)
def test_unions_of_many_keys_are_counted_in_several_passes(rows: Rows) -> None:
    lists = key_lists(rows)
    codes = coded(lists)
    whole = intervals_of(np.arange(len(rows)), lists, codes)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(unions, "_PASS_KEYS", 7)
        assert np.array_equal(intervals_of(np.arange(len(rows)), lists, codes).keys, whole.keys)


def test_rows_without_keys_add_nothing() -> None:
    lists = key_lists([[], [3], [], [3, 4], []])
    check(intervals_of(np.arange(5), lists, coded(lists)), [[], [3], [], [3, 4], []])


def cuttings(intervals: Intervals, allowed: NDArray[np.bool_], end: int) -> Iterator[list[tuple[int, int]]]:
    """All ways to cut the first rows up to a cut into existing intervals that are allowed."""
    if end == 0:
        yield []
    for step in range(min(end, allowed.shape[1])):
        if allowed[end, step]:
            for rest in cuttings(intervals, allowed, end - step - 1):
                yield [*rest, (end, step)]


@given(any_rows.filter(lambda rows: len(rows) <= 10), st.integers(1, 12), st.data())
def test_no_cutting_is_cheaper(rows: Rows, longest: int, data: st.DataObject) -> None:
    lists = key_lists(rows)
    intervals = intervals_of(np.arange(len(rows)), lists, coded(lists), longest)
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    # Few different costs make ties, some are infinite; one column depends on the interval as real costs do.
    cost = rng.integers(0, 4, (*intervals.rows.shape, 4)).astype(np.float64)
    cost[rng.random(cost.shape) < data.draw(st.sampled_from([0.0, 0.2, 0.6]))] = np.inf
    cost[:, :, 0] = intervals.rows * intervals.keys + 3.0
    cost[intervals.rows == 0] = np.inf
    totals, taken = cheapest_cuts(intervals, cost)
    for column in range(4):
        allowed = np.isfinite(cost[:, :, column])
        every = [
            (sum(cost[end, step, column] for end, step in cut), cut)
            for cut in cuttings(intervals, allowed, len(intervals.cuts) - 1)
        ]
        assert totals[column] == min((total for total, _ in every), default=np.inf)
        if every:
            best = chosen(intervals, taken[:, column])
            assert (totals[column], best) in every
            assert (
                np.concatenate([rows_of(intervals, *interval) for interval in best]).tolist()
                == intervals.order.tolist()
            )


def test_of_equals_the_longer_interval_is_taken() -> None:
    lists = key_lists([[i] for i in range(12)])
    intervals = intervals_of(np.arange(12), lists, coded(lists), longest=6)
    cost = np.where(intervals.rows > 0, intervals.rows, np.inf).astype(np.float64)
    totals, taken = cheapest_cuts(intervals, cost[:, :, None])
    assert totals[0] == 12
    assert [len(rows_of(intervals, *own)) for own in chosen(intervals, taken[:, 0])] == [6, 6]


def test_where_nothing_is_allowed_the_total_is_infinite() -> None:
    lists = key_lists([[i] for i in range(5)])
    intervals = intervals_of(np.arange(5), lists, coded(lists))
    totals, _ = cheapest_cuts(intervals, np.full((*intervals.rows.shape, 1), np.inf))
    assert np.isinf(totals).all()


def test_thousands_of_rows_take_moments() -> None:
    lists = key_lists([list(range(i, i + 40)) for i in range(4000)])
    intervals = intervals_of(np.arange(4000), lists, coded(lists))
    there = intervals.rows > 0
    assert there.sum() == sum(min(LONGEST, end) for end in range(1, 4001))
    assert np.array_equal(intervals.keys[there], intervals.rows[there] + 39)
