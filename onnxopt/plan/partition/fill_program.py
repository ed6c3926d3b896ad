"""The linear program that proposes prices for ``fill_bound``; solved again and again as limits change.

It says how many parts there are of each column and how many outputs of each class lie in parts of each union. It is
given to HiGHS directly, which then starts from its last solution; a model made anew takes ten times as long.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.sparse import bmat, csr_matrix, eye

from onnxopt.discover.conv_site import BoolArray
from onnxopt.plan.partition.fill_cuts import Columns, Cuts
from onnxopt.plan.partition.problem import FloatArray
from onnxopt.plan.solver import GUARD_SECONDS

# Iterations of the simplex method, times rows, that all solutions together may take.
WORK_LIMIT = 30_000_000
_CUT_ROUNDS = 20
_CUTS_A_ROUND = 30
_VIOLATED = 1e-4


@dataclass(frozen=True, eq=False)
class Limits:
    """Least and greatest numbers of parts of each column, and of each level of columns together."""

    low: FloatArray
    high: FloatArray
    level_low: FloatArray
    level_high: FloatArray


@dataclass(frozen=True, eq=False)
class Prices:
    """A price for an output of each class, for each cut, and for a part of each level of columns."""

    classes: FloatArray
    cuts: FloatArray
    levels: FloatArray


class FillProgram:
    """The program over ``columns``; raises ImportError where HiGHS is missing."""

    def __init__(self, columns: Columns, levels: BoolArray, cuts: Cuts, penalty: float) -> None:
        import highspy

        self.columns, self.levels, self.cuts = columns, levels, cuts
        self.taken: list[int] = []
        self.left = WORK_LIMIT
        self._highspy = highspy
        self._model = highspy.Highs()
        settings = {
            "output_flag": False,
            "threads": 1,
            "presolve": "off",
            "random_seed": 0,
            "time_limit": float(GUARD_SECONDS),
        }
        for name, value in settings.items():
            self._model.setOptionValue(name, value)
        self._build(penalty)

    def _build(self, penalty: float) -> None:
        matrix = _matrix(self.columns, self.levels)
        rows, variables = matrix.shape
        levels, classes = len(self.levels), self.columns.fits.shape[1]
        self._level_rows = np.arange(rows - levels, rows, dtype=np.int32)
        self._cut_rows = rows
        infinite = self._highspy.kHighsInf
        costs = np.zeros(variables)
        costs[: len(self.columns.cost)] = self.columns.cost
        costs[variables - levels :] = penalty
        low = np.zeros(rows)
        low[:classes] = self.columns.amounts
        self._model.addVars(variables, np.zeros(variables), np.full(variables, infinite))
        self._model.changeColsCost(variables, np.arange(variables, dtype=np.int32), costs)
        starts, indices = matrix.indptr[:-1].astype(np.int32), matrix.indices.astype(np.int32)
        self._model.addRows(rows, low, np.full(rows, infinite), matrix.nnz, starts, indices, matrix.data)

    def solve(self, limits: Limits) -> tuple[Prices, FloatArray] | None:
        """Prices within ``limits`` and the numbers of parts that go with them; None where there are none to be had."""
        parts, infinite = len(limits.low), self._highspy.kHighsInf
        columns, high = np.arange(parts, dtype=np.int32), np.minimum(limits.high, infinite)
        self._model.changeColsBounds(parts, columns, limits.low, high)
        high = np.minimum(limits.level_high, infinite)
        self._model.changeRowsBounds(len(high), self._level_rows, limits.level_low, high)
        iterations = self.left // self._model.getNumRow()
        if iterations <= 0:
            return None
        self._model.setOptionValue("simplex_iteration_limit", iterations)
        self._model.run()
        self.left -= self._model.getInfo().simplex_iteration_count * self._model.getNumRow()
        # Prices of a program that is not at its end are worth checking, too.
        status, known = self._model.getModelStatus(), self._highspy.HighsModelStatus
        if status not in (known.kOptimal, known.kIterationLimit):
            return None
        solution = self._model.getSolution()
        duals = np.asarray(solution.row_dual)
        prices = np.zeros(len(self.cuts.least))
        prices[self.taken] = duals[self._cut_rows :]
        classes = self.columns.fits.shape[1]
        return (
            Prices(np.maximum(duals[:classes], 0.0), np.maximum(prices, 0.0), duals[self._level_rows]),
            np.asarray(solution.col_value)[:parts],
        )

    def tighten(self, limits: Limits) -> tuple[Prices, FloatArray] | None:
        """Solve, with cuts added for as long as some are violated."""
        found = self.solve(limits)
        sizes = np.maximum(np.linalg.norm(self.cuts.rows, axis=1), 1e-9)
        for _ in range(_CUT_ROUNDS):
            if found is None or self.left <= 0:
                break
            excess = (self.cuts.least - self.cuts.rows @ found[1]) / sizes
            most = np.argsort(-excess, kind="stable")[:_CUTS_A_ROUND]
            violated = [k for k in most[excess[most] > _VIOLATED].tolist() if k not in self.taken]
            fresh = list({(self.cuts.rows[k].tobytes(), float(self.cuts.least[k])): k for k in violated}.values())
            if not fresh:
                break
            for k in fresh:
                used = np.flatnonzero(self.cuts.rows[k] > 0)
                self._model.addRow(
                    float(self.cuts.least[k]),
                    self._highspy.kHighsInf,
                    len(used),
                    used.astype(np.int32),
                    self.cuts.rows[k, used],
                )
            self.taken += fresh
            found = self.solve(limits) or found
        return found


def _matrix(columns: Columns, levels: BoolArray) -> csr_matrix:
    """Rows are classes, unions, classes in unions, and levels, each of which has to reach its lower limit.

    Variables are parts of columns, outputs of classes in unions, and excess over the upper limits of levels.
    """
    fits, amounts = columns.fits, columns.amounts
    unions, classes = fits.shape
    u, c = np.nonzero(fits)
    parts, places = len(columns.cost), len(u)
    at, ones = np.arange(places), np.ones(places)
    given = csr_matrix((ones, (c, at)), shape=(classes, places))
    inside = csr_matrix((ones, (u, at)), shape=(unions, places))
    room = csr_matrix((columns.size, (columns.union, np.arange(parts))), shape=(unions, parts))
    # A part holds no more outputs of a class than the class has.
    small = np.flatnonzero(amounts[c] < int(columns.size.max()))
    row, column = np.nonzero(columns.union[None, :] == u[small, None])
    most = np.minimum(columns.size[column], amounts[c[small]][row])
    share = csr_matrix((most, (row, column)), shape=(len(small), parts))
    held = csr_matrix((np.ones(len(small)), (np.arange(len(small)), small)), shape=(len(small), places))
    blocks = [
        [None, given, None],
        [room, -inside, None],
        [share, -held, None],
        [csr_matrix(levels.astype(np.float64)), None, -eye(len(levels))],
    ]
    return bmat(blocks if len(small) else [blocks[k] for k in (0, 1, 3)], format="csr", dtype=np.float64)
