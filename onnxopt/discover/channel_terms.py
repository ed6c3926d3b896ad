"""Channels as numbered terms, and the operators that move them or work on each of them alone.

A term stands for what one channel holds: a channel of the source, zero, a sum of terms, or an operator applied to
terms. A tensor is either ``plain`` (batch x channels x positions, one term for each channel) or ``spread`` (any layout:
every element has a number that says its batch entry, its term and its position).
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto

from onnxopt.discover.conv_site import integer
from onnxopt.discover.refusal import NotASite
from onnxopt.model.graph import Graph, Shape, attribute

IntArray = NDArray[np.int64]

ZERO = 0
TERM_LIMIT = 1 << 24

UNARY = frozenset(
    (
        *(
            "Abs",
            "Cast",
            "Celu",
            "Clip",
            "Elu",
            "Erf",
            "Exp",
            "Gelu",
            "HardSigmoid",
            "HardSwish",
            "LeakyRelu",
        ),
        *("Mish", "Neg", "Relu", "Selu", "Sigmoid", "Softplus", "Softsign", "Sqrt", "Swish", "Tanh"),
        "ThresholdedRelu",
    )
)
BINARY = frozenset(("Add", "Sub", "Mul", "Div", "Max", "Min", "Pow", "PRelu"))
POOLS = frozenset(("AveragePool", "GlobalAveragePool", "GlobalMaxPool", "LpPool", "MaxPool"))
_RESHAPES = frozenset(("Dropout", "Flatten", "Identity", "Reshape", "Squeeze", "Unsqueeze"))
_MOVES = _RESHAPES | {"Concat", "Gather", "Pad", "Slice", "Split", "Transpose"}


@dataclass(frozen=True)
class Term:
    """What a channel holds; ``row`` is the row of the operator's constants that it uses."""

    source: int = -1
    sum_of: tuple[int, ...] = ()
    node: int = -1
    row: int = 0
    operands: tuple[int, ...] = ()


class Terms:
    """The numbered terms of one trace; equal terms have equal numbers, and number 0 is zero."""

    def __init__(self) -> None:
        self.items: list[Term] = [Term()]
        self._known: dict[Hashable, int] = {Term(): ZERO}

    def number(self, term: Term) -> int:
        if term not in self._known:
            if len(self.items) >= TERM_LIMIT:
                raise NotASite("it has too many channels to trace")
            self._known[term] = len(self.items)
            self.items.append(term)
        return self._known[term]

    def total(self, parts: Sequence[int]) -> int:
        """The term for a sum of terms."""
        flat = [n for part in parts for n in (self.items[part].sum_of or (part,)) if n != ZERO]
        if not flat:
            return ZERO
        return flat[0] if len(flat) == 1 else self.number(Term(sum_of=tuple(sorted(flat))))


@dataclass(frozen=True, eq=False)
class Held:
    """The terms of a tensor: by channel where ``ids`` is None, else by element."""

    shape: Shape
    batch: int
    positions: Shape
    terms: IntArray
    ids: IntArray | None = None

    def spread(self) -> IntArray:
        """Every element's number: (batch entry, term, position) in one integer."""
        if self.ids is not None:
            return self.ids
        size = int(np.prod(self.positions))
        lead = (np.arange(self.batch)[:, None] * TERM_LIMIT + self.terms)[:, :, None] * size + np.arange(size)
        return lead.reshape(self.shape)

    def decode(self, ids: IntArray) -> tuple[IntArray, IntArray, IntArray]:
        """Batch entries, terms and positions of numbers."""
        lead, position = np.divmod(ids, int(np.prod(self.positions)))
        batch, terms = np.divmod(lead, TERM_LIMIT)
        return batch, terms, position

    def moved(self, ids: IntArray) -> Held:
        """The tensor after a movement; plain again where its layout allows."""
        shape = tuple(ids.shape)
        result = Held(shape, self.batch, self.positions, self.terms, ids)
        if shape[:1] + shape[2:] != (self.batch, *self.positions) or len(shape) < 3:
            return result
        first = ids[0].reshape(shape[1], -1)[:, 0]
        plain = Held(shape, self.batch, self.positions, self.decode(first)[1])
        return plain if np.array_equal(plain.spread(), ids) else result


