"""Which orders of rows are worth a full search: those that look best under the settings that look best."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from onnxopt.discover.attention_site import KeyLists
from onnxopt.plan.intervals import LONGEST, in_equal_parts, intervals_of
from onnxopt.plan.orders import row_orders, with_remainders_last
from onnxopt.plan.strip_columns import area_of, pairs_of
from onnxopt.plan.strip_orders import Order
from onnxopt.plan.strip_prices import PriceTable
from onnxopt.plan.strip_space import SPREAD, StripSpace
from onnxopt.plan.strips import CodedLists
from onnxopt.plan.unions import runs_of

# Orders that are kept for each of so many settings.
_KEPT_ORDERS = 3
_KEPT_SETTINGS = 6
# Orders whose remainders are tried at the end, where a list has about a strip of rows.
_WITH_REMAINDERS = 3
_ROWS_PER_LIST = 8
_CUT_FREELY = 6
# Rows are taken together until no more places to cut are left than this.
_MOST_CUTS = 1024


def chosen_orders(
    rows: np.ndarray,
    lists: KeyLists,
    codes: CodedLists,
    tokens: tuple[np.ndarray, np.ndarray] | tuple[None, None],
    heads: int,
    biased: bool,
    table: PriceTable,
) -> tuple[tuple[Order, ...], tuple[Order, ...]]:
    """The orders of ``rows`` that a search should cover, best first, and others that were looked at.

    ``tokens`` are those of rows and keys, if any.
    """
    longest = min(LONGEST, max(variant.rows for variant in table.variants))

    def numbered(name: str, order: np.ndarray, most_cuts: int | None = _MOST_CUTS) -> Order:
        return Order.of(name, heads, intervals_of(order, lists, codes, longest, most_cuts), biased)

    known = [numbered(name, order) for name, order in row_orders(rows, lists, codes, *tokens).items()]
    every = known
    known = _ranked(known, table)
    if len(rows) >= _ROWS_PER_LIST * len(np.unique(lists.row_list[rows])):
        known += _with_remainders(known[:_WITH_REMAINDERS], lists, table, numbered)
        known = _ranked(known, table)
    if table.objective == "waste":
        # Pairs are one sum, so the few orders that are left can be cut at every place.
        known = [numbered(order.name, order.intervals.order, None) for order in known[:_CUT_FREELY]]
    kept = {id(order) for order in known}
    others = [order for order in every if id(order) not in kept]
    if table.objective == "time":
        others += _lists_in_parts([*known, *others], lists, codes, biased, table)
    return tuple(known), tuple(others)


def _lists_in_parts(
    orders: list[Order], lists: KeyLists, codes: CodedLists, biased: bool, table: PriceTable
) -> list[Order]:
    """Strips of rows with equal keys, of nearly one size; the same in every order that keeps such rows together."""
    owners = [lists.row_list[order.intervals.order] for order in orders]
    together = [order for order, own in zip(orders, owners, strict=True) if len(runs_of(own)) == len(np.unique(own))]
    result = []
    for most in sorted({min(LONGEST, variant.rows) for variant in table.variants}) if together else ():
        parts = in_equal_parts(together[0].intervals.order, lists, codes, most)
        result.append(Order.of(f"lists in parts of {most} at most", together[0].heads, parts, biased))
    return result


def _with_remainders(
    orders: list[Order], lists: KeyLists, table: PriceTable, numbered: Callable[[str, np.ndarray], Order]
) -> list[Order]:
    """The same orders with the remainders of equal rows at the end, for every granule of rows that variants have."""
    result: dict[bytes, Order] = {}
    for order in orders:
        for granule in sorted({v.row_granule for v in table.variants}):
            rows = with_remainders_last(order.intervals.order, lists, granule)
            if not np.array_equal(rows, order.intervals.order) and rows.tobytes() not in result:
                result[rows.tobytes()] = numbered(f"{order.name}, remainders of {granule} last", rows)
    return list(result.values())


def _ranked(orders: list[Order], table: PriceTable) -> list[Order]:
    """The orders that are among the best under one of the settings in which the best of them does best."""
    space = StripSpace([orders], table.cost, table.objective, 0.0, table)
    residents = SPREAD if table.objective == "time" else SPREAD[:1]
    settings = [s for s in space.settings() if not s.split_keys and s.resident in residents]
    column = area_of if table.objective == "time" else pairs_of
    sums = space.shortest([column(space, setting) for setting in settings]).sums[0]
    if table.objective == "time":
        sums = sums / np.array([space.slots(setting) for setting in settings])
    kept: dict[int, None] = {}
    for index in np.argsort(sums.min(axis=0), kind="stable")[:_KEPT_SETTINGS]:
        ranked = np.argsort(sums[:, index], kind="stable")[:_KEPT_ORDERS]
        kept |= dict.fromkeys(int(number) for number in ranked if np.isfinite(sums[number, index]))
    return [orders[number] for number in kept]
