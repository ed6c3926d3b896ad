"""For each ONNX operator that the host supports, its node in a whole-model program."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from onnx import NodeProto

from benchmarks.whole_model_geometry import conv_attributes, pool_attributes
from benchmarks.whole_model_program import Array, Node
from benchmarks.whole_model_translation import Translation, counted, float_attribute, int_attribute, label
from onnxopt.errors import InputError
from onnxopt.model.graph import attribute

Translator = Callable[[Translation, NodeProto], Sequence[Node]]


def _node(node: NodeProto, op: str, inputs: Sequence[str] | None = None, **attributes: Any) -> list[Node]:
    read = tuple(node.input if inputs is None else inputs)
    return [Node(op, node.name or node.output[0], read, tuple(node.output), attributes)]


def _plain(op: str) -> Translator:
    """An operator without parameters."""
    return lambda work, node: _node(node, op)


def _along(op: str, default: int) -> Translator:
    """An operator whose only parameter is an axis."""
    return lambda work, node: _node(node, op, axis=work.axis(node, default))


def _identity(work: Translation, node: NodeProto) -> Sequence[Node]:
    return [Node("Identity", node.name, (node.input[0],), (node.output[0],))]


def _reshape(work: Translation, node: NodeProto) -> Sequence[Node]:
    return _node(node, "Reshape", node.input[:1], shape=work.shape(node.output[0]))


def _transpose(work: Translation, node: NodeProto) -> Sequence[Node]:
    rank = len(work.shape(node.input[0]))
    return _node(node, "Transpose", order=attribute(node, "perm", None) or list(range(rank))[::-1])


def _slice(work: Translation, node: NodeProto) -> Sequence[Node]:
    shape = work.shape(node.input[0])
    starts, ends, axes, steps = (work.value(node, place) for place in (1, 2, 3, 4))
    if starts is None or ends is None:
        raise InputError(f"{label(node)}: has no starts or no ends")
    count = len(starts)
    chosen = range(count) if axes is None else [counted(int(axis), len(shape)) for axis in axes]
    strides = [1] * count if steps is None else [int(step) for step in steps]
    ranges = []
    for axis, start, end, step in zip(chosen, starts.tolist(), ends.tolist(), strides, strict=True):
        begin, stop, _ = slice(start, end, step).indices(shape[axis])
        if step < 0:
            return _backwards(work, node, axis, np.arange(begin, stop, step), count)
        ranges.append([axis, begin, stop, step])
    return _node(node, "Slice", node.input[:1], ranges=ranges)


def _backwards(work: Translation, node: NodeProto, axis: int, places: Array, count: int) -> Sequence[Node]:
    """A slice with a negative step, which PyTorch has no view for."""
    if count > 1:
        raise InputError(f"{label(node)}: a negative step beside other axes is not supported by the host")
    index = work.new_constant(f"{node.output[0]}/places", places)
    return _node(node, "Gather", [node.input[0], index], axis=axis)


def _split(work: Translation, node: NodeProto) -> Sequence[Node]:
    axis, begin, nodes = work.axis(node, 0), 0, []
    for output in node.output:
        size = work.shape(output)[axis]
        ranges = [[axis, begin, begin + size, 1]]
        nodes.append(Node("Slice", node.name or output, (node.input[0],), (output,), {"ranges": ranges}))
        begin += size
    return nodes


def _gather(work: Translation, node: NodeProto) -> Sequence[Node]:
    axis = work.axis(node, 0)
    if node.input[1] in work.graph.data:
        return _node(node, "Gather", axis=axis)
    index = work.value(node, 1)
    assert index is not None
    size = work.shape(node.input[0])[axis]
    index = np.where(index < 0, index + size, index).astype(np.int64)
    if index.ndim == 0:
        return _node(node, "Select", node.input[:1], axis=axis, index=int(index))
    return _node(node, "Gather", [node.input[0], work.new_constant(f"{node.output[0]}/index", index)], axis=axis)


def _indexed(op: str, attribute_name: str, allowed: Any) -> Translator:
    """GatherND and scatters, whose further attribute has one allowed value."""

    def translate(work: Translation, node: NodeProto) -> Sequence[Node]:
        value = attribute(node, attribute_name, allowed)
        if value != allowed:
            raise InputError(f"{label(node)}: {attribute_name} is {value!r}; the host supports {allowed!r}")
        more: dict[str, Any] = {"axis": work.axis(node, 0)} if op == "ScatterElements" else {}
        return _node(node, op, **more)

    return translate


def _pad(work: Translation, node: NodeProto) -> Sequence[Node]:
    pads, value, axes = (work.value(node, place) for place in (1, 2, 3))
    if attribute(node, "mode", "constant") != "constant" or pads is None or (pads < 0).any():
        raise InputError(f"{label(node)}: the host supports constant pads that are given and not negative")
    rank = len(work.shape(node.input[0]))
    chosen = range(rank) if axes is None else [counted(int(axis), rank) for axis in axes]
    whole = [0] * (2 * rank)
    for number, axis in enumerate(chosen):
        whole[axis], whole[rank + axis] = int(pads[number]), int(pads[len(chosen) + number])
    if not any(whole):
        return _identity(work, node)
    return _node(node, "Pad", node.input[:1], pads=whole, value=0.0 if value is None else float(value))


def _expand(work: Translation, node: NodeProto) -> Sequence[Node]:
    shape = work.shape(node.output[0])
    if shape == work.shape(node.input[0]):
        return _identity(work, node)
    return _node(node, "Expand", node.input[:1], shape=shape)


def _tile(work: Translation, node: NodeProto) -> Sequence[Node]:
    repeats = work.value(node, 1)
    assert repeats is not None
    return _node(node, "Tile", node.input[:1], repeats=repeats.tolist())


def _cast(work: Translation, node: NodeProto) -> Sequence[Node]:
    kinds = {1: "float", 10: "float", 11: "float", 16: "float", 6: "int64", 7: "int64", 9: "bool"}
    to = int_attribute(node, "to", 0)
    if to not in kinds:
        raise InputError(f"{label(node)}: casts to type {to}; the host has floats, int64 and bool")
    return _node(node, "Cast", to=kinds[to])


def _clip(work: Translation, node: NodeProto) -> Sequence[Node]:
    low, high = (work.value(node, place) for place in (1, 2))
    if low is None and high is None:
        return _identity(work, node)
    bounds: dict[str, Any] = {"low": None if low is None else float(low), "high": None if high is None else float(high)}
    return _node(node, "Clip", node.input[:1], **bounds)


def _reduce(work: Translation, node: NodeProto) -> Sequence[Node]:
    rank, given = len(work.shape(node.input[0])), attribute(node, "axes", None)
    value = work.value(node, 1)
    axes = given if isinstance(given, list) else [] if value is None else value.tolist()
    if not axes and int_attribute(node, "noop_with_empty_axes", 0):
        return _identity(work, node)
    chosen = sorted(counted(int(axis), rank) for axis in axes) or list(range(rank))
    return _node(node, node.op_type, node.input[:1], axes=chosen, keep=bool(int_attribute(node, "keepdims", 1)))


def _global_average(work: Translation, node: NodeProto) -> Sequence[Node]:
    return _node(node, "ReduceMean", axes=list(range(2, len(work.shape(node.input[0])))), keep=True)


def _softmax(work: Translation, node: NodeProto) -> Sequence[Node]:
    if work.graph.opset < 13:
        raise InputError(f"{label(node)}: of opset {work.graph.opset}; the host has that of opset 13 and later")
    return _along(node.op_type, -1)(work, node)


def _top_k(work: Translation, node: NodeProto) -> Sequence[Node]:
    k = work.value(node, 1)
    assert k is not None
    largest = bool(int_attribute(node, "largest", 1))
    return _node(node, "TopK", node.input[:1], k=int(k.ravel()[0]), axis=work.axis(node, -1), largest=largest)


def _gemm(work: Translation, node: NodeProto) -> Sequence[Node]:
    turned: dict[str, Any] = {f"turn_{side}": bool(int_attribute(node, f"trans{side.upper()}", 0)) for side in "ab"}
    factors: dict[str, Any] = {name: float_attribute(node, name, 1.0) for name in ("alpha", "beta")}
    return _node(node, "Gemm", **turned, **factors)


def _layer_norm(work: Translation, node: NodeProto) -> Sequence[Node]:
    return _node(node, node.op_type, axis=work.axis(node, -1), epsilon=float_attribute(node, "epsilon", 1e-5))


def _batch_norm(work: Translation, node: NodeProto) -> Sequence[Node]:
    if int_attribute(node, "training_mode", 0):
        raise InputError(f"{label(node)}: is in training mode; export the model for inference")
    return _node(node, node.op_type, epsilon=float_attribute(node, "epsilon", 1e-5))


def _conv(work: Translation, node: NodeProto) -> Sequence[Node]:
    return _node(node, "Conv", **conv_attributes(node, work.shape(node.input[0]), work.shape(node.input[1])))


def _pool(work: Translation, node: NodeProto) -> Sequence[Node]:
    return _node(node, node.op_type, **pool_attributes(node, work.shape(node.input[0])))


_WITHOUT_PARAMETERS = (
    *("Add", "Sub", "Mul", "Div", "Pow", "Equal", "Less", "Greater", "And", "Or", "Max", "Min", "Where", "Not"),
    *("Neg", "Reciprocal", "Exp", "Log", "Sqrt", "Abs", "Tanh", "IsNaN", "Erf", "Relu", "Sigmoid", "HardSwish"),
    "MatMul",
)

TRANSLATORS: Mapping[str, Translator] = {
    **{op: _plain(op) for op in _WITHOUT_PARAMETERS},
    **dict.fromkeys(("Identity", "Dropout"), _identity),
    **dict.fromkeys(("Reshape", "Flatten", "Squeeze", "Unsqueeze"), _reshape),
    **dict.fromkeys(("ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin"), _reduce),
    **dict.fromkeys(("Softmax", "LogSoftmax"), _softmax),
    **dict.fromkeys(("MaxPool", "AveragePool"), _pool),
    "Transpose": _transpose,
    "Slice": _slice,
    "Split": _split,
    "Concat": _along("Concat", 0),
    "Gather": _gather,
    "GatherND": _indexed("GatherND", "batch_dims", 0),
    "ScatterND": _indexed("ScatterND", "reduction", "none"),
    "ScatterElements": _indexed("ScatterElements", "reduction", "none"),
    "Pad": _pad,
    "Expand": _expand,
    "Tile": _tile,
    "Cast": _cast,
    "Clip": _clip,
    "HardSigmoid": lambda work, node: _node(
        node, "HardSigmoid", alpha=float_attribute(node, "alpha", 0.2), beta=float_attribute(node, "beta", 0.5)
    ),
    "GlobalAveragePool": _global_average,
    "TopK": _top_k,
    "Gemm": _gemm,
    "Einsum": lambda work, node: _node(node, "Einsum", equation=str(attribute(node, "equation")).replace(" ", "")),
    "LayerNormalization": _layer_norm,
    "BatchNormalization": _batch_norm,
    "Conv": _conv,
}
"""What the host supports: for each ONNX operator, its node in a program."""
