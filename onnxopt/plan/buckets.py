"""Which strips are computed together: padded to one shape, they are one batched product.

Few buckets waste arithmetic on padding, many waste launches. Sorted by key count, an optimal set of buckets is a
partition into runs, so a dynamic program over the runs finds it exactly.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

# The cost in microseconds of (strips, rows, keys), arrays of equal length.
CostOfBatch = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Bucket:
    """Strips (numbers) that are padded to ``rows`` x ``keys`` each."""

    strips: tuple[int, ...]
    rows: int
    keys: int


def best_buckets(rows: Sequence[int], keys: Sequence[int], cost: CostOfBatch) -> tuple[tuple[Bucket, ...], float]:
    """The cheapest partition of strips of ``rows[i]`` x ``keys[i]`` into runs by key count, and its cost.

    Ties go to fewer buckets. Strips of equal shape always share a bucket.
    """
    order = np.lexsort((np.arange(len(rows)), np.asarray(rows), np.asarray(keys)))
    shapes, starts, counts = _shapes(np.asarray(rows)[order], np.asarray(keys)[order])
    best = np.full(len(shapes) + 1, np.inf)
    best[0] = 0.0
    came_from = np.zeros(len(shapes) + 1, np.int64)
    total = np.concatenate([[0], np.cumsum(counts)])
    for end in range(1, len(shapes) + 1):
        tallest = np.maximum.accumulate(shapes[:end, 0][::-1])[::-1]
        strips = total[end] - total[:end]
        candidates = best[:end] + cost(strips, tallest, np.full(end, shapes[end - 1, 1]))
        came_from[end] = int(np.argmin(candidates))
        best[end] = candidates[came_from[end]]
    buckets = []
    end = len(shapes)
    while end > 0:
        start = int(came_from[end])
        members = order[starts[start] : starts[end]]
        buckets.append(Bucket(tuple(int(i) for i in members), int(shapes[start:end, 0].max()), int(shapes[end - 1, 1])))
        end = start
    return tuple(reversed(buckets)), float(best[-1])


def _shapes(rows: np.ndarray, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Distinct (rows, keys) in sorted order, where each starts (with the end appended), and how many there are."""
    pairs = np.stack([rows, keys], axis=1)
    change = np.flatnonzero(np.any(np.diff(pairs, axis=0) != 0, axis=1)) + 1
    starts = np.concatenate([[0], change, [len(pairs)]])
    return pairs[starts[:-1]], starts, np.diff(starts)
