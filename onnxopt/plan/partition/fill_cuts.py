"""What parts can hold of sets of outputs, and how many parts rounding then asks for.

A column is a union and a size: parts of that many outputs at most, each of a class that fits into the union. Of the
outputs of a set X such a part holds no more than its size, and no more than those of X that fit into the union. Let h
be a mixed-integer rounding function, that is, whole steps and of a further one as much as the remainder of X fills.
It does not fall and is subadditive, so that over all parts h of what they hold of X adds up to h(outputs of X).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from onnxopt.discover.conv_site import BoolArray, IntArray
from onnxopt.plan.partition.classes import Component, Unions
from onnxopt.plan.partition.kinds import LEVELS, picked
from onnxopt.plan.partition.problem import CostTable, FloatArray
from onnxopt.plan.partition.sizes import rounding, useful_sizes

# Steps of rounding, besides the sizes themselves.
_STEPS = range(2, 9)
_MOST_STEPS = 12
# Entries of the table of cuts; beyond them fewer sets are looked at.
_ENTRY_LIMIT = 3_000_000


@dataclass(frozen=True, eq=False)
class Columns:
    """Column n is parts of ``size[n]`` outputs with union ``union[n]``, each of which costs ``cost[n]``.

    Class c has ``amounts[c]`` outputs and fits into union u where ``fits[u, c]``.
    """

    fits: BoolArray
    amounts: IntArray
    union: IntArray
    size: IntArray
    cost: FloatArray

    @staticmethod
    def of(component: Component, family: Unions, table: CostTable) -> Columns:
        """The columns of a component: unions of ``family`` with every size that others cannot replace."""
        sizes = useful_sizes(table, family.size, int(component.sizes.sum()))
        union = np.repeat(np.arange(len(family.size)), len(sizes))
        size = np.tile(sizes, len(family.size))
        return Columns(family.fits, component.sizes, union, size, table.values[size, family.size[union]])

    def held(self, sets: BoolArray) -> IntArray:
        """The most outputs of each set that a part of each column can hold."""
        room = (sets * self.amounts).astype(np.int64) @ self.fits.T.astype(np.int64)
        return np.minimum(room[:, self.union], self.size[None, :])


@dataclass(frozen=True, eq=False)
class Cuts:
    """In every partition ``rows[k]``, summed over its parts by column, is ``least[k]`` or more."""

    rows: FloatArray
    least: FloatArray


def cuts_of(component: Component, family: Unions, columns: Columns) -> Cuts:
    """Rounding cuts on sets of classes: those that fit into a union or do not, by degree, and each class alone."""
    steps = np.unique([*_STEPS, *columns.size.tolist()])[:_MOST_STEPS]
    sets = _sets(component, family, _ENTRY_LIMIT // (len(steps) * len(columns.cost)))
    held, outputs = columns.held(sets), sets @ columns.amounts
    rows, least = [], []
    for step in steps.tolist():
        rests = outputs % step
        rounded = np.stack([rounding(int(columns.size.max()) + 1, step, rest) for rest in range(step)]) / step
        rows.append(rounded[rests[:, None], held])
        least.append(-(-outputs // step).astype(np.float64))
    return Cuts(np.concatenate(rows), np.concatenate(least))


def _sets(component: Component, family: Unions, most: int) -> BoolArray:
    degrees = component.degrees
    steps = picked(np.unique(degrees), LEVELS)
    above = degrees[None, :] >= steps[:, None]
    alone = np.eye(len(degrees), dtype=bool)
    found = [alone, above, ~above]
    if 2 * len(family.fits) * 2 * len(steps) <= most:
        base = np.concatenate([family.fits, ~family.fits])
        found += [base & level for level in [*above, *~above]]
    sets = np.unique(np.concatenate(found), axis=0)
    return np.asarray(sets[sets.any(axis=1)])
