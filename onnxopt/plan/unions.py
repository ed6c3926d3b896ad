"""How many keys intervals of an order of rows have: the sizes of the unions of their lists.

A key adds to the union of an interval where none of its earlier rows needed it, so the sizes of all unions follow from
how far back each run of equal rows finds each of its keys: one pass over the lists, however many intervals there are.
"""

from __future__ import annotations

import numpy as np

from onnxopt.plan.strips import CodedLists

# Keys of runs that are laid out at once.
_PASS_KEYS = 1 << 22


def runs_of(owner: np.ndarray) -> np.ndarray:
    """Where runs of rows with one list begin."""
    return np.flatnonzero(np.concatenate([np.ones(min(1, len(owner)), bool), owner[1:] != owner[:-1]]))


def union_sizes(owner: np.ndarray, codes: CodedLists, longest: int) -> np.ndarray:
    """Rows x longest: how many distinct codes the rows i..i+l have, of rows with the lists ``owner``."""
    return interval_unions(owner, codes, np.arange(len(owner) + 1), longest)


def interval_unions(owner: np.ndarray, codes: CodedLists, cuts: np.ndarray, steps: int) -> np.ndarray:
    """(Cuts - 1) x steps: how many distinct codes the rows from cut j up to cut j + t + 1 have.

    ``cuts`` ascend from 0 to the number of rows. Beyond the last cut there are no more rows.
    """
    atoms = len(cuts) - 1
    starts = runs_of(owner)
    fresh = _fresh_keys(owner, starts, codes, cuts, steps)
    grown = np.zeros((atoms, steps), np.int32)
    # What lies between two cuts adds fresh[j + t, t] keys to the interval that began t cuts before.
    for back in range(min(steps, atoms)):
        grown[: atoms - back, back] = fresh[back:, back]
    # A run that goes on across a cut brings all its keys into the interval that begins there.
    goes_on = np.ones(len(owner) + 1, bool)
    goes_on[starts] = False
    begins = cuts[:-1]
    grown[:, 0] += np.where(goes_on[begins], np.diff(codes.offsets)[owner[begins]], 0)
    return np.cumsum(grown, axis=1, dtype=np.int32)


def _fresh_keys(owner: np.ndarray, starts: np.ndarray, codes: CodedLists, cuts: np.ndarray, steps: int) -> np.ndarray:
    """(Cuts - 1) x steps: keys of runs that begin after a cut which no row had between the ``d`` cuts before and them.

    Only runs count that begin between that cut and the next; a run that goes on finds its own keys.
    """
    atoms = len(cuts) - 1
    lengths = np.diff(codes.offsets)[owner[starts]]
    first = (np.searchsorted(cuts, starts, side="right") - 1).astype(np.int64)
    last = np.searchsorted(cuts, np.append(starts[1:], len(owner)) - 1, side="right") - 1
    seen = np.full(int(codes.codes.max(initial=0)) + 1, -steps, np.int64)
    found = np.zeros(atoms * (steps + 1), np.int64)
    ends = np.cumsum(lengths)
    begin = 0
    while begin < len(starts):
        done = int(ends[begin - 1]) if begin else 0
        end = max(begin + 1, int(np.searchsorted(ends, done + _PASS_KEYS, side="right")))
        back, run = _distances(owner[starts[begin:end]], first[begin:end], last[begin:end], codes, seen)
        place = first[begin:end][run] * (steps + 1) + np.minimum(back, steps)
        found += np.bincount(place, minlength=len(found))
        begin = end
    within = np.cumsum(found.reshape(atoms, steps + 1), axis=1)
    return np.asarray(within[:, -1:] - within[:, :-1])


def _distances(
    lists: np.ndarray, first: np.ndarray, last: np.ndarray, codes: CodedLists, seen: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """For every key of some runs how far before the run's beginning it was last needed, and the number of the run.

    ``first`` and ``last`` say between which cuts a run begins and ends; ``seen`` says it of each code's last run so
    far, and is brought up to date.
    """
    from scipy.sparse import csr_matrix

    lengths = np.diff(codes.offsets)[lists]
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    places = np.repeat(codes.offsets[:-1][lists] - offsets[:-1], lengths) + np.arange(offsets[-1])
    keys = codes.codes[places]
    # Transposing sorts by code, and keeps the runs of each in order.
    by_code = csr_matrix((np.ones(len(keys), np.int8), keys, offsets), shape=(len(lists), len(seen))).tocsc()
    run, pointer = by_code.indices, by_code.indptr
    used = np.flatnonzero(np.diff(pointer))
    before = np.empty(len(run), np.int64)
    before[1:] = last[run[:-1]]
    before[pointer[used]] = seen[used]
    seen[used] = last[run[pointer[used + 1] - 1]]
    return first[run] - before, run
