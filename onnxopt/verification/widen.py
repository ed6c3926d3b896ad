"""A model in a wider floating type: the same graph, every float of it float64 (or float32)."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from onnxopt.verification.interface import FLOAT_TYPES
from onnxopt.verification.sessions import RunError, opened

# Above this size the doubled copy costs more memory than the closer reference is worth.
MAX_WIDENED_BYTES = 256 << 20
# Tensors above this size take no part in a probe: kernels are found by type, not by value.
_PROBE_TENSOR_BYTES = 4096
_TYPE_ATTRIBUTES = frozenset({"to", "dtype", "output_dtype", "softmax_precision"})


def widen(model: onnx.ModelProto, target: int) -> onnx.ModelProto:
    """A copy of `model` with every float tensor, constant, cast and declared value in the type `target`.

    `target` is TensorProto.DOUBLE or TensorProto.FLOAT; floats wider than it stay as they are. Values are
    converted exactly. Whether the result runs is for the runtime to say: several operators have no float64
    kernel.
    """
    wide = onnx.ModelProto()
    wide.CopyFrom(model)
    narrow = FLOAT_TYPES - {TensorProto.DOUBLE, target}
    _widen_graph(wide.graph, narrow, target)
    for function in wide.functions:
        _widen_nodes(function.node, narrow, target)
        _widen_values(function.value_info, narrow, target)
    return wide


def float64_reference(model: onnx.ModelProto, *, threads: int) -> onnx.ModelProto | None:
    """`model` in float64, or None where it is large or an operator of it has no float64 kernel.

    Kernels are probed first on a copy whose weights are inputs, so that a refusal costs no conversion.
    """
    size = sum(_bytes_of(tensor) for tensor in model.graph.initializer)
    if size > MAX_WIDENED_BYTES or len(model.graph.sparse_initializer) > 0:
        return None
    if not _opens(widen(_skeleton(model), TensorProto.DOUBLE), threads):
        return None
    wide = widen(model, TensorProto.DOUBLE)
    return wide if _opens(wide, threads) else None


def uses_type(model: onnx.ModelProto, elem_type: int) -> bool:
    """Whether an input, output, stored tensor or cast of the main graph has this type."""
    graph = model.graph
    return (
        any(tensor.data_type == elem_type for tensor in graph.initializer)
        or any(value.type.tensor_type.elem_type == elem_type for value in [*graph.input, *graph.output])
        or any(
            (attribute.name in _TYPE_ATTRIBUTES and attribute.i == elem_type)
            or (attribute.HasField("t") and attribute.t.data_type == elem_type)
            for node in graph.node
            for attribute in node.attribute
        )
    )


def _opens(model: onnx.ModelProto, threads: int) -> bool:
    try:
        with opened(model, threads=threads, optimise=False):
            return True
    except RunError:
        return False


def _bytes_of(tensor: TensorProto) -> int:
    return (
        int(np.prod(tensor.dims, dtype=np.int64))
        * np.dtype(onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)).itemsize
    )


def _skeleton(model: onnx.ModelProto) -> onnx.ModelProto:
    skeleton = onnx.ModelProto()
    skeleton.CopyFrom(model)
    graph = skeleton.graph
    listed = {value.name for value in graph.input}
    large = [tensor for tensor in graph.initializer if _bytes_of(tensor) > _PROBE_TENSOR_BYTES]
    graph.input.extend(
        onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims))
        for tensor in large
        if tensor.name not in listed
    )
    kept = [tensor for tensor in graph.initializer if _bytes_of(tensor) <= _PROBE_TENSOR_BYTES]
    del graph.initializer[:]
    graph.initializer.extend(kept)
    return skeleton


def _widen_graph(graph: onnx.GraphProto, narrow: frozenset[int], target: int) -> None:
    for tensor in graph.initializer:
        _widen_tensor(tensor, narrow, target)
    for values in (graph.input, graph.output, graph.value_info):
        _widen_values(values, narrow, target)
    _widen_nodes(graph.node, narrow, target)


def _widen_values(values: Iterable[onnx.ValueInfoProto], narrow: frozenset[int], target: int) -> None:
    for value in values:
        if value.type.tensor_type.elem_type in narrow:
            value.type.tensor_type.elem_type = target


def _widen_nodes(nodes: Iterable[onnx.NodeProto], narrow: frozenset[int], target: int) -> None:
    for node in nodes:
        for attribute in node.attribute:
            _widen_attribute(node, attribute, narrow, target)
        if node.op_type == "ConstantOfShape" and not node.attribute and TensorProto.FLOAT in narrow:
            zero = numpy_helper.from_array(np.zeros(1, onnx.helper.tensor_dtype_to_np_dtype(target)))
            node.attribute.append(onnx.helper.make_attribute("value", zero))


def _widen_attribute(node: onnx.NodeProto, attribute: onnx.AttributeProto, narrow: frozenset[int], target: int) -> None:
    if attribute.name in _TYPE_ATTRIBUTES and attribute.i in narrow:
        attribute.i = target
    elif attribute.HasField("t"):
        _widen_tensor(attribute.t, narrow, target)
    elif attribute.HasField("g"):
        _widen_graph(attribute.g, narrow, target)
    elif node.op_type == "Constant" and attribute.name in ("value_float", "value_floats"):
        # These two spellings are float32 by definition.
        number = np.float32(onnx.helper.get_attribute_value(attribute))
        values = np.asarray(number, onnx.helper.tensor_dtype_to_np_dtype(target))
        attribute.CopyFrom(onnx.helper.make_attribute("value", numpy_helper.from_array(values)))


def _widen_tensor(tensor: TensorProto, narrow: frozenset[int], target: int) -> None:
    if tensor.data_type in narrow:
        values = numpy_helper.to_array(tensor).astype(onnx.helper.tensor_dtype_to_np_dtype(target))
        tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
