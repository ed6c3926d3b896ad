"""Orders of key lists in which lists that share keys are neighbours, from the lists alone."""

from __future__ import annotations

import numpy as np

from onnxopt.plan.strips import CodedLists

# Iterative clustering: columns of a signature, and the Jaccard similarity from which lists are put together.
_SIGNATURE_COLUMNS = 16
_SIMILAR = 0.6
# Similarities of all pairs are held in memory.
CLUSTERED_LISTS = 4096
_LINKED_LISTS = 1500
_RCM_KEYS = 4_000_000


def minhash_rank(codes: CodedLists, signatures: int = 4) -> np.ndarray:
    """A rank of the lists by their smallest keys under a few fixed random orders of the keys (min-wise hashing).

    Two lists agree in one of them with the probability of their Jaccard similarity.
    """
    generator = np.random.default_rng(0x0DE2)
    keys = int(codes.codes.max(initial=0)) + 1
    filled = np.diff(codes.offsets) > 0
    columns = []
    for _ in range(signatures):
        rank = generator.permutation(keys)
        smallest = np.full(len(filled), keys)
        if filled.any():
            smallest[filled] = np.minimum.reduceat(rank[codes.codes], codes.offsets[:-1][filled])
        columns.append(smallest)
    return _rank(np.lexsort(columns[::-1]))


def signature_rank(codes: CodedLists) -> np.ndarray | None:
    """A rank by iterative clustering on column signatures; None where there are too many lists to compare.

    A signature says which runs of 16 keys a list touches. The first list that is left begins a cluster of all that are
    left and similar to it.
    """
    count = len(codes.offsets) - 1
    if not 1 < count <= CLUSTERED_LISTS:
        return None
    similar = _jaccard(codes, _SIGNATURE_COLUMNS) >= _SIMILAR
    left = np.ones(count, bool)
    order = []
    for first in range(count):
        if left[first]:
            similar[first, first] = True
            members = np.flatnonzero(similar[first] & left)
            left[members] = False
            order.append(members)
    return _rank(np.concatenate(order))


def linkage_rank(codes: CodedLists) -> np.ndarray | None:
    """A rank by hierarchical clustering (average linkage, Jaccard distance): the leaves of its tree, left to right."""
    from scipy.cluster.hierarchy import leaves_list, linkage
    from scipy.spatial.distance import squareform

    count = len(codes.offsets) - 1
    if not 2 < count <= _LINKED_LISTS:
        return None
    distance = 1.0 - _jaccard(codes, 1)
    np.fill_diagonal(distance, 0.0)
    return _rank(leaves_list(linkage(squareform(distance, checks=False), "average")))


def rcm_rank(codes: CodedLists) -> np.ndarray | None:
    """A rank by reverse Cuthill-McKee on the graph of lists and keys, which keeps the band of the matrix narrow."""
    from scipy.sparse.csgraph import reverse_cuthill_mckee

    count = len(codes.offsets) - 1
    if count < 2 or len(codes.codes) > _RCM_KEYS:
        return None
    from scipy.sparse import bmat

    incidence = _incidence(codes, 1)
    graph = bmat([[None, incidence], [incidence.T, None]], format="csr")
    order = np.asarray(reverse_cuthill_mckee(graph, symmetric_mode=True), np.int64)
    return _rank(order[order < count])


def _jaccard(codes: CodedLists, columns: int) -> np.ndarray:
    """Lists x lists: common over united runs of ``columns`` keys; 0 for two empty lists."""
    incidence = _incidence(codes, columns)
    common = np.asarray((incidence @ incidence.T).todense(), np.float64)
    sizes = np.asarray(incidence.sum(axis=1), np.float64).reshape(-1)
    united = sizes[:, None] + sizes[None, :] - common
    return np.asarray(common / np.maximum(united, 1.0))


def _incidence(codes: CodedLists, columns: int):  # type: ignore[no-untyped-def]
    """Lists x runs of ``columns`` keys as a sparse matrix of ones."""
    from scipy.sparse import csr_matrix

    count = len(codes.offsets) - 1
    owner = np.repeat(np.arange(count), np.diff(codes.offsets))
    width = int(codes.codes.max(initial=0)) // columns + 1
    matrix = csr_matrix((np.ones(len(owner), np.float32), (owner, codes.codes // columns)), shape=(count, width))
    matrix.sum_duplicates()
    matrix.data[:] = 1.0
    return matrix


def _rank(order: np.ndarray) -> np.ndarray:
    result = np.empty(len(order), np.int64)
    result[order] = np.arange(len(order))
    return result
