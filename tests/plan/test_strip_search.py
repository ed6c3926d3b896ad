"""The search against every cut, order, variant and assignment of small instances."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxopt.plan.intervals import intervals_of
from onnxopt.plan.orders import row_orders
from onnxopt.plan.strip_orders import Order
from onnxopt.plan.strip_search import distinct, fastest, fewest_pairs_of
from onnxopt.plan.strip_space import StripSpace
from onnxopt.plan.strips import coded
from tests.plan.fake_cost import EIGHT, GROUPED, SHORT, TALL, FakeCost, fake_costs
from tests.plan.patterns import Rows, key_lists

# What a pattern's strips come to: the durations of its blocks, rows that are split, and the most pieces.
Outcome = tuple[tuple[float, ...], int, int]
ROUNDING = 1e-6


def space_of(
    patterns: Sequence[tuple[Rows, int, bool]], cost: FakeCost, objective: str = "time", floor_us: float = 0.0
) -> StripSpace:
    """The space of patterns (rows, heads, whether biased), each in two orders at most."""
    result = []
    for rows, heads, biased in patterns:
        lists = key_lists(rows)
        codes = coded(lists)
        orders = row_orders(np.arange(len(rows)), lists, codes)
        two = list(orders.items())[:1] + list(orders.items())[-1:] if len(orders) > 1 else list(orders.items())
        result.append([Order.of(name, heads, intervals_of(order, lists, codes), biased) for name, order in two])
    return StripSpace(result, cost, objective, floor_us)  # type: ignore[arg-type]


def launches(cost: FakeCost) -> list[list[int]]:
    """The numbers of the variants that can be in one launch."""
    groups: dict[tuple[str, int], list[int]] = {}
    for number, variant in enumerate(cost.variants()):
        groups.setdefault((variant.path, variant.threads), []).append(number)
    return list(groups.values())


@cache
def exact_makespan(durations: tuple[float, ...], slots: int) -> float:
    """The least makespan over every assignment; ``durations`` ascend."""
    low = max(durations[-1], sum(durations) / slots)
    best = sum(durations)

    def place(number: int, loads: tuple[float, ...]) -> None:
        nonlocal best
        if best <= low or max(loads) >= best:
            return
        if number < 0:
            best = max(loads)
            return
        for load in dict.fromkeys(loads):
            spot = loads.index(load)
            place(number - 1, (*loads[:spot], load + durations[number], *loads[spot + 1 :]))

    place(len(durations) - 1, (0.0,) * min(slots, len(durations)))
    return best


def outcomes(space: StripSpace, order: Order, allowed: list[int], resident: int, split_keys: int) -> set[Outcome]:
    """Everything that an order's cuts can come to with the allowed variants."""
    intervals = order.intervals
    cost = space.cost
    at: list[set[Outcome]] = [{((), 0, 1)}]
    for end in range(1, len(intervals.cuts)):
        here: set[Outcome] = set()
        for step in range(min(end, intervals.rows.shape[1])):
            rows, keys = int(intervals.rows[end, step]), int(intervals.keys[end, step])
            masked = bool(order.masked[order.shape[end, step]])
            if not rows:
                continue
            pieces = max(1, -(-keys // split_keys)) if split_keys else 1
            times = {
                float(cost.strip_us(v, np.array([rows]), np.array([-(-keys // pieces)]), resident, masked)[0])
                for v in (space.variants[number] for number in allowed)
                if rows <= v.rows
            }
            for time in times - {np.inf}:
                for durations, split, most in at[end - step - 1]:
                    more = tuple(sorted((*durations, *[time] * pieces * order.heads)))
                    here.add((more, split + (rows * order.heads if pieces > 1 else 0), max(most, pieces)))
        at.append(here)
    return at[-1]


def together(space: StripSpace, allowed: list[int], setting: tuple[int, int]) -> Iterator[Outcome]:
    """Everything that all patterns can come to in one setting."""
    results: set[Outcome] = {((), 0, 1)}
    for orders in space.patterns:
        own = set().union(*(outcomes(space, o, allowed, *setting) for o in orders))
        results = {(tuple(sorted((*a[0], *b[0]))), a[1] + b[1], max(a[2], b[2])) for a in results for b in own}
    yield from results


def optimum(space: StripSpace) -> float:
    """The least time over every setting, order, cut, variant and assignment to slots."""
    best = np.inf
    cost = space.cost
    splits = {setting.split_keys for setting in space.settings()}
    for group in launches(cost):  # type: ignore[arg-type]
        most = max(cost.occupancy([space.variants[number]]) for number in group)
        for resident in range(1, most + 1):
            allowed = [n for n in group if cost.occupancy([space.variants[n]]) >= resident]
            slots = resident * cost.gpu.multiprocessors
            for split_keys in splits:
                setting = (resident, split_keys)
                every = sorted(together(space, allowed, setting), key=lambda own: sum(own[0]))
                for durations, rows, pieces in every:
                    fixed = cost.launch_us + cost.merge_us(rows, pieces)
                    if max(space.floor_us, fixed + max(durations[-1], sum(durations) / slots)) < best:
                        best = min(best, max(space.floor_us, fixed + exact_makespan(durations, slots)))
    return float(best)


def check_fastest(space: StripSpace) -> None:
    found = fastest(space)
    best = optimum(space)
    values = [cut.microseconds for cut in found.cuts]
    assert values == sorted(values)
    assert found.bound <= best + ROUNDING
    assert best <= values[0] + ROUNDING
    assert found.bound <= values[0]
    for cut in found.cuts:
        if np.isfinite(cut.microseconds):
            check_cut(space, cut)


def check_cut(space: StripSpace, cut: object) -> None:
    """What a cut says of itself: whole, and no faster than its strips can be."""
    durations: list[float] = []
    split, most, used = 0, 1, set()
    setting = cut.setting  # type: ignore[attr-defined]
    for order, picked in zip(cut.orders, cut.intervals, strict=True):  # type: ignore[attr-defined]
        cuts = order.intervals.cuts
        assert [0, *(int(cuts[end]) for end, _ in picked)] == [
            *(int(cuts[end - step - 1]) for end, step in picked),
            int(cuts[-1]),
        ]
        prices = space.prices(order, setting)
        for end, step in picked:
            shape = order.shape[end, step]
            rows, keys = int(order.intervals.rows[end, step]), int(order.intervals.keys[end, step])
            pieces = max(1, -(-keys // setting.split_keys)) if setting.split_keys else 1
            variant = space.variants[int(prices.variant[shape])]
            used.add(variant)
            time = space.cost.strip_us(
                variant, np.array([rows]), np.array([-(-keys // pieces)]), setting.resident, bool(order.masked[shape])
            )
            durations += [float(time[0])] * pieces * order.heads
            split += rows * order.heads if pieces > 1 else 0
            most = max(most, pieces)
    assert space.cost.occupancy(sorted(used)) >= setting.resident
    total = space.cost.launch_us + space.cost.merge_us(split, most)
    exact = exact_makespan(tuple(sorted(durations)), setting.resident * space.cost.gpu.multiprocessors)
    assert cut.microseconds >= max(space.floor_us, total + exact) - ROUNDING  # type: ignore[attr-defined]


def rows_up_to(most: int) -> st.SearchStrategy[Rows]:
    return st.lists(st.lists(st.integers(0, 7), min_size=1, max_size=6), min_size=1, max_size=most)


@given(rows_up_to(6), st.integers(1, 2), st.booleans(), fake_costs(), st.sampled_from([0.0, 15.0]))
def test_one_pattern_lies_between_its_bound_and_its_plan(
    rows: Rows, heads: int, biased: bool, cost: FakeCost, floor_us: float
) -> None:
    check_fastest(space_of([(rows, heads, biased)], cost, floor_us=floor_us))


@given(rows_up_to(4), rows_up_to(3), st.integers(1, 2), fake_costs())
def test_so_do_several_patterns_of_one_launch(first: Rows, second: Rows, heads: int, cost: FakeCost) -> None:
    check_fastest(space_of([(first, 1, False), (second, heads, True)], cost))


@given(rows_up_to(3), fake_costs(per_key=1 / 256, most_resident=1))
def test_so_do_lists_that_may_be_split(rows: Rows, cost: FakeCost) -> None:
    # Every key stands for so many that lists are split.
    many = [[key * 400 + i for key in set(row) for i in range(400)] for row in rows]
    check_fastest(space_of([(many, 1, False)], cost))


@pytest.mark.parametrize("seed", [7, 362, 548, 830])
def test_so_do_launches_that_hardly_balance(seed: int) -> None:
    # Among random launches these are ones in which the best mixture of few, very unequal strips is easily missed.
    rng = np.random.default_rng(seed)
    count, multiprocessors = int(rng.integers(8, 11)), int(rng.integers(2, 4))
    rows = [sorted(set(rng.integers(0, 10, int(rng.integers(1, 5))).tolist())) for _ in range(count)]
    figures = int(rng.integers(0, 8)), int(rng.integers(0, 4)), float(rng.choice([0.0, 0.5, 1.0]))
    cost = FakeCost(
        ((SHORT, *figures, 1, int(rng.integers(3, 6))),), multiprocessors, irregular=int(rng.choice([40, 150, 400]))
    )
    check_fastest(space_of([(rows, 1, False)], cost))


def test_a_long_list_is_split_where_that_pays() -> None:
    cost = FakeCost(((SHORT, 1, 0, 0.1, 1, 128),), 4)
    space = space_of([([list(range(6000)), [0, 1]], 1, False)], cost)
    best = fastest(space).cuts[0]
    assert best.setting.split_keys > 0
    assert best.microseconds < min(c.microseconds for c in fastest(space).cuts if not c.setting.split_keys) / 2
    check_fastest(space)


def test_what_must_be_split_is_the_least_over_all_orders() -> None:
    # Thinned cuts take unlike rows together in the first order; in the second only one list exceeds the split.
    rows = [[kind * 300 + i for i in range(300)] for _ in range(16) for kind in range(4)] + [list(range(5000, 7000))]
    lists = key_lists(rows)
    codes = coded(lists)
    grouped = np.argsort(lists.row_list, kind="stable")
    orders = [
        Order.of(name, 1, intervals_of(order, lists, codes, most_cuts=9), False)
        for name, order in (("as is", np.arange(65)), ("equal keys", grouped))
    ]
    cost = FakeCost(((EIGHT, 1, 0, 0.1, 1, 128),), 2, merge=5)
    both = fastest(StripSpace([orders], cost, "time", 0.0))
    alone = fastest(StripSpace([orders[1:]], cost, "time", 0.0))
    assert both.bound <= alone.cuts[0].microseconds + ROUNDING
    assert both.cuts[0].microseconds <= alone.cuts[0].microseconds + ROUNDING


def test_paths_are_not_mixed_though_their_threads_are_equal() -> None:
    assert EIGHT.threads == GROUPED.threads
    # One is good at strips of few rows, the other at those of many.
    cost = FakeCost(((EIGHT, 1, 4, 0.0, 1, 128), (GROUPED, 10, 0, 0.0, 1, 128)), 2)
    rows: Rows = [[i, 20] for i in range(3)] + [[40 + i % 2, 60] for i in range(12)]
    for objective in ("time", "waste"):
        space = space_of([(rows, 1, False)], cost, objective)
        found = fastest(space) if objective == "time" else fewest_pairs_of(space)
        for cut in found.cuts:
            used = {
                space.variants[int(space.prices(order, cut.setting).variant[order.shape[end, step]])]
                for order, picked in zip(cut.orders, cut.intervals, strict=True)
                for end, step in picked
            }
            assert len({variant.path for variant in used}) == 1
    check_fastest(space_of([(rows[:6], 1, False)], cost))


def fewest(space: StripSpace) -> float:
    """The fewest padded pairs over every launch, order, cut and variant."""
    results = []
    for group in launches(space.cost):  # type: ignore[arg-type]
        total = 0.0
        for orders in space.patterns:
            total += min(least_pairs(space, order, group) for order in orders)
        results.append(total)
    return min(results)


def least_pairs(space: StripSpace, order: Order, group: list[int]) -> float:
    intervals = order.intervals
    best = [0.0]
    for end in range(1, len(intervals.cuts)):
        options = [np.inf]
        for step in range(min(end, intervals.rows.shape[1])):
            rows, keys = int(intervals.rows[end, step]), int(intervals.keys[end, step])
            for variant in (space.variants[number] for number in group):
                time = space.cost.strip_us(variant, np.array([rows]), np.array([keys]), 1, False)[0]
                if rows and rows <= variant.rows and np.isfinite(time):
                    area = -(-rows // variant.row_granule) * variant.row_granule
                    area *= -(-keys // variant.key_granule) * variant.key_granule
                    options.append(best[end - step - 1] + area * order.heads)
        best.append(min(options))
    return best[-1]


wide_rows = st.lists(
    st.lists(st.integers(0, 5), min_size=1, max_size=4).map(
        lambda own: [k * 13 + i for k in set(own) for i in range(13)]
    ),
    min_size=1,
    max_size=40,
)


@given(wide_rows, rows_up_to(12), st.integers(1, 3), fake_costs())
def test_the_fewest_pairs_are_the_fewest(first: Rows, second: Rows, heads: int, cost: FakeCost) -> None:
    space = space_of([(first, heads, False), (second, 1, True)], cost, "waste")
    found = fewest_pairs_of(space)
    assert found.cuts[0].pairs == found.bound == fewest(space)
    assert [cut.pairs for cut in found.cuts] == sorted(cut.pairs for cut in found.cuts)
    assert all(cut.setting.split_keys == 0 for cut in found.cuts)


def test_a_thread_count_that_cannot_take_every_strip_is_left_out() -> None:
    # Runs of equal rows are cut every eight rows, which the shape of two rows cannot take.
    cost = FakeCost(((TALL, 1, 1, 1.0, 1, 128), (EIGHT, 1, 1, 1.0, 1, 2)), 2)
    rows: Rows = [[1, 2, 3]] * 520
    pairs = fewest_pairs_of(space_of([(rows, 1, False)], cost, "waste"))
    assert all(cut.setting.threads == TALL.threads and np.isfinite(cut.microseconds) for cut in pairs.cuts)
    assert pairs.bound == fewest(space_of([(rows, 1, False)], cost, "waste"))
    quick = fastest(space_of([(rows, 1, False)], cost))
    assert quick.cuts[0].setting.threads == TALL.threads
    assert np.isfinite(quick.bound)


@given(rows_up_to(6), fake_costs(), st.integers(1, 6))
def test_the_best_few_differ_and_come_in_order(rows: Rows, cost: FakeCost, top: int) -> None:
    found = fastest(space_of([(rows, 1, False)], cost))
    kept = distinct(found.cuts, top)
    assert len(kept) == min(top, len({cut.signature for cut in found.cuts}))
    assert len({cut.signature for cut in kept}) == len(kept)
    assert kept[0] is found.cuts[0]
    assert [cut.microseconds for cut in kept] == sorted(cut.microseconds for cut in kept)


@given(rows_up_to(6), fake_costs())
def test_the_same_space_is_searched_the_same_way(rows: Rows, cost: FakeCost) -> None:
    first, second = (fastest(space_of([(rows, 2, False)], cost)) for _ in range(2))
    assert first.bound == second.bound and first.passes == second.passes
    assert [(c.setting, c.intervals, c.microseconds) for c in first.cuts] == [
        (c.setting, c.intervals, c.microseconds) for c in second.cuts
    ]


@pytest.mark.parametrize("multiprocessors", [1, 3])
def test_balance_is_found_where_equal_strips_leave_a_slot_idle(multiprocessors: int) -> None:
    # Eight rows in strips of any length whose time is their number of rows: the slots can share them evenly.
    cost = FakeCost(((SHORT, 0, 3, 0.0, 1, 128),), multiprocessors)
    space = space_of([([[i] for i in range(6 * multiprocessors)], 1, True)], cost)
    found = fastest(space)
    assert found.cuts[0].microseconds == pytest.approx(cost.launch_us + 18, rel=0.25)
    assert found.bound <= cost.launch_us + 18 + 7
