"""The buckets are the cheapest of all partitions into runs, and hold every strip once."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from onnxopt.plan.buckets import best_buckets


def cost(strips: np.ndarray, rows: np.ndarray, keys: np.ndarray) -> np.ndarray:
    return np.asarray(strips * rows * keys + 40.0)


def partitions(items: list[tuple[int, int]]) -> Iterator[list[list[tuple[int, int]]]]:
    if not items:
        yield []
        return
    for size in range(1, len(items) + 1):
        for rest in partitions(items[size:]):
            yield [items[:size], *rest]


shapes = st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=8)


@given(shapes)
def test_no_partition_into_runs_is_cheaper(strips: list[tuple[int, int]]) -> None:
    rows, keys = [r for r, _ in strips], [k for _, k in strips]
    buckets, total = best_buckets(rows, keys, cost)
    ordered = sorted(strips, key=lambda s: (s[1], s[0]))
    cheapest = min(
        sum(len(run) * max(r for r, _ in run) * max(k for _, k in run) + 40.0 for run in partition)
        for partition in partitions(ordered)
    )
    assert total == cheapest
    assert sum(len(b.strips) * b.rows * b.keys + 40.0 for b in buckets) == cheapest


@given(shapes)
def test_every_strip_is_in_one_bucket_that_holds_it(strips: list[tuple[int, int]]) -> None:
    buckets, _ = best_buckets([r for r, _ in strips], [k for _, k in strips], cost)
    assert sorted(i for b in buckets for i in b.strips) == list(range(len(strips)))
    for bucket in buckets:
        assert bucket.rows == max(strips[i][0] for i in bucket.strips)
        assert bucket.keys == max(strips[i][1] for i in bucket.strips)
