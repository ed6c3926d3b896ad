"""The search for the fastest launch, and the proof of how far from the best one it can be.

The makespan over the slots of the GPU couples the strips. It is bounded by the same shortest path that finds the least
sum, with dual feasible weights in place of times: if the lightest cut is too heavy for a makespan, every cut is. It is
approached by forbidding strips that last longer than a threshold.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from onnxopt.plan.even_cuts import EvenCuts
from onnxopt.plan.strip_columns import area_of, pairs_of
from onnxopt.plan.strip_game import excluded_settings, played
from onnxopt.plan.strip_orders import Cut, Order, Setting, Shortest
from onnxopt.plan.strip_space import StripSpace

_ROUNDS = 10
# Refining ends after so many steps of shortest paths, about a second; what is then open shows in the gap.
_MOST_STEPS = 80_000
# A gap that is not worth another round, and one that nothing is worth.
_CLOSE = 0.002
_EQUAL = 1e-6


@dataclass(frozen=True)
class Found:
    """The cuts that were built, best first, and the value (microseconds or pairs) that none of the space goes below."""

    cuts: tuple[Cut, ...]
    bound: float
    passes: int


def fewest_pairs_of(space: StripSpace) -> Found:
    """For each number of threads the cut with the fewest pairs; of equals, and of resident blocks, the faster."""
    settings = space.settings()
    alone = [setting for setting in settings if setting.resident == 1]
    found = space.shortest([pairs_of(space, setting) for setting in alone])
    cuts = []
    for column, first in enumerate(alone):
        if not np.isfinite(found.totals[column]):
            continue
        steps = found.steps(column)
        fewest = space.launched(first, steps)
        same = [fewest]
        for setting in settings:
            if setting.threads == first.threads and setting.resident > 1:
                other = space.launched_strips(setting, fewest.orders, fewest.intervals)
                same += [other] if other.pairs == fewest.pairs and np.isfinite(other.microseconds) else []
        cuts += same
    cuts.sort(key=lambda cut: (cut.pairs, cut.microseconds, cut.signature))
    return Found(tuple(cuts), float(cuts[0].pairs), space.passes)


def fastest(space: StripSpace, others: Sequence[Sequence[Order]] = ()) -> Found:
    """The fastest cuts, and the proven bound of the whole space.

    ``others`` are further orders of each pattern, of which only cuts into strips of one size are tried.
    """
    settings = space.settings()
    sums = space.shortest([area_of(space, setting) for setting in settings])
    areas = [space.overhead(s) + t / space.slots(s) for s, t in zip(settings, sums.totals, strict=True)]
    ranked = [int(index) for index in np.argsort(areas, kind="stable")]
    cuts: list[Cut] = []
    for index in ranked:
        best = min((cut.microseconds for cut in cuts), default=np.inf)
        if areas[index] < best:
            cuts.append(space.launched(settings[index], sums.steps(index), best))
    even = EvenCuts(space, others)
    for index in ranked:
        even.add(settings[index], cuts)
    search = _Search(space, settings, sums, cuts, {i: max(space.floor_us, float(areas[i])) for i in ranked})
    search.refine()
    search.finish()
    cuts.sort(key=lambda cut: (cut.microseconds, cut.signature))
    return Found(tuple(cuts), min(cuts[0].microseconds, *search.bounds.values()), space.passes)


@dataclass(frozen=True)
class _Search:
    """What is known so far: ``bounds`` by the number of the setting, and the cuts that were built."""

    space: StripSpace
    settings: Sequence[Setting]
    sums: Shortest
    cuts: list[Cut]
    bounds: dict[int, float]

    @property
    def best(self) -> float:
        """The least time so far."""
        return min(cut.microseconds for cut in self.cuts)

    def refine(self) -> None:
        """Close the gaps of all settings that are worth it: exclude them, or find better cuts in them."""
        time = self.best * (1 - _CLOSE)
        for index in self._still_open(time):
            if self.bounds[index] < self.best * (1 - _CLOSE):
                self._refine(index)

    def finish(self) -> None:
        """Try every setting once more that may be better at all."""
        if self.space.steps > _MOST_STEPS:
            return
        for index in self._still_open(self.best * (1 - _EQUAL)):
            best = self.best
            time = best * (1 - _EQUAL)
            if self.bounds[index] < time and self.space.steps <= _MOST_STEPS:
                self._play(index, time, best)

    def _still_open(self, time: float) -> list[int]:
        """The settings that are not excluded below ``time``, those with the lowest bounds of area first."""
        candidates = [index for index, bound in self.bounds.items() if bound < time]
        excluded = excluded_settings(self.space, self.settings, candidates, time)
        self.bounds.update(dict.fromkeys(excluded, time))
        return [index for index in candidates if self.bounds[index] < time]

    def _refine(self, index: int) -> None:
        """Raise the setting's bound, and add cuts whose strips balance better.

        The makespan just below the best time is tried first: mostly it is excluded, and the setting with it.
        """
        low, first = self.bounds[index], True
        for _ in range(_ROUNDS):
            best = self.best
            if low >= best * (1 - _CLOSE) or self.space.steps > _MOST_STEPS:
                break
            time = best * (1 - _CLOSE) if first else float(np.sqrt(low * best))
            excluded = self._play(index, time, best)
            if excluded or (not first and self.best >= best):
                # What is neither excluded nor reached stays open below; the search goes on above it.
                low = time
            first = False

    def _play(self, index: int, time: float, best: float) -> bool:
        """Whether no launch of the setting takes less than ``time``; the cuts that were tried are added."""
        setting = self.settings[index]
        overhead = self.space.overhead(setting)
        narrow = self.space.narrowed(self.sums, index, (best - overhead) * self.space.slots(setting))
        excluded, built = played(narrow, setting, time - overhead, best)
        self.cuts.extend(built)
        if excluded:
            self.bounds[index] = time
        return excluded


def distinct(cuts: Sequence[Cut], top: int) -> list[Cut]:
    """The first ``top`` cuts that differ in setting or orders."""
    kept: dict[tuple[object, ...], Cut] = {}
    for cut in cuts:
        kept.setdefault(cut.signature, cut)
    return list(kept.values())[:top]
