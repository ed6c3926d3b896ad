"""What two parts of models must have in common to take the same time: the key of a tuning record."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from onnx import ModelProto, NodeProto, TensorProto, numpy_helper

from onnxopt.measure.environment import Environment
from onnxopt.model.graph import nested_names

_FORMAT = "onnxopt.fingerprint/1"
_FLOATS = {TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.BFLOAT16}
_SMALL_TENSOR = 64


def record_key(original: ModelProto, candidate: ModelProto, environment: Environment) -> str:
    """The SHA-256, in hexadecimal, of everything that the ratio of two models' times depends on."""
    parts = (
        _FORMAT,
        region_fingerprint(original),
        region_fingerprint(candidate),
        environment.machine,
        environment.onnxruntime,
        str(environment.threads),
    )
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def region_fingerprint(model: ModelProto) -> str:
    """A SHA-256 over operators, wiring, attributes, shapes, and the values of index tables and small
    constants.

    Names do not count (tensors are numbered as they appear), nor do the values of large float tensors: a
    dense operator takes as long on any weights. So equal layers of a network share one record.
    """
    numbers: dict[str, int] = {"": -1}

    def number(names: Iterable[str]) -> str:
        return ",".join(str(numbers.setdefault(name, len(numbers))) for name in names)

    digest = hashlib.sha256(_FORMAT.encode())

    def add(*parts: str | bytes) -> None:
        for part in parts:
            content = part.encode() if isinstance(part, str) else part
            digest.update(f"{len(content)}:".encode() + content)

    for opset in sorted(model.opset_import, key=lambda o: o.domain):
        add("opset", opset.domain, str(opset.version))
    for function in model.functions:
        add("function", function.SerializeToString(deterministic=True))
    for value in model.graph.input:
        add("input", number([value.name]), value.type.SerializeToString(deterministic=True))
    for node in model.graph.node:
        add("node", node.domain, node.op_type, number(node.input), number(node.output), *_attributes(node))
        number(nested_names(node))
    # In the order in which nodes read them: the order of storage says nothing about time.
    for tensor in sorted(model.graph.initializer, key=lambda t: numbers.get(t.name, len(numbers))):
        if tensor.name in numbers:
            add("constant", number([tensor.name]), *_tensor(tensor))
    for value in model.graph.output:
        add("output", number([value.name]))
    return digest.hexdigest()


def _attributes(node: NodeProto) -> list[bytes]:
    found: list[bytes] = []
    for item in sorted(node.attribute, key=lambda a: a.name):
        if item.HasField("t"):
            found.extend([item.name.encode(), *_tensor(item.t)])
        else:
            found.append(item.SerializeToString(deterministic=True))
    return found


def _tensor(tensor: TensorProto) -> list[bytes]:
    header = f"{tensor.data_type}{list(tensor.dims)}".encode()
    size = 1
    for length in tensor.dims:
        size *= length
    if tensor.data_type in _FLOATS and size > _SMALL_TENSOR:
        return [header]
    if tensor.data_type == TensorProto.STRING:
        return [header, *tensor.string_data]
    return [header, numpy_helper.to_array(tensor).tobytes()]
