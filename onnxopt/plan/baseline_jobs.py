"""Launches of jobs that are given: how long they take on a GPU, for methods that choose the jobs in their own way."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from onnxopt.plan.attention_cost import AttentionCost
from onnxopt.plan.makespan import makespan
from onnxopt.plan.strip_prices import padded
from onnxopt.target.variant import AttentionVariant


@dataclass(frozen=True)
class Jobs:
    """Blocks that are alike: rows, keys, whether anything is masked, and how many there are over all heads."""

    rows: np.ndarray
    keys: np.ndarray
    masked: np.ndarray
    counts: np.ndarray

    @classmethod
    def of(cls, rows: np.ndarray, keys: np.ndarray, masked: np.ndarray, heads: int) -> Jobs:
        """Count equal blocks together, each of them once a head."""
        kinds, counts = np.unique(np.stack([rows, keys, masked]).astype(np.int64), axis=1, return_counts=True)
        return cls(kinds[0], kinds[1], kinds[2] > 0, counts * heads)

    @classmethod
    def together(cls, jobs: Sequence[Jobs]) -> Jobs:
        """All jobs of several."""
        fields = ("rows", "keys", "masked", "counts")
        return cls(*(np.concatenate([getattr(own, name) for own in jobs]) for name in fields))

    def cut(self, most: int) -> Jobs:
        """The same with blocks of more than ``most`` rows cut into nearly equal ones."""
        pieces = -(-self.rows // most)
        larger = self.rows - self.rows // pieces * pieces
        small = Jobs(self.rows // pieces, self.keys, self.masked, self.counts * (pieces - larger))
        return Jobs.together([small, Jobs(-(-self.rows // pieces), self.keys, self.masked, self.counts * larger)])

    def durations(self, cost: AttentionCost, variant: AttentionVariant, resident: int) -> np.ndarray:
        """Microseconds of one block of each kind; none may have more rows than the variant."""
        times = np.zeros(len(self.rows))
        for masked in (False, True):
            own = self.masked == masked
            times[own] = cost.strip_us(variant, self.rows[own], self.keys[own], resident, masked)
        return times

    def padded(self, variant: AttentionVariant) -> np.ndarray:
        """Pairs that all blocks of each kind compute."""
        return np.asarray(padded(self.rows, variant.row_granule) * padded(self.keys, variant.key_granule) * self.counts)


@dataclass(frozen=True)
class Launch:
    """How often which duration occurs, on how many slots."""

    lengths: np.ndarray
    amounts: np.ndarray
    slots: int

    @property
    def least_us(self) -> float:
        """What no order of launching goes below."""
        return max(float(self.lengths @ self.amounts) / self.slots, float(self.lengths[self.amounts > 0].max()))


def launched(cost: AttentionCost, variants: Sequence[AttentionVariant], resident: int, jobs: Jobs) -> Launch:
    """One launch of all jobs, each by the variant with which it takes the least time."""
    options = []
    for variant in variants:
        cut = jobs.cut(variant.rows)
        times = cut.durations(cost, variant, resident)
        options.append((times.reshape(2, -1), cut.counts.reshape(2, -1)))
    work = np.stack([(times * counts).sum(axis=0) for times, counts in options])
    best = work.argmin(axis=0)
    places = np.arange(len(best))
    times, counts = (np.stack([own[part] for own in options])[best, :, places].reshape(-1) for part in (0, 1))
    lengths, inverse = np.unique(times, return_inverse=True)
    amounts = np.bincount(inverse.reshape(-1), weights=counts, minlength=len(lengths)).astype(np.int64)
    return Launch(lengths, amounts, resident * cost.gpu.multiprocessors)


def fastest_us(launches: Iterable[Launch]) -> float:
    """The least makespan of several launches; only those that may have it are simulated."""
    best = np.inf
    for launch in sorted(launches, key=lambda launch: launch.least_us):
        if launch.least_us >= best:
            break
        best = min(best, makespan(launch.lengths, launch.amounts, launch.slots))
    return float(best)


def mixtures(cost: AttentionCost) -> Iterator[tuple[list[AttentionVariant], int]]:
    """Shapes that may share a launch, with how many blocks share a multiprocessor."""
    kinds = sorted({(variant.path, variant.threads) for variant in cost.variants()})
    for kind in kinds:
        own = [variant for variant in cost.variants() if (variant.path, variant.threads) == kind]
        occupancy = [cost.occupancy([variant]) for variant in own]
        for resident in residents(max(occupancy)):
            yield [v for v, most in zip(own, occupancy, strict=True) if most >= resident], resident


def residents(most: int) -> range:
    """Numbers of blocks that may share a multiprocessor."""
    return range(1, most + 1)
