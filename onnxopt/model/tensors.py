"""Every tensor that a model stores, and whether the bytes of each agree with its declared shape."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import onnx
from onnx import AttributeProto, GraphProto, NodeProto, TensorProto, numpy_helper

from onnxopt.errors import InputError

# NumPy 1 stops at 32 dimensions, and no model has so many.
MAX_RANK = 32

_BITS: dict[int, int] = {
    TensorProto.STRING: 0,
    TensorProto.UINT2: 2,
    TensorProto.INT2: 2,
    TensorProto.UINT4: 4,
    TensorProto.INT4: 4,
    TensorProto.FLOAT4E2M1: 4,
    TensorProto.UINT8: 8,
    TensorProto.INT8: 8,
    TensorProto.BOOL: 8,
    TensorProto.FLOAT8E4M3FN: 8,
    TensorProto.FLOAT8E4M3FNUZ: 8,
    TensorProto.FLOAT8E5M2: 8,
    TensorProto.FLOAT8E5M2FNUZ: 8,
    TensorProto.FLOAT8E8M0: 8,
    TensorProto.UINT16: 16,
    TensorProto.INT16: 16,
    TensorProto.FLOAT16: 16,
    TensorProto.BFLOAT16: 16,
    TensorProto.FLOAT: 32,
    TensorProto.INT32: 32,
    TensorProto.UINT32: 32,
    TensorProto.INT64: 64,
    TensorProto.UINT64: 64,
    TensorProto.DOUBLE: 64,
    TensorProto.COMPLEX64: 64,
    TensorProto.COMPLEX128: 128,
}

# Which field holds the values of an element type when they are not raw bytes, and bits to an entry.
# Types that are not listed use int32_data: an entry for each element, or for each byte of packed ones.
_FIELD_BITS: dict[int, tuple[str, int]] = {
    TensorProto.FLOAT: ("float_data", 32),
    TensorProto.COMPLEX64: ("float_data", 32),
    TensorProto.DOUBLE: ("double_data", 64),
    TensorProto.COMPLEX128: ("double_data", 64),
    TensorProto.INT64: ("int64_data", 64),
    TensorProto.UINT32: ("uint64_data", 32),
    TensorProto.UINT64: ("uint64_data", 64),
}
_VALUE_FIELDS = ("float_data", "int32_data", "int64_data", "double_data", "uint64_data", "string_data")


@dataclass(frozen=True)
class StoredTensor:
    """A tensor inside a model, and a phrase for messages that says where it stands."""

    tensor: TensorProto
    place: str


def stored_tensors(model: onnx.ModelProto) -> Iterator[StoredTensor]:
    """Every tensor of the model: initializers and attributes, also those in subgraphs and functions.

    Without recursion, so that deep nesting cannot exhaust the stack.
    """
    graphs: list[GraphProto] = [model.graph]
    for training in model.training_info:
        graphs += (training.initialization, training.algorithm)
    for function in model.functions:
        where = f" of function {function.name!r}"
        yield from _of_attributes(function.attribute_proto, f"the defaults{where}", graphs)
        yield from _of_nodes(function.node, where, graphs)
    while graphs:
        graph = graphs.pop()
        for tensor in graph.initializer:
            yield StoredTensor(tensor, f"initializer {tensor.name!r}")
        for sparse in graph.sparse_initializer:
            yield StoredTensor(sparse.values, f"the values of sparse initializer {sparse.values.name!r}")
            yield StoredTensor(sparse.indices, f"the indices of sparse initializer {sparse.values.name!r}")
        yield from _of_nodes(graph.node, "", graphs)


def node_label(node: NodeProto) -> str:
    """How messages name a node: by its name, or by its first output where it has none."""
    if node.name:
        return f"{node.op_type} node {node.name!r}"
    if node.output:
        return f"{node.op_type} node that makes {node.output[0]!r}"
    return f"{node.op_type} node without a name"


def tensor_bytes(stored: StoredTensor) -> int:
    """How many bytes the tensor's elements occupy as raw data; 0 for strings, whose size is not fixed.

    Raises InputError for an unknown element type, a negative dimension, or more than 32 dimensions.
    """
    tensor = stored.tensor
    if len(tensor.dims) > MAX_RANK:
        raise InputError(f"{stored.place} has {len(tensor.dims)} dimensions; at most {MAX_RANK} are supported")
    if any(size < 0 for size in tensor.dims):
        raise InputError(f"{stored.place} has a negative dimension: {list(tensor.dims)}; export the model again")
    return (math.prod(tensor.dims) * type_bits(tensor.data_type, stored.place) + 7) // 8


def type_bits(data_type: int, place: str) -> int:
    """Bits of one element, 0 for strings; InputError, naming `place`, for a type that is not supported."""
    if data_type not in _BITS:
        raise InputError(f"{place} has the unsupported element type {data_type}; export the model again")
    return _BITS[data_type]


def is_external(tensor: TensorProto) -> bool:
    """Whether the tensor's bytes lie in another file."""
    return tensor.data_location == TensorProto.EXTERNAL


