"""Plan an attention as strips of gathered keys, computed bucket by bucket: the schedule of the portable form."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from onnxopt.discover.attention_site import AttentionSite, EmptyRow
from onnxopt.plan.buckets import Bucket, CostOfBatch, best_buckets
from onnxopt.plan.rates import CpuRates
from onnxopt.plan.strips import Strip, coded, cut_at_lists, cut_evenly, make_strip, row_orders

Objective = Literal["time", "waste"]

_STRIP_ROWS = (16, 32, 64, 128, 256)
# Cuts at key lists can leave strips of a row or two; beyond this many they are not worth batching.
_MAX_STRIPS_PER_16_ROWS = 4


@dataclass(frozen=True)
class HeadPlan:
    """The schedule of the heads that share one pattern: ``lists`` is its number in the site's."""

    heads: tuple[int, ...]
    lists: int
    order: str
    strip_rows: int
    strips: tuple[Strip, ...] = field(repr=False)
    buckets: tuple[Bucket, ...] = field(repr=False)
    cost_us: float


@dataclass(frozen=True)
class AttentionPlan:
    """How one attention site is computed in standard operators.

    ``needed`` and ``computed`` count (query, key) pairs over all heads, before and after padding. ``bound_us`` is what
    the needed pairs take at the CPU's peak rates; ``candidates`` is how many cuts were compared. The plan is optimal
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


def plan_attention(site: AttentionSite, rates: CpuRates, objective: Objective = "time") -> AttentionPlan:
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
    site: AttentionSite, number: int, heads: tuple[int, ...], rates: CpuRates, objective: Objective
) -> tuple[HeadPlan, int]:
    lists = site.lists[number]
    codes = coded(lists)
    unfilled = _unfilled(site)
    biased = any(site.head_bias[h] >= 0 for h in heads)
    best: HeadPlan | None = None
    best_score = np.inf
    compared = 0
    for name, order in row_orders(lists).items():
        filled = order[~unfilled[order]]
        tried: set[tuple[int, ...]] = set()
        for size in _STRIP_ROWS:
            for cut in (cut_evenly(filled, size), cut_at_lists(filled, lists.row_list, size)):
                key = tuple(len(rows) for rows in cut)
                if key in tried or len(cut) > _MAX_STRIPS_PER_16_ROWS * max(1, len(filled) // 16):
                    continue
                tried.add(key)
                compared += 1
                strips = tuple(make_strip(rows, lists, codes) for rows in cut)
                masked = biased or not all(strip.full for strip in strips)
                time = _batch_time(rates, site, len(heads), masked)
                cost = time if objective == "time" else _pairs
                buckets, score = best_buckets([len(s.rows) for s in strips], [len(s.keys) for s in strips], cost)
                if score < best_score:
                    best_score = score
                    best = HeadPlan(heads, number, name, size, strips, buckets, _total(buckets, time))
    assert best is not None
    return best, compared


def _batch_time(rates: CpuRates, site: AttentionSite, heads: int, masked: bool) -> CostOfBatch:
    def cost(strips: np.ndarray, rows: np.ndarray, keys: np.ndarray) -> np.ndarray:
        return rates.attention(strips * heads, rows, keys, site.head_dim, site.v.width, masked)

    return cost


def _pairs(strips: np.ndarray, rows: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """Computed pairs, and next to nothing for a bucket, so that equals are not split."""
    return np.asarray(strips * rows * keys + 1e-3)


def _total(buckets: tuple[Bucket, ...], cost: CostOfBatch) -> float:
    shapes = np.array([(len(b.strips), b.rows, b.keys) for b in buckets])
    return float(cost(shapes[:, 0], shapes[:, 1], shapes[:, 2]).sum())
