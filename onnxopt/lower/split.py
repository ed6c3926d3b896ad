"""Write an attention with split key lists out in standard operators: partial results of the strips, then the merge.

A strip has a part of its rows' keys. Its partial result is the softmax over these alone, and beside it stands the
logarithm of the sum of their exponentials, so that the merge weighs partial results as the whole softmax would.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from onnx import helper

from onnxopt.discover.attention_site import AttentionSite, EmptyRow
from onnxopt.lower.attention import AttentionBuilder, compressed, padded_numbers
from onnxopt.lower.rewrite import Rewrite
from onnxopt.model.graph import Graph
from onnxopt.plan.attention import HeadPlan
from onnxopt.plan.buckets import Bucket, best_buckets
from onnxopt.plan.schedule import AttentionSchedule, PatternSchedule
from onnxopt.plan.tables import AttentionTables, MergeTables
from onnxopt.plan.tables.marks import PartMarks, head_biases
from onnxopt.plan.tables.types import JOB_COLUMNS

_FLOAT32 = np.dtype(np.float32)
# From this opset on ReduceLogSumExp takes its axes as an input.
_AXES_AS_INPUT = 18
_ROW_BEGIN, _ROW_COUNT, _Y_SHIFT = (JOB_COLUMNS.index(name) for name in ("row_begin", "row_count", "y_shift"))


def lower_partials(
    site: AttentionSite, schedule: AttentionSchedule, tables: AttentionTables, graph: Graph, outputs: tuple[str, str]
) -> Rewrite:
    """The nodes that compute partial results, batch x slots x value width, and the logarithms of their sums.

    Everything is float32. ``tables`` are those of ``schedule``: their numbers of slots are what the results are in the
    order of.
    """
    build = AttentionBuilder(_as_computed(site), graph, _FLOAT32)
    queries, keys, values = build.operands()
    of_job = _slots_of_jobs(schedule, tables)
    slots = np.zeros(tables.kernel.slots, np.int64)
    partials, sums, offset = [], [], 0
    for number, part in enumerate(schedule.parts):
        strips = part.strips
        heads = HeadPlan(part.heads, part.lists, part.order, strips, (), 0.0)
        marks = PartMarks(site, part)
        biases = _biases(site, part.heads)
        for bucket in _buckets(part):
            rows = padded_numbers([strips[strip].rows for strip in bucket.strips], bucket.rows)
            names = padded_numbers([strips[strip].keys for strip in bucket.strips], bucket.keys)
            q, k, v = build.gathered(list(part.heads), rows, names, queries, keys, values)
            added, empty = _added(site, part, bucket, marks, biases)
            partial, lse = _bucket(build, heads, bucket, (q, k, v), added, empty)
            partials.append(partial)
            sums.append(lse)
            for head in part.heads:
                for strip in bucket.strips:
                    own = of_job[number, strip, head]
                    slots[own] = offset + np.arange(len(own))
                    offset += bucket.rows
    index = build.table(slots.astype(np.int32))
    for parts, name in zip((partials, sums), outputs, strict=True):
        joined = parts[0] if len(parts) == 1 else build.op("Concat", parts, "output", axis=1)
        node = f"{build.prefix}output/{len(build.nodes)}"
        build.nodes.append(helper.make_node("Gather", [joined, index], [name], name=node, axis=1))
    return Rewrite(site.id, outputs, tuple(build.nodes), tuple(build.tables))


def lower_merge(site: AttentionSite, merge: MergeTables, graph: Graph, inputs: tuple[str, str]) -> Rewrite:
    """The nodes that compute ``site.output`` from partial results and the logarithms of their sums, in float32."""
    build = AttentionBuilder(site, graph, _FLOAT32)
    partial, lse = inputs
    lines, line_of = np.unique(merge.merges[:, :2].astype(np.int64), axis=0, return_inverse=True)
    places = np.full(len(lines), -1, np.int64)
    results, offset = [], 0
    for count in np.unique(lines[:, 1]).tolist():
        own = np.flatnonzero(lines[:, 1] == count)
        if not count:
            continue
        pieces = build.table((lines[own, :1] + np.arange(count)).astype(np.int32))
        sums = build.op("Gather", [lse, pieces], "merge", axis=1)
        weights = build.op("Softmax", [sums], "merge", axis=-1)
        turned = build.op("Unsqueeze", [weights, build.shape(2)], "merge")
        gathered = build.op("Gather", [partial, pieces], "merge", axis=1)
        results.append(build.weighted(turned, gathered, len(own)))
        places[own] = offset + np.arange(len(own))
        offset += len(own)
    build.collect(results, places[line_of.reshape(-1)], offset)
    return Rewrite(site.id, (site.output,), tuple(build.nodes), tuple(build.tables))


def _bucket(
    build: AttentionBuilder,
    part: HeadPlan,
    bucket: Bucket,
    gathered: tuple[str, str, str],
    added: np.ndarray | None,
    empty: np.ndarray | None,
) -> tuple[str, str]:
    """Partial results and logarithms of one bucket, (heads * strips * rows) of them a batch element."""
    q, k, v = gathered
    heads = list(part.heads)
    scores = build.scores(heads, q, k, added)
    total = len(heads) * len(bucket.strips) * bucket.rows
    if build.opset >= _AXES_AS_INPUT:
        sums = build.op("ReduceLogSumExp", [scores, build.shape(-1)], "strips", keepdims=1)
    else:
        sums = build.op("ReduceLogSumExp", [scores], "strips", axes=[-1], keepdims=1)
    weights = build.op("Softmax", [scores], "strips", axis=-1)
    if empty is not None:
        where, none = build.table(empty[..., None]), build.table(np.array(-np.inf, np.float32))
        sums = build.op("Where", [where, none, sums], "strips")
        weights = build.op("Where", [where, build.table(np.array(0, np.float32)), weights], "strips")
    flat = build.op("Reshape", [sums, build.shape(-1, total)], "strips")
    return build.weighted(weights, v, total), flat


def _as_computed(site: AttentionSite) -> AttentionSite:
    """The site with zero queries where the keys of a row weigh alike, so that pieces of any length merge rightly."""
    if site.empty_kind is not EmptyRow.UNIFORM:
        return site
    return replace(site, query_vectors=np.where(site.head_empty, -1, site.query_vectors))


def _slots_of_jobs(schedule: AttentionSchedule, tables: AttentionTables) -> dict[tuple[int, int, int], np.ndarray]:
    """For each (part, strip, head) the numbers of its rows' partial results."""
    found = {}
    for job, line in zip(schedule.jobs.tolist(), tables.jobs.tolist(), strict=True):
        begin, count = line[_ROW_BEGIN], line[_ROW_COUNT]
        found[job[0], job[1], job[2]] = tables.results[begin : begin + count].astype(np.int64) + line[_Y_SHIFT]
    return found


