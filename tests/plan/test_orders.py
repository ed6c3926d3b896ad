"""Orders of rows are permutations, keep equal rows together, and find what was hidden."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxopt.plan.orders import row_orders, with_remainders_last
from onnxopt.plan.strips import coded
from tests.plan.patterns import Rows, any_rows, band, hidden_blocks, key_lists, neighbourhoods, random_mask

ALONG_TOKENS = ("as is", "Morton", "Hilbert")


def along_tokens(name: str) -> bool:
    return name in ALONG_TOKENS or name.startswith("blocks")


@given(any_rows, st.data())
def test_orders_are_different_permutations_and_the_same_twice(rows: Rows, data: st.DataObject) -> None:
    lists = key_lists(rows)
    some = np.array(sorted(data.draw(st.sets(st.integers(0, len(rows) - 1), min_size=1))))
    orders = row_orders(some, lists, coded(lists))
    assert all(sorted(order.tolist()) == some.tolist() for order in orders.values())
    assert len({tuple(order.tolist()) for order in orders.values()}) == len(orders)
    again = row_orders(some, lists, coded(lists))
    assert [(n, o.tolist()) for n, o in orders.items()] == [(n, o.tolist()) for n, o in again.items()]
    assert next(iter(orders)) == "as is" and orders["as is"].tolist() == some.tolist()


@given(any_rows)
def test_equal_lists_stand_together_except_along_tokens(rows: Rows) -> None:
    lists = key_lists(rows)
    for name, order in row_orders(np.arange(len(rows)), lists, coded(lists)).items():
        if not along_tokens(name):
            owner = lists.row_list[order]
            assert np.count_nonzero(np.diff(owner)) == len(np.unique(owner)) - 1


def test_lists_that_meet_in_one_place_of_the_layout_stand_together() -> None:
    # The class token shares the place of the first token of the image.
    image = neighbourhoods(8, 3, 1)
    rows = [image.list(int(number)).tolist() for number in image.row_list]
    lists = key_lists([rows[0], *rows, rows[0], rows[1], rows[0]])
    tokens = np.array([0, *range(65), 0, 1, 0])
    orders = row_orders(np.arange(len(tokens)), lists, coded(lists), tokens, np.arange(65))
    for name in ("Morton of equal keys", "Hilbert of equal keys"):
        owner = lists.row_list[orders[name]]
        assert np.count_nonzero(np.diff(owner)) == len(np.unique(owner)) - 1


def test_hidden_blocks_are_found() -> None:
    lists, block = hidden_blocks(12, 16, 16)
    orders = row_orders(np.arange(len(block)), lists, coded(lists))
    for name, order in orders.items():
        if not along_tokens(name):
            assert np.count_nonzero(np.diff(block[order])) == 11


def test_an_image_is_walked_along_curves_and_in_blocks() -> None:
    lists = neighbourhoods(16, 5)
    orders = row_orders(np.arange(256), lists, coded(lists))
    assert {"Morton", "Hilbert", "blocks of 2x4", "blocks of 4x4"} <= set(orders)
    place = orders["Hilbert"]
    assert (np.abs(np.diff(place // 16)) + np.abs(np.diff(place % 16)) == 1).all()
    first = orders["blocks of 4x4"][:16]
    assert sorted(first.tolist()) == [16 * y + x for y in range(4) for x in range(4)]


def test_tokens_count_rather_than_numbers_of_rows() -> None:
    lists = neighbourhoods(12, 3)
    rng = np.random.default_rng(0)
    # Rows and keys are numbered at random; their tokens tell where they stand.
    query, key = rng.permutation(144), rng.permutation(144)
    number_of_key = np.argsort(key)
    shuffled = key_lists([sorted(number_of_key[lists.list(int(lists.row_list[t]))].tolist()) for t in query])
    orders = row_orders(np.arange(144), shuffled, coded(shuffled), query, key)
    assert "Hilbert" in orders
    walked = query[orders["blocks of 4x4"]]
    assert sorted(walked[:16].tolist()) == [12 * y + x for y in range(4) for x in range(4)]


def test_phantom_queries_do_not_disturb() -> None:
    lists = neighbourhoods(10, 3)
    tokens = np.arange(100)
    tokens[::7] = -1
    orders = row_orders(np.arange(100), lists, coded(lists), tokens, np.arange(100))
    assert "Morton" in orders
    assert all(sorted(order.tolist()) == list(range(100)) for order in orders.values())


@pytest.mark.parametrize("lists", [band(60, 4), random_mask(60, 60, 0.1)], ids=["band", "random"])
def test_without_a_layout_there_are_no_curves(lists: object) -> None:
    orders = row_orders(np.arange(60), lists, coded(lists))  # type: ignore[arg-type]
    assert not any(along_tokens(name) for name in orders if name != "as is")


def test_rows_that_are_all_alike_have_one_order() -> None:
    lists = key_lists([[1, 2, 3]] * 9)
    assert list(row_orders(np.arange(9), lists, coded(lists))) == ["as is"]


def test_many_lists_are_ordered_without_comparing_all_of_them() -> None:
    lists = band(6000, 3)
    orders = row_orders(np.arange(6000), lists, coded(lists))
    assert "hierarchical" not in orders and "column signatures" not in orders
    assert {"similar keys", "reverse Cuthill-McKee"} <= set(orders)


@given(any_rows, st.sampled_from([1, 2, 8, 16]), st.randoms(use_true_random=False))
def test_remainders_come_last_and_the_rest_is_whole(rows: Rows, granule: int, random: object) -> None:
    # Longer runs than the drawn rows have.
    many = [row for row in rows for _ in range(len(row) * 5)]
    lists = key_lists(many)
    before = np.argsort(lists.row_list, kind="stable")
    after = with_remainders_last(before, lists, granule)
    assert sorted(after.tolist()) == sorted(before.tolist())
    owner = lists.row_list[after]
    counts = np.bincount(lists.row_list)
    whole = int((counts // granule * granule).sum())
    for own in range(len(counts)):
        assert np.count_nonzero(owner[:whole] == own) == counts[own] // granule * granule
    # Neither part changes the order of rows.
    place = np.argsort(before)
    for part in (after[:whole], after[whole:]):
        assert (np.diff(place[part]) > 0).all()


def test_a_list_that_comes_back_is_a_run_of_its_own() -> None:
    lists = key_lists([[0]] * 5 + [[1]] * 3 + [[0]] * 4)
    assert with_remainders_last(np.arange(12), lists, 4).tolist() == [0, 1, 2, 3, 8, 9, 10, 11, 4, 5, 6, 7]
