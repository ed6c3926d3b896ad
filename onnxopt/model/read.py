"""Reads a model that anyone may have written; what comes back is complete, consistent and in memory."""

from __future__ import annotations

from pathlib import Path

import onnx
from google.protobuf.message import DecodeError

from onnxopt.errors import InputError
from onnxopt.model.check import check_interface, check_nodes, check_text, check_versions
from onnxopt.model.external import external_range, load_external
from onnxopt.model.files import memory_budget, read_file
from onnxopt.model.order import check_and_sort
from onnxopt.model.tensors import check_inline, is_external, stored_tensors

# Protobuf's own limit for a message.
_MAX_PROTO_BYTES = (1 << 31) - 1
_GIT_LFS = b"version https://git-lfs"


def read_model(path: str | Path, *, max_bytes: int | None = None) -> onnx.ModelProto:
    """Reads a model with all its tensors, also those kept in other files, and checks it.

    `max_bytes` bounds the model's file and all its tensors together, before memory is taken for them; by
    default 3/4 of the machine's memory. The model may exceed 2 GB; then no whole of it can be serialised, but
    `onnxopt.model.write.write_model` writes it.

    What holds afterwards: a supported IR version (3 to 13) and opset (13 to 23); inputs with element types
    and with shapes of which only the first dimension may be symbolic; nodes in topological order (sorted here
    if need be); every tensor made once; as many values in every stored tensor as its shape says. Operators of
    unknown domains are accepted. Nothing else is changed.

    Raises InputError, whose message begins with the path, where a file cannot be read or any of this fails.
    """
    path = Path(path)
    limit = memory_budget() if max_bytes is None else max_bytes
    content = read_file(path, min(limit, _MAX_PROTO_BYTES))
    try:
        model = _parse(content)
        size = len(content)
        del content
        check_text(model)
        check_versions(model)
        check_nodes(model)
        _load_tensors(model, path.parent, size, limit)
        check_interface(model, limit)
        check_and_sort(model)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    return model


def _parse(content: bytes) -> onnx.ModelProto:
    if not content:
        raise InputError("the file is empty; export the model again")
    if content.startswith(_GIT_LFS):
        raise InputError("this is a Git LFS pointer, not the model itself; fetch it with `git lfs pull`")
    model = onnx.ModelProto()
    try:
        model.ParseFromString(content)
    except (DecodeError, ValueError, RecursionError):
        # Every exporter writes the IR version first.
        if content[:1] == b"\x08":
            raise InputError("the file is truncated or damaged; copy it or export the model again") from None
        raise InputError("the file is not an ONNX model; give the path of an .onnx file") from None
    if not model.HasField("graph"):
        raise InputError("the file has no graph: it is not an ONNX model, or truncated; export the model again")
    return model


def _load_tensors(model: onnx.ModelProto, folder: Path, total: int, limit: int) -> None:
    """Checks what is stored in the model and loads what is not, unless all of it exceeds `limit` bytes."""
    ranges = []
    for stored in stored_tensors(model):
        if is_external(stored.tensor):
            item = external_range(stored)
            ranges.append(item)
            total += item.length
        else:
            check_inline(stored)
            # Left over by some exporter; without the mark that it is external it means nothing.
            stored.tensor.ClearField("external_data")
    if total > limit:
        raise InputError(
            f"the model and its external data have {total:,} bytes; at most {limit:,} are allowed. "
            "Use a machine with more memory, or raise the limit"
        )
    load_external(ranges, folder)
