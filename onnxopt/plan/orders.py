"""The orders of rows that a planner tries: as they stand, along curves, by equal and by similar key lists."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from onnxopt.discover.attention_site import KeyLists
from onnxopt.plan.clustering import CLUSTERED_LISTS, linkage_rank, minhash_rank, rcm_rank, signature_rank
from onnxopt.plan.grid import blocks, coordinates, hilbert, morton, recovered_width
from onnxopt.plan.strips import CodedLists

# Lists of which any order is as good as another.
_FEW_LISTS = 4
# Blocks of tokens of a layout whose queries make a strip.
_BLOCKS = ((2, 4), (4, 4))


def row_orders(
    rows: np.ndarray,
    lists: KeyLists,
    codes: CodedLists,
    row_tokens: np.ndarray | None = None,
    key_tokens: np.ndarray | None = None,
) -> dict[str, np.ndarray]:
    """Orders of ``rows`` by name, each different from those before it.

    ``row_tokens`` and ``key_tokens`` number the tokens of rows and keys; without them the numbers of rows and keys
    count as tokens. Rows with equal lists stay together in every order but those along the layout of tokens.
    """
    orders = {"as is": rows}
    owner = lists.row_list[rows]
    used = np.unique(owner)
    if len(used) > 1:
        first = np.full(len(lists.offsets) - 1, len(lists.row_list))
        np.minimum.at(first, owner, rows)
        _add(orders, "equal keys", rows, first[owner])
        if len(used) <= _FEW_LISTS:
            return orders
        _add_grid(orders, rows, lists, row_tokens, key_tokens)
        if len(orders) > 2 and len(used) > CLUSTERED_LISTS:
            # Beside curves of a known layout, clustering so many lists is not worth its time.
            return orders
        for name, rank in _CLUSTERINGS.items():
            ranks = rank(codes)
            if ranks is not None:
                _add(orders, name, rows, ranks[owner])
    return orders


def with_remainders_last(order: np.ndarray, lists: KeyLists, granule: int) -> np.ndarray:
    """The same order, but of each run of rows with equal keys, what exceeds whole granules comes at the end.

    There it shares a strip with the remainders of its neighbours: 49 rows are three granules of 16 and one row.
    """
    owner = lists.row_list[order]
    starts = np.concatenate([[True], owner[1:] != owner[:-1]])
    begin = np.flatnonzero(starts)
    run = np.cumsum(starts) - 1
    length = np.diff(np.append(begin, len(order)))[run]
    rest = np.arange(len(order)) - begin[run] >= length // granule * granule
    return np.concatenate([order[~rest], order[rest]])


_CLUSTERINGS: dict[str, Callable[[CodedLists], np.ndarray | None]] = {
    "similar keys": minhash_rank,
    "column signatures": signature_rank,
    "hierarchical": linkage_rank,
    "reverse Cuthill-McKee": rcm_rank,
}


def _add_grid(
    orders: dict[str, np.ndarray],
    rows: np.ndarray,
    lists: KeyLists,
    row_tokens: np.ndarray | None,
    key_tokens: np.ndarray | None,
) -> None:
    keys = lists.keys if key_tokens is None else key_tokens[lists.keys]
    width = recovered_width(keys, lists.offsets) if len(keys) else None
    if width is None:
        return
    y, x = coordinates(rows if row_tokens is None else np.maximum(row_tokens[rows], 0), width)
    curves = {"Morton": morton(y, x), "Hilbert": hilbert(y, x)}
    curves |= {f"blocks of {tall}x{wide}": blocks(y, x, tall, wide) for tall, wide in _BLOCKS}
    owner = lists.row_list[rows]
    for name, place in curves.items():
        _add(orders, name, rows, place)
        if name in ("Morton", "Hilbert"):
            # The lists themselves along the curve, each where its first row is.
            first = np.full(len(lists.offsets) - 1, np.iinfo(np.int64).max)
            np.minimum.at(first, owner, place)
            # Tokens in front of the image share a place; the lists that meet there still follow one another.
            _add(orders, f"{name} of equal keys", rows, np.argsort(np.argsort(first, kind="stable"))[owner])


def _add(orders: dict[str, np.ndarray], name: str, rows: np.ndarray, key: np.ndarray) -> None:
    order = rows[np.lexsort((rows, key))]
    if not any(np.array_equal(order, other) for other in orders.values()):
        orders[name] = order
