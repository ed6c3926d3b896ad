"""Reading the written form of an attention: what its nodes and tables say, number by number.

Data movement is run on element numbers; products and softmax are not computed but noted. Numbers of batch elements
never mix: no node may touch the first axis, and every shape leaves its length open.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from onnx import NodeProto, numpy_helper

from onnxopt.lower.rewrite import Rewrite
from onnxopt.model.graph import attribute
from onnxopt.validate.failure import PlanError


@dataclass(frozen=True)
class Elements:
    """A tensor as element numbers from 1, for one batch element; 0 is a zero that the form itself put there.

    They number the elements of the sources, or with ``computed`` those of the results of all batches.
    """

    numbers: np.ndarray
    computed: bool = False


@dataclass(frozen=True)
class Gathered:
    """Vectors taken from ``table`` (1 x vectors x width): ``index`` is heads x strips x rows or keys.

    ``factor`` broadcasts to ``index``; ``turned``: the last two axes have been swapped.
    """

    table: np.ndarray
    index: np.ndarray
    factor: np.ndarray | None = None
    turned: bool = False


@dataclass(frozen=True)
class Weights:
    """Scores, or with ``normalised`` their softmax; ``added`` is 4-D and broadcasts to heads x strips x rows x keys."""

    queries: Gathered
    keys: Gathered
    added: np.ndarray | None = None
    normalised: bool = False


@dataclass(frozen=True)
class Batch:
    """One batched attention; its result ``(head * strips + strip) * rows + row`` has the number ``first`` more."""

    queries: Gathered
    keys: Gathered
    values: Gathered
    added: np.ndarray | None
    first: int


@dataclass(frozen=True)
class Written:
    """All batches, and the output as element numbers of their results (result number * value width + channel + 1)."""

    batches: tuple[Batch, ...]
    output: np.ndarray


Value = Elements | Gathered | Weights


def read_written(rewrite: Rewrite, sources: Mapping[str, np.ndarray], output: str) -> Written:
    """What the nodes make of ``sources`` (element numbers by tensor, one batch element each).

    Raises :class:`PlanError` where a node is none that the form consists of, or an index points at nothing.
    """
    reader = _Reader(rewrite, sources)
    for node in rewrite.nodes:
        reader.run(node)
    if rewrite.replaces != (output,):
        raise PlanError(f"{rewrite.site}: the rewrite replaces {list(rewrite.replaces)}, expected {[output]}")
    made = reader.made.get(output)
    if not isinstance(made, Elements) or not made.computed:
        raise PlanError(f"{rewrite.site}: {output!r} is not made of the results of the written attention")
    return Written(tuple(reader.batches), made.numbers)


class _Reader:
    def __init__(self, rewrite: Rewrite, sources: Mapping[str, np.ndarray]) -> None:
        self.site = rewrite.site
        self.tables = {tensor.name: numpy_helper.to_array(tensor) for tensor in rewrite.tables}
        self.made: dict[str, Value] = {name: Elements(numbers) for name, numbers in sources.items()}
        self.batches: list[Batch] = []
        self.results = 0
        self.value_width = 0

    def run(self, node: NodeProto) -> None:
        rules = {
            "Reshape": self._reshape,
            "Transpose": self._transpose,
            "Concat": self._concat,
            "Pad": self._pad,
            "Gather": self._gather,
            "Mul": self._mul,
            "MatMul": self._matmul,
            "Add": self._add,
            "Softmax": self._softmax,
        }
        rule = rules.get(node.op_type)
        self._need(rule is not None and node.domain == "" and len(node.output) == 1, node, "it is no part of the form")
        assert rule is not None
        self._need(node.output[0] not in self.made, node, f"it makes {node.output[0]!r} a second time")
        self.made[node.output[0]] = rule(node)

    def _need(self, holds: bool, node: NodeProto, what: str) -> None:
        if not holds:
            raise PlanError(f"{self.site}: node {node.name!r} ({node.op_type}): {what}")

    def _value(self, node: NodeProto, position: int) -> Value:
        self._need(len(node.input) > position, node, f"it lacks input {position}")
        name = node.input[position]
        self._need(name in self.made, node, f"it reads {name!r}, which is neither made before nor read by the site")
        return self.made[name]

    def _elements(self, node: NodeProto, position: int = 0) -> Elements:
        value = self._value(node, position)
        self._need(isinstance(value, Elements), node, "it moves data in the middle of an attention")
        assert isinstance(value, Elements)
        return value

    def _table(self, node: NodeProto, position: int) -> np.ndarray:
        self._need(len(node.input) > position, node, f"it lacks input {position}")
        name = node.input[position]
        self._need(name in self.tables, node, f"there is no table {name!r}")
        return self.tables[name]

    def _reshape(self, node: NodeProto) -> Elements:
        value, shape = self._elements(node), [int(d) for d in self._table(node, 1).reshape(-1)]
        open_first = len(shape) > 0 and shape[0] == -1 and all(d > 0 for d in shape[1:])
        self._need(open_first, node, f"the shape {shape} does not leave the first dimension, and only it, open")
        fits = value.numbers.size % int(np.prod(shape[1:])) == 0
        self._need(fits, node, f"{list(value.numbers.shape)} cannot have the shape {shape}")
        return replace(value, numbers=value.numbers.reshape(shape))

    def _transpose(self, node: NodeProto) -> Value:
        value, order = self._value(node, 0), attribute(node, "perm")
        if isinstance(value, Gathered):
            self._need(order == [0, 1, 2, 4, 3] and not value.turned, node, f"it turns vectors by {order}")
            return replace(value, turned=True)
        moved = self._elements(node)
        axes = order if isinstance(order, list) else []
        keeps_first = sorted(axes) == list(range(moved.numbers.ndim)) and axes[0] == 0
        self._need(keeps_first, node, f"{order} does not keep the first of {moved.numbers.ndim} axes in place")
        return replace(moved, numbers=moved.numbers.transpose(axes))

    def _concat(self, node: NodeProto) -> Elements:
        parts = [self._elements(node, position) for position in range(len(node.input))]
        axis = attribute(node, "axis")
        shapes = [list(p.numbers.shape) for p in parts]
        rest = {tuple(d for i, d in enumerate(shape) if i != axis) for shape in shapes}
        inside = isinstance(axis, int) and 0 < axis < len(shapes[0]) and len(rest) == 1
        self._need(inside, node, f"it joins {shapes} along axis {axis}")
        self._need(len({p.computed for p in parts}) == 1, node, "it joins results with what they are computed from")
        assert isinstance(axis, int)
        return replace(parts[0], numbers=np.concatenate([p.numbers for p in parts], axis=axis))

    def _pad(self, node: NodeProto) -> Elements:
        value, pads = self._elements(node), [int(p) for p in self._table(node, 1).reshape(-1)]
        rank = value.numbers.ndim
        zero = len(node.input) == 2 and attribute(node, "mode", "constant") == "constant"
        adds = zero and len(pads) == 2 * rank and min(pads) >= 0 and pads[0] == pads[rank] == 0
        self._need(adds, node, f"it does not add zeros behind the first axis: {pads}")
        around = [(pads[axis], pads[rank + axis]) for axis in range(rank)]
        return replace(value, numbers=np.pad(value.numbers, around))

    def _gather(self, node: NodeProto) -> Value:
        value, index = self._elements(node), self._table(node, 1)
        self._need(index.dtype in (np.int32, np.int64), node, f"its indices are {index.dtype}")
        table = value.numbers
        along = attribute(node, "axis", 0) == 1 and table.ndim == 3 and len(table) == 1
        self._need(along, node, f"it does not take vectors along axis 1 of a table, but of {list(table.shape)}")
        wrong = index[(index < 0) | (index >= table.shape[1])]
        if wrong.size:
            self._need(
                False, node, f"index {int(wrong.flat[0])} points at nothing: the table has {table.shape[1]} rows"
            )
        if value.computed:
            return replace(value, numbers=np.take(table, index, axis=1))
        self._need(index.ndim == 3, node, f"its indices {list(index.shape)} are not heads x strips x places")
        return Gathered(table, index)

    def _mul(self, node: NodeProto) -> Gathered:
        value, factor = self._value(node, 0), self._table(node, 1)
        fresh = isinstance(value, Gathered) and value.factor is None and not value.turned
        self._need(fresh, node, "it scales something other than gathered vectors, once")
        assert isinstance(value, Gathered)
        wide = (1,) * (5 - factor.ndim) + factor.shape
        fits = len(wide) == 5 and wide[0] == wide[4] == 1 and _broadcasts(wide[1:4], value.index.shape)
        self._need(fits, node, f"its factors {list(factor.shape)} are not one for a vector")
        return replace(value, factor=factor.reshape(wide[1:4]))

    def _add(self, node: NodeProto) -> Weights:
        value, added = self._value(node, 0), self._table(node, 1)
        fresh = isinstance(value, Weights) and value.added is None and not value.normalised
        self._need(fresh, node, "it adds to something other than scores, once")
        assert isinstance(value, Weights)
        wide = (1,) * (5 - added.ndim) + added.shape
        shape = (*value.queries.index.shape, value.keys.index.shape[2])
        fits = len(wide) == 5 and wide[0] == 1 and _broadcasts(wide[1:], shape)
        self._need(fits, node, f"{list(added.shape)} does not broadcast to scores of {list(shape)}")
        return replace(value, added=added.reshape(wide[1:]))

    def _softmax(self, node: NodeProto) -> Weights:
        value = self._value(node, 0)
        self._need(isinstance(value, Weights) and not value.normalised, node, "it normalises no scores")
        self._need(attribute(node, "axis") in (-1, 4), node, "it does not normalise over the keys")
        assert isinstance(value, Weights)
        return replace(value, normalised=True)

    def _matmul(self, node: NodeProto) -> Value:
        left, right = self._value(node, 0), self._value(node, 1)
        self._need(isinstance(right, Gathered), node, "its second operand is not gathered")
        assert isinstance(right, Gathered)
        if isinstance(left, Gathered):
            alike = left.index.shape[:2] == right.index.shape[:2] and left.table.shape[2] == right.table.shape[2]
            product = alike and right.turned and not left.turned and right.factor is None
            self._need(product, node, "its operands are not queries and turned keys of the same strips")
            return Weights(left, right)
        self._need(isinstance(left, Weights) and left.normalised, node, "its first operand is no softmax")
        assert isinstance(left, Weights)
        shapes = list(right.index.shape), list(left.keys.index.shape)
        fits = shapes[0] == shapes[1] and not right.turned and right.factor is None
        self._need(fits, node, f"values {shapes[0]} are not one for each of the keys {shapes[1]}")
        return self._result(node, left, right)

    def _result(self, node: NodeProto, weights: Weights, values: Gathered) -> Elements:
        width = values.table.shape[2]
        self._need(
            self.value_width in (0, width), node, f"values have {width} channels here, {self.value_width} before"
        )
        self.value_width = width
        self.batches.append(Batch(weights.queries, weights.keys, values, weights.added, self.results))
        shape = (1, *weights.queries.index.shape, width)
        first = self.results * width + 1
        self.results += weights.queries.index.size
        return Elements(np.arange(first, self.results * width + 1).reshape(shape), computed=True)


def _broadcasts(shape: Sequence[int], target: Sequence[int]) -> bool:
    return len(shape) == len(target) and all(a in (1, b) for a, b in zip(shape, target, strict=True))
