"""Plan an attention as strips of gathered keys, computed bucket by bucket: the schedule of the portable form."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from onnxopt.discover.attention_site import AttentionSite, EmptyRow, KeyLists
from onnxopt.plan.buckets import Bucket, CostOfBatch, best_buckets
from onnxopt.plan.intervals import Intervals, cheapest_cuts, chosen, intervals_of, rows_of
from onnxopt.plan.orders import row_orders
from onnxopt.plan.rates import CpuRates, GpuRates
from onnxopt.plan.schedule import Objective
from onnxopt.plan.strips import CodedLists, Strip, coded, cut_at_lists, cut_evenly, make_strip
from onnxopt.plan.unions import union_sizes

_STRIP_ROWS = (16, 32, 64, 128, 256)
# Orders that are searched besides those that are always, and places where an order may be cut freely.
_KEPT_ORDERS = 2
_ALWAYS = ("as is", "equal keys")
_MOST_CUTS = 1024
# Cuts at key lists can leave strips of a row or two; beyond this many they are not worth batching.
_MAX_STRIPS_PER_16_ROWS = 4


@dataclass(frozen=True)
class HeadPlan:
    """The schedule of the heads that share one pattern: ``lists`` is its number in the site's."""

    heads: tuple[int, ...]
    lists: int
    order: str
    strips: tuple[Strip, ...] = field(repr=False)
    buckets: tuple[Bucket, ...] = field(repr=False)
    cost_us: float


@dataclass(frozen=True)
class AttentionPlan:
    """How one attention site is computed in standard operators.

    ``needed`` and ``computed`` count (query, key) pairs over all heads, before and after padding. ``bound_us`` is what
    the needed pairs take at peak rates; ``candidates`` is how many cuts were compared. The plan is optimal
    among them by the cost that was minimised: they are enumerated, and the buckets of each are exact.
    """

    site: str
    parts: tuple[HeadPlan, ...]
    needed: int
    computed: int
    cost_us: float
    bound_us: float
    candidates: int

    @property
    def waste(self) -> float:
        """Computed pairs per needed pair; at least 1."""
        return self.computed / max(1, self.needed)


def plan_attention(site: AttentionSite, rates: CpuRates | GpuRates, objective: Objective = "time") -> AttentionPlan:
    """The cheapest of the tried orders and strip sizes for each head pattern, with exactly optimal buckets.

    ``time`` minimises the predicted microseconds, ``waste`` the computed pairs. The site must have rows to compute
    (:func:`filled_rows`).
    """
    parts = []
    needed = computed = candidates = 0
    for number, lists in enumerate(site.lists):
        heads = tuple(int(h) for h in np.flatnonzero(site.head_lists == number))
        best, tried = _best_part(site, number, heads, rates, objective)
        candidates += tried
        parts.append(best)
        needed += len(heads) * int(lists.lengths[~_unfilled(site)].sum())
        computed += len(heads) * sum(len(b.strips) * b.rows * b.keys for b in best.buckets)
    cost = sum(p.cost_us for p in parts)
    bound = rates.attention_bound(needed, site.heads * site.rows, site.head_dim, site.v.width)
    return AttentionPlan(site.id, tuple(parts), needed, computed, cost, bound, candidates)


def filled_rows(site: AttentionSite) -> np.ndarray:
    """The rows that are computed; rows that the graph turns into zeros are not."""
    return np.flatnonzero(~_unfilled(site))


def _unfilled(site: AttentionSite) -> np.ndarray:
    if site.empty_kind is EmptyRow.ZERO:
        return site.empty
    return np.zeros(site.rows, bool)


def _best_part(
    site: AttentionSite, number: int, heads: tuple[int, ...], rates: CpuRates | GpuRates, objective: Objective
) -> tuple[HeadPlan, int]:
    lists = site.lists[number]
    codes = coded(lists)
    biased = any(site.head_bias[h] >= 0 for h in heads)
    best: tuple[float, str, list[np.ndarray], tuple[Bucket, ...], CostOfBatch] | None = None
    compared = 0
    for name, order in _promising_orders(site, lists, codes, len(heads), rates, objective).items():
        sizes = union_sizes(lists.row_list[order], codes, _STRIP_ROWS[-1])
        for cut in _cuts(site, len(heads), order, lists, codes, rates, objective):
            compared += 1
            rows, keys, full = _shapes(cut, lists, sizes)
            time = _batch_time(rates, site, len(heads), biased or not full)
            buckets, score = best_buckets(rows.tolist(), keys.tolist(), time if objective == "time" else _pairs)
            if best is None or score < best[0]:
                best = (score, name, cut, buckets, time)
    assert best is not None
    _, name, cut, buckets, time = best
    strips = tuple(make_strip(rows, lists, codes) for rows in cut)
    return HeadPlan(heads, number, name, strips, buckets, _total(buckets, time)), compared


