"""From the score products to the tensor that a softmax normalises: which score stands where, and what is
added to it.

Whatever the exporter wrote between them (scales, biases, masks, joins of several products, scatters) is
affine in each score, so three traces recover it: the score's number, its factor, and the constant.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from onnx import NodeProto

from onnxopt.discover.contraction import Contraction, align, contraction, is_product
from onnxopt.discover.movement import affine_input, moved_inputs, walk_back
from onnxopt.discover.operand import TracedOperand, trace_operands
from onnxopt.discover.refusal import NotASite
from onnxopt.discover.tracing import Trace, counting, run_traced
from onnxopt.model.graph import Graph, Shape

# A constant of at most this, added to a score or put in its place, is a mask; a weaker one is bias.
MASK_THRESHOLD = -50.0
# Added in float32 to any score, a constant beyond this leaves nothing of it.
SWALLOWING = -1e30
# Where data moves between product and softmax, each score takes up to 40 bytes while it is traced: 10 GB.
MOST_SCORES = 1 << 28
_STILL = {"Add", "Sub", "Mul", "Div", "Where", "Cast", "Identity", "Dropout"}


@dataclass(frozen=True)
class ScoreMap:
    """Every element of the normalised tensor, of shape ``shape``; each array broadcasts to it.

    ``query`` and ``key`` are vector numbers (-1: a zero vector, score 0), ``factor`` the scale on the dot
    product, ``constant`` what is added. ``runtime`` names tensors of the input's making that are added or
    choose.
    """

    shape: Shape
    q: TracedOperand
    k: TracedOperand
    query: np.ndarray
    key: np.ndarray
    factor: np.ndarray
    constant: np.ndarray
    runtime: tuple[str, ...]
    nodes: tuple[NodeProto, ...]
    products: tuple[Contraction, ...]


def trace_scores(graph: Graph, scores: str, batch: int) -> ScoreMap:
    """Recover the score part behind the tensor ``scores``; raises :class:`NotASite` with the reason."""
    shape = graph.shape(scores)
    if shape is None:
        raise NotASite(f"the shape of {scores!r} is not known")
    leads = _Leads(graph)
    runtime: list[str] = []

    def follow(node: NodeProto) -> list[str] | None:
        return _onward(graph, node, leads, runtime)

    nodes, stops = walk_back(graph, [scores], follow)
    products = []
    for stop in stops:
        node = graph.node_of(stop)
        if node is None or not is_product(graph, node):
            if leads.to_product(stop):
                raise NotASite(f"the scores pass through {stop!r}, which is not affine in them")
            runtime.append(stop)
            continue
        products.append(contraction(graph, node))
    if not products:
        raise NotASite(
            f"no product of two tensors that depend on the input leads to it; the way back ends at {stops[0]!r}"
        )
    lefts, rights = _trace_sides(graph, products, batch)
    elements, small = _element_numbers(graph, scores, nodes, products)
    factor = _trace_values(graph, scores, nodes, products, runtime, Trace.SCALE, small)
    constant = _trace_values(graph, scores, nodes, products, runtime, Trace.CONSTANT, small)
    query, key, scale = _look_up(graph, products, lefts, rights, elements)
    return ScoreMap(
        shape=shape,
        q=lefts[0],
        k=rights[0],
        query=_reshaped(query, shape),
        key=_reshaped(key, shape),
        factor=factor * _reshaped(scale, shape),
        constant=constant,
        runtime=tuple(dict.fromkeys(runtime)),
        nodes=tuple(nodes),
        products=tuple(products),
    )


class _Leads:
    """Whether a tensor is computed from a product of two data tensors within a few steps of affine movement."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.known: dict[str, bool] = {}

    def to_product(self, name: str) -> bool:
        stack = [name]
        while stack:
            current = stack[-1]
            if current in self.known:
                stack.pop()
                continue
            node = self.graph.node_of(current)
            if node is None or not self.graph.is_data(current):
                self.known[current] = False
                continue
            if is_product(self.graph, node):
                self.known[current] = True
                continue
            onward = self._onward(node)
            unknown = [n for n in onward if n not in self.known]
            if unknown:
                stack.extend(unknown)
                continue
            self.known[current] = any(self.known[n] for n in onward)
        return self.known[name]

    def _onward(self, node: NodeProto) -> list[str]:
        moved = moved_inputs(self.graph, node)
        if moved is not None:
            return moved
        if node.op_type in ("Add", "Sub", "Mul", "Div", "Where"):
            return [n for n in self.graph.data_inputs(node) if n != node.output[0]]
        return []


