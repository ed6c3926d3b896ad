"""Write an attention plan out in standard operators.

For each bucket: gather queries, keys and values of all its strips, one batched score product, bias and mask, softmax,
one batched value product. At the end one Gather puts every result where the consumer reads it. Every tensor keeps the
batch as its first dimension, whatever its size.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np
from onnx import NodeProto, TensorProto, helper

from onnxopt.discover.attention_site import AttentionSite, EmptyRow
from onnxopt.discover.operand import Operand, Source
from onnxopt.lower.rewrite import NODE_PREFIX, Rewrite, table
from onnxopt.model.graph import Graph
from onnxopt.plan.attention import AttentionPlan, HeadPlan
from onnxopt.plan.buckets import Bucket
from onnxopt.plan.strips import coded, needed_in

_MASKED = -np.inf


def lower_attention(
    site: AttentionSite, plan: AttentionPlan, graph: Graph, dtype: np.dtype[Any] | None = None
) -> Rewrite:
    """The nodes and tables that compute ``site.output`` from ``site.inputs`` by ``plan``.

    ``dtype`` is the type of the site's tensors, by default that which ``graph`` gives the output.
    """
    build = AttentionBuilder(site, graph, dtype)
    queries, keys, values = build.operands()
    results = []
    places = np.full(site.heads * site.rows, -1, np.int64)
    offset = 0
    for part in plan.parts:
        for bucket in part.buckets:
            rows = padded_numbers([part.strips[number].rows for number in bucket.strips], bucket.rows)
            results.append(build.bucket(part, bucket, rows, queries, keys, values))
            offset = _note_places(places, site, part, bucket, offset)
    slots = site.slots.reshape(-1)
    build.collect(results, np.where(slots >= 0, places[slots], -1), offset)
    return Rewrite(site.id, (site.output,), tuple(build.nodes), tuple(build.tables))


class AttentionBuilder:
    """Collects nodes and tables under names that follow from the site and the order of building."""

    def __init__(self, site: AttentionSite, graph: Graph, dtype: np.dtype[Any] | None = None) -> None:
        self.site = site
        self.graph = graph
        self.nodes: list[NodeProto] = []
        self.tables: list[TensorProto] = []
        self.prefix = f"{NODE_PREFIX}{site.id}/"
        self.known: dict[str, str] = {}
        self.dtype = dtype or helper.tensor_dtype_to_np_dtype(graph.element_type(site.output))
        self.opset = graph.opset

    def op(self, kind: str, inputs: Sequence[str], label: str, **attributes: Any) -> str:
        """Append a node and return its output; the same node is never built twice."""
        key = f"{kind}{list(inputs)}{sorted(attributes.items())}"
        if key not in self.known:
            name = f"{self.prefix}{label}/{len(self.nodes)}"
            self.nodes.append(helper.make_node(kind, list(inputs), [name], name=name, **attributes))
            self.known[key] = name
        return self.known[key]

    def table(self, values: np.ndarray) -> str:
        """A constant input, stored once."""
        tensor = table(values)
        if all(t.name != tensor.name for t in self.tables):
            self.tables.append(tensor)
        return tensor.name

    def shape(self, *dims: int) -> str:
        return self.table(np.array(dims, np.int64))

    def operands(self) -> tuple[str, str, str]:
        """The tables of query, key and value vectors."""
        site = self.site
        queries = self.vectors(site.q, "queries", bool(np.any(site.query_vectors < 0)))
        keys = self.vectors(site.k, "keys", bool(np.any(site.key_vectors < 0)))
        values = self.vectors(site.v, "values", bool(np.any(site.value_vectors < 0)))
        return queries, keys, values

    def vectors(self, operand: Operand, label: str, with_zero: bool) -> str:
        """The operand's table of vectors, batch x vectors x width, with a zero vector appended where one is used."""
        parts = [self._source(source, operand.width, label) for source in operand.sources]
        joined = parts[0] if len(parts) == 1 else self.op("Concat", parts, label, axis=1)
        if not with_zero:
            return joined
        return self.op("Pad", [joined, self.shape(0, 0, 0, 0, 1, 0)], label)

    def _source(self, source: Source, width: int, label: str) -> str:
        name = source.tensor
        if source.channel_axis == 1:
            # channels x positions to positions x channels; the first axis may hold windows beside the batch
            positions = prod((self.graph.shape(name) or (0, 0))[2:])
            flat = self.op("Reshape", [name, self.shape(-1, source.channels, positions)], label)
            name = self.op("Transpose", [flat], label, perm=[0, 2, 1])
        return self.op("Reshape", [name, self.shape(-1, source.rows * source.channels // width, width)], label)

    def bucket(self, part: HeadPlan, bucket: Bucket, rows: np.ndarray, queries: str, keys: str, values: str) -> str:
        """One batched attention; its result is batch x (heads * strips * rows) x value width."""
        heads = list(part.heads)
        numbers = padded_numbers([part.strips[number].keys for number in bucket.strips], bucket.keys)
        q, k, v = self.gathered(heads, rows, numbers, queries, keys, values)
        scores = self.scores(heads, q, k, _added(self.site, part, bucket))
        weights = self.op("Softmax", [scores], "strips", axis=-1)
        return self.weighted(weights, v, len(heads) * len(bucket.strips) * bucket.rows)

    def gathered(
        self, heads: list[int], rows: np.ndarray, numbers: np.ndarray, queries: str, keys: str, values: str
    ) -> tuple[str, str, str]:
        """Queries of ``rows`` (strips x rows), keys and values of ``numbers`` (strips x keys), of some heads each."""
        site, label = self.site, "strips"
        of_queries = self._vector_table(site.query_vectors[heads][:, rows], site.q)
        q = self.op("Gather", [queries, of_queries], label, axis=1)
        k = self.op("Gather", [keys, self._vector_table(site.key_vectors[heads][:, numbers], site.k)], label, axis=1)
        v = self.op(
            "Gather", [values, self._vector_table(site.value_vectors[heads][:, numbers], site.v)], label, axis=1
        )
        return q, k, v

    def scores(self, heads: list[int], q: str, k: str, added: np.ndarray | None) -> str:
        """Scaled products of queries and keys with ``added`` on top."""
        label, scale = "strips", self.site.scale[heads]
        if np.any(scale != 1.0):
            factor = scale[:1] if np.all(scale == scale[0]) else scale.reshape(-1, 1, 1, 1)
            q = self.op("Mul", [q, self.table(factor.astype(self.dtype))], label)
        turned = self.op("Transpose", [k], label, perm=[0, 1, 2, 4, 3])
        scores = self.op("MatMul", [q, turned], label)
        if added is not None:
            scores = self.op("Add", [scores, self.table(_as_type(added, self.dtype))], label)
        return scores

    def weighted(self, weights: str, v: str, total: int) -> str:
        """Values by their weights, as ``total`` vectors a batch element."""
        result = self.op("MatMul", [weights, v], "strips")
        return self.op("Reshape", [result, self.shape(-1, total, self.site.v.width)], "strips")

    def collect(self, results: list[str], index: np.ndarray, total: int) -> None:
        """Put ``total`` results into the site's output: result ``index[i]``, or zeros for -1, in its block ``i``."""
        site, label = self.site, "output"
        joined = results[0] if len(results) == 1 else self.op("Concat", results, label, axis=1)
        if np.any(index < 0):
            joined = self.op("Pad", [joined, self.shape(0, 0, 0, 0, 1, 0)], label)
            index = np.where(index < 0, total, index)
        if not np.array_equal(index, np.arange(total)):
            joined = self.op("Gather", [joined, self.table(index.astype(np.int32))], label, axis=1)
        shape = list(site.output_shape)
        if site.channel_axis == 1:
            rows = self.op("Reshape", [joined, self.shape(-1, prod(shape[2:]), shape[1])], label)
            joined = self.op("Transpose", [rows], label, perm=[0, 2, 1])
        final = self.shape(-1, *shape[1:])
        name = f"{self.prefix}{label}/{len(self.nodes)}"
        self.nodes.append(helper.make_node("Reshape", [joined, final], [site.output], name=name))

    def _vector_table(self, vectors: np.ndarray, operand: Operand) -> str:
        return self.table(np.where(vectors < 0, operand.vectors, vectors).astype(np.int32))


def padded_numbers(own: list[np.ndarray], length: int) -> np.ndarray:
    """Numbers of a bucket's strips, strips x ``length``; shorter strips repeat their first number.

    A repeated row's results are dropped, a repeated key is masked.
    """
    padded = np.empty((len(own), length), np.int64)
    for index, numbers in enumerate(own):
        padded[index] = numbers[0]
        padded[index, : len(numbers)] = numbers
    return padded


def _note_places(places: np.ndarray, site: AttentionSite, part: HeadPlan, bucket: Bucket, offset: int) -> int:
    """Remember where the result of each (head, row) stands among all results; returns the next free place."""
    for head in part.heads:
        for number in bucket.strips:
            rows = part.strips[number].rows
            places[head * site.rows + rows] = offset + np.arange(len(rows))
            offset += bucket.rows
    return offset


def _added(site: AttentionSite, part: HeadPlan, bucket: Bucket) -> np.ndarray | None:
    """What is added to the scores of a bucket, float32, broadcasting to heads x strips x rows x keys; or None."""
    strips = [part.strips[number] for number in bucket.strips]
    biases = [site.bias_of(head) for head in part.heads]
    padded = any(len(s.keys) < bucket.keys for s in strips)
    if all(bias is None for bias in biases) and all(s.full for s in strips):
        if not padded:
            return None
        lengths = np.array([len(s.keys) for s in strips])
        mask = np.where(np.arange(bucket.keys) < lengths[:, None], 0.0, _MASKED)
        return mask[:, None, :].astype(np.float32)
    lists = site.lists[part.lists]
    codes = coded(lists)
    starts = lists.row_offsets()
    alike = all(bias is biases[0] for bias in biases)
    kinds = biases[:1] if alike else biases
    added = np.full((len(kinds), len(strips), bucket.rows, bucket.keys), _MASKED, np.float32)
    for index, strip in enumerate(strips):
        places = needed_in(strip, lists, codes)
        counts = lists.lengths[strip.rows]
        row = np.repeat(np.arange(len(strip.rows)), counts)
        source = np.concatenate([np.arange(starts[r], starts[r + 1]) for r in strip.rows])
        for kind, bias in enumerate(kinds):
            added[kind, index, row, places] = 0.0 if bias is None else bias[source]
        # Rows that only fill up the strip repeat its first one, so that no row is without keys.
        added[:, index, len(strip.rows) :] = added[:, index, :1]
    return compressed(added)


def compressed(added: np.ndarray) -> np.ndarray:
    """The same array with axes of length 1 where it does not change along them; the last axis stays."""
    for axis in range(added.ndim - 1):
        first = added.take([0], axis=axis)
        if added.shape[axis] > 1 and np.array_equal(added, np.broadcast_to(first, added.shape)):
            added = first
    return added


def _as_type(values: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Convert, keeping finite values finite: float16 has no -3.4e38."""
    if dtype == np.float32:
        return values
    limit = 65504.0 if dtype == np.float16 else 3.38e38
    finite = np.isfinite(values)
    return np.where(finite, np.clip(values, -limit, limit), values).astype(dtype)


def empty_is_guarded(site: AttentionSite) -> bool:
    """Whether rows without keys are zeros by a guard in the graph."""
    return site.empty_kind is EmptyRow.ZERO
