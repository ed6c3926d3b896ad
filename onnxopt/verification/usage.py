"""What an input means, read off how the graph uses it: data, a 0/1 mask, or ids of table rows.

A model fed with normal noise where it expects a mask computes something it was never made for, and a
comparison there says little. No name is looked at, only the graph. An input is followed through operators
that move its values or change them by a known rule, keeping for every tensor what it is when the input is 0
and when it is 1 (unknown parts are None). That pair is enough to recognise

- additive masks: the pair is {0, -50 or less} and is added to something else: `(1 - m) * -10000`, or
  `m * -1e9`;
- blends: a sum of a tensor that vanishes at 0 and one that vanishes at 1: `policy + (1 - policy) * eye`;
- conditions: a boolean made from the input chooses in a Where;
- ids: an integer made from the input by adding a constant picks rows in a Gather; its range is that of the
  table.

Ids win over masks, since a graph often derives a padding mask from its ids. Boolean inputs are masks in any
case.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import onnx
from onnx import numpy_helper

from onnxopt.verification.compare import is_float
from onnxopt.verification.interface import FLOAT_TYPES, INTEGER_TYPES, TensorSpec, input_specs

MASK_LIMIT = -50.0


class InputKind(enum.Enum):
    """How values for an input are drawn."""

    NORMAL = "normal"
    MASK = "mask"
    IDS = "ids"
    BYTES = "bytes"


@dataclass(frozen=True)
class InputUse:
    """The kind of an input and, for ids and bytes, the range [low, high) of its values."""

    kind: InputKind
    low: int = 0
    high: int = 2


@dataclass(frozen=True)
class _Image:
    """A tensor as a function of one input: its value where that is 0 and where it is 1; None is unknown."""

    at_zero: float | None
    at_one: float | None


@dataclass
class _Evidence:
    mask: bool = False
    ranges: list[tuple[int, int]] = field(default_factory=list)


_FILLS = frozenset(
    [
        "Identity",
        "Reshape",
        "Unsqueeze",
        "Squeeze",
        "Expand",
        "Transpose",
        "Slice",
        "Tile",
        "Flatten",
        "Cast",
        "CastLike",
    ]
)
_MOVES = _FILLS | {"Split", "Gather", "GatherND", "GatherElements", "Concat", "Pad"}
_ARITHMETIC: dict[str, Callable[[float, float], float]] = {
    "Add": lambda a, b: a + b,
    "Sub": lambda a, b: a - b,
    "Mul": lambda a, b: a * b,
    "Div": lambda a, b: a / b if b else float("nan"),
}
_COMPARISONS: dict[str, Callable[[float, float], bool]] = {
    "Equal": lambda a, b: a == b,
    "Greater": lambda a, b: a > b,
    "GreaterOrEqual": lambda a, b: a >= b,
    "Less": lambda a, b: a < b,
    "LessOrEqual": lambda a, b: a <= b,
}
_LOGIC = frozenset({"And", "Or", "Xor"})


def input_uses(model: onnx.ModelProto) -> dict[str, InputUse]:
    """The use of every input of `model`, by name."""
    facts = _GraphFacts(model.graph)
    return {spec.name: _use(model.graph, spec, facts) for spec in input_specs(model)}


class _GraphFacts:
    """Constants that hold one value, and the shapes that are known without running shape inference."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self.fills: dict[str, float] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        for tensor in graph.initializer:
            self._constant(tensor.name, tensor)
        for value in [*graph.value_info, *graph.input]:
            dims = value.type.tensor_type.shape.dim
            if dims and all(dim.HasField("dim_value") for dim in dims):
                self.shapes.setdefault(value.name, tuple(dim.dim_value for dim in dims))
        for node in graph.node:
            self._node(node)

    def _constant(self, name: str, tensor: onnx.TensorProto) -> None:
        self.shapes[name] = tuple(tensor.dims)
        size = int(np.prod(tensor.dims, dtype=np.int64))
        # Only small constants are read: a large one of a single value is not how masks are written.
        if 1 <= size <= 4096 and tensor.data_location != onnx.TensorProto.EXTERNAL:
            values = numpy_helper.to_array(tensor)
            numeric = values.dtype.kind in "iub" or is_float(values)
            if numeric and bool(np.all(values == values.flat[0])):
                self.fills[name] = float(values.flat[0])

    def _node(self, node: onnx.NodeProto) -> None:
        if not node.output:
            return
        if node.op_type in ("Constant", "ConstantOfShape"):
            for attribute in node.attribute:
                if attribute.name == "value" and node.op_type == "Constant":
                    self._constant(node.output[0], attribute.t)
                elif attribute.name == "value":
                    self._constant(node.output[0], attribute.t)
                    # The tensor gives the value; the shape comes from the node's input.
                    del self.shapes[node.output[0]]
                elif attribute.name in ("value_float", "value_int"):
                    self.fills[node.output[0]] = float(onnx.helper.get_attribute_value(attribute))
                    self.shapes[node.output[0]] = ()
            if node.op_type == "ConstantOfShape" and not node.attribute:
                self.fills[node.output[0]] = 0.0
        elif node.op_type in _FILLS and node.input and node.input[0] in self.fills:
            self.fills[node.output[0]] = self.fills[node.input[0]]


