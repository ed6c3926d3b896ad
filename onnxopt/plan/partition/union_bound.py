"""How few inputs k outputs can have together: proofs that no k outputs have ``u`` or fewer.

k outputs with at most u of n inputs leave w = n - u inputs or more to none of them. Such a set is looked for by
growing sets of outputs while they leave w inputs free, so that an empty result is a proof. To keep the search small it
starts from sets of four (three where there are many outputs) that must exist inside a k-set by averaging: the inputs
that a random j-subset of the k-set leaves free are w at least, and further ones that only few of the k use. The fewer
connections the k outputs have, the more there are; sets are therefore rated by free inputs plus a multiple of their
connections, and some subset reaches the average of that rating.
"""

from __future__ import annotations

from itertools import pairwise
from math import comb
from typing import Any

import numpy as np

from onnxopt.discover.conv_site import BoolArray, IntArray
from onnxopt.plan.partition.bits import count_bits, count_common, words_of

# Words of 64 inputs that one proof may look at before it is given up.
WORK_LIMIT = 120_000_000
_CHUNK = 1 << 17
_BLOCK = 1 << 20
# Candidates of a set are compared in blocks of sets with about as many.
_BUCKETS = (0, 6, 9, 12, 16, 24, 32, 48, 64, 96, 128, 192, 1 << 16)
# Words compared in blocks take less time than words that are gathered.
_PAIR_EASE = 4


