"""Find every attention of a graph and describe it as an :class:`AttentionSite`."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import TypeVar

import numpy as np
from onnx import NodeProto

from onnxopt.discover.attention_operator import OPERATOR, write_out_attention
from onnxopt.discover.attention_site import AttentionSite, EmptyRow, KeyLists, KeyWeights
from onnxopt.discover.heads import heads_apart, numbered_alike, rows_by_head
from onnxopt.discover.key_lists import HeadRows, head_rows
from onnxopt.discover.key_weights import Keys, trace_key_weights
from onnxopt.discover.movement import moved_inputs, walk_back
from onnxopt.discover.operand import Operand, Source
from onnxopt.discover.refusal import INCONSISTENT, NotASite, Refusal, node_name, reason_for
from onnxopt.discover.scores import ScoreMap, trace_scores
from onnxopt.discover.softmax import Normalisation, find_normalisations
from onnxopt.discover.tokens import row_wise_input, trace_tokens
from onnxopt.discover.values import ValueMap, trace_values
from onnxopt.model.graph import Graph, symbolic_batch

T = TypeVar("T")


def find_attention(graph: Graph) -> tuple[list[AttentionSite], list[Refusal]]:
    """Every attention in topological order, ids ``attention-0`` on, and a refusal for each softmax that is
    none.

    A graph with a symbolic batch must be viewed at batch 2, so that what depends on the batch shows.
    """
    sites: list[AttentionSite] = []
    expanded = write_out_attention(graph)
    graph = expanded.graph
    normalisations, refusals = find_normalisations(graph)
    refusals[:0] = expanded.refusals
    for normalisation in normalisations:
        try:
            site = trace_attention(graph, normalisation)
        except (NotASite, *INCONSISTENT) as error:
            node = normalisation.node
            op = OPERATOR if normalisation.weights in expanded.weights else node.op_type
            refusals.append(Refusal(node_name(node), op, reason_for(error)))
            continue
        op = OPERATOR if normalisation.weights in expanded.weights else site.op
        sites.append(replace(site, id=f"attention-{len(sites)}", op=op))
    return _grouped(graph, sites), refusals


def trace_attention(graph: Graph, normalisation: Normalisation) -> AttentionSite:
    """The site around one normalisation; raises :class:`NotASite` with the reason."""
    if symbolic_batch(graph.model):
        return _trace(graph, normalisation, graph.batch)
    leading = {shape[0] for shape in (graph.shape(name) for name in graph.inputs) if shape}
    # Where the elements along an input's first dimension do not meet, it is the batch.
    for batch in sorted((size for size in leading if size > 1), reverse=True):
        with suppress(NotASite, *INCONSISTENT):
            return _trace(graph, normalisation, batch)
    return _trace(graph, normalisation, 1)


def _trace(graph: Graph, normalisation: Normalisation, batch: int) -> AttentionSite:
    scores = trace_scores(graph, normalisation.scores, batch)
    values = trace_values(graph, normalisation.weights, batch)
    if scores.shape != values.shape:
        raise NotASite(f"scores of shape {scores.shape} become weights of shape {values.shape}")
    rows, slots = rows_by_head(graph, scores, values, batch)
    found = _head_rows(scores, values, rows)
    tokens, counts = trace_tokens(graph, [scores.q.operand, scores.k.operand], batch)
    query_tokens = _token_of(found[0].asked, scores.q.operand, tokens[0])
    head_tokens = [_token_of(h.keys, scores.k.operand, tokens[1]) for h in found]
    found, key_tokens = numbered_alike(found, head_tokens)
    head_empty = np.stack([h.empty for h in found])
    lists, head_lists = _distinct([h.lists for h in found], _same_lists)
    biases, head_bias = _distinct_biases([h.bias for h in found])
    runtime = tuple(dict.fromkeys((*normalisation.runtime, *scores.runtime)))
    inputs = {s.tensor for side in (scores.q, scores.k, values.v) for s in side.operand.sources}
    weights, unweighed = None, ""
    if runtime:
        keys = Keys(rows, [h.keys for h in found], [h.lists for h in found], values.guarded)
        weights, unweighed = _weights(graph, normalisation, scores, keys, head_empty)
    node = normalisation.node
    return AttentionSite(
        id="",
        node=node_name(node),
        op=node.op_type,
        nodes=_nodes_between(graph, values.output, inputs | set(runtime)),
        heads=len(found),
        rows=rows.shape[2],
        scale=np.array([h.scale for h in found]),
        q=scores.q.operand,
        k=scores.k.operand,
        v=values.v.operand,
        query_vectors=np.stack([h.queries for h in found]),
        key_vectors=np.stack([h.keys for h in found]),
        value_vectors=np.stack([h.values for h in found]),
        head_lists=head_lists,
        lists=tuple(lists),
        head_bias=head_bias,
        biases=tuple(biases),
        empty=np.asarray(head_empty.all(axis=0)),
        head_empty=head_empty,
        empty_kind=next((h.empty_kind for h in found if h.empty_kind is not None), None),
        output=values.output,
        output_shape=graph.shape(values.output) or (),
        channel_axis=values.channel_axis,
        slots=slots,
        query_tokens=query_tokens,
        key_tokens=key_tokens,
        tokens=counts[1] // heads_apart(head_tokens),
        batch=batch,
        runtime=runtime,
        weights=weights,
        unweighed=unweighed,
    )


def _weights(
    graph: Graph, normalisation: Normalisation, scores: ScoreMap, keys: Keys, head_empty: np.ndarray
) -> tuple[KeyWeights | None, str]:
    """What a mask that depends on the input does, or why that is not known."""
    if head_empty.any():
        return None, "there are rows without keys beside a mask that depends on the input"
    try:
        return trace_key_weights(graph, normalisation, scores, keys), ""
    except (NotASite, *INCONSISTENT) as error:
        return None, reason_for(error)


def _head_rows(scores: ScoreMap, values: ValueMap, rows: np.ndarray) -> list[HeadRows]:
    """The rows of every head; rows that are zero in some heads only attend to a zero vector there."""
    found = [head_rows(scores, values, rows[:, head]) for head in range(rows.shape[1])]
    kinds = {h.empty_kind for h in found if h.empty_kind is not None}
    if len(kinds) > 1:
        raise NotASite("rows without keys differ from head to head")
    if kinds == {EmptyRow.ZERO} and any(not np.array_equal(h.empty, found[0].empty) for h in found):
        return [head_rows(scores, values, rows[:, head], zero_keys=True) for head in range(rows.shape[1])]
    return found


def _distinct(items: list[T], same: Callable[[T, T], bool]) -> tuple[list[T], np.ndarray]:
    """The different items in order of appearance, and for each item which one it is."""
    kept: list[T] = []
    which = []
    for item in items:
        index = next((i for i, other in enumerate(kept) if same(item, other)), len(kept))
        if index == len(kept):
            kept.append(item)
        which.append(index)
    return kept, np.array(which, np.int64)


def _same_lists(a: KeyLists, b: KeyLists) -> bool:
    return (
        np.array_equal(a.offsets, b.offsets)
        and np.array_equal(a.row_list, b.row_list)
        and np.array_equal(a.keys, b.keys)
    )


def _distinct_biases(biases: list[np.ndarray | None]) -> tuple[list[np.ndarray], np.ndarray]:
    present = [b for b in biases if b is not None]
    kept, which = _distinct(present, np.array_equal)
    numbers = iter(which)
    return kept, np.array([-1 if b is None else next(numbers) for b in biases], np.int64)


def _token_of(vectors: np.ndarray, operand: Operand, tokens: np.ndarray) -> np.ndarray:
    """The token of each vector; -1 for zero vectors and phantoms."""
    row_of_vector = np.concatenate(
        [np.repeat(np.arange(s.rows) + offset, s.channels // operand.width) for s, offset in _row_offsets(operand)]
    )
    return np.where(vectors >= 0, tokens[row_of_vector[vectors]], -1)


def _row_offsets(operand: Operand) -> list[tuple[Source, int]]:
    offsets = np.cumsum([0] + [s.rows for s in operand.sources])
    return [(source, int(offset)) for source, offset in zip(operand.sources, offsets, strict=False)]


def _nodes_between(graph: Graph, output: str, stops: set[str]) -> tuple[str, ...]:
    """Names of the nodes that compute ``output`` from ``stops``, in topological order."""
    nodes, _ = walk_back(
        graph, [output], lambda node: None if stops.intersection(node.output) else graph.data_inputs(node)
    )
    # An operator that was written out for the analysis is one node of the model.
    return tuple(dict.fromkeys(node_name(node) for node in nodes))


def _grouped(graph: Graph, sites: list[AttentionSite]) -> list[AttentionSite]:
    """Mark the sites whose results one Concat joins: together they are one attention, written as several
    softmaxes.
    """
    joined: dict[int, list[int]] = {}
    for number, site in enumerate(sites):
        name = site.output
        for _ in range(8):
            readers = graph.data_readers(name)
            if len(readers) != 1 or not _keeps_rows(graph, readers[0]):
                break
            if readers[0].op_type == "Concat":
                joined.setdefault(graph.producer[readers[0].output[0]], []).append(number)
            name = readers[0].output[0]
    result = list(sites)
    for members in joined.values():
        if len(members) > 1:
            for number in members:
                result[number] = replace(result[number], group=sites[members[0]].id)
    return result


def _keeps_rows(graph: Graph, node: NodeProto) -> bool:
    """Whether a node moves its input's rows or maps each by itself, as an output projection does."""
    return moved_inputs(graph, node) is not None or row_wise_input(graph, node) is not None