def has_values(tensor: TensorProto) -> bool:
    """Whether the model itself holds values of the tensor."""
    return tensor.HasField("raw_data") or any(len(getattr(tensor, name)) for name in _VALUE_FIELDS)


def value_bytes(tensor: TensorProto) -> int:
    """Bytes of the tensor's values in a serialised model: exact for raw data, else an upper bound."""
    if tensor.HasField("raw_data"):
        return (math.prod(tensor.dims) * _BITS.get(tensor.data_type, 8) + 7) // 8
    fixed = 4 * len(tensor.float_data) + 8 * len(tensor.double_data)
    varying = 10 * (len(tensor.int32_data) + len(tensor.int64_data) + len(tensor.uint64_data))
    return fixed + varying + sum(len(text) + 10 for text in tensor.string_data)


def raw_values(tensor: TensorProto) -> bytes | None:
    """The values as raw data; None where they have no such form here (strings, packed typed fields)."""
    if is_external(tensor):
        return None
    if tensor.HasField("raw_data"):
        return tensor.raw_data
    if _BITS.get(tensor.data_type, 0) < 8:
        return None
    return numpy_helper.to_array(tensor).tobytes()


def check_inline(stored: StoredTensor) -> None:
    """Raises InputError unless a tensor stored inside the model holds as many values as its shape says."""
    tensor = stored.tensor
    if tensor.HasField("segment"):
        raise InputError(f"{stored.place} is stored in segments, which is not supported; export the model again")
    expected = tensor_bytes(stored)
    filled = [name for name in _VALUE_FIELDS if len(getattr(tensor, name))]
    if tensor.HasField("raw_data"):
        found = len(tensor.raw_data)
        if filled or tensor.data_type == TensorProto.STRING:
            raise InputError(f"{stored.place} stores its values in raw_data and elsewhere too; export the model again")
        _expect(stored, found, expected, "bytes")
        return
    field, wanted = _typed_field(tensor, expected)
    if set(filled) - {field}:
        raise InputError(f"{stored.place} stores its values in {', '.join(filled)}, not in {field}; export it again")
    _expect(stored, len(getattr(tensor, field)), wanted, "values")


def _typed_field(tensor: TensorProto, expected_bytes: int) -> tuple[str, int]:
    """The field that must hold the values of a tensor without raw data, and how many entries it must have."""
    if tensor.data_type == TensorProto.STRING:
        return "string_data", math.prod(tensor.dims)
    field, bits = _FIELD_BITS.get(tensor.data_type, ("int32_data", max(8, _BITS[tensor.data_type])))
    return field, expected_bytes * 8 // bits


def _expect(stored: StoredTensor, found: int, expected: int, unit: str) -> None:
    if found != expected:
        kind = TensorProto.DataType.Name(stored.tensor.data_type)
        raise InputError(
            f"{stored.place} holds {found:,} {unit}, but its shape {list(stored.tensor.dims)} of {kind} "
            f"needs {expected:,}; the file is damaged or incomplete: export the model again"
        )


def _of_nodes(nodes: Iterable[NodeProto], where: str, graphs: list[GraphProto]) -> Iterator[StoredTensor]:
    for node in nodes:
        if node.attribute:
            yield from _of_attributes(node.attribute, f"{node_label(node)}{where}", graphs)


def _of_attributes(
    attributes: Iterable[AttributeProto], owner: str, graphs: list[GraphProto]
) -> Iterator[StoredTensor]:
    """The tensors of some attributes; the subgraphs among them are appended to `graphs` for later."""
    for attribute in attributes:
        place = f"attribute {attribute.name!r} of {owner}"
        if attribute.HasField("t"):
            yield StoredTensor(attribute.t, place)
        for tensor in attribute.tensors:
            yield StoredTensor(tensor, place)
        sparse_tensors = list(attribute.sparse_tensors)
        if attribute.HasField("sparse_tensor"):
            sparse_tensors.append(attribute.sparse_tensor)
        for sparse in sparse_tensors:
            yield StoredTensor(sparse.values, place)
            yield StoredTensor(sparse.indices, place)
        if attribute.HasField("g"):
            graphs.append(attribute.g)
        graphs += attribute.graphs
