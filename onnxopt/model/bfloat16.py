"""bfloat16 for a model that was converted to float16.

The converter that is used knows float16 only, and never looks into it. A model without any float16 before has it
afterwards exactly where something was converted, so naming the other type there is the same conversion. Values are
taken from the original: float16 would have cost them range.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import ml_dtypes
import numpy as np
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto, numpy_helper
from onnx.version_converter import ConvertError, convert_version

from onnxopt.errors import InputError
from onnxopt.model.graph import default_opset

OPSET = 22
"""The first version of the operators in which convolutions and poolings take bfloat16."""

_LARGEST = (2 - 2.0**-7) * 2.0**127
_SMALLEST = 2.0**-133


def raised_opset(model: ModelProto) -> ModelProto:
    """The model in opset 22, by ONNX's own converter; the model itself where it has that already.

    Raises InputError where it cannot be raised.
    """
    if default_opset(model) >= OPSET:
        return model
    try:
        raised = convert_version(model, OPSET)
    except (ConvertError, RuntimeError, ValueError) as error:
        raise InputError(
            f"--dtype bf16 needs opset {OPSET}, and the model, of opset {default_opset(model)}, cannot be raised to it "
            f"({' '.join(str(error).split())[:200]}); export it with opset {OPSET}, or take --dtype fp16"
        ) from None
    raised.metadata_props.extend(entry for entry in model.metadata_props if entry not in raised.metadata_props)
    return raised


def rounded(values: np.ndarray) -> np.ndarray:
    """float32 values in bfloat16; a finite one stays finite, and one that is not 0 does not become 0."""
    result = np.asarray(values.astype(ml_dtypes.bfloat16))
    off = (result == 0) & (values != 0) | np.isinf(result) & np.isfinite(values)
    if np.any(off):
        nearest = np.clip(np.abs(values[off]), _SMALLEST, _LARGEST)
        result[off] = np.copysign(nearest, values[off]).astype(ml_dtypes.bfloat16)
    return result


def as_bfloat16(narrow: ModelProto, original: ModelProto) -> None:
    """Name bfloat16, in place, wherever ``narrow`` names float16, with the values that ``original`` has in float32."""
    _graph(narrow.graph, original.graph)


def _graph(graph: GraphProto, original: GraphProto) -> None:
    values = {tensor.name: tensor for tensor in original.initializer}
    for tensor in graph.initializer:
        _tensor(tensor, values.get(tensor.name))
    for value in (*graph.input, *graph.output, *graph.value_info):
        _value(value)
    before = {name: node for node in original.node for name in node.output if name}
    for node in graph.node:
        twin = next((before[name] for name in node.output if name in before), None)
        if twin is None:
            # What stays in float32 and its casts have new names; neither holds a constant.
            twin = NodeProto()
        _attributes(node.attribute, {item.name: item for item in twin.attribute})


def _attributes(items: Iterable[AttributeProto], before: Mapping[str, AttributeProto]) -> None:
    for item in items:
        if item.name in ("to", "dtype") and item.i == TensorProto.FLOAT16:
            item.i = TensorProto.BFLOAT16
        elif item.HasField("t"):
            _tensor(item.t, before[item.name].t if item.name in before else None)
        elif item.HasField("g"):
            _graph(item.g, before[item.name].g)


def _value(value: ValueInfoProto) -> None:
    if value.type.tensor_type.elem_type == TensorProto.FLOAT16:
        value.type.tensor_type.elem_type = TensorProto.BFLOAT16


def _tensor(tensor: TensorProto, before: TensorProto | None) -> None:
    if tensor.data_type != TensorProto.FLOAT16:
        return
    source = numpy_helper.to_array(tensor if before is None else before)
    name = tensor.name
    tensor.CopyFrom(numpy_helper.from_array(rounded(source.astype(np.float32)), name))
