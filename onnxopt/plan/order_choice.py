"""Which orders of rows are worth a full search: those that look best under the settings that look best."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from onnxopt.discover.attention_site import KeyLists
from onnxopt.plan.intervals import LONGEST, intervals_of
from onnxopt.plan.orders import row_orders, with_remainders_last
from onnxopt.plan.schedule import Objective
from onnxopt.plan.strip_search import area_of, pairs_of
from onnxopt.plan.strip_space import Order, PricesKnown, StripCost, StripSpace
from onnxopt.plan.strips import CodedLists

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
    cost: StripCost[Any],
    objective: Objective,
    heads: int,
    biased: bool,
    known_prices: PricesKnown,
) -> tuple[Order, ...]:
    """The orders of ``rows`` that a search should cover, best first; ``tokens`` are those of rows and keys, if any."""
    longest = min(LONGEST, max(variant.rows for variant in cost.variants()))

    def numbered(name: str, order: np.ndarray, most_cuts: int | None = _MOST_CUTS) -> Order:
        return Order.of(name, heads, intervals_of(order, lists, codes, longest, most_cuts), biased)

    known = [numbered(name, order) for name, order in row_orders(rows, lists, codes, *tokens).items()]
    known = _ranked(known, cost, objective, known_prices)
    if len(rows) >= _ROWS_PER_LIST * len(np.unique(lists.row_list[rows])):
        known += _with_remainders(known[:_WITH_REMAINDERS], lists, cost, numbered)
        known = _ranked(known, cost, objective, known_prices)
    if objective == "waste":
        # Pairs are one sum, so the few orders that are left can be cut at every place.
        known = [numbered(order.name, order.intervals.order, None) for order in known[:_CUT_FREELY]]
    return tuple(known)


def _with_remainders(
    orders: list[Order], lists: KeyLists, cost: StripCost[Any], numbered: Callable[[str, np.ndarray], Order]
) -> list[Order]:
    """The same orders with the remainders of equal rows at the end, for every granule of rows that variants have."""
    result: dict[bytes, Order] = {}
    for order in orders:
        for granule in sorted({v.row_granule for v in cost.variants()}):
            rows = with_remainders_last(order.intervals.order, lists, granule)
            if not np.array_equal(rows, order.intervals.order) and rows.tobytes() not in result:
                result[rows.tobytes()] = numbered(f"{order.name}, remainders of {granule} last", rows)
    return list(result.values())


def _ranked(orders: list[Order], cost: StripCost[Any], objective: Objective, known_prices: PricesKnown) -> list[Order]:
    """The orders that are among the best under one of the settings in which the best of them does best."""
    space = StripSpace([orders], cost, objective, 0.0, known_prices)
    settings = [s for s in space.settings() if not s.split_keys and (objective == "time" or s.resident == 1)]
    column = area_of if objective == "time" else pairs_of
    sums = space.shortest([column(space, setting) for setting in settings]).sums[0]
    if objective == "time":
        sums = sums / np.array([space.slots(setting) for setting in settings])
    kept: dict[int, None] = {}
    for index in np.argsort(sums.min(axis=0), kind="stable")[:_KEPT_SETTINGS]:
        ranked = np.argsort(sums[:, index], kind="stable")[:_KEPT_ORDERS]
        kept |= dict.fromkeys(int(number) for number in ranked if np.isfinite(sums[number, index]))
    return [orders[number] for number in kept]
