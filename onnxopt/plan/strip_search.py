"""The search for the fastest launch, and the proof of how far from the best one it can be.

The makespan over the slots of the GPU couples the strips. It is bounded by the same shortest path that finds the least
sum, with dual feasible weights in place of times: if the lightest cut is too heavy for a makespan, every cut is. It is
approached by forbidding strips that last longer than a threshold.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from onnxopt.plan.intervals import chosen
from onnxopt.plan.makespan import DUAL_ORDERS, MORE_DUALS, weights
from onnxopt.plan.strip_space import Column, Cut, Order, Setting, Shortest, StripSpace

_ROUNDS = 10
# Refining ends after so many steps of shortest paths, about two seconds; what is then open shows in the gap.
_MOST_STEPS = 250_000
_MOVES = 8
_EVEN_ROWS = (8, 16, 32, 48, 64, 96, 128)
_FITTING = (1, 2, 3, 4, 6)
_SPLICES = (-0.16, -0.08, 0.0, 0.08, 0.16)
_DUALS = DUAL_ORDERS + MORE_DUALS
Steps = Sequence[tuple[int, np.ndarray]]
# A gap that is not worth another round.
_CLOSE = 0.002
_SLACK = 1e-6


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
        if not _finite(found.totals[column]):
            continue
        steps = found.steps(column)
        fewest = space.launched(first, steps)
        same = [fewest]
        for setting in settings:
            if setting.threads == first.threads and setting.resident > 1:
                other = space.launched(setting, steps)
                same += [other] if other.pairs == fewest.pairs and _finite(other.microseconds) else []
        cuts += same
    cuts.sort(key=lambda cut: (cut.pairs, cut.microseconds, cut.signature))
    return Found(tuple(cuts), float(cuts[0].pairs), space.passes)


def fastest(space: StripSpace) -> Found:
    """The fastest cuts, and the proven bound of the whole space."""
    settings = space.settings()
    sums = space.shortest([area_of(space, setting) for setting in settings])
    areas = [space.overhead(s) + t / space.slots(s) for s, t in zip(settings, sums.totals, strict=True)]
    ranked = [int(index) for index in np.argsort(areas, kind="stable")]
    cuts: list[Cut] = []
    for index in ranked:
        best = min((cut.microseconds for cut in cuts), default=np.inf)
        if areas[index] < best:
            cuts.append(space.launched(settings[index], sums.steps(index), best))
    even = _even_cuts(space)
    for index in ranked:
        _add_even_cuts(space, settings[index], even, cuts)
    bounds = {index: max(space.floor_us, float(areas[index])) for index in ranked}
    best = min(cut.microseconds for cut in cuts) * (1 - _CLOSE)
    open_ones = [index for index in ranked if bounds[index] < best]
    for index in _excluded(space, settings, open_ones, best):
        bounds[index] = best
    for index in open_ones:
        best = min(cut.microseconds for cut in cuts)
        if bounds[index] < best * (1 - _CLOSE):
            limit = (best - space.overhead(settings[index])) * space.slots(settings[index])
            bounds[index] = _refined(space.narrowed(sums, index, limit), settings[index], bounds[index], cuts)
    cuts.sort(key=lambda cut: (cut.microseconds, cut.signature))
    return Found(tuple(cuts), min(cuts[0].microseconds, *bounds.values()), space.passes)


def _excluded(space: StripSpace, settings: Sequence[Setting], candidates: Sequence[int], time: float) -> list[int]:
    """The settings, by number, in which a dual feasible function shows that no launch takes less than ``time``.

    Most settings are done with here, all in one pass.
    """
    if not candidates:
        return []
    single = np.eye(len(DUAL_ORDERS), len(_DUALS))
    columns, slots = [], []
    for index in candidates:
        span = max(_SLACK, time - space.overhead(settings[index]))
        columns += [_mixed(space, settings[index], span, mixture) for mixture in single]
        slots.append(space.slots(settings[index]))
    totals = space.shortest(columns).totals.reshape(len(candidates), len(single))
    heavy = np.asarray(totals > np.array(slots)[:, None] * (1 + _SLACK)).any(axis=1)
    return [candidates[int(place)] for place in np.flatnonzero(heavy)]


def _even_cuts(space: StripSpace) -> list[tuple[int, np.ndarray, np.ndarray]]:
    """The number of an order, the steps and the shapes of its cuts into strips of one size; for one pattern only."""
    if len(space.patterns) > 1:
        return []
    result = []
    for number, order in enumerate(space.patterns[0]):
        for size in _EVEN_ROWS:
            steps = _even_steps(order, size)
            if steps is not None:
                result.append((number, steps, order.shapes_at(chosen(order.intervals, steps))))
    return result


def _add_even_cuts(
    space: StripSpace, setting: Setting, even: Sequence[tuple[int, np.ndarray, np.ndarray]], cuts: list[Cut]
) -> None:
    """Add cuts into strips of one size where they win: what others do is never better than what was found."""
    best = min(cut.microseconds for cut in cuts)
    for number, steps, shapes in even:
        order = space.patterns[0][number]
        prices = space.prices(order, setting)
        times, blocks = prices.microseconds[shapes], prices.blocks[shapes] * order.heads
        least = max(float(times @ blocks) / space.slots(setting), float(times.max()))
        if max(space.floor_us, space.overhead(setting) + least) < best:
            cuts.append(space.launched(setting, [(number, steps)], best))
            best = min(best, cuts[-1].microseconds)


def _even_steps(order: Order, size: int) -> np.ndarray | None:
    """The steps that cut an order every ``size`` rows, or None where it cannot be cut so."""
    cuts = order.intervals.cuts
    places = np.searchsorted(cuts, np.append(np.arange(0, cuts[-1], size), cuts[-1]))
    if not np.array_equal(cuts[places][:-1], np.arange(0, cuts[-1], size)):
        return None
    steps = np.zeros(len(cuts), np.int64)
    steps[places[1:]] = np.diff(places) - 1
    return steps if int(steps.max()) < order.shape.shape[1] else None


def _refined(space: StripSpace, setting: Setting, bound: float, cuts: list[Cut]) -> float:
    """Raise the setting's bound, and add cuts whose strips balance better.

    The makespan just below the best time is tried first: mostly it is excluded, and the setting with it.
    """
    low, first = bound, True
    for _ in range(_ROUNDS):
        best = min(cut.microseconds for cut in cuts)
        if low >= best * (1 - _CLOSE) or space.steps > _MOST_STEPS:
            break
        time = best * (1 - _CLOSE) if first else float(np.sqrt(low * best))
        excluded, built = _played(space, setting, time - space.overhead(setting), best)
        cuts.extend(built)
        if excluded:
            bound = time
        if excluded or (not first and min(cut.microseconds for cut in cuts) >= best):
            # What is neither excluded nor reached stays open below; the search goes on above it.
            low = time
        first = False
    return bound


def _played(space: StripSpace, setting: Setting, time: float, best: float) -> tuple[bool, list[Cut]]:
    """Whether no cut has a makespan below ``time``, and the cuts that were tried to show it; ``best`` is to be beaten.

    Every mixture of dual feasible functions is one, and a cut that fits under one may be too heavy for another. So
    mixtures and cuts play a game: the mixture that is worst for all cuts so far, then the lightest cut under it.
    """
    slots = space.slots(setting)
    mixtures = np.eye(len(DUAL_ORDERS), len(_DUALS))
    found = space.shortest([_mixed(space, setting, time, mixture) for mixture in mixtures])
    if (found.totals > slots * (1 + _SLACK)).any():
        return True, []
    answers = [_Answer(found, column) for column in range(len(mixtures))]
    # Not proofs but good cuts: the fewest strips that fit k times into the makespan.
    rounds = [_in_rounds(space, setting, time, k) for k in _FITTING]
    found = space.shortest([*rounds, _alone(space, setting, time)])
    good = [_Answer(found, column) for column in range(len(found.totals)) if _finite(found.totals[column])]
    shares = np.zeros(0)
    excluded = False
    for _ in range(_MOVES):
        table = np.array([_weights_of(space, setting, time, answer.steps()) for answer in answers])
        mixture, value, shares = _worst_mixture(table)
        if value <= slots * (1 + _SLACK):
            break
        found = space.shortest([_mixed(space, setting, time, mixture)])
        excluded = bool(found.totals[0] > slots * (1 + _SLACK))
        if excluded:
            break
        answers.append(_Answer(found, 0))
    steps = [answer.steps() for answer in answers + good] + ([] if excluded else _spliced(answers, shares))
    return excluded, [space.launched(setting, own, best) for own in steps]


@dataclass(frozen=True)
class _Answer:
    """One column of a search: the lightest cut under a mixture."""

    found: Shortest
    column: int

    def steps(self) -> Steps:
        """The steps of every pattern, each in its best order."""
        return self.found.steps(self.column)

    def steps_in(self, orders: Sequence[int]) -> Steps:
        """The same in given orders, for which they are the lightest just as well."""
        return [(n, taken[n][:, self.column]) for n, taken in zip(orders, self.found.taken, strict=True)]


def _spliced(answers: Sequence[_Answer], shares: np.ndarray) -> list[Steps]:
    """Cuts that follow one of the two weightiest answers in the first rows and the other one in the rest.

    The answer to the worst mixture is a mixture of cuts; where many rows are alike, a splice comes close to it.
    """
    ranked = [int(i) for i in np.argsort(-shares, kind="stable") if shares[i] > 0]
    result: list[Steps] = []
    for first, second in ((a, b) for a in ranked[:3] for b in ranked[:3] if a != b):
        own = answers[first].steps()
        other = answers[second].steps_in([number for number, _ in own])
        begin = shares[first] / (shares[first] + shares[second])
        for part in np.clip(begin + np.array(_SPLICES), 0.0, 1.0):
            result.append([_splice(a, b, float(part)) for a, b in zip(own, other, strict=True)])  # noqa: PERF401
    return result


def _splice(first: tuple[int, np.ndarray], second: tuple[int, np.ndarray], part: float) -> tuple[int, np.ndarray]:
    # The steps at a cut lead back to the beginning by the best way to that very cut, wherever one comes from.
    place = np.arange(len(first[1]))
    return first[0], np.where(place <= part * len(place), first[1], second[1])


def _worst_mixture(table: np.ndarray) -> tuple[np.ndarray, float, np.ndarray]:
    """The mixture of a table's columns whose smallest row is largest, that row, and the answering mixture of rows."""
    from scipy.optimize import linprog

    rows, columns = table.shape
    result = linprog(
        np.append(np.zeros(columns), -1.0),
        A_ub=np.hstack([-table, np.ones((rows, 1))]),
        b_ub=np.zeros(rows),
        A_eq=np.append(np.ones(columns), 0.0)[None],
        b_eq=[1.0],
        bounds=[(0, 1)] * columns + [(None, None)],
    )
    if result.x is None:
        return np.full(columns, 1 / columns), np.inf, np.zeros(rows)
    # What the solver says is only a suggestion: the shortest path under this mixture is what proves anything.
    mixture = np.maximum(result.x[:-1], 0.0)
    mixture = np.round(mixture / mixture.sum(), 6)
    mixture /= mixture.sum()
    return mixture, float((table @ mixture).min()), np.abs(np.asarray(result.ineqlin.marginals))