def is_move(graph: Graph, node: NodeProto) -> bool:
    """Whether the node only moves data, copies of it included, or adds channels up by a constant 0/1 matrix."""
    if node.domain not in ("", "ai.onnx"):
        return False
    if node.op_type in ("MatMul", "Einsum"):
        data = graph.data_inputs(node)
        if len(node.input) == 1:
            return len(data) == 1
        constants = [graph.constant(name) for name in node.input if not graph.is_data(name)]
        return len(data) == 1 and len(constants) == 1 and is_selection(constants[0])
    if node.op_type not in _MOVES:
        return False
    if node.op_type == "Concat":
        return all(graph.is_data(name) for name in node.input)
    if node.op_type == "Pad" and attribute(node, "mode", "constant") != "constant":
        return False
    return not any(graph.is_data(name) for name in node.input[1:] if name)


def reorders(graph: Graph, node: NodeProto) -> bool:
    """Whether the node is a movement other than a plain copy."""
    return node.op_type not in ("Identity", "Dropout") and is_move(graph, node)


def is_selection(matrix: NDArray[np.generic] | None) -> bool:
    """Whether a matrix holds zeros and ones only."""
    return matrix is not None and matrix.ndim == 2 and bool(np.isin(matrix, (0, 1)).all())


def move(graph: Graph, terms: Terms, node: NodeProto, held: Sequence[Held]) -> list[Held]:
    """The tensors that a movement node makes of ``held``, its data inputs in order."""
    if node.op_type in ("Identity", "Dropout"):
        return [held[0]]
    if node.op_type in ("MatMul", "Einsum") and len(node.input) == 2:
        return [_matrix(graph, terms, node, held[0])]
    if node.op_type == "Pad":
        return [_padded(graph, node, held[0])]
    if len({(one.batch, one.positions) for one in held}) > 1:
        raise NotASite(f"node {node.name!r} joins tensors of different sizes")
    return [held[0].moved(ids) for ids in _moved_ids(graph, node, [one.spread() for one in held])]


def _moved_ids(graph: Graph, node: NodeProto, ids: list[IntArray]) -> list[IntArray]:
    x = ids[0]
    if node.op_type in _RESHAPES:
        return [x.reshape(_shape(graph, node.output[0]))]
    if node.op_type == "Transpose":
        order = attribute(node, "perm")
        return [x.transpose(order if isinstance(order, list) else None)]
    if node.op_type == "Einsum":
        source, target = str(attribute(node, "equation", "")).replace(" ", "").split("->")
        if sorted(source) != sorted(target) or len(set(source)) != x.ndim:
            raise NotASite(f"Einsum {node.name!r} does more than permute axes")
        return [x.transpose([source.index(letter) for letter in target])]
    if node.op_type == "Gather":
        axis = integer(node, "axis", 0)
        return [np.take(x, _constant(graph, node, 1).astype(np.int64), axis=axis)]
    axis = integer(node, "axis", 0)
    if node.op_type == "Concat":
        return [np.concatenate(ids, axis=axis)]
    if node.op_type == "Split":
        ends = np.cumsum([_shape(graph, name)[axis] for name in node.output])[:-1]
        return list(np.split(x, ends, axis=axis))
    return [_sliced(graph, node, x)]


def _sliced(graph: Graph, node: NodeProto, x: IntArray) -> IntArray:
    given = [None if len(node.input) <= i or not node.input[i] else _constant(graph, node, i) for i in range(1, 5)]
    starts, ends, axes, steps = given
    if starts is None or ends is None:
        raise NotASite(f"Slice {node.name!r} has no bounds")
    index = [slice(None)] * x.ndim
    for i, axis in enumerate(range(len(starts)) if axes is None else axes):
        step = 1 if steps is None else int(steps[i])
        end: int | None = int(ends[i])
        if step < 0 and end is not None and end < -x.shape[axis]:
            end = None
        index[int(axis)] = slice(int(starts[i]), end, step)
    return x[tuple(index)]


