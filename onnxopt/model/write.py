"""Writes a model whole or not at all; a large one with its weights in a second file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import onnx
from google.protobuf.message import EncodeError, Message
from onnx import AttributeProto, FunctionProto, GraphProto, NodeProto, TensorProto

from onnxopt.errors import InputError
from onnxopt.model.files import atomic_file, atomic_write
from onnxopt.model.tensors import raw_values, stored_tensors, value_bytes

# Protobuf ends at 2 GiB; the difference is room for what is not a tensor.
INLINE_LIMIT = 1_900_000_000
_KEEP_INLINE = 1024
# Runtimes map external data into memory, which needs offsets that are multiples of a page.
_PAGE = 4096
_HOLDERS = (onnx.ModelProto, GraphProto, FunctionProto, NodeProto, AttributeProto)

_T = TypeVar("_T")
_Store = Callable[[bytes], int]


def model_bytes(model: onnx.ModelProto) -> int:
    """How many bytes the model takes when it is written, weights included; also for more than 2 GB."""
    if _data_bytes(model) <= INLINE_LIMIT:
        return _encode(model.ByteSize)
    sizes: list[int] = []

    def count(values: bytes) -> int:
        sizes.append(len(values))
        return sum(sizes)

    outline = _outline(model, count, "")
    return _encode(outline.ByteSize) + sum(sizes)


def write_model(model: onnx.ModelProto, path: str | Path, *, inline_limit: int = INLINE_LIMIT) -> None:
    """Writes the model to `path`: the same bytes for the same model.

    Where its tensors have more than `inline_limit` bytes together, those over 1 KB go to `<name>.data` beside
    it, and that file is in place before the model's is. Both are complete or absent: after an error or an
    interruption the old files stand and no temporary file is left. The model itself is not changed, and its
    weights are never in memory a second time, but for one tensor.

    Raises InputError, naming the path, where a file cannot be written.
    """
    path = Path(path)
    if _data_bytes(model) <= inline_limit:
        atomic_write(path, _encode(lambda: model.SerializeToString(deterministic=True)))
        return
    data_path = path.with_name(path.name + ".data")
    with atomic_file(path) as file, atomic_file(data_path) as data:

        def append(values: bytes) -> int:
            data.write(b"\0" * (-data.tell() % _PAGE))
            offset = data.tell()
            data.write(values)
            return offset

        outline = _outline(model, append, data_path.name)
        file.write(_encode(lambda: outline.SerializeToString(deterministic=True)))


def _data_bytes(model: onnx.ModelProto) -> int:
    return sum(value_bytes(stored.tensor) for stored in stored_tensors(model))


def _encode(action: Callable[[], _T]) -> _T:
    try:
        return action()
    except (EncodeError, ValueError) as error:
        raise InputError(f"the model is too large for ONNX even without its weights ({error})") from None


def _outline(model: onnx.ModelProto, store: _Store, location: str) -> onnx.ModelProto:
    """A copy of the model without its large tensors' values; `store` takes those and returns offsets."""
    outline = onnx.ModelProto()
    _copy(model, outline, store, location)
    return outline


def _copy(source: Message, target: Message, store: _Store, location: str) -> None:
    if isinstance(source, TensorProto) and isinstance(target, TensorProto):
        _copy_tensor(source, target, store, location)
    elif not isinstance(source, _HOLDERS):
        target.CopyFrom(source)
    else:
        for field, value in source.ListFields():
            if isinstance(value, Message):
                child = getattr(target, field.name)
                child.SetInParent()
                _copy(value, child, store, location)
            elif field.message_type is not None:
                for item in value:
                    _copy(item, getattr(target, field.name).add(), store, location)
            elif hasattr(value, "extend"):
                getattr(target, field.name).extend(value)
            else:
                setattr(target, field.name, value)


def _copy_tensor(source: TensorProto, target: TensorProto, store: _Store, location: str) -> None:
    values = raw_values(source) if value_bytes(source) > _KEEP_INLINE else None
    if values is None:
        target.CopyFrom(source)
        return
    target.name = source.name
    target.data_type = source.data_type
    target.dims.extend(source.dims)
    target.metadata_props.extend(source.metadata_props)
    if source.HasField("doc_string"):
        target.doc_string = source.doc_string
    target.data_location = TensorProto.EXTERNAL
    entries = {"location": location, "offset": str(store(values)), "length": str(len(values))}
    for key, value in entries.items():
        target.external_data.add(key=key, value=value)
