"""Launches simulated block by block, and makespans of small ones against every assignment."""

from __future__ import annotations

import heapq
from functools import cache

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from onnxopt.plan.makespan import DUAL_ORDERS, launch_order, makespan, makespan_bound, weights

ROUNDING = 1 + 1e-9


def listed(durations: NDArray[np.float64], slots: int) -> float:
    """When the last job ends if each goes to the slot that is free first."""
    free = [0.0] * slots
    for duration in durations.tolist():
        heapq.heappush(free, heapq.heappop(free) + duration)
    return max(free)


def optimum(durations: list[int], slots: int) -> int:
    """The least makespan over every assignment of jobs to slots."""
    jobs = tuple(sorted(durations, reverse=True))

    @cache
    def least(number: int, loads: tuple[int, ...]) -> int:
        if number == len(jobs):
            return max(loads)
        options = {tuple(sorted((*loads[:i], loads[i] + jobs[number], *loads[i + 1 :]))) for i in range(slots)}
        return min(least(number + 1, option) for option in options)

    return least(0, (0,) * slots)


kinds = st.lists(
    st.tuples(st.one_of(st.integers(0, 12), st.floats(0.01, 30.0)), st.integers(0, 40)), min_size=1, max_size=8
)


def unpacked(jobs: list[tuple[float, int]]) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.float64]]:
    durations = np.array([d for d, _ in jobs], np.float64)
    counts = np.array([c for _, c in jobs], np.int64)
    return durations, counts, np.repeat(durations, counts)


@given(kinds, st.integers(1, 20))
def test_it_is_no_worse_than_longest_first_and_no_better_than_its_bound(
    jobs: list[tuple[float, int]], slots: int
) -> None:
    durations, counts, every = unpacked(jobs)
    longest_first = listed(np.sort(every)[::-1], slots) if len(every) else 0.0
    found = makespan(durations, counts, slots)
    assert makespan_bound(durations, counts, slots) <= found * ROUNDING
    assert found <= longest_first * ROUNDING


@given(kinds, st.integers(1, 20), st.randoms(use_true_random=False))
def test_blocks_in_launch_order_end_when_it_says(jobs: list[tuple[float, int]], slots: int, random: object) -> None:
    durations, counts, every = unpacked(jobs)
    shuffled = every.tolist()
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    order = launch_order(np.array(shuffled), slots)
    assert sorted(order.tolist()) == list(range(len(every)))
    ends = listed(np.array(shuffled)[order], slots)
    assert ends <= makespan(durations, counts, slots) * ROUNDING
    assert order.tolist() == launch_order(np.array(shuffled), slots).tolist()


@given(st.lists(st.integers(0, 12), max_size=9), st.integers(1, 4))
def test_every_assignment_lies_between_bound_and_plan(durations: list[int], slots: int) -> None:
    lengths, counts = np.unique(np.array(durations, np.float64), return_counts=True)
    best = optimum(durations, slots)
    assert makespan_bound(lengths, counts, slots) <= best * ROUNDING
    assert best <= makespan(lengths, counts, slots) * ROUNDING


@given(st.lists(st.integers(1, 12), min_size=1, max_size=9), st.integers(1, 4), st.sampled_from(DUAL_ORDERS))
def test_what_fits_into_less_than_t_weighs_no_more_than_the_slots(durations: list[int], slots: int, order: int) -> None:
    best = optimum(durations, slots)
    # All jobs end at ``best``, so before any later T they weigh no more than the slots.
    for later in (best + 1, best + 0.5, best * 1.001):
        assert weights(np.array(durations) / later, order).sum() <= slots * ROUNDING
    assert np.isinf(weights(np.array([1.1]), order)).all()


@given(st.integers(1, 40), st.integers(1, 2000), st.integers(1, 300))
def test_equal_jobs_take_whole_rounds(duration: int, count: int, slots: int) -> None:
    exact = -(-count // slots) * duration
    assert makespan(np.array([float(duration)]), np.array([count]), slots) == exact
    assert makespan_bound(np.array([float(duration)]), np.array([count]), slots) <= exact
    ends = listed(np.full(count, float(duration))[launch_order(np.full(count, float(duration)), slots)], slots)
    assert ends == exact


def test_packing_beats_longest_first_where_that_is_known_to_fail() -> None:
    # Graham's worst case for three slots: longest first ends at 11, 9 is possible.
    durations = [5, 5, 4, 4, 3, 3, 3]
    lengths, counts = np.unique(np.array(durations, np.float64), return_counts=True)
    assert listed(np.array(durations, np.float64), 3) == 11
    assert makespan(lengths, counts, 3) == 9 == makespan_bound(lengths, counts, 3)
    jobs = np.array(durations, np.float64)
    assert listed(jobs[launch_order(jobs, 3)], 3) == 9


def test_two_jobs_of_more_than_half_do_not_share_a_slot() -> None:
    assert makespan_bound(np.array([6.0, 1.0]), np.array([3, 1]), 2) == 12


def test_nothing_takes_no_time_and_what_never_ends_forever() -> None:
    none = np.empty(0)
    assert makespan(none, none, 5) == makespan_bound(none, none, 5) == 0.0
    assert launch_order(none, 5).tolist() == []
    assert makespan(np.array([3.0, np.inf]), np.array([2, 0]), 2) == 3.0
    assert makespan(np.array([3.0, np.inf]), np.array([2, 1]), 2) == np.inf
    assert makespan(np.array([0.0]), np.array([1000]), 3) == 0.0
    assert makespan(np.array([0.0, 2.0]), np.array([1000, 4]), 3) == 4.0


@pytest.mark.parametrize("slots", [1, 132, 1056])
def test_many_blocks_of_many_lengths_are_soon_ordered(slots: int) -> None:
    jobs = np.random.default_rng(0).integers(1, 500, 100_000) / 7.0
    lengths, counts = np.unique(jobs, return_counts=True)
    ends = listed(jobs[launch_order(jobs, slots)], slots)
    found = makespan(lengths, counts, slots)
    assert ends <= found * ROUNDING
    assert found <= makespan_bound(lengths, counts, slots) * 1.01
