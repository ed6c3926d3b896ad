"""A lower bound on the cost of any partition, by prices that are checked here and need not be trusted.

Let h be a function of sizes with h(0) = 0 that does not fall, and H(m) the least sum of h over sizes that add up to m
or more. If a set X of m outputs is partitioned, the sizes of its pieces have h add up to H(m) at least. So where
prices pi are found with

    sum of pi[X, h] * h(s)  over the sets X that have an output in the part   <=   cost of the part

for every part of s outputs, no partition costs less than the sum of pi[X, h] * H(m_X). With h(s) = s this is the dual
of the linear relaxation; with the steps of the cost itself as h it counts what rounding up costs each class (rank-1
Chvatal-Gomory cuts). A linear program proposes the prices; they are then divided by the largest ratio of left to
right side, which is found by looking at every union of every component and, by dynamic programming, at all parts that
span components.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pulp

from onnxopt.plan.partition.kinds import LEVELS, Kind, picked
from onnxopt.plan.partition.knapsack import least_cover
from onnxopt.plan.partition.problem import CostTable, FloatArray
from onnxopt.plan.partition.sizes import cheapest_size, rounding, size_functions, useful_sizes
from onnxopt.plan.solver import solve

# Sums of some thousand doubles are off by less than this, relative.
_SAFETY = 1e-9
_ROUNDS = 40
# Parts across components are looked at with the outputs of each piece where that takes no more steps than this.
_JOINT_LIMIT = 30_000_000
_ROWS_A_ROUND = 60


@dataclass(frozen=True)
class _Row:
    """A part of ``size`` outputs: pieces as (kind, union, outputs of the piece, how many such pieces)."""

    pieces: tuple[tuple[int, int, int, int], ...]
    size: int


@dataclass(frozen=True, eq=False)
class DualBound:
    """The bound and how it came about; ``note`` has what a solver complained of."""

    value: float
    prices: int
    rounds: int
    note: str = ""


def dual_bound(kinds: list[Kind], table: CostTable, target: float, rounds: int = _ROUNDS) -> DualBound:
    """The best bound found; ``target`` is the cost of a known partition, at which there is nothing left to prove."""
    search = _Search(kinds, table)
    best, note, spent = 0.0, "", 0
    for prices in search.simple_prices():
        best = max(best, search.value_of(prices, search.ratio(prices)))
    rows = search.first_rows()
    for _ in range(rounds):
        if best >= target * (1 - 1e-7):
            break
        offer, proposed, note = search.propose(rows)
        if offer is None:
            break
        spent += 1
        worst, found = search.separate(offer)
        best = max(best, search.value_of(offer, worst))
        fresh = [row for row in found if row not in rows]
        # A price system that holds is the best of its space; one that hardly exceeds what is proved is near enough.
        if worst <= 1 + 1e-7 or not fresh or proposed <= best * (1 + 1e-5):
            break
        rows.update(dict.fromkeys(fresh))
    return DualBound(_to_unit(best, table.unit), search.count, spent, note)


def _to_unit(value: float, unit: float) -> float:
    """The least multiple of ``unit`` that is no less than ``value``, up to the rounding of the arithmetic."""
    return float(np.ceil(value / unit - 1e-6)) * unit if unit else value


class _Search:
    def __init__(self, kinds: list[Kind], table: CostTable) -> None:
        self.kinds, self.table = kinds, table
        degrees = np.concatenate([kind.component.degrees for kind in kinds])
        self.functions = size_functions(table, degrees)
        self.sizes = useful_sizes(table, np.arange(1, table.values.shape[1]), table.max_outputs)
        self.levels = picked(np.unique(degrees), LEVELS)
        self.width = len(self.functions) + 1
        starts = np.cumsum([0, *(len(kind.masks) for kind in kinds)])
        self.local = [slice(int(a), int(b)) for a, b in pairwise(starts)]
        self.shared = slice(int(starts[-1]), int(starts[-1]) + len(self.levels))
        self._weigh()
        top = [np.where(k.unions.fits, k.component.degrees[None, :], 0).max(axis=1) for k in kinds]
        self.level = [np.searchsorted(self.levels, degree, side="right") for degree in top]

    def _weigh(self) -> None:
        """``steps[x, f, n]``: function f of n outputs of set x, of which there are no more than the set has; and H."""
        amounts = np.zeros(self.shared.stop, np.int64)
        repeat = np.ones(self.shared.stop)
        for kind, at in zip(self.kinds, self.local, strict=True):
            amounts[at] = kind.masks @ kind.component.sizes
            repeat[at] = kind.count
            above = kind.component.degrees[None, :] >= self.levels[:, None]
            amounts[self.shared] += kind.count * (above @ kind.component.sizes)
        step = cheapest_size(self.table)
        self.steps = np.zeros((self.shared.stop, self.width, len(self.table.values)))
        self.objective = np.zeros((self.shared.stop, self.width))
        covers = [least_cover(function, int(amounts.max())) for function in self.functions]
        rounded: dict[int, FloatArray] = {}
        for x, amount in enumerate(amounts.tolist()):
            within = np.minimum(np.arange(len(self.table.values)), amount)
            rest = amount % step
            if rest not in rounded:
                rounded[rest] = rounding(len(self.table.values), step, rest)
            self.steps[x, :-1] = self.functions[:, within]
            self.steps[x, -1] = rounded[rest][within]
            self.objective[x, :-1] = [cover[amount] for cover in covers]
            self.objective[x, -1] = -(-amount // step) * step
        self.objective *= repeat[:, None]
        self.count = self.objective.size

    def simple_prices(self) -> list[FloatArray]:
        """Prices on everything at once, and on each class as if it were alone."""
        everything = np.zeros_like(self.objective)
        everything[self.shared.start, 0] = 1.0
        result = [everything]
        for function in (0, self.width - 2, self.width - 1):
            alone = np.zeros_like(self.objective)
            for kind, at in zip(self.kinds, self.local, strict=True):
                single = np.flatnonzero(kind.masks.sum(axis=1) == 1)
                degree = (kind.masks[single] @ kind.component.degrees).astype(np.int64)
                alone[at.start + single, function] = self.table.values[-1, degree]
            result.append(alone)
        return result

    def value_of(self, prices: FloatArray, ratio: float) -> float:
        """The bound that prices prove, given the largest ratio of a part's prices to its cost."""
        return float((self.objective * prices).sum()) / ratio * (1 - _SAFETY) if ratio > 0 else 0.0

    def first_rows(self) -> dict[_Row, None]:
        """Every class in the smallest union that has room for it, and all of a component."""
        rows: dict[_Row, None] = {}
        for k, kind in enumerate(self.kinds):
            alone = [int(np.flatnonzero(kind.unions.fits[:, c])[0]) for c in range(len(kind.component.members))]
            for u in sorted({*alone, len(kind.unions.size) - 1}):
                rows.update({_Row(((k, u, s, 1),), s): None for s in self.sizes.tolist()})
        return rows

    def propose(self, rows: dict[_Row, None]) -> tuple[FloatArray | None, float, str]:
        """Prices that are best against the parts known so far."""
        problem = pulp.LpProblem("prices", pulp.LpMaximize)
        names = [problem.add_variable(f"p{i}", 0) for i in range(self.count)]
        flat = self.objective.ravel()
        problem += pulp.LpAffineExpression([(names[i], float(flat[i])) for i in np.flatnonzero(flat)])
        for number, row in enumerate(rows):
            terms, cost = self._terms(row)
            used = np.flatnonzero(terms)
            problem += (
                pulp.LpAffineExpression([(names[i], float(terms[i])) for i in used]) <= cost,
                f"r{number}",
            )
        outcome = solve(problem, node_limit=1)
        if outcome.status == "none":
            return None, 0.0, outcome.note
        prices = np.array([max(0.0, outcome.values[v.name]) for v in names]).reshape(self.objective.shape)
        return prices, outcome.value, outcome.note

    def _terms(self, row: _Row) -> tuple[FloatArray, float]:
        terms = np.zeros_like(self.objective)
        inputs, level = 0, 0
        for k, u, outputs, times in row.pieces:
            terms[self.local[k]] += times * self.kinds[k].hits[u][:, None] * self.steps[self.local[k], :, outputs]
            inputs += times * int(self.kinds[k].unions.size[u])
            level = max(level, int(self.level[k][u]))
        terms[self.shared][:level] = self.steps[self.shared, :, row.size][:level]
        return terms.ravel(), float(self.table.values[row.size, inputs])

    def ratio(self, prices: FloatArray) -> float:
        """The largest ratio of a part's prices to its cost."""
        return self.separate(prices)[0]

    def separate(self, prices: FloatArray) -> tuple[float, list[_Row]]:
        """The largest ratio of prices to cost over all parts, and the parts with the largest ratios."""
        worst, found = 0.0, []
        priced = np.einsum("xf,xfn->xn", prices, self.steps)
        shared = np.zeros((len(self.levels) + 1, priced.shape[1]))
        shared[1:] = np.cumsum(priced[self.shared], axis=0)
        for k, kind in enumerate(self.kinds):
            value = (kind.hits @ priced[self.local[k]] + shared[self.level[k]])[:, self.sizes]
            ratio = value / self.table.values[np.ix_(self.sizes, kind.unions.size)].T
            worst = max(worst, float(ratio.max()))
            most = np.argsort(-ratio, axis=None, kind="stable")[:_ROWS_A_ROUND]
            for u, s in zip(*np.unravel_index(most, ratio.shape), strict=True):
                if ratio[u, s] > 1 + 1e-9:
                    size = int(self.sizes[s])
                    found.append((float(ratio[u, s]), _Row(((k, int(u), size, 1),), size)))
        if sum(kind.count for kind in self.kinds) > 1:
            across, rows = self._across(priced, shared)
            worst, found = max(worst, across), found + rows
        found.sort(key=lambda entry: -entry[0])
        return worst, [row for _, row in found[:_ROWS_A_ROUND]]

    def _across(self, priced: FloatArray, shared: FloatArray) -> tuple[float, list[tuple[float, _Row]]]:
        """Parts that span components: for every number of inputs the largest sum of prices."""
        worst, found = 0.0, []
        for size in self.sizes.tolist():
            for level in range(1, len(self.levels) + 1):
                best, choices = self._knapsack(priced, size, level)
                ratio = (best[-1, 1:] + shared[level, size]) / self.table.values[size, 1:]
                worst = max(worst, float(ratio.max()))
                most = [q for q in np.argsort(-ratio, kind="stable")[:3].tolist() if ratio[q] > 1 + 1e-9]
                found += [(float(ratio[q]), _Row(self._trace(choices, len(best) - 1, q + 1), size)) for q in most]
        return worst, found

    def _knapsack(
        self, priced: FloatArray, size: int, level: int
    ) -> tuple[FloatArray, list[tuple[int, np.ndarray, list[tuple[int, int, int]]]]]:
        """``best[n, q]``: the most that pieces of n outputs and q inputs at most are worth, one from a component.

        Where counting outputs would take too long, and for components of several classes, a piece is worth what it
        would be with all outputs of the part.
        """
        width = self.table.values.shape[1]
        joint = sum(kind.count for kind in self.kinds) * size * size * width <= _JOINT_LIMIT
        best = np.zeros(((size if joint else 1) + 1, width))
        best[0] = 0.0
        choices = []
        for k, kind in enumerate(self.kinds):
            options = self._options(priced, k, size, level, joint)
            for _ in range(kind.count if options else 0):
                chosen = np.full(best.shape, -1, np.int32)
                result = best.copy()
                for number, (u, counted, outputs) in enumerate(options):
                    inputs = int(kind.unions.size[u])
                    worth = float(kind.hits[u] @ priced[self.local[k], outputs])
                    # Where outputs are not counted the only row is the last.
                    source = best[: len(best) - counted, :-inputs] if counted else best[:, : width - inputs]
                    target = result[counted:, inputs:]
                    better = source + worth > target
                    target[better] = (source + worth)[better]
                    chosen[counted:, inputs:][better] = number
                best = result
                choices.append((k, chosen, options))
        return best, choices

    def _options(self, priced: FloatArray, k: int, size: int, level: int, joint: bool) -> list[tuple[int, int, int]]:
        """Pieces of a component as (union, outputs counted, outputs paid for)."""
        kind = self.kinds[k]
        if joint and len(kind.component.members) == 1:
            most = min(size, int(kind.component.sizes[0]))
            return [(0, n, n) for n in range(1, most + 1)] if self.level[k][0] <= level else []
        gains = kind.hits @ priced[self.local[k], size]
        useful = _useful(kind.unions.size, np.where(self.level[k] <= level, gains, 0.0))
        return [(u, 1 if joint else 0, size) for u in useful]

    def _trace(
        self, choices: list[tuple[int, np.ndarray, list[tuple[int, int, int]]]], row: int, inputs: int
    ) -> tuple[tuple[int, int, int, int], ...]:
        pieces: dict[tuple[int, int, int], int] = {}
        for k, chosen, options in reversed(choices):
            number = int(chosen[row, inputs])
            if number >= 0:
                u, counted, outputs = options[number]
                pieces[k, u, outputs] = pieces.get((k, u, outputs), 0) + 1
                row -= counted
                inputs -= int(self.kinds[k].unions.size[u])
        return tuple((*piece, times) for piece, times in sorted(pieces.items()))


def _useful(sizes: np.ndarray, gains: FloatArray) -> list[int]:
    """Options that gain more than every smaller one."""
    result, best = [], 0.0
    for u in np.lexsort((-gains, sizes)).tolist():
        if gains[u] > best:
            result.append(u)
            best = float(gains[u])
    return result