def _weights_of(space: StripSpace, setting: Setting, time: float, steps: Steps) -> np.ndarray:
    """The weight of a cut under every dual feasible function."""
    total = np.zeros(len(_DUALS))
    for order, shapes in space.shapes_of(steps):
        prices = space.prices(order, setting)
        ratio = prices.microseconds[shapes] / time
        total += [order.heads * float(prices.blocks[shapes] @ weights(ratio, dual)) for dual in _DUALS]
    return total


def area_of(space: StripSpace, setting: Setting) -> Column:
    """The time for which a strip occupies slots."""

    def column(order: Order) -> np.ndarray:
        prices = space.prices(order, setting)
        return np.asarray(prices.microseconds * prices.blocks)

    return column


def pairs_of(space: StripSpace, setting: Setting) -> Column:
    """The pairs that a strip computes."""

    def column(order: Order) -> np.ndarray:
        prices = space.prices(order, setting)
        # Next to nothing for a strip, so that equals are not split, and for time, so that the faster of them wins.
        return np.where(np.isfinite(prices.microseconds), prices.pairs + 1e-3 + 1e-9 * prices.microseconds, np.inf)

    return column


def _mixed(space: StripSpace, setting: Setting, time: float, mixture: np.ndarray) -> Column:
    def column(order: Order) -> np.ndarray:
        prices = space.prices(order, setting)
        ratio = prices.microseconds / time
        fits = np.isfinite(weights(ratio, 0))
        total = np.full(len(ratio), np.inf)
        total[fits] = sum(
            share * weights(ratio[fits], dual) for share, dual in zip(mixture, _DUALS, strict=True) if share
        )
        return np.asarray(total * prices.blocks)

    return column


def _in_rounds(space: StripSpace, setting: Setting, time: float, rounds: int) -> Column:
    """The number of strips that last at most ``time / rounds``; of equals, the time decides."""

    def column(order: Order) -> np.ndarray:
        prices = space.prices(order, setting)
        value = prices.blocks * (1.0 + _SLACK * prices.microseconds)
        return np.where(prices.microseconds * rounds <= time, value, np.inf)

    return column


def _alone(space: StripSpace, setting: Setting, time: float) -> Column:
    """The share of a slot that a strip takes if only strips like it share the slot."""

    def column(order: Order) -> np.ndarray:
        prices = space.prices(order, setting)
        with np.errstate(divide="ignore"):
            return np.asarray(prices.blocks / np.floor(time / prices.microseconds * (1 + _SLACK)))

    return column


def _finite(total: float) -> bool:
    return bool(np.isfinite(total))


def distinct(cuts: Sequence[Cut], top: int) -> list[Cut]:
    """The first ``top`` cuts that differ in setting or orders."""
    kept: dict[tuple[object, ...], Cut] = {}
    for cut in cuts:
        kept.setdefault(cut.signature, cut)
    return list(kept.values())[:top]