class UnionBound:
    """Proven lower bounds ``least[k]`` on the inputs of any k outputs of a connectivity, k up to ``most``."""

    def __init__(self, links: BoolArray, most: int) -> None:
        self.outputs, self.inputs = links.shape
        self.degrees = links.sum(axis=1)
        self.free = words_of(~links)
        self.work = 0
        self.least = np.zeros(most + 1, np.int64)
        if most >= 1:
            self.least[1:] = int(self.degrees.min())
        if most >= 2 and self.outputs >= 2:
            dense = links.astype(np.float32)
            pairs = self.degrees[:, None] + self.degrees[None, :] - np.rint(dense @ dense.T).astype(np.int64)
            np.fill_diagonal(pairs, self.inputs)
            self.least[2:] = np.maximum(self.least[2:], int(pairs.min()))

    def raise_to(self, outputs: int, inputs: int, limit: int = WORK_LIMIT) -> bool:
        """Try to prove that ``outputs`` outputs have ``inputs`` inputs at least; what is proved goes into ``least``."""
        if self.least[outputs] >= inputs:
            return True
        if outputs > self.outputs or (limit > 0 and self.excludes(outputs, inputs - 1, limit)):
            self.least[outputs:] = np.maximum(self.least[outputs:], inputs)
            return True
        return False

    def excludes(self, outputs: int, inputs: int, limit: int = WORK_LIMIT, base: int = 0) -> bool | None:
        """Whether no ``outputs`` outputs have ``inputs`` or fewer; None where ``limit`` words did not suffice to tell.

        ``base`` is the size of the sets to start from; by default it suits the number of outputs.
        """
        free = self.inputs - inputs
        budget = _Budget(limit)
        base = min(outputs, base or (4 if self.outputs <= 100 else 3))
        try:
            return not self._exists(outputs, free, base, budget)
        except _OverError:
            return None
        finally:
            self.work += limit - max(0, budget.left)

    def _exists(self, outputs: int, free: int, base: int, budget: _Budget) -> bool:
        usable = np.flatnonzero(self.inputs - self.degrees >= free)
        if len(usable) < outputs:
            return False
        for weight in _WEIGHTS[:1] if base == outputs else [self._best_weight(outputs, free, base)]:
            threshold = _average(self.inputs, outputs, free, base, weight, self.degrees[usable])
            for members, words in self._bases(usable, base, free, weight, threshold, budget):
                if self._completes(members, words, usable, outputs - base, free, weight, budget):
                    return True
        return False

    def _best_weight(self, outputs: int, free: int, base: int) -> float:
        """The weight of connections under which fewest sets reach the threshold, judged on a sample."""
        rng = np.random.default_rng(0)
        usable = np.flatnonzero(self.inputs - self.degrees >= free)
        picks = usable[rng.integers(0, len(usable), (400, base))]
        counts = count_bits(np.bitwise_and.reduce(self.free[picks], axis=1)).astype(np.float64)
        load = self.degrees[picks].sum(axis=1)
        spread = float(counts.std()) or 1.0
        scores = []
        for weight in _WEIGHTS:
            rating = counts + weight * load
            threshold = _average(self.inputs, outputs, free, base, weight, self.degrees[usable])
            scores.append((threshold - rating.mean()) / (float(rating.std()) or spread))
        return float(_WEIGHTS[int(np.argmax(scores))])

    def _bases(self, usable: IntArray, base: int, free: int, weight: float, threshold: float, budget: _Budget) -> Any:
        """Blocks of ``base``-sets, each as (members, free words), that reach the threshold."""
        start = usable[:, None]
        stack = [(start, self.free[usable])]
        while stack:
            members, words = stack.pop()
            size = members.shape[1]
            if size == base:
                counts = count_bits(words)
                rating = counts + weight * self.degrees[members].sum(axis=1)
                keep = (counts >= free) & (rating >= threshold - 1e-9)
                if keep.any():
                    yield members[keep], words[keep]
                continue
            rows = max(1, _BLOCK // (len(usable) * words.shape[1]))
            for begin in range(0, len(members), rows):
                part, block = members[begin : begin + rows], words[begin : begin + rows]
                grown = self._grown(part, block, usable, free, budget)
                if len(grown[0]):
                    stack.append(grown)

    def _grown(
        self, members: IntArray, words: np.ndarray, usable: IntArray, free: int, budget: _Budget
    ) -> tuple[IntArray, np.ndarray]:
        """All sets with one more output, of higher number than the others, that leave enough inputs free."""
        budget.take(len(members) * len(usable) * words.shape[1] // 2)
        parent, at = np.nonzero(usable[None, :] > members[:, -1:])
        both = words[parent] & self.free[usable[at]]
        keep = np.flatnonzero(count_bits(both) >= free)
        return np.concatenate([members[parent[keep]], usable[at[keep], None]], axis=1), both[keep]

    def _completes(
        self,
        members: IntArray,
        words: np.ndarray,
        usable: IntArray,
        missing: int,
        free: int,
        weight: float,
        budget: _Budget,
    ) -> bool:
        """Whether any of the sets can be completed by ``missing`` outputs and is then the best of its subsets."""
        if missing == 0:
            return len(members) > 0
        rows = max(1, _BLOCK // (len(usable) * words.shape[1]))
        for begin in range(0, len(members), rows):
            part, block = members[begin : begin + rows], words[begin : begin + rows]
            budget.take(len(part) * len(usable) * words.shape[1])
            fits = count_common(block[:, None], self.free[usable][None, :]) >= free
            fits[np.arange(len(part))[:, None], np.searchsorted(usable, part)] = False
            fits[np.count_nonzero(fits, axis=1) < missing] = False
            row, column = np.nonzero(fits)
            row, at = self._no_better(part, block, row, usable[column], weight, budget)
            row, at = self._paired(block, row, at, missing, free, budget)
            if len(row) and self._descends(block, row, at, missing, free, budget):
                return True
        return False

    def _no_better(
        self, members: IntArray, words: np.ndarray, row: IntArray, at: IntArray, weight: float, budget: _Budget
    ) -> tuple[IntArray, IntArray]:
        """Candidates that, put in the place of any member, do not give a set of higher rating.

        Every k-set is found from its best subset, so that nothing is lost.
        """
        for j in range(members.shape[1]):
            budget.take(len(row) * words.shape[1])
            others = np.bitwise_and.reduce(self.free[np.delete(members, j, axis=1)], axis=1)
            gain = count_common(others[row], self.free[at]).astype(np.float64) - count_bits(words)[row]
            gain += weight * (self.degrees[at] - self.degrees[members[row, j]])
            keep = gain <= 1e-9
            row, at = row[keep], at[keep]
        return row, at

    def _paired(
        self, words: np.ndarray, row: IntArray, at: IntArray, missing: int, free: int, budget: _Budget
    ) -> tuple[IntArray, IntArray]:
        """Candidates that go together, two at a time, with ``missing`` - 1 others of their set."""
        counts = np.bincount(row, minlength=len(words))
        starts = np.cumsum(counts) - counts
        kept_rows, kept = [], []
        for low, high in pairwise(_BUCKETS):
            sets = np.flatnonzero((counts >= missing) & (counts > low) & (counts <= high))
            width = min(high, int(counts[sets].max(initial=0)))
            block = max(1, _CHUNK // max(1, width * width))
            for begin in range(0, len(sets), block):
                some = sets[begin : begin + block]
                budget.take(len(some) * width * width * words.shape[1] // _PAIR_EASE)
                place = starts[some][:, None] + np.arange(width)[None, :]
                real = np.arange(width)[None, :] < counts[some][:, None]
                names = at[np.where(real, place, 0)]
                bits = np.where(real[:, :, None], self.free[names], 0)
                pairs = count_common((bits & words[some][:, None])[:, :, None], bits[:, None, :]) >= free
                pairs[:, np.arange(width), np.arange(width)] = False
                good = real
                for _ in range(3):
                    good = good & (np.count_nonzero(pairs & good[:, None, :], axis=2) >= missing - 1)
                good[np.count_nonzero(good, axis=1) < missing] = False
                index, column = np.nonzero(good)
                kept_rows.append(some[index])
                kept.append(names[index, column])
        if not kept:
            return row[:0], at[:0]
        rows = np.concatenate(kept_rows)
        order = np.argsort(rows, kind="stable")
        return rows[order], np.concatenate(kept)[order]

    def _descends(
        self, words: np.ndarray, rows: IntArray, at: IntArray, missing: int, free: int, budget: _Budget
    ) -> bool:
        """Complete sets (``words``) by ``missing`` of their candidates; candidate ``at[i]`` belongs to set ``rows[i]``.

        ``rows`` ascends, and candidates are taken in the order in which they are listed.
        """
        if missing == 1:
            return len(rows) > 0
        end = np.searchsorted(rows, rows, side="right")
        later = end - np.arange(len(rows)) - 1
        first = np.flatnonzero(later >= missing - 1)
        stops = np.cumsum(later[first])
        begin = 0
        while begin < len(first):
            reached = int(stops[begin - 1]) if begin else 0
            stop = max(begin + 1, int(np.searchsorted(stops, reached + _CHUNK // words.shape[1])))
            chosen = first[begin:stop]
            begin = stop
            child = np.repeat(np.arange(len(chosen)), later[chosen])
            starts = np.cumsum(later[chosen]) - later[chosen]
            second = chosen[child] + 1 + np.arange(len(child)) - starts[child]
            budget.take(len(child) * words.shape[1])
            both = words[rows[chosen]] & self.free[at[chosen]]
            good = count_common(both[child], self.free[at[second]]) >= free
            child, second = child[good], second[good]
            enough = (np.bincount(child, minlength=len(chosen)) >= missing - 1)[child]
            child, second = child[enough], second[enough]
            if len(child) and self._descends(both, child, at[second], missing - 1, free, budget):
                return True
        return False


_WEIGHTS = tuple(np.linspace(0.0, 1.0, 21).tolist())


class _OverError(Exception):
    """The budget is spent."""


class _Budget:
    def __init__(self, left: int) -> None:
        self.left = left

    def take(self, words: int) -> None:
        """Count work before it is done."""
        self.left -= words
        if self.left < 0:
            raise _OverError


def _average(inputs: int, outputs: int, free: int, base: int, weight: float, degrees: IntArray) -> float:
    """What the rating of some ``base``-subset reaches in every set of ``outputs`` that leaves ``free`` inputs free.

    Of the inputs in use, one that c of the outputs use is free for comb(outputs - c, base) of the subsets. That is
    convex in c, so that the sum over inputs is least where all have the average c; with more inputs free the sum is
    larger still.
    """
    used = inputs - free
    ordered = np.sort(degrees)
    loads = np.arange(int(ordered[:outputs].sum()), int(ordered[-outputs:].sum()) + 1)
    shares = np.array([comb(outputs - c, base) / comb(outputs, base) for c in range(outputs + 1)])
    mean = np.clip(loads / max(1, used), 1, outputs)
    total = free + used * np.interp(mean, np.arange(outputs + 1), shares)
    return float((total + weight * loads * base / outputs).min())
