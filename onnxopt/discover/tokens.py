"""Which token a row of a projection belongs to: the way back from a projection's output to the tokens it was
made of.

Exporters pad, roll and window tokens before the projection. A row made of padding alone is a *phantom* (token
-1): its key and value are the projection's bias.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from onnx import NodeProto

from onnxopt.discover.movement import affine_input, moved_inputs, walk_back
from onnxopt.discover.operand import Operand
from onnxopt.discover.refusal import NotASite
from onnxopt.discover.tracing import Trace, run_traced
from onnxopt.model.graph import Graph, Shape, attribute

_CHANNELS_FIRST = {"Conv", "BatchNormalization", "InstanceNormalization", "Relu", "MaxPool", "AveragePool"}


# Keeps the numbers of different batch elements apart; no tensor has as many rows.
_BATCH_STRIDE = 1 << 40


def trace_tokens(graph: Graph, operands: Sequence[Operand], batch: int) -> tuple[list[np.ndarray], list[int]]:
    """For each operand the token of every row of its table (int64, -1 for a phantom), and how many tokens
    there are.

    Tokens are numbered from 0 within one batch element, alike for all operands. Only what acts on each row by
    itself is walked through; the walk ends at a normalisation, a product or a nonlinearity.
    """
    walk = _Walk(graph, batch)
    tokens = []
    counts = []
    for operand in operands:
        rows = [walk.rows(source.tensor, source.channel_axis) for source in operand.sources]
        tokens.append(np.concatenate([_one_element(r, batch) for r in rows]))
        counts.append(sum(walk.stops[name][1] for name in walk.behind([s.tensor for s in operand.sources])))
    return tokens, counts


def _one_element(numbers: np.ndarray, batch: int) -> np.ndarray:
    """Token numbers of the first batch element, checking that the others move alike."""
    elements = numbers.reshape(batch, -1)
    for index in range(1, batch):
        back = np.where(elements[index] > 0, elements[index] - index * _BATCH_STRIDE, 0)
        if not np.array_equal(back, elements[0]):
            raise NotASite("tokens do not move alike in every batch element")
    return np.asarray(elements[0] - 1)


class _Walk:
    """Row numbers of tensors, found by going back one linear layer at a time."""

    def __init__(self, graph: Graph, batch: int) -> None:
        self.graph, self.batch = graph, batch
        self.stops: dict[str, tuple[int, int]] = {}
        self.known: dict[tuple[str, int], np.ndarray] = {}
        self.origin: dict[str, set[str]] = {}

    def behind(self, names: Sequence[str]) -> set[str]:
        """The stops that the given, already walked tensors come from."""
        return {stop for name in names for stop in self.origin[name]}

    def rows(self, name: str, axis: int) -> np.ndarray:
        """The number (from 1; 0 for padding) of the token behind each row, flat, channels lying along
        ``axis``.
        """
        if (name, axis) in self.known:
            return self.known[name, axis]
        node = self.graph.node_of(name)
        onward = row_wise_input(self.graph, node) if node is not None and self.graph.is_data(name) else None
        if onward is not None:
            result = self.rows(*onward)
            self.origin[name] = self.origin[onward[0]]
            if len(result) != self._row_count(name, axis):
                raise NotASite(f"{name!r} has another number of rows than what it is computed from")
        elif node is not None and self.graph.is_data(name) and moved_inputs(self.graph, node) is not None:
            result = self._moved(name, axis)
        else:
            result = self._stop(name, axis)
        self.known[name, axis] = result
        return result

    def _moved(self, name: str, axis: int) -> np.ndarray:
        def follow(node: NodeProto) -> list[str] | None:
            return moved_inputs(self.graph, node)

        nodes, stops = walk_back(self.graph, [name], follow)
        feeds = {}
        for stop in stops:
            shape = self._shape(stop)
            stop_axis = _channel_axis(self.graph, stop)
            lead = [d for i, d in enumerate(shape) if i != stop_axis % len(shape)]
            spread = np.expand_dims(self.rows(stop, stop_axis).reshape(lead), stop_axis)
            feeds[stop] = np.array(np.broadcast_to(spread, shape))
        values = run_traced(self.graph, nodes, feeds, [name], Trace.INDEX)[name]
        values = np.moveaxis(values, axis, -1)
        first = values[..., :1]
        if np.any(values != first):
            raise NotASite(f"the rows of {name!r} mix tokens")
        self.origin[name] = set().union(*(self.origin[stop] for stop in stops))
        return np.asarray(first.reshape(-1))

    def _stop(self, name: str, axis: int) -> np.ndarray:
        rows = self._row_count(name, axis)
        self.origin[name] = {name}
        if not self.graph.is_data(name):
            # Constant rows (a class token joined after the projection, say) are tokens too, the same in each
            # element.
            raise NotASite(f"the constant {name!r} takes part as a token after a projection")
        if rows % self.batch:
            raise NotASite(f"{name!r} has {rows} rows, which do not divide into {self.batch} batch elements")
        if name not in self.stops:
            offset = sum(count for _, count in self.stops.values())
            self.stops[name] = (offset, rows // self.batch)
        offset, count = self.stops[name]
        numbers = 1 + offset + np.arange(count, dtype=np.int64)
        return np.asarray((numbers + _BATCH_STRIDE * np.arange(self.batch, dtype=np.int64)[:, None]).reshape(-1))

    def _row_count(self, name: str, axis: int) -> int:
        shape = self._shape(name)
        return int(np.prod(shape)) // max(1, shape[axis])

    def _shape(self, name: str) -> Shape:
        shape = self.graph.shape(name)
        if not shape:
            raise NotASite(f"the shape of {name!r} is not known")
        return shape


def row_wise_input(graph: Graph, node: NodeProto) -> tuple[str, int] | None:
    """The tensor that a node maps row by row with constant weights, and where its channels lie; None for
    others.
    """
    affine = affine_input(graph, node)
    if affine is not None and graph.shape(affine) == graph.shape(node.output[0]):
        return affine, _channel_axis(graph, affine)
    if node.domain not in ("", "ai.onnx") or len(node.input) < 1 + (node.op_type != "LpNormalization"):
        return None
    if node.op_type in ("MatMul", "Gemm") and graph.is_data(node.input[0]) and not graph.is_data(node.input[1]):
        return None if attribute(node, "transA", 0) else (node.input[0], -1)
    if node.op_type == "Conv" and _is_pointwise(graph, node):
        return node.input[0], 1
    normalised = _normalised_input(graph, node)
    return (normalised, -1) if normalised is not None else None


def _normalised_input(graph: Graph, node: NodeProto) -> str | None:
    """``x`` of ``x / f(norm(x))``, the L2 normalisation of cosine attention."""
    if node.op_type == "LpNormalization":
        return node.input[0]
    if node.op_type != "Div" or len(graph.data_inputs(node)) != 2:
        return None
    name = node.input[1]
    for _ in range(6):
        maker = graph.node_of(name)
        if maker is None:
            return None
        if maker.op_type == "ReduceL2":
            return node.input[0] if maker.input[0] == node.input[0] else None
        if maker.op_type not in ("Expand", "Clip", "Max", "Unsqueeze", "Identity", "Add"):
            return None
        name = maker.input[0]
    return None


def _is_pointwise(graph: Graph, node: NodeProto) -> bool:
    weight = graph.shape(node.input[1])
    if weight is None or graph.is_data(node.input[1]) or any(k != 1 for k in weight[2:]):
        return False
    strides, pads = attribute(node, "strides", None), attribute(node, "pads", None)
    flat = all(v == 1 for v in strides) if isinstance(strides, list) else True
    unpadded = not any(pads) if isinstance(pads, list) else True
    return flat and unpadded and attribute(node, "group", 1) == 1


def _channel_axis(graph: Graph, name: str) -> int:
    shape = graph.shape(name)
    maker = graph.node_of(name)
    # Additions after a convolution keep its layout.
    while maker is not None and affine_input(graph, maker) is not None:
        maker = graph.node_of(affine_input(graph, maker) or "")
    spatial = shape is not None and len(shape) > 2
    return 1 if spatial and maker is not None and maker.op_type in _CHANNELS_FIRST else -1
