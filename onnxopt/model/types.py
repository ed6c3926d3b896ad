"""Types and values of single tensors, as a view of a model needs them."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

Shape = tuple[int, ...]

_SHAPE_OPERATORS = {"Shape", "Size"}
# Shape inference reads values only of small integer tensors (shapes, axes, pads); larger ones are never
# needed.
_PROPAGATED_ELEMENTS = 1024


def array_of(tensor: TensorProto) -> np.ndarray | None:
    """The value of a stored tensor, or None where it is damaged."""
    try:
        return np.asarray(numpy_helper.to_array(tensor))
    except (ValueError, TypeError, KeyError):  # fewer bytes than its shape says, or a type that is not known
        return None


def static_shape(kind: onnx.TypeProto | None) -> Shape | None:
    """The shape if every dimension is a number, else None."""
    if kind is None or not kind.HasField("tensor_type") or not kind.tensor_type.HasField("shape"):
        return None
    dims = kind.tensor_type.shape.dim
    if not all(d.HasField("dim_value") for d in dims):
        return None
    return tuple(d.dim_value for d in dims)


def leading_dim(value: onnx.ValueInfoProto) -> int:
    """The first dimension of an input: 0 where symbolic or unknown, 1 for a scalar."""
    dims = value.type.tensor_type.shape.dim
    return dims[0].dim_value if dims else 1


def with_batch(kind: onnx.TypeProto, batch: int) -> onnx.TypeProto:
    """A copy with every symbolic or unknown dimension replaced by ``batch``."""
    result = onnx.TypeProto()
    result.CopyFrom(kind)
    for dim in result.tensor_type.shape.dim:
        if not dim.HasField("dim_value") or dim.dim_value <= 0:
            dim.ClearField("dim_param")
            dim.dim_value = batch
    return result


def constant_tensor(node: NodeProto) -> TensorProto | None:
    """The tensor of a Constant node, whichever of its attributes holds it."""
    if node.op_type != "Constant" or node.domain not in ("", "ai.onnx"):
        return None
    for item in node.attribute:
        if item.name == "value":
            return item.t
        if item.name in ("value_int", "value_ints"):
            return numpy_helper.from_array(np.array(helper.get_attribute_value(item), np.int64))
        if item.name in ("value_float", "value_floats"):
            return numpy_helper.from_array(np.array(helper.get_attribute_value(item), np.float32))
    return None


def decides_shapes(kind: onnx.TypeProto) -> bool:
    """Whether shape inference may need the value of a tensor of this type."""
    shape = static_shape(kind)
    integer = kind.tensor_type.elem_type in (TensorProto.INT64, TensorProto.INT32)
    # Resize takes its scales as floats, and its output shape depends on them.
    scales = kind.tensor_type.elem_type == TensorProto.FLOAT and shape is not None and len(shape) == 1
    if shape is None or not (integer or scales):
        return False
    return int(np.prod(shape)) <= (8 if scales else _PROPAGATED_ELEMENTS)


def reads_shape(node: NodeProto) -> bool:
    """Whether a node reads its input's shape and not its values."""
    return node.op_type in _SHAPE_OPERATORS and node.domain in ("", "ai.onnx") and len(node.input) == 1