def _onward(graph: Graph, node: NodeProto, leads: _Leads, runtime: list[str]) -> list[str] | None:
    if is_product(graph, node):
        return None
    moved = moved_inputs(graph, node)
    if moved is not None:
        return [name for name in moved if graph.is_data(name)]
    affine = affine_input(graph, node)
    if affine is not None:
        return [affine]
    if node.op_type in ("Add", "Sub"):
        with_scores = [name for name in node.input if leads.to_product(name)]
        if len(with_scores) == 2:
            raise NotASite(f"{node.op_type} {node.name!r} joins two score products")
        if with_scores and (node.op_type == "Add" or with_scores[0] == node.input[0]):
            runtime.extend(name for name in node.input if name not in with_scores)
            return with_scores
    if node.op_type == "Where" and graph.is_data(node.input[0]):
        with_scores = [name for name in node.input[1:] if leads.to_product(name)]
        if len(with_scores) == 1:
            runtime.append(node.input[0])
            return with_scores
    return None


def _trace_sides(
    graph: Graph, products: list[Contraction], batch: int
) -> tuple[list[TracedOperand], list[TracedOperand]]:
    sides = []
    for product in products:
        if len(product.summed) != 1:
            raise NotASite(f"{product.node.op_type} {product.node.name!r} sums over {len(product.summed)} axes")
        sides.append((product.left_axes.index(product.summed), product.right_axes.index(product.summed)))
    lefts = trace_operands(graph, [(p.left, s[0]) for p, s in zip(products, sides, strict=True)], batch)
    rights = trace_operands(graph, [(p.right, s[1]) for p, s in zip(products, sides, strict=True)], batch)
    return lefts, rights


def _element_numbers(
    graph: Graph, scores: str, nodes: list[NodeProto], products: list[Contraction]
) -> tuple[np.ndarray | None, bool]:
    """For each element of the normalised tensor the number of its score, from 0; -1 where there is none.

    None where the one product's own order is kept throughout, which spares the largest arrays. The flag says
    that no data moves at all between product and softmax.
    """
    shapes = [_known_shape(graph, p.output) for p in products]
    still = all(node.op_type in _STILL for node in nodes)
    if still and len(products) == 1 and shapes[0] == _known_shape(graph, scores):
        return None, True
    offset = 1
    feeds = {}
    for product, shape in zip(products, shapes, strict=True):
        size = int(np.prod(shape))
        if offset + size > MOST_SCORES:
            raise NotASite(f"its products have more than {MOST_SCORES:,} scores, which are traced one by one")
        feeds[product.output] = counting(offset, size).reshape(shape)
        offset += size
    for name in _other_stops(graph, nodes, feeds):
        feeds[name] = np.zeros(_known_shape(graph, name), np.int32)
    # Also where a mask replaces a score it is known which one it was.
    numbers = run_traced(graph, nodes, feeds, [scores], Trace.INDEX, through_masks=True)[scores]
    return numbers - 1, False