def _use(graph: onnx.GraphProto, spec: TensorSpec, facts: _GraphFacts) -> InputUse:
    if spec.elem_type == onnx.TensorProto.BOOL:
        return InputUse(InputKind.MASK)
    evidence = _trace(graph, spec, facts)
    if evidence.ranges:
        low = max(0, *(low for low, _ in evidence.ranges))
        high = min(high for _, high in evidence.ranges)
        return InputUse(InputKind.IDS, low, max(high, low + 1))
    if evidence.mask:
        return InputUse(InputKind.MASK)
    if spec.elem_type in FLOAT_TYPES:
        return InputUse(InputKind.NORMAL)
    if spec.elem_type == onnx.TensorProto.UINT8:
        return InputUse(InputKind.BYTES, 0, 256)
    if spec.elem_type == onnx.TensorProto.INT8:
        return InputUse(InputKind.BYTES, 0, 128)
    # 0 and 1 are the values that every remaining meaning of an integer (mask, flag, type id) allows.
    return InputUse(InputKind.MASK)


def _trace(graph: onnx.GraphProto, spec: TensorSpec, facts: _GraphFacts) -> _Evidence:
    evidence = _Evidence()
    images: dict[str, _Image] = {spec.name: _Image(0.0, 1.0)}
    for node in graph.node:
        if not any(name in images for name in node.input):
            continue
        _note_evidence(node, images, facts, evidence)
        image = _step(node, images, facts, exact=spec.elem_type in INTEGER_TYPES)
        if image is not None:
            images.update((name, image) for name in node.output if name)
    return evidence


def _note_evidence(node: onnx.NodeProto, images: dict[str, _Image], facts: _GraphFacts, evidence: _Evidence) -> None:
    operands = [images.get(name) for name in node.input]
    if node.op_type == "Where" and operands[0] is not None:
        evidence.mask = True
    elif node.op_type == "Add" and len(operands) == 2:
        evidence.mask |= _is_blend(operands[0], operands[1])
        for image, other in ((operands[0], node.input[1]), (operands[1], node.input[0])):
            added_to_data = other not in images and other not in facts.fills
            evidence.mask |= image is not None and added_to_data and _is_additive_mask(image)
    elif node.op_type in ("Gather", "GatherElements", "GatherND") and len(operands) > 1:
        index = operands[1]
        if index is not None and index.at_zero is not None and index.at_one == index.at_zero + 1:
            rows = _rows(node, facts)
            if rows is not None:
                evidence.ranges.append((int(-index.at_zero), int(rows - index.at_zero)))


def _is_additive_mask(image: _Image) -> bool:
    if image.at_zero is None or image.at_one is None:
        return False
    low, high = sorted((image.at_zero, image.at_one))
    return high == 0.0 and low <= MASK_LIMIT


def _is_blend(first: _Image | None, second: _Image | None) -> bool:
    if first is None or second is None:
        return False
    return any(
        a.at_zero == 0.0 and a.at_one != 0.0 and b.at_one == 0.0 and b.at_zero != 0.0
        for a, b in ((first, second), (second, first))
    )


def _rows(node: onnx.NodeProto, facts: _GraphFacts) -> int | None:
    shape = facts.shapes.get(node.input[0])
    if not shape:
        return None
    if node.op_type == "GatherND":
        return min(shape)
    axis = next((attribute.i for attribute in node.attribute if attribute.name == "axis"), 0)
    return shape[axis] if -len(shape) <= axis < len(shape) else None


def _step(node: onnx.NodeProto, images: dict[str, _Image], facts: _GraphFacts, exact: bool) -> _Image | None:
    """The image of the node's output, or None where the input's values are no longer recognisable in it."""
    first = images.get(node.input[0])
    if node.op_type in _MOVES:
        return _move(node, images)
    if node.op_type == "Not" and first is not None:
        return _Image(*(None if value is None else float(not value) for value in (first.at_zero, first.at_one)))
    if node.op_type == "Neg" and first is not None:
        return _Image(*(None if value is None else 0.0 - value for value in (first.at_zero, first.at_one)))
    if node.op_type in _LOGIC:
        return _Image(None, None)
    if len(node.input) != 2:
        return None
    sides = [_operand(name, images, facts) for name in node.input]
    if node.op_type in _ARITHMETIC:
        return _Image(*(_combine(node.op_type, a, b) for a, b in zip(*sides, strict=True)))
    if node.op_type in _COMPARISONS and (exact or node.op_type == "Equal"):
        # A threshold on float data (a leaky Relu written out) is no sign of a mask, so order is for
        # integers only.
        compare = _COMPARISONS[node.op_type]
        pairs = [None if a is None or b is None else float(compare(a, b)) for a, b in zip(*sides, strict=True)]
        return _Image(*pairs) if pairs[0] != pairs[1] else None
    return None


def _move(node: onnx.NodeProto, images: dict[str, _Image]) -> _Image | None:
    sources = node.input if node.op_type == "Concat" else node.input[:1]
    image = next((images[name] for name in sources if name in images), None)
    if image is None or node.op_type != "Cast":
        return image
    target = next((attribute.i for attribute in node.attribute if attribute.name == "to"), 0)
    if target != onnx.TensorProto.BOOL:
        return image
    return _Image(*(None if value is None else float(bool(value)) for value in (image.at_zero, image.at_one)))


def _operand(name: str, images: dict[str, _Image], facts: _GraphFacts) -> tuple[float | None, float | None]:
    if name in images:
        return images[name].at_zero, images[name].at_one
    fill = facts.fills.get(name)
    return fill, fill


def _combine(op_type: str, a: float | None, b: float | None) -> float | None:
    if op_type == "Mul" and (a == 0.0 or b == 0.0):
        return 0.0
    if a is None or b is None:
        return None
    return _ARITHMETIC[op_type](a, b)
