"""Masks that tests of the planner share: who needs whose keys, as lists of rows or as key lists."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray

from onnxopt.discover.attention_site import AttentionSite, KeyLists
from onnxopt.discover.operand import Operand, Source

Rows = list[list[int]]
# Rows with any keys, some of them repeated, some rows alike; few enough to compare with sets.
any_rows: st.SearchStrategy[Rows] = st.lists(
    st.lists(st.integers(0, 11), min_size=1, max_size=8), min_size=1, max_size=24
)


def key_lists(rows: Sequence[Sequence[int]]) -> KeyLists:
    """Key lists of rows given as plain lists of keys."""
    owner = [tuple(sorted(row)) for row in rows]
    numbers = {own: number for number, own in enumerate(dict.fromkeys(owner))}
    offsets = np.cumsum([0] + [len(own) for own in numbers]).astype(np.int64)
    keys = np.array([key for own in numbers for key in own], np.int32)
    return KeyLists(np.array([numbers[own] for own in owner], np.int32), offsets, keys)


def neighbourhoods(side: int, window: int, class_tokens: int = 0) -> KeyLists:
    """Tokens of a square image, each with the ``window`` x ``window`` nearest; class tokens stand before them."""
    reach = window // 2
    begin = np.clip(np.arange(side) - reach, 0, side - window)
    rows = []
    for y in range(side):
        for x in range(side):
            own = [
                class_tokens + line * side + place
                for line in range(int(begin[y]), int(begin[y]) + window)
                for place in range(int(begin[x]), int(begin[x]) + window)
            ]
            rows.append([*range(class_tokens), *own])
    everything = list(range(class_tokens + side * side))
    return key_lists([everything] * class_tokens + rows)


def chunk_windows(side: int, chunk: int, class_tokens: int = 1) -> KeyLists:
    """A square image in square chunks; a token has its chunk's keys, those of the eight around it and class tokens."""
    lists: list[NDArray[np.int64]] = []
    row_list = np.zeros(side * side, np.int32)
    place = np.arange(side * side).reshape(side, side)
    for y in range(0, side, chunk):
        for x in range(0, side, chunk):
            row_list[place[y : y + chunk, x : x + chunk].ravel()] = len(lists)
            around = place[max(0, y - chunk) : y + 2 * chunk, max(0, x - chunk) : x + 2 * chunk]
            lists.append(np.concatenate([np.arange(class_tokens), class_tokens + np.sort(around.ravel())]))
    offsets = np.cumsum([0] + [len(own) for own in lists]).astype(np.int64)
    return KeyLists(row_list, offsets, np.concatenate(lists).astype(np.int32))


def band(rows: int, reach: int) -> KeyLists:
    """A window along a line: row ``i`` has the keys from ``i - reach`` to ``i + reach``."""
    return key_lists([list(range(max(0, i - reach), min(rows, i + reach + 1))) for i in range(rows)])


def random_mask(rows: int, keys: int, density: float, seed: int = 0) -> KeyLists:
    """Any keys; every row has one at least."""
    rng = np.random.default_rng(seed)
    live = rng.random((rows, keys)) < density
    live[:, 0] |= ~live.any(axis=1)
    return key_lists([np.flatnonzero(row).tolist() for row in live])


def hidden_blocks(blocks: int, rows: int, keys: int, seed: int = 0) -> tuple[KeyLists, NDArray[np.int64]]:
    """A block diagonal with its rows and keys shuffled, and the block of each row."""
    rng = np.random.default_rng(seed)
    block = rng.permutation(np.repeat(np.arange(blocks), rows))
    shuffled = rng.permutation(blocks * keys)
    return key_lists([shuffled[b * keys : (b + 1) * keys].tolist() for b in block]), block


def site_of(
    lists: Sequence[KeyLists],
    keys: int,
    head_lists: Sequence[int] | None = None,
    width: int = 32,
    biased: bool = False,
) -> AttentionSite:
    """A site with these patterns; head ``h`` has ``lists[head_lists[h]]``, by default each pattern one head."""
    heads = list(range(len(lists))) if head_lists is None else list(head_lists)
    rows = len(lists[0].row_list)
    operand = {
        side: Operand((Source(side, count, len(heads) * width, -1),), width)
        for side, count in (("q", rows), ("k", keys), ("v", keys))
    }
    vectors = {count: np.arange(count)[None, :] * len(heads) + np.arange(len(heads))[:, None] for count in {rows, keys}}
    slots = np.arange(len(heads))[None, :] * rows + np.arange(rows)[:, None]
    biases = [np.zeros(int(lists[number].lengths.sum()), np.float32) for number in heads] if biased else []
    return AttentionSite(
        id="attention-0",
        node="softmax",
        op="Softmax",
        nodes=("softmax",),
        heads=len(heads),
        rows=rows,
        scale=np.ones(len(heads)),
        q=operand["q"],
        k=operand["k"],
        v=operand["v"],
        query_vectors=vectors[rows],
        key_vectors=vectors[keys],
        value_vectors=vectors[keys],
        head_lists=np.array(heads),
        lists=tuple(lists),
        head_bias=np.arange(len(heads)) if biased else np.full(len(heads), -1),
        biases=tuple(biases),
        empty=np.zeros(rows, bool),
        head_empty=np.zeros((len(heads), rows), bool),
        empty_kind=None,
        output="y",
        output_shape=(1, rows, len(heads) * width),
        channel_axis=-1,
        slots=slots,
        query_tokens=np.arange(rows),
        key_tokens=np.arange(keys),
        tokens=keys,
        batch=1,
        runtime=(),
    )