def _trace_values(
    graph: Graph,
    scores: str,
    nodes: list[NodeProto],
    products: list[Contraction],
    runtime: list[str],
    trace: Trace,
    small: bool,
) -> np.ndarray:
    """The factor on each score, or the constant added to it, in an array that broadcasts to the normalised
    tensor.
    """
    kinds = {node.op_type for node in nodes}
    if trace is Trace.SCALE and not kinds & {"Mul", "Div", "Sub"} and not _replaces(graph, nodes):
        return np.ones([1] * len(_known_shape(graph, scores)))
    value = 1.0 if trace is Trace.SCALE else 0.0
    # Constants in float32 are what a float32 model adds, to the bit; they are as many as the scores.
    dtype = np.float64 if trace is Trace.SCALE and kinds & {"Mul", "Div"} else np.float32
    feeds = {}
    for product in products:
        shape = _known_shape(graph, product.output)
        feeds[product.output] = np.full([1] * len(shape) if small else shape, value, dtype)
    for name in _other_stops(graph, nodes, feeds):
        shape = _known_shape(graph, name)
        feeds[name] = np.zeros([1] * len(shape) if small else shape, dtype)
    result = run_traced(graph, nodes, feeds, [scores], trace)[scores]
    rank = len(_known_shape(graph, scores))
    return result.reshape([1] * (rank - result.ndim) + list(result.shape))


def _replaces(graph: Graph, nodes: list[NodeProto]) -> bool:
    """Whether a constant takes the place of a score that is too weak to swallow it, so that it matters that
    it does.
    """
    for node in nodes:
        if node.op_type == "Where":
            values = [graph.constant(name) for name in node.input[1:]]
            if any(value is not None and value.size and float(value.max()) > SWALLOWING for value in values):
                return True
    return False


def _other_stops(graph: Graph, nodes: list[NodeProto], feeds: dict[str, np.ndarray]) -> list[str]:
    """Data tensors that the nodes read and neither make nor are fed: the parts known only at run time."""
    made = {name for node in nodes for name in node.output}
    others: list[str] = []
    for node in nodes:
        skip = {node.input[0]} if node.op_type == "Where" and graph.is_data(node.input[0]) else set()
        others += [n for n in graph.data_inputs(node) if n not in made and n not in feeds and n not in skip]
    return list(dict.fromkeys(others))


def _look_up(
    graph: Graph,
    products: list[Contraction],
    lefts: list[TracedOperand],
    rights: list[TracedOperand],
    elements: np.ndarray | None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Query vector, key vector and operand scale of every element, through the score numbers."""
    if elements is None:
        product, left, right = products[0], lefts[0], rights[0]
        scale = align(left.scale, product.left_axes, product.out_axes) * align(
            right.scale, product.right_axes, product.out_axes
        )
        return (
            align(left.vectors, product.left_axes, product.out_axes),
            align(right.vectors, product.right_axes, product.out_axes),
            scale,
        )
    queries, keys, scales = [], [], []
    for product, left, right in zip(products, lefts, rights, strict=True):
        shape = _known_shape(graph, product.output)
        queries.append(_flat(align(left.vectors, product.left_axes, product.out_axes), shape, np.int32))
        keys.append(_flat(align(right.vectors, product.right_axes, product.out_axes), shape, np.int32))
        left_scale = align(left.scale, product.left_axes, product.out_axes)
        scales.append(left_scale * align(right.scale, product.right_axes, product.out_axes))
    nothing = np.array([-1], np.int32)
    query = np.concatenate([*queries, nothing])[elements]
    key = np.concatenate([*keys, nothing])[elements]
    if all(scale.size == 1 and scale.flat[0] == scales[0].flat[0] for scale in scales):
        return query, key, scales[0].reshape(1)
    flat = [_flat(s, _known_shape(graph, p.output), np.float64) for s, p in zip(scales, products, strict=True)]
    return query, key, np.concatenate([*flat, np.zeros(1)])[elements]


def _flat(values: np.ndarray, shape: Shape, dtype: type) -> np.ndarray:
    return np.broadcast_to(values, shape).astype(dtype).reshape(-1)


def _reshaped(values: np.ndarray, shape: Shape) -> np.ndarray:
    """Give values that broadcast to a tensor of equal size the rank of ``shape``."""
    if values.ndim < len(shape):
        return values.reshape([1] * (len(shape) - values.ndim) + list(values.shape))
    return values


def _known_shape(graph: Graph, name: str) -> Shape:
    shape = graph.shape(name)
    if shape is None:
        raise NotASite(f"the shape of {name!r} is not known")
    return shape
