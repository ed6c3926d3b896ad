"""Time two models against each other, so that a busy machine disturbs both alike.

The two run alternately in one process and the figure is the median of the ratios of neighbouring runs:
whatever slows the machine down for longer than one pair cancels, and what hits single runs does not move a
median.
"""

from __future__ import annotations

import gc
import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

Run = Callable[[], object]
Clock = Callable[[], float]

SELF_LOW, SELF_HIGH = 0.97, 1.03
"""A model timed against itself must read a ratio between these."""

_CONFIDENCE = 0.95
_MAX_INNER = 10_000


@dataclass(frozen=True)
class PairTiming:
    """Median microseconds of one run of each, and ``ratio`` = original / candidate: above 1 is a gain.

    ``ratio`` is the median of the ``pairs`` ratios and ``low`` to ``high`` its interval of at least 95 %
    confidence, from order statistics (no assumption on the noise).
    """

    original_us: float
    candidate_us: float
    ratio: float
    low: float
    high: float
    pairs: int

    @property
    def decisive(self) -> bool:
        """Whether the interval lies beside everything that a model against itself may read."""
        return self.low > SELF_HIGH or self.high < SELF_LOW

    @property
    def equal(self) -> bool:
        """Whether the interval lies within what a model against itself may read."""
        return self.low >= SELF_LOW and self.high <= SELF_HIGH


@dataclass(frozen=True)
class TimingLimits:
    """How long to measure: rounds of ``pairs`` pairs, repeated while the result is open.

    ``seconds`` bounds all timed runs together; it cuts a round short only after ``min_pairs`` pairs. Where
    one run takes less than ``sample_seconds``, a sample is the fastest of several runs.
    """

    pairs: int = 21
    min_pairs: int = 7
    min_rounds: int = 1
    max_rounds: int = 4
    seconds: float = 4.0
    sample_seconds: float = 0.02
    warm_up: int = 2
    agreement: float = 0.03


def time_pair(
    original: Run, candidate: Run, limits: TimingLimits | None = None, clock: Clock = time.perf_counter
) -> PairTiming:
    """Time two functions alternately; ``clock`` gives seconds.

    Another round follows while the interval of all pairs so far does not lie beside what a model against
    itself may read (nor, after two rounds, within it), or while the last two rounds differ by more than
    ``limits.agreement``; the result is that of all pairs of all rounds.
    """
    limits = limits or TimingLimits()
    start = clock()
    longest = max(_warm_up(run, limits.warm_up, clock) for run in (original, candidate))
    inner = min(_MAX_INNER, max(1, math.ceil(limits.sample_seconds / max(longest, 1e-9))))
    deadline = start + limits.seconds
    samples: list[tuple[float, float]] = []
    medians: list[float] = []
    for done in range(1, max(limits.max_rounds, 1) + 1):
        first = len(samples)
        _round(original, candidate, inner, limits, deadline, clock, samples)
        if len(samples) > first:
            medians.append(statistics.median(a / b for a, b in samples[first:]))
        if clock() >= deadline or (done >= limits.min_rounds and _settled(samples, medians, limits.agreement)):
            break
    return summarise(samples)


def summarise(samples: Sequence[tuple[float, float]]) -> PairTiming:
    """The result of pairs (seconds of the original, seconds of the candidate), at least one, all above 0."""
    ratios = sorted(a / b for a, b in samples)
    low, high = median_interval(len(ratios))
    return PairTiming(
        original_us=statistics.median(a for a, _ in samples) * 1e6,
        candidate_us=statistics.median(b for _, b in samples) * 1e6,
        ratio=statistics.median(ratios),
        low=ratios[low],
        high=ratios[high],
        pairs=len(ratios),
    )


def median_interval(count: int) -> tuple[int, int]:
    """Indices, into ``count`` sorted values, of the bounds of the median at 95 % confidence or the widest
    there is.

    The median lies below the k-th smallest value with the probability that fewer than k of ``count`` fair
    coins show heads; this holds for every continuous distribution.
    """
    tail = (1.0 - _CONFIDENCE) / 2
    below, index = 0.0, -1
    for k in range(count):
        below += math.comb(count, k) / 2**count
        if below > tail:
            break
        index = k
    low = max(index, 0)
    return low, count - 1 - low


def _settled(samples: Sequence[tuple[float, float]], medians: Sequence[float], agreement: float) -> bool:
    timing = summarise(samples)
    if len(medians) < 2:
        return timing.decisive
    agree = abs(medians[-1] / medians[-2] - 1.0) <= agreement
    # Two rounds that show no difference, and show it sharply, are an answer as well.
    return agree and (timing.decisive or timing.equal)


def _warm_up(run: Run, times: int, clock: Clock) -> float:
    """Seconds of the fastest of a few runs; the first, which allocates, counts only where it is alone."""
    seconds = []
    for _ in range(max(times, 1)):
        begin = clock()
        run()
        seconds.append(clock() - begin)
    return min(seconds[1:] or seconds)


def _round(
    original: Run,
    candidate: Run,
    inner: int,
    limits: TimingLimits,
    deadline: float,
    clock: Clock,
    samples: list[tuple[float, float]],
) -> None:
    """Adds one round of pairs to ``samples``.

    Every second pair runs in the other order: the place in a pair must not favour one of the two.
    """
    collecting = gc.isenabled()
    gc.disable()
    try:
        for index in range(limits.pairs):
            if clock() >= deadline and len(samples) >= limits.min_pairs:
                return
            if index % 2:
                second = _sample(candidate, inner, clock)
                first = _sample(original, inner, clock)
            else:
                first = _sample(original, inner, clock)
                second = _sample(candidate, inner, clock)
            samples.append((first, second))
    finally:
        if collecting:
            gc.enable()


def _sample(run: Run, inner: int, clock: Clock) -> float:
    """Seconds of the fastest of ``inner`` runs: the others measure what else is running."""
    fastest = math.inf
    for _ in range(inner):
        begin = clock()
        run()
        fastest = min(fastest, clock() - begin)
    # A clock that does not move between two readings must not give a ratio with zero.
    return max(fastest, 1e-9)
