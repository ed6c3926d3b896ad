"""Strips as intervals of an order of rows: how many keys each would have, and the cheapest way to cut the order.

The keys that the rows of an interval share the computation of are the union of their lists; all unions of an order come
from one pass over its lists.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from onnxopt.discover.attention_site import KeyLists
from onnxopt.plan.strips import CodedLists
from onnxopt.plan.unions import interval_unions, runs_of

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
    starts = runs_of(lists.row_list[order])
    return intervals_at(order, lists, codes, _thinned_cuts(starts, len(order), most_cuts, longest), longest)


def intervals_at(
    order: np.ndarray, lists: KeyLists, codes: CodedLists, cuts: np.ndarray, longest: int = LONGEST
) -> Intervals:
    """The intervals of an order that may be cut at ``cuts``, from 0 to its length, at most ``longest`` rows apart."""
    owner = lists.row_list[order]
    steps = int((np.searchsorted(cuts, cuts + longest, side="right") - 1 - np.arange(len(cuts))).max(initial=1))
    sizes = interval_unions(owner, codes, cuts, steps)
    begin = np.arange(len(cuts))[:, None] - 1 - np.arange(steps)[None, :]
    exists = begin >= 0
    begin = np.where(exists, begin, 0)
    rows = np.where(exists, cuts[:, None] - cuts[begin], 0)
    rows[rows > longest] = 0
    first = cuts[begin]
    keys = np.where(rows > 0, sizes[np.minimum(begin, len(cuts) - 2), np.arange(steps)[None, :]], 0)
    total = np.concatenate([[0], np.cumsum(np.diff(codes.offsets)[owner])])
    needed = np.where(rows > 0, total[cuts][:, None] - total[first], 0)
    return Intervals(order, cuts, rows, keys, needed)


def in_equal_parts(order: np.ndarray, lists: KeyLists, codes: CodedLists, most: int) -> Intervals:
    """One interval after the other: every run of rows with equal keys in as few parts as can be, of ``most`` rows.

    The parts of a run differ by one row at most, the larger ones first.
    """
    owner = lists.row_list[order]
    starts = runs_of(owner)
    lengths = np.diff(np.append(starts, len(order)))
    parts = -(-lengths // most)
    number = np.arange(int(parts.sum())) - np.repeat(np.cumsum(parts) - parts, parts)
    even, larger = np.repeat(lengths // parts, parts), np.repeat(lengths % parts, parts)
    begins = np.repeat(starts, parts) + number * even + np.minimum(number, larger)
    cuts = np.append(begins, len(order))
    rows = np.concatenate([[0], np.diff(cuts)])[:, None]
    keys = np.concatenate([[0], np.diff(codes.offsets)[owner[begins]]])[:, None].astype(np.int32)
    return Intervals(order, cuts, rows, keys, rows.astype(np.int64) * keys)


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


def cheapest_cuts(intervals: Intervals, cost: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The least total cost of cutting the order into intervals, for each of several costs at once.

    ``cost`` is (cuts x steps x costs), infinite where an interval is not allowed. Returns the totals (one a cost) and
    the step that each best interval takes at each cut (cuts x costs), for :func:`chosen`. Ties go to the longer
    interval, so that fewer strips come out.
    """
    count = len(cost)
    best, taken = shortest_paths(cost[:, ::-1].transpose(2, 0, 1)[:, :, None])
    return best[:, 0, count - 1], taken[:, :, 0]


def shortest_paths(cost: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Least totals from cut 0 to every cut, for several costs and orders at once, and the steps taken at every cut.

    ``cost`` is (costs x cuts x orders x steps) with the longest step first, which wins ties. Totals are (costs x orders
    x cuts), steps (cuts x costs x orders).
    """
    kinds, count, orders, steps = cost.shape
    best = np.full((kinds, orders, count + steps), np.inf)
    best[:, :, steps] = 0.0
    choices = np.full((count, kinds * orders), steps - 1, np.int32)
    columns = np.arange(kinds * orders)
    for cut in range(1, count):
        # Column t of the window is the best total at the cut t + 1 before this one, in reverse.
        sums = (cost[:, cut] + best[:, :, cut : cut + steps]).reshape(-1, steps)
        choice = sums.argmin(axis=1)
        choices[cut] = choice
        best[:, :, cut + steps] = sums[columns, choice].reshape(kinds, orders)
    return best[:, :, steps:], (steps - 1 - choices).reshape(count, kinds, orders)


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