def _promising_orders(
    site: AttentionSite,
    lists: KeyLists,
    codes: CodedLists,
    heads: int,
    rates: CpuRates | GpuRates,
    objective: Objective,
) -> dict[str, np.ndarray]:
    """The rows as they are, with equal keys together, and in the orders whose strips cost least if cut freely."""
    orders = row_orders(filled_rows(site), lists, codes, site.query_tokens, site.key_tokens)
    totals = {}
    for name, order in orders.items():
        intervals = intervals_of(order, lists, codes, most_cuts=_MOST_CUTS)
        cost = _interval_cost(site, heads, intervals, rates, objective)
        cost[intervals.rows == 0] = np.inf
        totals[name] = float(cheapest_cuts(intervals, cost[:, :, None])[0][0])
    best = sorted(orders, key=lambda name: totals[name])[:_KEPT_ORDERS]
    return {name: order for name, order in orders.items() if name in (*_ALWAYS, *best)}


def _cuts(
    site: AttentionSite,
    heads: int,
    order: np.ndarray,
    lists: KeyLists,
    codes: CodedLists,
    rates: CpuRates | GpuRates,
    objective: Objective,
) -> list[list[np.ndarray]]:
    """The ways to cut an order that are tried: evenly, where key lists change, and with the least sum of costs."""
    cuts = []
    intervals = intervals_of(order, lists, codes, most_cuts=_MOST_CUTS)
    cost = _interval_cost(site, heads, intervals, rates, objective)
    cost[intervals.rows == 0] = np.inf
    columns = [np.where(intervals.rows > size, np.inf, cost) for size in _STRIP_ROWS]
    totals, taken = cheapest_cuts(intervals, np.stack(columns, axis=2))
    for column, size in enumerate(_STRIP_ROWS):
        cuts += [cut_evenly(order, size), cut_at_lists(order, lists.row_list, size)]
        if np.isfinite(totals[column]):
            cuts.append([rows_of(intervals, end, step) for end, step in chosen(intervals, taken[:, column])])
    known: dict[tuple[int, ...], list[np.ndarray]] = {}
    for cut in cuts:
        if len(cut) <= _MAX_STRIPS_PER_16_ROWS * max(1, len(order) // 16):
            known.setdefault(tuple(len(rows) for rows in cut), cut)
    return list(known.values())


def _interval_cost(
    site: AttentionSite, heads: int, intervals: Intervals, rates: CpuRates | GpuRates, objective: Objective
) -> np.ndarray:
    """What each interval adds to the cost of a batch, without the batch's own."""
    if objective == "waste":
        return np.asarray(np.maximum(intervals.rows, _STRIP_ROWS[0]) * intervals.keys.astype(np.float64))
    width, value_width = site.head_dim, site.v.width
    zero = np.zeros(1, np.int64)
    own = rates.attention(zero, zero, zero, width, value_width, True)
    count = np.full(intervals.rows.shape, heads)
    return np.asarray(rates.attention(count, intervals.rows, intervals.keys, width, value_width, True) - own)


def _shapes(cut: Sequence[np.ndarray], lists: KeyLists, sizes: np.ndarray) -> tuple[np.ndarray, np.ndarray, bool]:
    """Rows and keys of each strip of an order's cut, and whether no strip has anything to mask."""
    rows = np.array([len(strip) for strip in cut])
    begins = np.cumsum(rows) - rows
    keys = sizes[begins, rows - 1]
    lengths = np.concatenate([[0], np.cumsum(lists.lengths[np.concatenate(cut)])])
    return rows, keys, bool(np.array_equal(lengths[begins + rows] - lengths[begins], rows * keys))


def _batch_time(rates: CpuRates | GpuRates, site: AttentionSite, heads: int, masked: bool) -> CostOfBatch:
    def cost(strips: np.ndarray, rows: np.ndarray, keys: np.ndarray) -> np.ndarray:
        return rates.attention(strips * heads, rows, keys, site.head_dim, site.v.width, masked)

    return cost


def _pairs(strips: np.ndarray, rows: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """Computed pairs, and next to nothing for a bucket, so that equals are not split."""
    return np.asarray(strips * rows * keys + 1e-3)


def _total(buckets: tuple[Bucket, ...], cost: CostOfBatch) -> float:
    shapes = np.array([(len(b.strips), b.rows, b.keys) for b in buckets])
    return float(cost(shapes[:, 0], shapes[:, 1], shapes[:, 2]).sum())
