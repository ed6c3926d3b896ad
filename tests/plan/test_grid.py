"""Curves visit every place once, and layouts come out of who attends to whom."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from onnxopt.discover.attention_site import KeyLists
from onnxopt.plan.grid import blocks, coordinates, hilbert, morton, recovered_width
from tests.plan.patterns import band, chunk_windows, key_lists, neighbourhoods, random_mask


def square(side: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    places = np.arange(side * side)
    return places // side, places % side


def width_of(lists: KeyLists) -> int | None:
    return recovered_width(lists.keys, lists.offsets)


@pytest.mark.parametrize("side", [1, 2, 4, 8, 32, 64])
def test_hilbert_visits_all_places_in_unit_steps(side: int) -> None:
    row, column = square(side)
    place = hilbert(row, column)
    assert sorted(place.tolist()) == list(range(side * side))
    order = np.argsort(place)
    assert (np.abs(np.diff(row[order])) + np.abs(np.diff(column[order])) == 1).all()


def test_hilbert_reaches_as_far_as_its_bits() -> None:
    edge = (1 << 16) - 1
    row, column = np.array([0, 0, edge, edge]), np.array([0, edge, 0, edge])
    place = hilbert(row, column)
    assert len(set(place.tolist())) == 4 and place.min() == 0 and place.max() == (1 << 32) - 1


@pytest.mark.parametrize("side", [1, 2, 8, 32])
def test_morton_interleaves_the_bits(side: int) -> None:
    row, column = square(side)
    place = morton(row, column)
    assert sorted(place.tolist()) == list(range(side * side))
    for y, x, z in zip(row.tolist(), column.tolist(), place.tolist(), strict=True):
        bits = "".join(a + b for a, b in zip(f"{y:016b}", f"{x:016b}", strict=True))
        assert z == int(bits, 2)


@given(st.integers(1, 17), st.integers(1, 17), st.integers(1, 8), st.integers(1, 8))
def test_blocks_follow_one_another_whole(height: int, width: int, tall: int, wide: int) -> None:
    places = np.arange(height * width)
    row, column = places // width, places % width
    place = blocks(row, column, tall, wide)
    assert len(set(place.tolist())) == len(place)
    block = list(zip((row // tall).tolist(), (column // wide).tolist(), strict=True))
    visited = [block[i] for i in np.argsort(place)]
    # A block that is left is never entered again, and blocks come row after row.
    assert list(dict.fromkeys(visited)) == sorted(set(block))
    assert sum(a != b for a, b in pairwise(visited)) == len(set(block)) - 1


@pytest.mark.parametrize(("side", "window"), [(8, 3), (14, 5), (16, 7), (28, 13), (31, 7)])
@pytest.mark.parametrize("class_tokens", [0, 1, 3])
def test_windows_tell_the_width(side: int, window: int, class_tokens: int) -> None:
    lists = neighbourhoods(side, window, class_tokens)
    assert width_of(lists) == side
    row, column = coordinates(np.arange(class_tokens + side * side), side)
    image = np.arange(side * side)
    assert row[class_tokens:].tolist() == (image // side).tolist()
    assert column[class_tokens:].tolist() == (image % side).tolist()
    assert not row[:class_tokens].any() and not column[:class_tokens].any()


@pytest.mark.parametrize("class_tokens", [0, 1])
def test_chunks_tell_the_width(class_tokens: int) -> None:
    assert width_of(chunk_windows(24, 4, class_tokens)) == 24


@pytest.mark.parametrize(
    "lists",
    [
        random_mask(64, 64, 0.1),
        random_mask(200, 300, 0.3, seed=1),
        band(100, 5),
        key_lists([list(range(30))] * 30),
        key_lists([[0]]),
        key_lists([[], [3]]),
    ],
    ids=["sparse", "random", "band", "dense", "one", "empty"],
)
def test_without_a_layout_there_is_no_width(lists: KeyLists) -> None:
    assert width_of(lists) is None


def test_phantoms_are_no_part_of_the_layout() -> None:
    lists = neighbourhoods(12, 5)
    tokens = lists.keys.astype(np.int64)
    offsets = lists.offsets
    # One phantom stands before each list's tokens.
    with_phantoms = np.insert(tokens, offsets[:-1], -1)
    shifted = offsets + np.arange(len(offsets))
    assert recovered_width(with_phantoms, shifted) == 12
    assert recovered_width(np.full(5, -1), np.array([0, 2, 5])) is None


def test_repeated_tokens_do_not_hide_the_width() -> None:
    lists = neighbourhoods(10, 3)
    assert recovered_width(np.repeat(lists.keys, 2), lists.offsets * 2) == 10
