"""A lower bound for a component whose unions are known, by prices on its classes and on rounding cuts, and by cases.

Every output of class c earns pi[c], and every cut k pays rho[k] for each unit that a part adds to it. What a part's
outputs earn is most where it is filled with the dearest classes that fit into its union, of each no more than there
are. A part of column n then costs at least earned[n] + paid[n] - e[n], with an excess e[n] that is 0 for good prices;
so no partition costs less than the sum of pi[c] * outputs of c + the sum of rho[k] * least[k] - (excess of parts).

Where that is not enough there are cases: a number of parts is at most k, or at least k + 1. In each case prices are
sought again, and the worst case counts. A linear program proposes prices and what to split, and nothing that it says
is trusted: the sums are made here.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass, replace

import numpy as np

from onnxopt.plan.partition.classes import Component, Unions
from onnxopt.plan.partition.fill_cuts import Columns, Cuts, cuts_of
from onnxopt.plan.partition.fill_program import WORK_LIMIT, FillProgram, Limits, Prices
from onnxopt.plan.partition.kinds import picked
from onnxopt.plan.partition.problem import CostTable, FloatArray

# Cases that are looked at, and what the program may have taken for them before no more are split.
# Most of what they prove is proved by the first few.
CASE_LIMIT, FIRST_CASES = 36, 12
_CASE_WORK = 12_000_000
# Pairs of a class and a union into which it fits, and columns, beyond which programs take too long.
_PLACE_LIMIT = 6_000
_COLUMN_LIMIT = 1_000
_MOST_LEVELS = 6
_SAFETY = 1e-9
_FRACTION = 1e-4


@dataclass(frozen=True, eq=False)
class FillBound:
    """The bound and in how many cases it was proved; ``note`` has what went wrong on the way."""

    value: float
    cases: int
    note: str = ""


def fill_bound(component: Component, family: Unions, table: CostTable, case_limit: int = CASE_LIMIT) -> FillBound:
    """A bound on the cost of any partition of a component's outputs; 0 where its unions are unknown or too many."""
    return FillSearch(component, family, table).run(case_limit)


class FillSearch:
    """The search for a bound case by case, which may be left and taken up again."""

    def __init__(self, component: Component, family: Unions, table: CostTable) -> None:
        self._search: _Search | None = None
        self._found = FillBound(0.0, 0)
        if not family.exact or family.fits.sum() > _PLACE_LIMIT:
            return
        columns = Columns.of(component, family, table)
        self._scale = table.unit or float(columns.cost.max())
        if len(columns.cost) > _COLUMN_LIMIT or self._scale <= 0:
            return
        columns = replace(columns, cost=columns.cost / self._scale)
        try:
            self._search = _Search(columns, cuts_of(component, family, columns), bool(table.unit))
        except Exception as error:
            self._failed(error)

    def run(self, case_limit: int = CASE_LIMIT, enough: float = np.inf) -> FillBound:
        """The bound after ``case_limit`` cases in all, or fewer where it reaches ``enough``."""
        if self._search is not None:
            try:
                value = self._search.run(case_limit, enough / self._scale) * self._scale
                self._found = FillBound(value, self._search.cases)
            except Exception as error:
                self._failed(error)
        return self._found

    def _failed(self, error: Exception) -> None:
        """Whatever the solver throws, what is proved already and the other bounds still hold."""
        self._search = None
        self._found = replace(self._found, note=f"HiGHS failed: {type(error).__name__}: {str(error)[:120]}")


def verified(columns: Columns, levels: np.ndarray, cuts: Cuts, prices: Prices, limits: Limits) -> float:
    """What ``prices`` prove of all partitions within ``limits``; any numbers are valid prices."""
    classes, paid = np.maximum(prices.classes, 0.0), np.maximum(prices.cuts, 0.0)
    # A limit that is not there cannot be paid for.
    steps = np.where(np.isfinite(limits.level_high), prices.levels, np.maximum(prices.levels, 0.0))
    used = np.flatnonzero(paid)
    left = columns.cost - _earned(columns, classes) - paid[used] @ cuts.rows[used] - steps @ levels
    bounded, priced = np.isfinite(limits.high), steps != 0
    terms = np.concatenate(
        [
            classes * columns.amounts,
            paid[used] * cuts.least[used],
            steps[priced] * np.where(steps < 0, limits.level_high, limits.level_low)[priced],
            np.maximum(left, 0.0) * limits.low,
            np.minimum(left[bounded], 0.0) * limits.high[bounded],
            # No partition has more parts than outputs.
            [min(0.0, float(left[~bounded].min(initial=0.0))) * float(columns.amounts.sum())],
        ]
    )
    return float(terms.sum() - _SAFETY * max(1.0, float(np.abs(terms).sum())))


