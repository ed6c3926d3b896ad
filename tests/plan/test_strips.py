"""Strips cover every needed pair exactly once, repeated keys included."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxopt.discover.attention_site import KeyLists
from onnxopt.plan.orders import row_orders
from onnxopt.plan.strips import coded, cut_at_lists, cut_evenly, make_strip, needed_in


def key_lists(rows: list[list[int]]) -> KeyLists:
    """Key lists of rows given as plain lists of keys."""
    distinct = list(dict.fromkeys(tuple(sorted(row)) for row in rows))
    offsets = np.cumsum([0] + [len(item) for item in distinct]).astype(np.int64)
    keys = np.array([key for item in distinct for key in item], np.int32)
    return KeyLists(np.array([distinct.index(tuple(sorted(row))) for row in rows], np.int32), offsets, keys)


patterns = st.lists(st.lists(st.integers(0, 11), min_size=1, max_size=8), min_size=1, max_size=24)


@given(patterns, st.sampled_from([1, 3, 8]))
def test_each_needed_pair_lies_in_one_strip_once(rows: list[list[int]], size: int) -> None:
    lists = key_lists(rows)
    codes = coded(lists)
    for order in row_orders(np.arange(len(rows)), lists, codes).values():
        for cut in (cut_evenly(order, size), cut_at_lists(order, lists.row_list, size)):
            covered: Counter[tuple[int, int]] = Counter()
            for strip in (make_strip(part, lists, codes) for part in cut):
                places = needed_in(strip, lists, codes)
                row = np.repeat(strip.rows, lists.lengths[strip.rows])
                assert len(set(zip(row.tolist(), places.tolist(), strict=True))) == len(places)
                covered.update(zip(row.tolist(), strip.keys[places].tolist(), strict=True))
            needed = Counter((r, key) for r, row in enumerate(rows) for key in row)
            assert covered == needed


@given(patterns)
def test_a_full_strip_masks_nothing(rows: list[list[int]]) -> None:
    lists = key_lists(rows)
    codes = coded(lists)
    strip = make_strip(np.arange(len(rows)), lists, codes)
    assert strip.full == all(Counter(row) == Counter(rows[0]) for row in rows)


def test_orders_are_permutations_and_group_equal_rows() -> None:
    lists = key_lists([[0, 1], [5, 6], [0, 1], [5, 6], [0, 2]])
    orders = row_orders(np.arange(5), lists, coded(lists))
    assert all(sorted(order.tolist()) == list(range(5)) for order in orders.values())
    assert orders["equal keys"].tolist() == [0, 2, 1, 3, 4]


@pytest.mark.parametrize("size", [2, 3, 100])
def test_cuts_at_lists_never_mix_lists(size: int) -> None:
    row_list = np.array([0] * 7 + [1] * 2 + [0] * 4)
    cut = cut_at_lists(np.arange(13), row_list, size)
    assert np.array_equal(np.concatenate(cut), np.arange(13))
    assert all(len(set(row_list[part])) == 1 and len(part) <= size for part in cut)
