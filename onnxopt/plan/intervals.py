"""Strips as intervals of an order of rows: how many keys each would have, and the cheapest way to cut the order.

The keys that rows i..j share the computation of are the union of their lists. A key adds to the union where it was not
needed since row i, so the sizes of all unions follow from how far back each row finds each of its keys: one pass over
the lists, however many intervals there are.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from onnxopt.discover.attention_site import KeyLists
from onnxopt.plan.strips import CodedLists

# Rows of one interval at most: the tallest strip of any kernel.
LONGEST = 128
# Within a run of rows with equal keys, and along the order, an order may be cut every so many rows: fewer where there
# are few rows, more where there are very many.
_STEP = 8
_STEPPED_ROWS = 64
_LONGEST_STEP = 32


@dataclass(frozen=True)
class Intervals:
    """Every interval between two cuts of an order that is at most ``LONGEST`` rows long.

    ``cuts`` are the places where the order may be cut, from 0 to the number of rows. Interval (j, t) ends at
    ``cuts[j]`` and begins ``t + 1`` cuts before; ``rows``, ``keys`` (the union, with repetitions) and ``needed`` pairs
    are (cuts x steps) arrays, and ``rows`` is 0 where there is no such interval.
    """

    order: np.ndarray
    cuts: np.ndarray
    rows: np.ndarray
    keys: np.ndarray
    needed: np.ndarray

    @property
    def full(self) -> np.ndarray:
        """Whether every row of the interval needs all of its keys."""
        return np.asarray(self.needed == self.rows.astype(np.int64) * self.keys)


def intervals_of(
    order: np.ndarray, lists: KeyLists, codes: CodedLists, longest: int = LONGEST, most_cuts: int | None = None
) -> Intervals:
    """The intervals of ``order``, an array of row numbers, each row at most once.

    With more cuts than ``most_cuts`` they lie further apart, if need be eight rows and, within a run of rows with equal
    keys, 32.
    """
    owner = lists.row_list[order]
    cuts = _thinned_cuts(_runs(owner), len(order), most_cuts, longest)
    sizes = union_sizes(owner, codes, longest, cuts[:-1])
    steps = int((np.searchsorted(cuts, cuts + longest, side="right") - 1 - np.arange(len(cuts))).max(initial=1))
    begin = np.arange(len(cuts))[:, None] - 1 - np.arange(steps)[None, :]
    exists = begin >= 0
    begin = np.where(exists, begin, 0)
    rows = np.where(exists, cuts[:, None] - cuts[begin], 0)
    rows[rows > longest] = 0
    first = cuts[begin]
    keys = np.where(rows > 0, sizes[np.minimum(begin, len(cuts) - 2), np.maximum(rows, 1) - 1], 0)
    total = np.concatenate([[0], np.cumsum(np.diff(codes.offsets)[owner])])
    needed = np.where(rows > 0, total[cuts][:, None] - total[first], 0)
    return Intervals(order, cuts, rows, keys, needed)


def _runs(owner: np.ndarray) -> np.ndarray:
    """Where runs of rows with one list begin."""
    return np.flatnonzero(np.concatenate([np.ones(min(1, len(owner)), bool), owner[1:] != owner[:-1]]))


def _thinned_cuts(starts: np.ndarray, count: int, most: int | None, longest: int) -> np.ndarray:
    """Where an order may be cut: where runs begin, every few rows within them, and every few rows of the order.

    Where that would be too many, the latter are left out first. Never ``longest`` rows apart.
    """
    step, apart = _first_step(count), 1
    cuts = _cuts(starts, count, step)
    everywhere = np.union1d(cuts, np.arange(0, count, step))
    if most is None or len(everywhere) <= most:
        return everywhere
    while most is not None and len(cuts) > most:
        if step < _LONGEST_STEP and 2 * step <= longest:
            step *= 2
        elif apart < _STEP and step + 2 * apart - 1 <= longest:
            apart *= 2
        else:
            break
        cuts = _cuts(starts, count, step)
        cuts = np.append(cuts[np.unique(cuts[:-1] // apart, return_index=True)[1]], count)
    return cuts


def _first_step(count: int) -> int:
    """Orders of few rows may be cut anywhere."""
    step = _STEP
    while step > 1 and count <= _STEPPED_ROWS * step:
        step //= 2
    return step


def _cuts(starts: np.ndarray, count: int, step: int) -> np.ndarray:
    places = np.arange(count)
    run = np.zeros(count, np.int64)
    run[starts] = 1
    begin = starts[np.cumsum(run) - 1] if count else places
    return np.append(places[(places - begin) % step == 0], count)


def union_sizes(owner: np.ndarray, codes: CodedLists, longest: int, begins: np.ndarray | None = None) -> np.ndarray:
    """Begins x longest: how many distinct codes the rows i..i+l have, of rows with the lists ``owner``.

    ``begins`` are the rows i in ascending order, by default all of them.
    """
    count = len(owner)
    begins = np.arange(count) if begins is None else begins
    number = np.full(count, -1)
    number[begins] = np.arange(len(begins))
    starts = _runs(owner)
    fresh = _fresh_keys(owner[starts], starts, count, codes, longest)
    grown = np.zeros((len(begins), longest), np.int32)
    # Row r adds fresh[r, r - i] keys to the interval that began at row i.
    for back in range(1, longest):
        first = int(np.searchsorted(starts, back))
        place = number[starts[first:] - back]
        found = place >= 0
        grown[place[found], back] = fresh[first:, back][found]
    grown[:, 0] = np.diff(codes.offsets)[owner[begins]]
    return np.cumsum(grown, axis=1, dtype=np.int32)


def _fresh_keys(owner: np.ndarray, starts: np.ndarray, count: int, codes: CodedLists, longest: int) -> np.ndarray:
    """Runs x longest: how many keys of a run no row needed among the ``d`` rows before it, for d below ``longest``."""
    fresh = np.zeros((len(starts), longest), np.int32)
    ends = np.append(starts[1:], count)
    span = int(codes.codes.max(initial=0)) + 1
    last = np.full(span, -longest, np.int64)
    for run, number in enumerate(owner):
        keys = codes.of(int(number))
        back = np.minimum(starts[run] - last[keys], longest)
        fresh[run] = len(keys) - np.cumsum(np.bincount(back, minlength=longest + 1))[:longest]
        last[keys] = ends[run] - 1
    return fresh


def cheapest_cuts(intervals: Intervals, cost: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The least total cost of cutting the order into intervals, for each of several costs at once.

    ``cost`` is (cuts x steps x costs), infinite where an interval is not allowed. Returns the totals (one a cost) and
    the step that each best interval takes at each cut (cuts x costs), for :func:`chosen`. Ties go to the longer
    interval, so that fewer strips come out.
    """
    count, steps, kinds = cost.shape
    best = np.full((count + steps, kinds), np.inf)
    best[steps] = 0.0
    taken = np.zeros((count, kinds), np.int64)
    columns = np.arange(kinds)
    for cut in range(1, count):
        # Row t of the window is the best total at the cut t + 1 before this one; reversed, longer ones come first.
        sums = cost[cut, ::-1] + best[cut : cut + steps]
        choice = sums.argmin(axis=0)
        best[cut + steps] = sums[choice, columns]
        taken[cut] = steps - 1 - choice
    return best[count + steps - 1], taken


def chosen(intervals: Intervals, taken: np.ndarray) -> list[tuple[int, int]]:
    """The intervals (end cut, step) of one cost's best cutting, from the beginning of the order."""
    result = []
    cut = len(intervals.cuts) - 1
    while cut > 0:
        result.append((cut, int(taken[cut])))
        cut -= int(taken[cut]) + 1
    return result[::-1]


def rows_of(intervals: Intervals, end: int, step: int) -> np.ndarray:
    """The rows of one interval, in the order's order."""
    return intervals.order[intervals.cuts[end - step - 1] : intervals.cuts[end]]
