"""Paired timing against an artificial clock: what is asserted never depends on the machine's speed."""

from __future__ import annotations

from math import comb

import numpy as np
import pytest

from onnxopt.measure.timing import (
    SELF_HIGH,
    SELF_LOW,
    PairTiming,
    TimingLimits,
    median_interval,
    summarise,
    time_pair,
)


class FakeMachine:
    """Runs that take no time, but move the clock."""

    def __init__(self, seed: int = 0, noise: float = 0.0) -> None:
        self.now = 0.0
        self.rng = np.random.default_rng(seed)
        self.noise = noise
        self.calls: list[str] = []

    def clock(self) -> float:
        return self.now

    def run(self, name: str, seconds: float, drift: float = 0.0):  # type: ignore[no-untyped-def]
        def step() -> None:
            self.calls.append(name)
            slow = 1.0 + drift * self.now + self.noise * abs(self.rng.standard_normal())
            if self.noise and self.rng.random() < 0.1:
                slow *= 20
            self.now += seconds * slow

        return step


@pytest.mark.parametrize("seed", range(5))
def test_model_against_itself_reads_one_on_a_noisy_machine(seed: int) -> None:
    machine = FakeMachine(seed, noise=0.1)
    timing = time_pair(machine.run("a", 0.001), machine.run("b", 0.001), clock=machine.clock)
    assert SELF_LOW <= timing.ratio <= SELF_HIGH
    assert not timing.decisive


def test_ratio_survives_outliers_and_a_machine_that_slows_down() -> None:
    machine = FakeMachine(3, noise=0.05)
    timing = time_pair(machine.run("a", 0.03, drift=0.5), machine.run("b", 0.01, drift=0.5), clock=machine.clock)
    assert timing.ratio == pytest.approx(3, rel=0.1)
    assert timing.low <= timing.ratio <= timing.high
    assert timing.decisive


def test_clear_result_needs_one_round() -> None:
    machine = FakeMachine()
    timing = time_pair(machine.run("a", 0.04), machine.run("b", 0.02), clock=machine.clock)
    assert timing == PairTiming(
        original_us=pytest.approx(40_000),
        candidate_us=pytest.approx(20_000),
        ratio=pytest.approx(2),
        low=pytest.approx(2),
        high=pytest.approx(2),
        pairs=21,
    )


def test_equal_models_need_two_rounds_and_an_open_result_all_of_them() -> None:
    machine = FakeMachine()
    run = machine.run("a", 0.02)
    equal = time_pair(run, run, TimingLimits(seconds=1e9), machine.clock)
    assert (equal.pairs, equal.equal) == (42, True)

    noisy = FakeMachine(noise=1.0)
    run = noisy.run("a", 0.02)
    timing = time_pair(run, run, TimingLimits(seconds=1e9, agreement=1e9), noisy.clock)
    assert (timing.pairs, timing.equal, timing.decisive) == (84, False, False)


def test_rounds_that_disagree_are_repeated() -> None:
    machine = FakeMachine()
    rounds = iter([2.0] * 21 + [3.0] * 21 + [3.0] * 21 + [5.0] * 21)

    def original() -> None:
        machine.now += 0.02 * (2.0 if len(machine.calls) < 4 else next(rounds))

    limits = TimingLimits(seconds=1e9, min_rounds=2)
    timing = time_pair(original, machine.run("b", 0.02), limits, machine.clock)
    assert timing.pairs == 63
    assert timing.ratio == pytest.approx(3)


def test_time_limit_cuts_a_round_but_not_below_the_smallest_number_of_pairs() -> None:
    machine = FakeMachine()
    slow = machine.run("a", 10.0)
    assert time_pair(slow, slow, TimingLimits(seconds=1, min_pairs=5), machine.clock).pairs == 5
    assert time_pair(slow, slow, TimingLimits(seconds=300, min_pairs=5), machine.clock).pairs == 13


def test_order_alternates_and_short_runs_are_repeated() -> None:
    machine = FakeMachine()
    limits = TimingLimits(pairs=2, max_rounds=1, sample_seconds=0.003, warm_up=1)
    time_pair(machine.run("a", 0.001), machine.run("b", 0.001), limits, machine.clock)
    assert "".join(machine.calls) == "ab" + "aaabbb" + "bbbaaa"


def test_clock_that_stands_still_gives_a_finite_ratio() -> None:
    timing = time_pair(lambda: None, lambda: None, TimingLimits(pairs=1, max_rounds=1, sample_seconds=0), lambda: 0.0)
    assert timing.ratio == 1


@pytest.mark.parametrize("count", [1, 5, 6, 21, 84])
def test_interval_of_the_median_has_its_confidence(count: int) -> None:
    low, high = median_interval(count)
    assert 0 <= low <= high == count - 1 - low

    def misses(k: int) -> float:
        return 2 * sum(comb(count, i) for i in range(k + 1)) / 2**count

    assert misses(low) <= 0.05 or low == 0
    assert misses(low + 1) > 0.05 or low + 1 > count // 2


def test_interval_of_21_pairs_is_the_published_one() -> None:
    assert median_interval(21) == (5, 15)


def test_summary_is_the_median_of_ratios_not_the_ratio_of_medians() -> None:
    timing = summarise([(4.0, 1.0), (2.0, 2.0), (9.0, 3.0)])
    assert (timing.ratio, timing.original_us, timing.candidate_us) == (3.0, 4e6, 2e6)
