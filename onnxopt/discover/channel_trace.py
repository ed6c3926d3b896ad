"""Running a stretch of a graph on channel numbers: out come a gather and the operations behind it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto

from onnxopt.discover.channel_terms import POOLS, TERM_LIMIT, Held, Term, Terms, is_move, move, reorders
from onnxopt.discover.conv_site import ChannelPath, IntArray, Step
from onnxopt.discover.refusal import NotASite
from onnxopt.model.graph import Graph


class Barred(Exception):  # noqa: N818  # control flow: tells the walk where to stop
    """The stretch has no such form; it must end before ``node``."""

    def __init__(self, node: NodeProto, reason: str) -> None:
        super().__init__(reason)
        self.node = node


def trace(graph: Graph, source: str, target: str, nodes: Iterable[NodeProto]) -> ChannelPath:
    """Run ``nodes`` on the channel numbers of ``source`` (batch x channels x positions) and read ``target``'s."""
    shape = graph.shape(source)
    nodes = list(nodes)
    if shape is None or len(shape) < 2:
        raise NotASite(f"the shape of {source!r} is not that of a batch of channels")
    terms = Terms()
    numbers = np.array([terms.number(Term(source=c)) for c in range(shape[1])], np.int64)
    held = {source: Held(shape, shape[0], shape[2:], numbers)}
    tables: dict[int, dict[int, NDArray[Any]]] = {}
    for node in nodes:
        made = _run(graph, terms, tables, node, [held[name] for name in graph.data_inputs(node)])
        held.update(zip(node.output, made, strict=False))
    result = held[target]
    last = nodes[-1] if nodes else None
    if result.ids is not None:
        assert last is not None
        raise Barred(last, "channels and positions are mixed")
    unwinding = _Unwinding(terms, shape[1])
    try:
        origin, mix = unwinding.leaf(result.terms)
    except NotASite as error:
        culprit = next((n for n in reversed(nodes) if len(set(graph.data_inputs(n))) > 1), last)
        assert culprit is not None
        raise Barred(culprit, str(error)) from error
    ordered = tuple(Step(graph.nodes[i], rows, tables.get(i, {})) for i, rows in sorted(unwinding.rows.items()))
    moves = tuple(node.name for node in nodes if reorders(graph, node))
    return ChannelPath(source, target, shape[1], origin, mix, ordered, tuple(nodes), moves)


def _run(
    graph: Graph,
    terms: Terms,
    tables: dict[int, dict[int, NDArray[Any]]],
    node: NodeProto,
    held: Sequence[Held],
) -> list[Held]:
    index = graph.producer[node.output[0]]
    try:
        if is_move(graph, node):
            return move(graph, terms, node, held)
        if node.op_type in POOLS:
            return [_pooled(graph, terms, node, index, held[0])]
        if node.op_type == "BatchNormalization":
            return [_normalised(graph, terms, tables, node, index, held[0])]
        return [_elementwise(graph, terms, tables, node, index, held)]
    except NotASite as error:
        raise Barred(node, str(error)) from error


def _applied(terms: Terms, index: int, operands: Sequence[IntArray], rows: IntArray) -> IntArray:
    """New numbers: the operator ``index``, with a row of its constants, on each channel's operands."""
    columns = zip(*(operand.tolist() for operand in operands), strict=True)
    applied = (Term(node=index, row=r, operands=ops) for r, ops in zip(rows.tolist(), columns, strict=True))
    return np.array([terms.number(term) for term in applied], np.int64)


def _pooled(graph: Graph, terms: Terms, node: NodeProto, index: int, held: Held) -> Held:
    shape = graph.shape(node.output[0])
    if held.ids is not None or shape is None or shape[:2] != held.shape[:2]:
        raise NotASite("pooling over more than positions")
    numbers = _applied(terms, index, [held.terms], np.zeros(shape[1], np.int64))
    return Held(shape, held.batch, shape[2:], numbers)


def _normalised(
    graph: Graph,
    terms: Terms,
    tables: dict[int, dict[int, NDArray[Any]]],
    node: NodeProto,
    index: int,
    held: Held,
) -> Held:
    constants = [graph.constant(name) for name in node.input[1:]]
    if held.ids is not None or any(c is None or c.shape != held.terms.shape for c in constants):
        raise NotASite("its statistics are not one constant for each channel")
    tables[index] = {position: np.asarray(c) for position, c in enumerate(constants, 1)}
    rows = np.arange(len(held.terms), dtype=np.int64)
    return Held(held.shape, held.batch, held.positions, _applied(terms, index, [held.terms], rows))