def _buckets(part: PatternSchedule) -> tuple[Bucket, ...]:
    """Strips that are computed together, so that few of the computed pairs are padding."""
    rows, keys = [len(strip.rows) for strip in part.strips], [len(strip.keys) for strip in part.strips]
    launch = 0.02 * sum(r * k for r, k in zip(rows, keys, strict=True))
    return best_buckets(rows, keys, lambda strips, tall, wide: np.asarray(strips * tall * wide + launch))[0]


def _biases(site: AttentionSite, heads: Sequence[int]) -> dict[int, np.ndarray | None]:
    """The biases of some heads as kernels have them; heads with equal ones share an array."""
    known: dict[tuple[int, bytes], np.ndarray | None] = {}
    result = {}
    for head in heads:
        key = (int(site.head_bias[head]), site.head_empty[head].tobytes())
        if key not in known:
            known[key] = head_biases(site, head)
        result[head] = known[key]
    return result


def _added(
    site: AttentionSite,
    part: PatternSchedule,
    bucket: Bucket,
    marks: PartMarks,
    biases: dict[int, np.ndarray | None],
) -> tuple[np.ndarray | None, np.ndarray | None]:
    """What is added to the scores, heads x strips x rows x keys, and which rows need no key of their strip.

    Axes along which nothing changes have length 1. Scores of rows without a key are left alone: what is computed of
    them is not used.
    """
    nan = site.empty_kind is EmptyRow.NAN
    first = part.heads[0]
    alike = all(
        biases[h] is biases[first] and (not nan or np.array_equal(site.head_empty[h], site.head_empty[first]))
        for h in part.heads
    )
    kinds = part.heads[:1] if alike else part.heads
    added = np.full((len(kinds), len(bucket.strips), bucket.rows, bucket.keys), -np.inf, np.float32)
    for index, number in enumerate(bucket.strips):
        strip, pairs = part.strips[number], marks.needed(number)
        for kind, head in enumerate(kinds):
            bias = biases[head]
            live = ~site.head_empty[head, strip.rows[pairs.row]] if nan else np.ones(len(pairs.row), bool)
            values = 0.0 if bias is None else bias[pairs.source[live]]
            added[kind, index, pairs.row[live], pairs.place[live]] = values
        # Rows that only fill up the strip repeat its first one.
        added[:, index, len(strip.rows) :] = added[:, index, :1]
    empty = np.asarray(np.isneginf(added).all(axis=-1))
    added[empty] = 0.0
    return (
        compressed(added) if np.any(added) else None,
        compressed(empty[..., None])[..., 0] if np.any(empty) else None,
    )
