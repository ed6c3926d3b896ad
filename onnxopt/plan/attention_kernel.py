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
from onnxopt.plan.intervals import LONGEST, rows_of
from onnxopt.plan.makespan import launch_order
from onnxopt.plan.order_choice import chosen_orders
from onnxopt.plan.schedule import AttentionSchedule, Forecast, Objective, PatternSchedule, Proof
from onnxopt.plan.strip_orders import Cut, Order
from onnxopt.plan.strip_prices import PriceTable
from onnxopt.plan.strip_search import Found, distinct, fastest, fewest_pairs_of
from onnxopt.plan.strip_space import StripSpace
from onnxopt.plan.strips import CodedLists, Strip, coded, make_strip
from onnxopt.target.variant import AttentionVariant, Element

# What a planner of a few gigabytes can take.
MOST_ROWS = 1 << 22
MOST_KEYS = 1 << 27


@dataclass(frozen=True)
class _Pattern:
    """The heads that share one pattern, the orders of its rows that are searched, and others that were looked at."""

    heads: tuple[int, ...]
    number: int
    lists: KeyLists
    codes: CodedLists
    rows: np.ndarray
    orders: tuple[Order, ...]
    others: tuple[Order, ...]


def plan_attention_kernel(
    site: AttentionSite,
    cost: AttentionCost,
    objective: Objective = "time",
    element: Element = "fp16",
    top: int = 1,
) -> tuple[AttentionSchedule, ...]:
    """The best schedules that were found, at most ``top``, best first; they differ in setting or orders.

    ``time`` minimises the predicted time of the launch, ``waste`` the computed pairs. The site must have rows to
    compute. Raises :class:`InputError` where it has none, or more than the planner's memory is meant for.
    """
    rows = filled_rows(site)
    if not len(rows) or not any(len(lists.keys) for lists in site.lists):
        raise InputError(f"{site.node}: no query has a key, so there is nothing to plan; its result is constant")
    listed = sum(len(lists.keys) for lists in site.lists)
    if len(rows) > MOST_ROWS or listed > MOST_KEYS:
        raise InputError(
            f"{site.node}: {len(rows):,} queries with {listed:,} keys in their distinct lists are too many to plan; "
            f"allowed: {MOST_ROWS:,} queries and {MOST_KEYS:,} keys. The site can only be kept as it is"
        )
    table = PriceTable(cost, objective)
    patterns = [_pattern(site, number, rows, cost, table) for number in range(len(site.lists))]
    needed = sum(len(p.heads) * int(p.lists.lengths[rows].sum()) for p in patterns)
    moved = moved_bytes(site, rows, element)
    orders = [pattern.orders for pattern in patterns]
    floor_us = cost.launch_us + cost.bytes_floor_us(moved)
    # The tables of run-time weights say nothing about parts of a softmax.
    space = StripSpace(orders, cost, objective, floor_us, table, splits=site.weights is None)
    others = [pattern.others for pattern in patterns]
    found = fastest(space, others) if objective == "time" else fewest_pairs_of(space)
    bound_us = cost.bound_us(float(needed), moved)
    result = []
    for cut in distinct(found.cuts, max(1, top)):
        value = cut.microseconds if objective == "time" else float(cut.pairs)
        free = 0.0 if objective == "time" else min(value, _fewest_pairs(patterns, cost))
        proof = _proof(value, found, free, orders)
        result.append(_assemble(site, patterns, space, cost, cut, element, needed, bound_us, proof))
    return tuple(result)


def _pattern(
    site: AttentionSite,
    number: int,
    rows: np.ndarray,
    cost: AttentionCost,
    table: PriceTable,
) -> _Pattern:
    lists = site.lists[number]
    codes = coded(lists)
    heads = tuple(int(h) for h in np.flatnonzero(site.head_lists == number))
    biased = any(site.head_bias[h] >= 0 for h in heads)
    tokens = (site.query_tokens, site.key_tokens)
    orders, others = chosen_orders(rows, lists, codes, tokens, len(heads), biased, table)
    return _Pattern(heads, number, lists, codes, rows, orders, others)


def moved_bytes(site: AttentionSite, rows: np.ndarray, element: Element) -> float:
    """Bytes that cross the device's memory at least once: every vector that is used, and the results."""
    size = 2 if element in ("fp16", "bf16") else 4
    used = [used_vectors(v) for v in (site.query_vectors, site.key_vectors, site.value_vectors)]
    vectors = (used[0] + used[1]) * site.head_dim + used[2] * site.v.width
    return float(size * (vectors + site.heads * len(rows) * site.v.width))


def used_vectors(numbers: np.ndarray) -> int:
    """How many different vectors are named by their numbers; -1 names none."""
    # Numbers are dense, so that marking them is much faster than sorting them.
    seen = np.zeros(int(numbers.max(initial=-1)) + 2, bool)
    seen[numbers] = True
    return int(seen[:-1].sum())


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
        f"every cut of {sum(map(len, orders))} orders into strips of up to {LONGEST} rows, rows with equal keys in "
        "eights, with every mixture of variants of equal threads and path, and the numbers of resident blocks tried; "
        "makespans by dual feasible functions",
        free,
    )


def _assemble(
    site: AttentionSite,
    patterns: Sequence[_Pattern],
    space: StripSpace,
    cost: AttentionCost,
    cut: Cut,
    element: Element,
    needed: int,
    bound_us: float,
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
    doubt, measured = cost.uncertainty_of(variants), cost.measured
    forecast = Forecast(cut.microseconds, min(bound_us, cut.microseconds), doubt, measured)
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