def _earned(columns: Columns, classes: FloatArray) -> FloatArray:
    """The most that outputs in a part of each column can earn: the dearest classes first."""
    order = np.argsort(-classes, kind="stable")
    room = np.where(columns.fits[:, order], columns.amounts[order], 0)
    before = np.cumsum(room, axis=1) - room
    held = np.clip(columns.size[:, None] - before[columns.union], 0, room[columns.union])
    return np.asarray(held @ classes[order])


@dataclass(frozen=True)
class _Case:
    """Limits, what is proved of partitions within them, and the numbers of parts that the program gave."""

    value: float
    limits: Limits
    parts: FloatArray


class _Search:
    def __init__(self, columns: Columns, cuts: Cuts, whole: bool) -> None:
        self.columns, self.cuts, self.whole = columns, cuts, whole
        steps = picked(np.unique(columns.cost), _MOST_LEVELS)
        self.levels = columns.cost[None, :] >= steps[:, None]
        # Excess over a limit costs more than any partition needs to.
        self.penalty = float(columns.cost.max()) * (1 + len(columns.amounts))
        self.program = FillProgram(columns, self.levels, cuts, self.penalty)
        self.cases = 0
        # Ties go to the deepest case, whose program is nearest to the last one.
        self.open_cases: list[tuple[float, int, int, _Case]] = []

    def run(self, case_limit: int, enough: float) -> float:
        """The least of what is proved in all cases; the case that is worst is split first."""
        if not self.open_cases:
            first = self._proved(self._no_limits(), 0.0, cut=True)
            self.open_cases = [(self._rounded(first.value), 0, 0, first)]
        while self.cases < case_limit and self.program.left > WORK_LIMIT - _CASE_WORK:
            value, depth, _, case = self.open_cases[0]
            halves = self._halves(case) if value < enough * (1 - _SAFETY) else []
            if not halves:
                break
            heapq.heappop(self.open_cases)
            for limits in halves:
                found = self._proved(limits, case.value)
                rounded = max(value, self._rounded(found.value))
                heapq.heappush(self.open_cases, (rounded, depth - 1, -self.cases, found))
        return max(0.0, self.open_cases[0][0])

    def _no_limits(self) -> Limits:
        infinite = np.full(len(self.columns.cost), np.inf), np.full(len(self.levels), np.inf)
        return Limits(np.zeros(len(infinite[0])), infinite[0], np.zeros(len(infinite[1])), infinite[1])

    def _rounded(self, value: float) -> float:
        """Where costs are whole, so is the least of them."""
        return float(np.ceil(value - 1e-6)) if self.whole else value

    def _proved(self, limits: Limits, known: float, cut: bool = False) -> _Case:
        self.cases += 1
        found = self.program.tighten(limits) if cut else self.program.solve(limits)
        if found is None:
            return _Case(known, limits, np.zeros(len(self.columns.cost)))
        value = verified(self.columns, self.levels, self.cuts, found[0], limits)
        return _Case(max(known, value), limits, found[1])

    def _halves(self, case: _Case) -> list[Limits]:
        """Two cases in place of one: of a level that is split, otherwise of the dearest column that is."""
        limits, sums = case.limits, self.levels @ case.parts
        split = np.flatnonzero(np.abs(sums - np.rint(sums)) > _FRACTION)
        if len(split):
            k, most = int(split[0]), float(np.floor(sums[split[0]]))
            return [
                replace(limits, level_high=_with(limits.level_high, k, most)),
                replace(limits, level_low=_with(limits.level_low, k, most + 1)),
            ]
        away = np.abs(case.parts - np.rint(case.parts))
        if away.max() <= _FRACTION:
            return []
        n = int(np.lexsort((-away, -np.where(away > _FRACTION, self.columns.cost, -np.inf)))[0])
        most = float(np.floor(case.parts[n]))
        return [
            replace(limits, high=_with(limits.high, n, most)),
            replace(limits, low=_with(limits.low, n, most + 1)),
        ]


def _with(values: FloatArray, place: int, value: float) -> FloatArray:
    result = values.copy()
    result[place] = value
    return result
