"""ONNX's own Attention operator (opset 23), written out in the primitives that discovery reads.

The written-out nodes exist in the analysis only. They carry the operator's node name, and its output keeps
its name, so that a site found among them names what is in the model.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from onnx import NodeProto, TensorProto, helper, numpy_helper

from onnxopt.discover.refusal import INCONSISTENT, NotASite, Refusal, node_name, reason_for
from onnxopt.model.graph import Graph, Shape, attribute

OPERATOR = "Attention"
_QUERY, _KEY, _VALUE, _MASK = range(4)
# What the operator can do beyond one softmax over given keys: input or output number, and what it is called.
_REFUSED_INPUTS = {4: "past keys", 5: "past values", 6: "a number of keys known only at run time"}
_REFUSED_OUTPUTS = {1: "present keys", 2: "present values", 3: "its scores"}


@dataclass(frozen=True)
class Expanded:
    """A view in which Attention operators are written out.

    ``weights`` names the softmax results inside them; ``refusals`` the operators that stay as they are, with
    reasons.
    """

    graph: Graph
    weights: frozenset[str]
    refusals: tuple[Refusal, ...]


def write_out_attention(graph: Graph) -> Expanded:
    """Write out every Attention operator for analysis; the same view where there is none."""
    if not any(_is_attention(node) for node in graph.nodes):
        return Expanded(graph, frozenset(), ())
    nodes: list[NodeProto] = []
    weights: set[str] = set()
    refusals: list[Refusal] = []
    for node in graph.nodes:
        if _is_attention(node):
            try:
                written = _Writer(graph, node)
                nodes += written.nodes
                weights.add(written.weights)
                continue
            except (NotASite, *INCONSISTENT) as error:
                refusals.append(Refusal(node_name(node), node.op_type, reason_for(error)))
        nodes.append(node)
    return Expanded(graph.with_nodes(nodes), frozenset(weights), tuple(refusals))


def _is_attention(node: NodeProto) -> bool:
    return node.op_type == OPERATOR and node.domain in ("", "ai.onnx") and bool(node.output)


class _Writer:
    """Collects the primitives of one operator; shapes are those of the view, batch included."""

    def __init__(self, graph: Graph, node: NodeProto) -> None:
        self.graph, self.node = graph, node
        self.nodes: list[NodeProto] = []
        self.prefix = _free_prefix(graph, node.output[0])
        _check_features(graph, node)
        folded = len(_shape(graph, node, _QUERY)) == 3
        q = self._by_head(_QUERY, "q_num_heads")
        k = self._by_head(_KEY, "kv_num_heads")
        v = self._by_head(_VALUE, "kv_num_heads")
        (batch, heads, rows, width), kv_heads, keys = self._check(q[1], k[1], v[1])
        scale = float(str(attribute(node, "scale", 1 / math.sqrt(width))))
        key_rows = self._repeated(k, heads // kv_heads)
        scores = self._add("MatMul", [q[0], self._add("Transpose", [key_rows], perm=[0, 1, 3, 2])])
        scores = self._add("Mul", [scores, self._constant(np.float32(scale))])
        scores, can_be_empty = self._masked(scores, (batch, heads, rows, keys))
        self.weights = self._add("Softmax", [scores], axis=-1)
        weights = self._guarded(self.weights) if can_be_empty else self.weights
        values = self._repeated(v, heads // kv_heads)
        output = node.output[0]
        if not folded:
            self._add("MatMul", [weights, values], output=output)
            return
        mixed = self._add("Transpose", [self._add("MatMul", [weights, values])], perm=[0, 2, 1, 3])
        self._reshape(mixed, (batch, rows, heads * v[1][-1]), output=output)

    def _by_head(self, position: int, attribute_name: str) -> tuple[str, Shape]:
        """An input as (batch, heads, rows, channels), and that shape."""
        shape = _shape(self.graph, self.node, position)
        name = self.node.input[position]
        if len(shape) == 4:
            return name, shape
        heads = attribute(self.node, attribute_name, 0)
        if len(shape) != 3 or not isinstance(heads, int) or heads < 1 or shape[2] % heads:
            raise NotASite(
                f"its input {name!r} has the shape {list(shape)} and {attribute_name} is {heads}; "
                "4 dimensions, or 3 whose last is a multiple of the heads, are read"
            )
        batch, rows, channels = shape
        parted = self._reshape(name, (batch, rows, heads, channels // heads))
        return self._add("Transpose", [parted], perm=[0, 2, 1, 3]), (batch, heads, rows, channels // heads)

    def _check(self, q: Shape, k: Shape, v: Shape) -> tuple[Shape, int, int]:
        fits = q[0] == k[0] == v[0] and q[3] == k[3] and k[1] == v[1] and k[2] == v[2]
        if not fits or k[1] < 1 or q[1] % k[1] or min(*q, *k, *v) < 1:
            raise NotASite(
                f"its queries, keys and values of shapes {list(q)}, {list(k)} and {list(v)} do not fit together"
            )
        return q, k[1], k[2]

    def _repeated(self, by_head: tuple[str, Shape], times: int) -> str:
        """Each head ``times`` times in a row, as grouped queries share their keys and values."""
        name, (batch, heads, rows, channels) = by_head
        if times == 1:
            return name
        apart = self._add("Unsqueeze", [name, self._constant(np.array([2], np.int64))])
        target = self._constant(np.array([batch, heads, times, rows, channels], np.int64))
        return self._reshape(self._add("Expand", [apart, target]), (batch, heads * times, rows, channels))

    def _masked(self, scores: str, shape: Shape) -> tuple[str, bool]:
        """Scores with mask and causal mask, and whether a row may be left without any key."""
        causal = np.zeros((1, 1), np.float32)
        if attribute(self.node, "is_causal", 0):
            causal = np.where(np.tri(shape[2], shape[3], dtype=bool), np.float32(0), np.float32(-np.inf))
        name = self.node.input[_MASK] if len(self.node.input) > _MASK else ""
        if name and self.graph.is_data(name):
            scores = self._masked_at_run_time(scores, name)
        elif name:
            causal = causal + _added(self.graph, name, shape)
        if causal.any():
            scores = self._add("Add", [scores, self._constant(causal)])
        empty = np.isneginf(causal).all(axis=-1).any()
        return scores, bool(empty) or (bool(name) and self.graph.is_data(name))

    def _masked_at_run_time(self, scores: str, mask: str) -> str:
        if self.graph.element_type(mask) == TensorProto.BOOL:
            return self._add("Where", [mask, scores, self._constant(np.float32(-np.inf))])
        return self._add("Add", [scores, mask])

    def _guarded(self, weights: str) -> str:
        """The operator gives zeros for a query without keys, where a plain softmax gives NaN."""
        check = self._add("IsNaN", [weights])
        return self._add("Where", [check, self._constant(np.float32(0)), weights])

    def _constant(self, value: np.ndarray | np.generic) -> str:
        return self._add("Constant", [], value=numpy_helper.from_array(np.asarray(value)))

    def _reshape(self, name: str, shape: Shape, output: str = "") -> str:
        return self._add("Reshape", [name, self._constant(np.array(shape, np.int64))], output=output)

    def _add(self, kind: str, inputs: list[str], output: str = "", **attributes: Any) -> str:
        output = output or f"{self.prefix}{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [output], name=node_name(self.node), **attributes))
        return output


def _check_features(graph: Graph, node: NodeProto) -> None:
    for position, what in _REFUSED_INPUTS.items():
        if len(node.input) > position and node.input[position]:
            raise NotASite(f"the operator takes {what} ({node.input[position]!r})")
    for position, what in _REFUSED_OUTPUTS.items():
        name = node.output[position] if len(node.output) > position else ""
        if name and (graph.readers(name) or name in graph.outputs):
            raise NotASite(f"the operator also gives {what} ({name!r})")
    softcap = attribute(node, "softcap", 0.0)
    if softcap:
        raise NotASite(f"its scores are capped (softcap is {softcap}), which is not affine in them")


def _shape(graph: Graph, node: NodeProto, position: int) -> Shape:
    name = node.input[position] if len(node.input) > position else ""
    shape = graph.shape(name) if name else None
    if shape is None:
        raise NotASite(f"the shape of its input {name!r} is not known")
    return shape


def _added(graph: Graph, name: str, shape: Shape) -> np.ndarray:
    """A constant mask as what it adds to the scores, float32."""
    mask = graph.constant(name)
    if mask is None:
        raise NotASite(f"the value of its mask {name!r} is not known")
    mask = np.asarray(mask)
    if mask.ndim < 1 or mask.shape[-1] != shape[-1] or not _broadcasts(mask.shape, shape):
        raise NotASite(f"its mask {name!r} of shape {list(mask.shape)} does not fit scores of shape {list(shape)}")
    if mask.dtype == np.bool_:
        return np.where(mask, np.float32(0), np.float32(-np.inf))
    return mask.astype(np.float32)


def _broadcasts(shape: Shape, target: Shape) -> bool:
    padded = (1,) * (len(target) - len(shape)) + shape
    return len(padded) == len(target) and all(a in (1, b) for a, b in zip(padded, target, strict=True))


def _free_prefix(graph: Graph, output: str) -> str:
    prefix = f"{output}/"
    while any(name.startswith(prefix) for name in (*graph.producer, *graph.consumers)):
        prefix += "/"
    return prefix
