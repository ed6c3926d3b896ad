"""Plan an attention for a kernel of its own: strips, variants and launch order, with the proof of how good that is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from onnxopt.discover.attention_site import AttentionSite, KeyLists
from onnxopt.errors import InputError
from onnxopt.plan.attention import filled_rows
from onnxopt.plan.attention_cost import AttentionCost
from onnxopt.plan.free_bound import fewest_pairs
from onnxopt.plan.intervals import Intervals, cheapest_cuts, intervals_of, rows_of
from onnxopt.plan.makespan import launch_order
from onnxopt.plan.orders import row_orders, with_remainders_last
from onnxopt.plan.schedule import AttentionSchedule, Forecast, Objective, PatternSchedule, Proof
from onnxopt.plan.strip_search import Found, distinct, fastest, fewest_pairs_of
from onnxopt.plan.strip_space import Cut, Order, StripSpace, padded
from onnxopt.plan.strips import CodedLists, Strip, coded, make_strip
from onnxopt.target.variant import AttentionVariant, Element

# Orders that the search for time keeps for each granule of rows, by the pairs that they compute at best.
_KEPT_ORDERS = 2
# The search for time takes rows together until no more places to cut are left than this.
_MOST_CUTS = 1024
# Remainders are worth an order of their own where a list has about a strip of rows.
_ROWS_PER_LIST = 8
# What a strip counts besides its pairs, so that equals are not split.
_STRIP_PAIRS = 1e-3


@dataclass(frozen=True)
class _Pattern:
    """The heads that share one pattern, and the orders of its rows that are searched."""

    heads: tuple[int, ...]
    number: int
    lists: KeyLists
    codes: CodedLists
    rows: np.ndarray
    orders: tuple[Order, ...]


def plan_attention_kernel(
    site: AttentionSite,
    cost: AttentionCost,
    objective: Objective = "time",
    element: Element = "fp16",
    top: int = 1,
) -> tuple[AttentionSchedule, ...]:
    """The best schedules that were found, at most ``top``, best first; they differ in setting or orders.

    ``time`` minimises the predicted time of the launch, ``waste`` the computed pairs. The site must have rows to
    compute. Raises :class:`InputError` where it has none.
    """
    rows = filled_rows(site)
    if not len(rows) or not any(len(lists.keys) for lists in site.lists):
        raise InputError(f"{site.node}: no query has a key, so there is nothing to plan; its result is constant")
    granules = sorted({v.row_granule for v in cost.variants()})
    most_cuts = _MOST_CUTS if objective == "time" else None
    patterns = [_pattern(site, number, rows, granules, most_cuts) for number in range(len(site.lists))]
    needed = sum(len(p.heads) * int(p.lists.lengths[rows].sum()) for p in patterns)
    moved = _moved_bytes(site, rows, element)
    orders = [pattern.orders for pattern in patterns]
    space = StripSpace(orders, cost, objective, cost.launch_us + cost.bytes_floor_us(moved))
    found = fastest(space) if objective == "time" else fewest_pairs_of(space)
    bound_us = cost.bound_us(float(needed), moved)
    result = []
    for cut in distinct(found.cuts, max(1, top)):
        value = cut.microseconds if objective == "time" else float(cut.pairs)
        free = 0.0 if objective == "time" else min(value, _fewest_pairs(patterns, cost))
        forecast = Forecast(cut.microseconds, min(bound_us, cut.microseconds), cost.uncertainty, cost.measured)
        proof = _proof(value, found, free, orders)
        result.append(_assemble(site, patterns, space, cut, element, needed, forecast, proof))
    return tuple(result)


def _pattern(
    site: AttentionSite, number: int, rows: np.ndarray, granules: Sequence[int], most_cuts: int | None
) -> _Pattern:
    lists = site.lists[number]
    codes = coded(lists)
    heads = tuple(int(h) for h in np.flatnonzero(site.head_lists == number))
    biased = any(site.head_bias[h] >= 0 for h in heads)
    known = {
        name: intervals_of(order, lists, codes, most_cuts=most_cuts)
        for name, order in row_orders(rows, lists, codes, site.query_tokens, site.key_tokens).items()
    }
    best = _promising(known, granules)
    if len(rows) >= _ROWS_PER_LIST * len(np.unique(lists.row_list[rows])):
        for name in best:
            for granule in granules:
                other = with_remainders_last(known[name].order, lists, granule)
                if not any(np.array_equal(other, intervals.order) for intervals in known.values()):
                    known[f"{name}, remainders of {granule} last"] = intervals_of(
                        other, lists, codes, most_cuts=most_cuts
                    )
        best = _promising(known, granules)
    orders = tuple(Order.of(name, len(heads), known[name], biased) for name in best)
    return _Pattern(heads, number, lists, codes, rows, orders)


def _promising(known: dict[str, Intervals], granules: Sequence[int]) -> list[str]:
    """For each granule of rows the orders that compute the fewest pairs with it."""
    scores = {name: _least_pairs(intervals, granules) for name, intervals in known.items()}
    best: dict[str, None] = {}
    for column in range(len(granules)):
        ranked = sorted((scores[name][column], place, name) for place, name in enumerate(known))
        best |= dict.fromkeys(name for _, _, name in ranked[:_KEPT_ORDERS])
    return list(best)


def _least_pairs(intervals: Intervals, granules: Sequence[int]) -> np.ndarray:
    keys = padded(intervals.keys, 16).astype(np.float64)
    values = [padded(intervals.rows, granule) * keys + _STRIP_PAIRS for granule in granules]
    return cheapest_cuts(intervals, np.where(intervals.rows[:, :, None] > 0, np.stack(values, axis=2), np.inf))[0]


def _moved_bytes(site: AttentionSite, rows: np.ndarray, element: Element) -> float:
    """Bytes that cross the device's memory at least once: every vector that is used, and the results."""
    size = 2 if element in ("fp16", "bf16") else 4
    used = [len(np.unique(v[v >= 0])) for v in (site.query_vectors, site.key_vectors, site.value_vectors)]
    vectors = (used[0] + used[1]) * site.head_dim + used[2] * site.v.width
    return float(size * (vectors + site.heads * len(rows) * site.v.width))


