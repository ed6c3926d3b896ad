"""Whether a launch can be as short as is asked: a game of dual feasible functions against ways to cut.

Every mixture of dual feasible functions is one, and a cut that fits under one may be too heavy for another. So mixtures
and cuts take turns: the mixture that is worst for all cuts so far, then the lightest cut under it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from onnxopt.plan.makespan import DUAL_ORDERS
from onnxopt.plan.strip_columns import DUALS, SLACK, alone, in_rounds, mixed, weights_of
from onnxopt.plan.strip_orders import Cut, Setting, Shortest
from onnxopt.plan.strip_space import Steps, StripSpace

_MOVES = 8
_FITTING = (1, 2, 3, 4, 6)
_SPLICES = (-0.16, -0.08, 0.0, 0.08, 0.16)


def excluded_settings(
    space: StripSpace, settings: Sequence[Setting], candidates: Sequence[int], time: float
) -> list[int]:
    """The settings, by number, in which a dual feasible function shows that no launch takes less than ``time``.

    Most settings are done with here, all in one pass.
    """
    if not candidates:
        return []
    # The first function is the area, which has been looked at.
    single = np.eye(len(DUAL_ORDERS), len(DUALS))[1:]
    columns, slots = [], []
    for index in candidates:
        span = max(SLACK, time - space.overhead(settings[index]))
        columns += [mixed(space, settings[index], span, mixture) for mixture in single]
        slots.append(space.slots(settings[index]))
    totals = space.shortest(columns).totals.reshape(len(candidates), len(single))
    heavy = np.asarray(totals > np.array(slots)[:, None] * (1 + SLACK)).any(axis=1)
    return [candidates[int(place)] for place in np.flatnonzero(heavy)]


def played(space: StripSpace, setting: Setting, time: float, best: float) -> tuple[bool, list[Cut]]:
    """Whether no cut takes less than ``time``, and the cuts that were tried to show it; ``best`` is to be beaten."""
    slots = space.slots(setting)
    mixtures = np.eye(len(DUAL_ORDERS), len(DUALS))
    found = space.shortest([mixed(space, setting, time, mixture) for mixture in mixtures])
    if (found.totals > slots * (1 + SLACK)).any():
        return True, []
    answers = [_Answer(found, column) for column in range(len(mixtures))]
    # Not proofs but good cuts: the fewest strips that fit k times into the makespan.
    rounds = [in_rounds(space, setting, time, k) for k in _FITTING]
    found = space.shortest([*rounds, alone(space, setting, time)])
    good = [_Answer(found, column) for column in range(len(found.totals)) if np.isfinite(found.totals[column])]
    shares = np.zeros(0)
    table = [weights_of(space, setting, time, answer.steps()) for answer in answers]
    excluded = False
    for _ in range(_MOVES):
        mixture, value, shares = _worst_mixture(np.array(table))
        if value <= slots * (1 + SLACK):
            break
        found = space.shortest([mixed(space, setting, time, mixture)])
        excluded = bool(found.totals[0] > slots * (1 + SLACK))
        if excluded:
            break
        answers.append(_Answer(found, 0))
        table.append(weights_of(space, setting, time, answers[-1].steps()))
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
