"""A lower bound for unstructured connectivity: a price for each output, so that no part costs less than its outputs'.

Outputs are ordered by falling number of inputs. A common rate (cost per output) is chosen, and for one output after
the other, the root, it is proved that no part of it and later outputs costs less than that rate for each of its
outputs. Where a part does cost less, by d, the root's price is the rate less d instead, which pays for every part that
has the root first. The outputs that the work allowed does not reach get a lower rate, proved for all at once. Whatever
a part's first output is, the part then costs no less than the prices of its outputs, and so all prices together are a
bound on every partition.
"""

from __future__ import annotations

import numpy as np

from onnxopt.discover.conv_site import BoolArray
from onnxopt.plan.partition.problem import CostTable, FloatArray
from onnxopt.plan.partition.union_bound import UnionBound

# Words that all proofs together may look at, those of one rate for all outputs, and those of one root.
WORK_LIMIT = 95_000_000
_GLOBAL_LIMIT = 22_000_000
_ROOT_LIMIT = 15_000_000
_MOST_LEVELS = 16
# Losses of this many outputs' rates are carried in the hope of what later roots gain.
_PATIENCE = 2
# Looking at a word takes less time where all outputs are searched at once.
_GLOBAL_EASE = 4
# A root costs this many words beyond those that it counts.
_OVERHEAD = 60_000


def share_bound(links: BoolArray, table: CostTable, average: float, work: int = WORK_LIMIT) -> float:
    """A bound on the cost of any partition of the rows of ``links``, all of which have inputs.

    ``average`` is the rate of a known partition; rates above it cannot be proved for all.
    """
    ranked = links[np.argsort(-links.sum(axis=1), kind="stable")]
    sizes = np.arange(1, table.max_outputs + 1)
    prices = (table.values[1:, ranked.sum(axis=1)] / sizes[:, None]).min(axis=0)
    if work <= 0:
        return _to_unit(float(prices.sum()) * (1 - 1e-12), table.unit)
    proof = _Proof(ranked, table, work)
    levels = _levels(table, float(prices.min()), average)
    low, at = float(prices.min()), 0
    while at < len(levels) and proof.for_all(float(levels[at])):
        low, at = float(levels[at]), at + 1
    best = np.maximum(prices, low)
    for level in levels[at:].tolist():
        if proof.prices(level, best) < len(best):
            break
    return _to_unit(float(best.sum()) * (1 - 1e-12), table.unit)


def _to_unit(value: float, unit: float) -> float:
    return float(np.ceil(value / unit - 1e-6)) * unit if unit else value


def _levels(table: CostTable, floor: float, ceiling: float) -> FloatArray:
    """The least rates of parts by their inputs, as far as they lie between ``floor`` and ``ceiling``; ascending."""
    rates = (table.values[1:, 1:] / np.arange(1, len(table.values))[:, None]).min(axis=0)
    rates = np.unique(np.round(rates, 9))
    above = int(np.searchsorted(rates, ceiling * (1 + 1e-9)))
    # The dearest outputs may be worth a rate beyond the average.
    rates = rates[: above + 1]
    rates = rates[rates > floor * (1 + 1e-9)]
    return rates[np.unique(np.linspace(0, len(rates) - 1, _MOST_LEVELS).astype(np.int64))] if len(rates) else rates


class _Proof:
    def __init__(self, links: BoolArray, table: CostTable, work: int) -> None:
        self.links, self.table, self.left = links, table, work
        self.most = min(table.max_outputs, len(links))
        self.whole = UnionBound(links, self.most)
        self.count, self.inputs = links.shape
        self.degrees = links.sum(axis=1)
        self.steps = [np.flatnonzero(np.diff(row) > 0) for row in table.values]

    def for_all(self, rate: float) -> bool:
        """Whether it can be proved that no part costs less than ``rate`` for each output."""
        holds = True
        for outputs in range(1, self.most + 1):
            inputs = self._cheaper(outputs, rate)
            if inputs >= self.whole.least[outputs]:
                before = self.whole.work
                limit = min(self.left, _GLOBAL_LIMIT if holds or outputs < 8 else 0)
                proved = inputs < self.inputs and self.whole.raise_to(outputs, inputs + 1, limit)
                self.left -= (self.whole.work - before) // _GLOBAL_EASE
                # What is proved for the other sizes is of use to the proofs for single roots.
                holds = holds and proved
        return holds

    def _cheaper(self, outputs: int, rate: float) -> int:
        """The most inputs with which so many outputs cost less than ``rate`` each; -1 where none do."""
        return int(np.searchsorted(self.table.values[outputs], rate * outputs * (1 - 1e-9))) - 1

    def prices(self, rate: float, best: FloatArray) -> int:
        """Raise ``best`` as far as a proof reaches along the order; return where it ends."""
        root = 0
        while root < self.count and best[root] >= rate * (1 - 1e-12):
            root += 1
        found, gain, most, end = best.copy(), 0.0, 0.0, root
        while root < self.count and self.left > 0 and gain > most - _PATIENCE * rate:
            lost = self._lost(root, rate)
            if lost is None:
                break
            gain += rate - lost - best[root]
            found[root] = rate - lost
            root += 1
            if gain > most:
                most, end = gain, root
        best[:end] = found[:end]
        return end

    def _lost(self, root: int, rate: float) -> float | None:
        """By how much a part of ``root`` and later outputs can cost less than ``rate`` each; None where unknown."""
        rest, free = self.links[root + 1 :], ~self.links[root]
        search = UnionBound(rest[:, free], 1) if len(rest) else None
        proved: list[int] = []
        lost = 0.0
        left = min(self.left, _ROOT_LIMIT)
        for outputs in range(1, min(self.most, len(rest) + 1) + 1):
            inputs = self._cheaper(outputs, rate)
            floor = max(int(self.whole.least[outputs]), int(self.degrees[root]), *proved, 0)
            while inputs >= floor:
                if rate * outputs - float(self.table.values[outputs, inputs]) <= lost:
                    break
                outcome: bool | None = outputs == 1 and inputs < self.degrees[root]
                if search is not None and outputs > 1:
                    before = search.work
                    outcome = search.excludes(outputs - 1, inputs - int(self.degrees[root]), left, base=3)
                    left -= search.work - before
                if outcome:
                    proved.append(inputs + 1)
                    break
                if outcome is None or left <= 0:
                    self.left -= min(self.left, _ROOT_LIMIT) - left + _OVERHEAD
                    return None
                # A part with so many inputs may exist: it and what is no cheaper are paid for.
                lost = max(lost, rate * outputs - float(self.table.values[outputs, inputs]))
                below = self.steps[outputs][self.steps[outputs] < inputs]
                inputs = int(below[-1]) if len(below) else -1
        self.left -= min(self.left, _ROOT_LIMIT) - left + _OVERHEAD
        return lost
