"""From a softmax's weights to the tensor that its consumer reads: which value vector each weight multiplies,
and which query's result stands in which row of the output.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from onnx import NodeProto

from onnxopt.discover.contraction import Contraction, align, contraction, is_product
from onnxopt.discover.movement import guarded_input, moved_inputs
from onnxopt.discover.operand import TracedOperand, trace_operands
from onnxopt.discover.refusal import NotASite
from onnxopt.discover.scores import MOST_SCORES
from onnxopt.discover.tail import trace_tail
from onnxopt.discover.tracing import Trace, counting, run_traced
from onnxopt.model.graph import Graph, Shape

OUTPUT_CHANNEL_READERS = {"Conv"}

_MOST_READERS = 200


@dataclass(frozen=True)
class ValueMap:
    """What happens to the weights of shape ``shape``.

    ``value`` broadcasts to it and holds value vector numbers (-1: the weight multiplies nothing). ``output``
    is the tensor after all movement, ``slots`` the vectors of ``width`` channels in it, in the order batch
    element, row, channel block: each the number of the softmax row whose result it is, or -1 for zeros.
    ``guarded``: rows that are NaN become 0.
    """

    shape: Shape
    v: TracedOperand
    value: np.ndarray
    output: str
    channel_axis: int
    slots: np.ndarray
    blocks: int
    width: int
    guarded: bool
    nodes: tuple[NodeProto, ...]


def trace_values(graph: Graph, weights: str, batch: int) -> ValueMap:
    """Follow the weights forward; raises :class:`NotASite` with the reason."""
    shape = graph.shape(weights)
    if shape is None:
        raise NotASite(f"the shape of {weights!r} is not known")
    moving, products, guarded = _weight_readers(graph, weights)
    oriented = [_weights_first(contraction(graph, node), name) for node, name in products]
    for product in oriented:
        if len(product.summed) != 1 or len(_channel_letters(product)) != 1:
            raise NotASite(
                f"{product.node.op_type} {product.node.name!r} is not a product of weights and value vectors"
            )
    targets = [(p.right, p.right_axes.index(_channel_letters(p))) for p in oriented]
    traced = trace_operands(graph, targets, batch, scaled=False)
    numbers = _weight_numbers(graph, weights, shape, moving, oriented)
    value = _value_vectors(shape, oriented, traced, numbers)
    tail = trace_tail(graph, [p.output for p in oriented])
    output = tail[1]
    slots, blocks, axis = _slots(graph, shape, oriented, numbers, traced[0].operand.width, tail, batch)
    nodes = (*moving, *(p.node for p in oriented), *tail[0])
    return ValueMap(shape, traced[0], value, output, axis, slots, blocks, traced[0].operand.width, guarded, nodes)


def _weight_readers(graph: Graph, weights: str) -> tuple[list[NodeProto], list[tuple[NodeProto, str]], bool]:
    """Movement from the weights to the value products, and these products with the weight operand of each."""
    moving: list[NodeProto] = []
    products: list[tuple[NodeProto, str]] = []
    reached = {weights}
    guarded = False
    if weights in graph.outputs:
        raise NotASite("the attention weights themselves are an output of the model")
    for number, node in enumerate(graph.downstream([weights], lambda node: _may_pass(graph, node))):
        if number >= _MOST_READERS:
            raise NotASite(f"its weights are read by more than {_MOST_READERS} nodes")
        read = [n for n in node.input if n in reached]
        if node.op_type == "IsNaN":
            moving.append(node)
            continue
        if is_product(graph, node):
            if len(read) != 1:
                raise NotASite("a product of the attention weights with themselves")
            products.append((node, read[0]))
            continue
        guard = guarded_input(graph, node)
        moved = moved_inputs(graph, node)
        if guard is not None and guard in reached:
            guarded = True
        elif moved is None or any(n not in reached for n in moved):
            raise NotASite(
                f"{node.op_type} {node.name!r} reads the attention weights and is neither movement nor a product"
            )
        moving.append(node)
        reached.update(node.output)
        if any(o in graph.outputs for o in node.output):
            raise NotASite("the attention weights themselves are an output of the model")
    if not products:
        raise NotASite("no product of its weights with values follows")
    return moving, products, guarded


def _may_pass(graph: Graph, node: NodeProto) -> bool:
    return not is_product(graph, node) and (moved_inputs(graph, node) is not None or node.op_type in ("IsNaN", "Where"))


def _weights_first(product: Contraction, weights: str) -> Contraction:
    """The product with the attention weights as its left operand."""
    if product.left == weights:
        return product
    return Contraction(
        product.node, product.right, product.left, product.right_axes, product.left_axes, product.out_axes
    )


def _channel_letters(product: Contraction) -> str:
    return "".join(a for a in product.right_axes if a not in product.left_axes and a in product.out_axes)


def _weight_numbers(
    graph: Graph, weights: str, shape: Shape, moving: list[NodeProto], products: list[Contraction]
) -> list[np.ndarray | None]:
    """For each product's weight operand the numbers of the weights in it; None where it is the whole tensor
    as it is.
    """
    names = [p.left for p in products]
    still = all(node.op_type in ("IsNaN", "Where", "Identity", "Cast", "Dropout") for node in moving)
    if still and len(products) == 1:
        return [None]
    size = int(np.prod(shape))
    if size > MOST_SCORES:
        raise NotASite(f"its weights are moved and more than {MOST_SCORES:,}, so they cannot be traced one by one")
    feeds = {weights: counting(1, size).reshape(shape)}
    traced = run_traced(graph, moving, feeds, names, Trace.INDEX)
    return [traced[name] - 1 for name in names]


def _value_vectors(
    shape: Shape, products: list[Contraction], traced: list[TracedOperand], numbers: list[np.ndarray | None]
) -> np.ndarray:
    """The value vector of every weight, as an array that broadcasts to ``shape``."""
    if numbers[0] is None:
        return align(traced[0].vectors, products[0].right_axes, products[0].left_axes)
    size = int(np.prod(shape))
    value = np.full(size, -1, np.int32)
    used = 0
    for product, operand, number in zip(products, traced, numbers, strict=True):
        assert number is not None
        vectors = align(operand.vectors, product.right_axes, product.left_axes)
        flat = number.reshape(-1)
        live = flat >= 0
        spread = np.broadcast_to(vectors, number.shape).reshape(-1)
        used += int(np.count_nonzero(live))
        value[flat[live]] = spread[live]
    if used > size:
        raise NotASite("a weight multiplies more than one value")
    return value.reshape(shape)


def _slots(
    graph: Graph,
    shape: Shape,
    products: list[Contraction],
    numbers: list[np.ndarray | None],
    width: int,
    tail: tuple[list[NodeProto], str],
    batch: int,
) -> tuple[np.ndarray, int, int]:
    nodes, output = tail
    out_shape = graph.shape(output)
    if out_shape is None:
        raise NotASite(f"the shape of {output!r} is not known")
    feeds = {
        product.output: _result_numbers(graph, shape, product, number, width)
        for product, number in zip(products, numbers, strict=True)
    }
    indices = run_traced(graph, nodes, feeds, [output], Trace.INDEX, merge="Max")[output]
    if any(node.op_type == "Add" for node in nodes):
        least = run_traced(graph, nodes, feeds, [output], Trace.INDEX, merge="Min")[output]
        if not np.array_equal(indices, least):
            raise NotASite("results of different queries are added up")
    if not out_shape or out_shape[0] % batch:
        raise NotASite(f"{output!r} of shape {list(out_shape)} does not divide into {batch} batch elements")
    usual = 1 if _read_as_channels_first(graph, output, len(out_shape)) else -1
    for axis in (usual, -usual) if len(out_shape) > 2 else (usual,):
        found = _whole_vectors(np.moveaxis(indices, axis, -1), width, batch)
        if found is not None:
            return found, found.shape[-1], axis
    raise NotASite(f"{output!r} does not hold whole result vectors of {width} neighbouring channels")


def _whole_vectors(numbers: np.ndarray, width: int, batch: int) -> np.ndarray | None:
    """Numbers of the result vectors (batch element x row x channel block), or None if any is not whole."""
    channels = numbers.shape[-1]
    if channels % width:
        return None
    runs = numbers.reshape(batch, -1, channels // width, width)
    first = runs[..., :1]
    if not np.array_equal(runs, np.where(first > 0, first + np.arange(width), 0)):
        return None
    if np.any((first > 0) & ((first - 1) % width != 0)):
        return None
    return np.asarray(np.where(first > 0, (first - 1) // width, -1)[..., 0])


def _result_numbers(
    graph: Graph, shape: Shape, product: Contraction, number: np.ndarray | None, width: int
) -> np.ndarray:
    """For every element of a value product's result: softmax row * width + channel + 1; 0 for an empty sum."""
    keys = shape[-1]
    rows: np.ndarray
    if number is None:
        if product.left_axes[-1] != product.summed:
            raise NotASite("the value product does not sum over the axis that the softmax normalised")
        rows = counting(0, int(np.prod(shape[:-1]))).reshape(*shape[:-1], 1)
    else:
        axis = product.left_axes.index(product.summed)
        row = np.where(number >= 0, number // keys, -1)
        rows = row.max(axis=axis, keepdims=True)
        if np.any((row != rows) & (row >= 0)):
            raise NotASite("a value product sums weights of different queries")
    out_shape = graph.shape(product.output)
    if out_shape is None:
        raise NotASite(f"the shape of {product.output!r} is not known")
    letter = _channel_letters(product)
    channel = counting(1, width).reshape([width if a == letter else 1 for a in product.out_axes])
    aligned = align(rows, product.left_axes, product.out_axes)
    if (int(np.prod(shape[:-1])) + 1) * width > np.iinfo(np.int32).max:
        aligned = aligned.astype(np.int64)
    return np.broadcast_to(np.where(aligned >= 0, aligned * width + channel, 0), out_shape)


def _read_as_channels_first(graph: Graph, name: str, rank: int) -> bool:
    readers = graph.data_readers(name)
    return rank > 2 and bool(readers) and all(r.op_type in OUTPUT_CHANNEL_READERS for r in readers)
