"""Queries, keys and values as vectors that stand somewhere in the graph.

A *source* is the tensor behind the movement: a projection's output, rows x channels. Cut into runs of
``width`` channels it is a table of vectors; a packed qkv of H heads has 3H of them a row. Every operand of a
score or value product is then an array of vector numbers, and heads, windows, rolls and gathers are nothing
but those numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from onnx import NodeProto

from onnxopt.discover.movement import moved_inputs, scaling_input, walk_back
from onnxopt.discover.refusal import NotASite
from onnxopt.discover.tracing import Trace, counting, run_traced
from onnxopt.model.graph import Graph


@dataclass(frozen=True)
class Source:
    """A tensor that holds vectors.

    ``rows`` per batch element, ``channels`` a row. ``channel_axis`` is -1, or 1 where a convolution made the
    tensor.
    """

    tensor: str
    rows: int
    channels: int
    channel_axis: int


@dataclass(frozen=True)
class Operand:
    """The sources of an operand, one after the other, as one table of vectors of ``width`` channels.

    ``vectors`` is the length of the table for one batch element.
    """

    sources: tuple[Source, ...]
    width: int

    @property
    def vectors(self) -> int:
        """Vectors in the table of one batch element."""
        return sum(s.rows * s.channels for s in self.sources) // self.width


@dataclass(frozen=True)
class TracedOperand:
    """Vector numbers of a tensor: ``vectors`` has the tensor's shape with the summed axis reduced to length
    1.

    A number is ``batch element * operand.vectors + vector``; -1 is a zero vector that the graph put there.
    ``scale`` has the same shape (or is all ones of length 1) and holds the factor on each vector.
    """

    operand: Operand
    vectors: np.ndarray
    scale: np.ndarray


def trace_operands(
    graph: Graph, targets: Sequence[tuple[str, int]], batch: int, *, scaled: bool = True
) -> list[TracedOperand]:
    """Trace tensors back to their sources; ``targets`` are (tensor, axis along which a vector lies).

    All targets share one table. ``batch`` is the number of batch elements along the sources' first axis. With
    ``scaled`` the way back goes through multiplications by constants; where these differ from channel to
    channel it ends at them. Raises :class:`NotASite` where channels are mixed, strided or start between two
    vectors.
    """
    refused: list[NotASite] = []
    tried: set[tuple[Source, ...]] = set()
    for goes_on in (scaling_input, _by_one_number) if scaled else (_unscaled,):
        for other_axis in (False, True):
            nodes, stops = walk_back(graph, [name for name, _ in targets], partial(_follow, graph, goes_on))
            try:
                sources = tuple(_source(graph, stop, batch, other_axis) for stop in stops)
                if sources in tried:
                    continue
                tried.add(sources)
                return _trace(graph, targets, nodes, sources, batch)
            except NotASite as reason:
                refused.append(reason)
    raise refused[0]


def _follow(graph: Graph, scaling: Callable[[Graph, NodeProto], str | None], node: NodeProto) -> list[str] | None:
    scaled = scaling(graph, node)
    return [scaled] if scaled is not None else moved_inputs(graph, node)


def _by_one_number(graph: Graph, node: NodeProto) -> str | None:
    scaled = scaling_input(graph, node)
    if scaled is None:
        return None
    shape = graph.shape(next(name for name in node.input if name != scaled))
    return scaled if shape is not None and int(np.prod(shape)) == 1 else None


def _unscaled(graph: Graph, node: NodeProto) -> str | None:
    return None


def _trace(
    graph: Graph,
    targets: Sequence[tuple[str, int]],
    nodes: Sequence[NodeProto],
    sources: tuple[Source, ...],
    batch: int,
) -> list[TracedOperand]:
    names = [name for name, _ in targets]
    width = _width(graph, targets)
    for source in sources:
        if source.channels % width:
            raise NotASite(
                f"{source.tensor!r} has {source.channels} channels a row, no multiple of the vector's {width}"
            )
    operand = Operand(sources, width)
    feeds = dict(zip((s.tensor for s in sources), _indices(graph, sources, batch), strict=True))
    indices = run_traced(graph, nodes, feeds, names, Trace.INDEX)
    if any(scaling_input(graph, node) is not None for node in nodes):
        ones = {name: np.ones(value.shape) for name, value in feeds.items()}
        scales = run_traced(graph, nodes, ones, names, Trace.SCALE)
    else:
        scales = {name: np.ones([1] * indices[name].ndim) for name in names}
    return [
        TracedOperand(operand, _vectors(indices[name], axis, width, name), _even(scales[name], axis, name))
        for name, axis in targets
    ]


def _source(graph: Graph, name: str, batch: int, other_axis: bool) -> Source:
    """The tensor as a source; ``other_axis`` takes its channels where they do not usually lie."""
    shape = graph.shape(name)
    if shape is None or not shape:
        raise NotASite(f"the shape of {name!r} is not known")
    if not graph.is_data(name):
        raise NotASite(
            f"the constant {name!r} takes part as a query, key or value; only tensors computed from the input do"
        )
    maker = graph.node_of(name)
    first = maker is not None and maker.op_type == "Conv"
    axis = 1 if len(shape) > 2 and first != other_axis else -1
    if shape[0] % batch:
        raise NotASite(
            f"{name!r} of shape {list(shape)} does not divide into {batch} batch elements along its first axis"
        )
    channels = shape[axis]
    return Source(name, int(np.prod(shape)) // channels // batch, channels, axis)


def _width(graph: Graph, targets: Sequence[tuple[str, int]]) -> int:
    widths = set()
    for name, axis in targets:
        shape = graph.shape(name)
        if shape is None:
            raise NotASite(f"the shape of {name!r} is not known")
        widths.add(shape[axis])
    if len(widths) != 1:
        raise NotASite(f"the products of one softmax use vectors of different lengths: {sorted(widths)}")
    return widths.pop()


def _indices(graph: Graph, sources: Sequence[Source], batch: int) -> list[np.ndarray]:
    """Element numbers from 1, in the order batch element, source, row, channel."""
    total = sum(s.rows * s.channels for s in sources)
    every = counting(1, total * batch).reshape(batch, total)
    offset = 0
    result = []
    for source in sources:
        size = source.rows * source.channels
        shape = graph.shape(source.tensor)
        assert shape is not None
        moved = [*shape[:1], *shape[2:], shape[1]] if source.channel_axis == 1 else list(shape)
        numbers = every[:, offset : offset + size].reshape(moved)
        result.append(np.moveaxis(numbers, -1, 1) if source.channel_axis == 1 else numbers)
        offset += size
    return result


def _vectors(indices: np.ndarray, axis: int, width: int, name: str) -> np.ndarray:
    """Element numbers to vector numbers, checking that each vector is a whole, aligned run of channels."""
    moved = np.moveaxis(indices, axis, -1)
    first = moved[..., :1]
    expected = np.where(first > 0, first + np.arange(width, dtype=first.dtype), 0)
    if not np.array_equal(moved, expected):
        raise NotASite(f"{name!r} does not hold whole vectors of {width} neighbouring channels along axis {axis}")
    if np.any((first > 0) & ((first - 1) % width != 0)):
        raise NotASite(f"{name!r} holds vectors that do not start at a multiple of {width} channels")
    return np.moveaxis(np.where(first > 0, (first - 1) // width, -1), -1, axis)


def _even(scale: np.ndarray, axis: int, name: str) -> np.ndarray:
    """The factor on each vector, checking that it is one factor for all its channels."""
    if scale.shape[axis] == 1:
        return scale
    first = np.take(scale, [0], axis=axis)
    if not np.array_equal(scale, np.broadcast_to(first, scale.shape)):
        raise NotASite(f"{name!r} is scaled differently from channel to channel")
    live = first[first != 0]
    if live.size and np.all(live == live.flat[0]):
        return np.full([1] * scale.ndim, live.flat[0])
    return first