def _fewest_pairs(patterns: Sequence[_Pattern], cost: AttentionCost) -> float:
    granules = sorted({(v.row_granule, v.key_granule) for v in cost.variants()})
    return float(sum(len(p.heads) * fewest_pairs(p.rows, p.lists, p.codes, granules) for p in patterns))


def _proof(value: float, found: Found, free: float, orders: Sequence[Sequence[Order]]) -> Proof:
    bound = min(value, found.bound)
    return Proof(
        value,
        bound,
        "shortest path",
        "optimal" if value <= bound * (1 + 1e-9) else "feasible",
        found.passes,
        f"every cut of {sum(map(len, orders))} orders into strips, with every mixture of variants of equal threads at "
        "every number of resident blocks; makespans by dual feasible functions",
        free,
    )


def _assemble(
    site: AttentionSite,
    patterns: Sequence[_Pattern],
    space: StripSpace,
    cut: Cut,
    element: Element,
    needed: int,
    forecast: Forecast,
    proof: Proof,
) -> AttentionSchedule:
    """The strips of a cut with their keys, and the launch order of all blocks."""
    parts: list[PatternSchedule] = []
    durations, places = [], []
    used: dict[int, int] = {}
    for pattern, order, intervals in zip(patterns, cut.orders, cut.intervals, strict=True):
        prices = space.prices(order, cut.setting)
        strips, numbers, times = [], [], []
        for end, step in intervals:
            shape = int(order.shape[end, step])
            number = used.setdefault(int(prices.variant[shape]), len(used))
            whole = make_strip(rows_of(order.intervals, end, step), pattern.lists, pattern.codes)
            for piece in _pieces(whole, int(prices.pieces[shape])):
                strips.append(piece)
                numbers.append(number)
                times.append(float(prices.microseconds[shape]))
        part = len(parts)
        parts.append(PatternSchedule(pattern.heads, pattern.number, order.name, tuple(strips), tuple(numbers)))
        for head in pattern.heads:
            durations.append(np.array(times))
            places.append(np.stack([np.full(len(strips), part), np.arange(len(strips)), np.full(len(strips), head)], 1))
    jobs = np.concatenate(places)[launch_order(np.concatenate(durations), space.slots(cut.setting))].astype(np.int32)
    variants = tuple(space.variants[number] for number in used)
    computed = _computed(parts, variants)
    was_split = any(len(p.strips) > len(i) for p, i in zip(parts, cut.intervals, strict=True))
    return AttentionSchedule(
        site.id,
        space.objective,
        element,
        variants,
        cut.setting.resident,
        tuple(parts),
        jobs,
        cut.setting.split_keys if was_split else 0,
        needed,
        computed,
        forecast,
        proof,
    )


def _pieces(strip: Strip, count: int) -> list[Strip]:
    """A strip with its keys dealt out to ``count`` strips, in order."""
    if count == 1:
        return [strip]
    return [Strip(strip.rows, keys, strip.full) for keys in np.array_split(strip.keys, count)]


def _computed(parts: Sequence[PatternSchedule], variants: Sequence[AttentionVariant]) -> int:
    total = 0
    for part in parts:
        for strip, number in zip(part.strips, part.variants, strict=True):
            variant = variants[number]
            rows = -(-len(strip.rows) // variant.row_granule) * variant.row_granule
            total += len(part.heads) * rows * -(-len(strip.keys) // variant.key_granule) * variant.key_granule
    return total
