"""How long a launch takes: blocks of known durations on equal slots, in a good order, and what no order beats.

The hardware hands blocks out in the order of their numbers, each to the slot that is free first: Graham's list
scheduling. The order is ours: longest first, or the order of starts in a packing that was made beforehand. The bound is
by dual feasible functions: if jobs fit into ``slots`` bins of length T, their weights under such a function add up to
no more than ``slots`` (Fekete and Schepers, "New classes of fast lower bounds for bin packing problems", 2001; a survey
is Clautiaux, Alves and Valerio de Carvalho, "A survey of dual-feasible and superadditive functions", 2010).
"""

from __future__ import annotations

import numpy as np

# Weights of durations relative to T: the area, Fekete and Schepers' functions, and Burdett and Johnson's.
DUAL_ORDERS = (0, 1, 2, 3, 5)
MORE_DUALS = (4.0, *(n / 10 for n in range(11, 80) if n % 10))
# Durations are sums of floats; ratios this close to a whole number count as it.
_SLACK = 1e-9
# Longest first is left alone where it is this close to its bound; packings are halved towards theirs so often.
_WORTH_PACKING = 0.001
_WORTH_TRYING = 1e-6
_PACKINGS = 9


def makespan(durations: np.ndarray, counts: np.ndarray, slots: int, below: float = float("inf")) -> float:
    """When the last of ``counts[i]`` jobs of ``durations[i]`` ends on ``slots`` slots, in the best order known.

    That is longest first, or what MULTIFIT packs (Coffman, Garey and Johnson, "An application of bin-packing to
    multiprocessor scheduling", 1978). Infinite where a job that is there takes forever. Where no order can end before
    ``below``, longest first is all that is tried.
    """
    used = np.asarray(counts) > 0
    lengths, inverse = np.unique(np.asarray(durations, np.float64)[used], return_inverse=True)
    if not np.isfinite(lengths).all():
        return float("inf")
    amounts = np.bincount(inverse, weights=np.asarray(counts)[used], minlength=len(lengths)).astype(np.int64)
    return _best_span(lengths[::-1], amounts[::-1], slots, below)[0]


def launch_order(durations: np.ndarray, slots: int) -> np.ndarray:
    """The numbers of the jobs in an order in which they end at :func:`makespan` if each goes to the first free slot.

    Jobs are started in the order of their starts in the packing, so each finds the slot free that it was packed into.
    """
    durations = np.asarray(durations, np.float64)
    lengths, inverse, counts = np.unique(durations, return_inverse=True, return_counts=True)
    span, packed = _best_span(lengths[::-1], counts[::-1], slots)
    longest_first = np.argsort(-durations, kind="stable")
    if not packed:
        return longest_first
    starts = np.empty(len(durations))
    loads = np.zeros(slots)
    for length, jobs in zip(lengths[::-1], _by_group(inverse, len(lengths))[::-1], strict=True):
        fits = _fitting(loads, float(length), len(jobs), span)
        place = np.repeat(np.arange(slots), fits)
        rank = np.arange(len(jobs)) - np.repeat(np.cumsum(fits) - fits, fits)
        starts[jobs] = loads[place] + rank * length
        loads += fits * length
    return np.lexsort((np.arange(len(durations)), -durations, starts))


def _by_group(inverse: np.ndarray, groups: int) -> list[np.ndarray]:
    """The numbers of the members of each group."""
    order = np.argsort(inverse, kind="stable")
    return np.split(order, np.cumsum(np.bincount(inverse, minlength=groups))[:-1])


def _best_span(lengths: np.ndarray, counts: np.ndarray, slots: int, below: float = float("inf")) -> tuple[float, bool]:
    """The makespan of descending durations, and whether it is that of a packing rather than of longest first."""
    loads = np.zeros(slots)
    for length, count in zip(lengths, counts, strict=True):
        loads = _with_equal_jobs(loads, float(length), int(count))
    listed = float(loads.max(initial=0.0))
    low = max(float(lengths @ counts) / slots, float(lengths.max(initial=0.0)))
    if listed <= low * (1 + _WORTH_PACKING) or low >= below:
        return listed, False
    if np.isfinite(below) and _packed(lengths, counts, slots, min(below, listed) * (1 - _WORTH_TRYING)) is None:
        # One packing tells whether it is worth looking for the tightest.
        return listed, False
    best = high = listed
    for _ in range(_PACKINGS):
        middle = (low + high) / 2
        packed = _packed(lengths, counts, slots, middle)
        if packed is None:
            low = middle
        else:
            best, high = packed, middle
    return (best, True) if best < listed else (listed, False)