def _padded(graph: Graph, node: NodeProto, held: Held) -> Held:
    """Zeros added as whole channels; any other padding is not channel movement."""
    pads = _constant(graph, node, 1).astype(np.int64)
    rank = len(held.shape)
    axes = (
        np.arange(rank)
        if len(node.input) < 4 or not node.input[3]
        else _constant(graph, node, 3).astype(np.int64) % rank
    )
    value = _constant(graph, node, 2) if len(node.input) > 2 and node.input[2] else np.zeros(1)
    begin, end = pads[: len(axes)][axes == 1].sum(), pads[len(axes) :][axes == 1].sum()
    elsewhere = np.any(pads[: len(axes)][axes != 1]) or np.any(pads[len(axes) :][axes != 1])
    if held.ids is not None or elsewhere or np.any(value) or begin < 0 or end < 0:
        raise NotASite(f"Pad {node.name!r} does more than add zero channels")
    padded = np.pad(held.terms, (begin, end), constant_values=ZERO)
    return Held((held.batch, len(padded), *held.positions), held.batch, held.positions, padded)


def _matrix(graph: Graph, terms: Terms, node: NodeProto, held: Held) -> Held:
    """A product with a constant 0/1 matrix along the channels: every output channel is a sum of terms."""
    position = 0 if graph.is_data(node.input[1]) else 1
    matrix = _constant(graph, node, position)
    x = held.spread()
    if node.op_type == "MatMul":
        axis, matrix = (x.ndim - 1, matrix) if position == 1 else (x.ndim - 2, matrix.T)
        target = list(range(x.ndim))
    else:
        axis, matrix, target = _einsum_axes(node, position, matrix)
    if x.shape[axis] != matrix.shape[0]:
        raise NotASite(f"node {node.name!r} does not multiply along the channels")
    last = np.moveaxis(x, axis, -1)
    batch, term, place = held.decode(last)
    if np.any(batch != batch[..., :1]) or np.any(place != place[..., :1]):
        raise NotASite(f"node {node.name!r} adds more than channels")
    channels = term.reshape(-1, term.shape[-1])
    if np.any(channels != channels[:1]):
        raise NotASite(f"node {node.name!r} adds other channels at other positions")
    sums = np.array([terms.total(channels[0][column != 0].tolist()) for column in matrix.T], np.int64)
    size = int(np.prod(held.positions))
    ids = (batch[..., :1] * TERM_LIMIT + sums) * size + place[..., :1]
    return held.moved(np.ascontiguousarray(np.moveaxis(ids, -1, axis).transpose(target)))


def _einsum_axes(
    node: NodeProto, position: int, matrix: NDArray[np.generic]
) -> tuple[int, NDArray[np.generic], list[int]]:
    """The contracted axis of the data, the matrix (contracted x new), and the order of the result's axes."""
    equation = str(attribute(node, "equation", "")).replace(" ", "")
    left, _, target = equation.partition("->")
    letters = left.split(",")
    data, constant = letters[1 - position], letters[position]
    summed = [letter for letter in constant if letter in data and letter not in target]
    fresh = [letter for letter in constant if letter not in data and letter in target]
    if "." in equation or len(summed) != 1 or len(fresh) != 1 or len(set(data)) != len(data):
        raise NotASite(f"Einsum {node.name!r} is not a product along one axis")
    if constant[0] != summed[0]:
        matrix = matrix.T
    made = data.replace(summed[0], fresh[0])
    if sorted(made) != sorted(target):
        raise NotASite(f"Einsum {node.name!r} is not a product along one axis")
    return data.index(summed[0]), matrix, [made.index(letter) for letter in target]


def _shape(graph: Graph, name: str) -> Shape:
    shape = graph.shape(name)
    if shape is None:
        raise NotASite(f"the shape of {name!r} is not known")
    return shape


def _constant(graph: Graph, node: NodeProto, position: int) -> NDArray[np.generic]:
    value = graph.constant(node.input[position])
    if value is None:
        raise NotASite(f"{node.input[position]!r}, which says how {node.name!r} moves data, depends on the input")
    return value
