"""How few pairs any strips can compute, whatever the order of rows: a bound from who shares how many keys with whom.

A strip of p rows that contains row r also contains p - 1 others, so its key list has at least as many keys as r's own
list and what the (p - 1)-th nearest other row adds to it. The pairs that a strip computes, shared out evenly among its
rows, are therefore bounded for each row by itself, and the sum over the rows bounds every plan.
"""

from __future__ import annotations

import numpy as np

from onnxopt.discover.attention_site import KeyLists
from onnxopt.plan.intervals import LONGEST
from onnxopt.plan.strips import CodedLists

# Shared keys are counted for all pairs of lists that share any; beyond this the lists' own lengths must do.
_PRODUCTS = 100_000_000


def fewest_pairs(
    rows: np.ndarray, lists: KeyLists, codes: CodedLists, granules: list[tuple[int, int]], longest: int = LONGEST
) -> int:
    """Pairs that no strips of ``rows`` go below, if each is padded to one of the ``granules`` (rows, keys)."""
    owner = lists.row_list[rows]
    amount = np.bincount(owner, minlength=len(lists.offsets) - 1)
    lengths = np.diff(codes.offsets)
    added = _least_added(codes, amount, longest)
    sizes = np.arange(1, longest + 1)
    united = lengths[:, None] + added
    share = np.full(len(lengths), np.inf)
    for tall, wide in granules:
        padded = (-(-sizes // tall) * tall / sizes)[None, :] * (-(-united // wide) * wide)
        share = np.minimum(share, padded.min(axis=1))
    return int(np.ceil(float(share[amount > 0] @ amount[amount > 0]) - 1e-6))


def _least_added(codes: CodedLists, amount: np.ndarray, longest: int) -> np.ndarray:
    """Lists x longest: keys that a strip of p rows with this list has at least besides the list's own."""
    from scipy.sparse import csr_matrix

    count = len(amount)
    lengths = np.diff(codes.offsets)
    added = np.zeros((count, longest), np.int64)
    used = np.bincount(codes.codes) if len(codes.codes) else np.zeros(1, np.int64)
    if float((used.astype(np.float64) ** 2).sum()) > _PRODUCTS:
        return added
    owner = np.repeat(np.arange(count), lengths)
    incidence = csr_matrix((np.ones(len(owner), np.int32), (owner, codes.codes)), shape=(count, len(used)))
    common = (incidence @ incidence.T).tocsr()
    apart = int(lengths[amount > 0].min(initial=int(lengths.max(initial=0))))
    for number in range(count):
        near = common.indices[common.indptr[number] : common.indptr[number + 1]]
        shared = common.data[common.indptr[number] : common.indptr[number + 1]]
        near, shared = near[amount[near] > 0], shared[amount[near] > 0]
        distance = np.append(lengths[near] - shared, apart)
        ordered = np.argsort(distance, kind="stable")
        reach = np.cumsum(np.append(amount[near], longest)[ordered])
        added[number] = distance[ordered][np.searchsorted(reach, np.arange(1, longest + 1))]
    return added