def _packed(lengths: np.ndarray, counts: np.ndarray, slots: int, span: float) -> float | None:
    """The fullest of ``slots`` bins if first fit decreasing puts all jobs into bins of ``span``, else None."""
    loads = np.zeros(slots)
    for length, count in zip(lengths, counts, strict=True):
        fits = _fitting(loads, float(length), int(count), span)
        if int(fits.sum()) < count:
            return None
        loads += fits * length
    return float(loads.max(initial=0.0))


def _fitting(loads: np.ndarray, length: float, count: int, span: float) -> np.ndarray:
    """How many of ``count`` equal jobs first fit puts on each slot."""
    room = np.maximum(0, np.floor((span - loads) / length * (1 + _SLACK)).astype(np.int64)) if length > 0 else None
    if room is None:
        room = np.full(len(loads), count)
    before = np.cumsum(room) - room
    return np.asarray(np.clip(count - before, 0, room))


def _with_equal_jobs(loads: np.ndarray, duration: float, count: int) -> np.ndarray:
    """Loads after ``count`` equal jobs, each started on the least loaded slot."""
    if duration <= 0:
        return loads
    # The jobs start at the ``count`` smallest of all loads[i] + k * duration. Whole rounds that every slot takes part
    # in come first, so that what is left to choose from is two rounds at most.
    level = (loads.sum() + count * duration) / len(loads)
    whole = np.maximum(0, np.floor((level - loads) / duration).astype(np.int64) - 1)
    excess = int(whole.sum()) - count
    if excess > 0:
        whole = np.zeros_like(whole)
    loads = loads + whole * duration
    left = count - int(whole.sum())
    while left > 0:
        take = min(left, len(loads))
        order = np.argsort(loads, kind="stable")[:take]
        # Of the slots sorted by load only those may be filled at once that would not be overtaken by a filled one.
        fits = max(1, int(np.searchsorted(loads[order], loads[order[0]] + duration, side="right")))
        chosen = order[: min(take, fits)]
        loads[chosen] += duration
        left -= len(chosen)
    return loads


def weights(ratio: np.ndarray, order: float) -> np.ndarray:
    """The dual feasible function of an order at ``ratio`` = duration / T, in the limit of T from below.

    Order 0 is the ratio itself, another whole number Fekete and Schepers' function, and any other number C above 1
    Burdett and Johnson's, floor(C x) and a share of what is left of C x, over floor(C). In the limit, because a
    schedule shorter than T is to be excluded; ratios that exceed 1 are infinite.
    """
    if order == 0:
        result = ratio
    elif order == int(order):
        result = np.floor((order + 1) * ratio + _SLACK) / order
    else:
        whole, rest = int(order), order - int(order)
        steps = np.floor(order * ratio)
        result = (steps + np.maximum(0.0, (order * ratio - steps - rest) / (1 - rest))) / whole
    return np.where(ratio > 1 + _SLACK, np.inf, result)


def makespan_bound(durations: np.ndarray, counts: np.ndarray, slots: int) -> float:
    """A time that no assignment of the jobs to slots goes below."""
    durations = np.asarray(durations, np.float64)
    used = np.asarray(counts) > 0
    durations, amounts = durations[used], np.asarray(counts, np.float64)[used]
    if not len(durations):
        return 0.0
    best = max(float(durations @ amounts) / slots, float(durations.max()))
    for order in DUAL_ORDERS[1:]:
        # The weights change only where (order + 1) * duration / T is whole.
        steps = np.unique(np.outer(durations, (order + 1) / np.arange(1, order + 2)))
        for time in steps[steps > best][::-1]:
            if float(weights(durations / time, order) @ amounts) > slots * (1 + _SLACK):
                best = float(time)
                break
    return best