def _elementwise(
    graph: Graph,
    terms: Terms,
    tables: dict[int, dict[int, NDArray[Any]]],
    node: NodeProto,
    index: int,
    held: Sequence[Held],
) -> Held:
    first = held[0]
    constants = {p: graph.constant(n) for p, n in enumerate(node.input) if n and not graph.is_data(n)}
    missing = [node.input[p] for p, value in constants.items() if value is None]
    if missing or any(other.shape != first.shape for other in held[1:]):
        raise NotASite(f"{missing[0]!r} is not constant" if missing else "it broadcasts one operand over the other")
    if graph.shape(node.output[0]) != first.shape:
        raise NotASite("a constant widens the tensor")
    varying = {p: np.asarray(v) for p, v in constants.items() if v is not None and v.size > 1}
    if first.ids is None and all(other.ids is None for other in held[1:]):
        columns = {p: _by_channel(value, first.shape) for p, value in varying.items()}
        rows = np.arange(len(first.terms), dtype=np.int64) if columns else np.zeros(len(first.terms), np.int64)
        tables[index] = columns
        return Held(first.shape, first.batch, first.positions, _applied(terms, index, [h.terms for h in held], rows))
    if varying or len(held) > 1:
        raise NotASite("constants or two operands meet in a layout where channels are not an axis")
    batch, term, place = first.decode(first.spread())
    kinds, inverse = np.unique(term, return_inverse=True)
    numbers = _applied(terms, index, [kinds], np.zeros(len(kinds), np.int64))[inverse.reshape(term.shape)]
    ids = (batch * TERM_LIMIT + numbers) * int(np.prod(first.positions)) + place
    return first.moved(ids)


def _by_channel(value: NDArray[Any], shape: tuple[int, ...]) -> NDArray[Any]:
    """A constant's values for each channel of a tensor of ``shape``."""
    dims = (1,) * (len(shape) - value.ndim) + value.shape
    if len(dims) > len(shape) or any(d != 1 for a, d in enumerate(dims) if a != 1):
        raise NotASite("a constant differs by more than channels")
    return np.broadcast_to(value.reshape(dims[1]), (shape[1],))


class _Unwinding:
    """Undoes the operators that all channels share, noting their rows; what is left is where the channels come from."""

    def __init__(self, terms: Terms, channels: int) -> None:
        self.terms, self.channels = terms, channels
        self.rows: dict[int, IntArray] = {}
        self._reached: dict[int, tuple[IntArray, IntArray | None]] = {}

    def leaf(self, numbers: IntArray) -> tuple[IntArray, IntArray | None]:
        """Origin and mix of the channels; raises NotASite where they do not have one form."""
        items = [self.terms.items[n] for n in numbers.tolist()]
        nodes = {item.node for item in items}
        if nodes == {-1}:
            return _origins(self.terms, items, self.channels)
        if len(nodes) > 1:
            raise NotASite("channels go through different operators")
        node = nodes.pop()
        rows = np.array([item.row for item in items], np.int64)
        if node in self.rows and not np.array_equal(self.rows[node], rows):
            raise NotASite("operands come from different channels")
        if node not in self._reached:
            self.rows[node] = rows
            self._reached[node] = self._operands(items)
        return self._reached[node]

    def _operands(self, items: Sequence[Term]) -> tuple[IntArray, IntArray | None]:
        columns = zip(*(item.operands for item in items), strict=True)
        results = [self.leaf(np.array(column, np.int64)) for column in columns]
        origin, mix = results[0]
        for other, added in results[1:]:
            if not np.array_equal(origin, other) or mix is not None or added is not None:
                raise NotASite("operands come from different channels")
        return origin, mix


def _origins(terms: Terms, items: Sequence[Term], channels: int) -> tuple[IntArray, IntArray | None]:
    origin = np.array([item.source for item in items], np.int64)
    if not any(item.sum_of for item in items):
        return origin, None
    mix = np.zeros((len(items), channels), np.int64)
    for row, item in enumerate(items):
        parts = [terms.items[n] for n in item.sum_of] or ([item] if item.source >= 0 else [])
        if any(part.source < 0 for part in parts):
            raise NotASite("channels are added up behind an operator")
        np.add.at(mix[row], [part.source for part in parts], 1)
    return origin, mix
