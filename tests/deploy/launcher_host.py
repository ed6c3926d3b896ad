"""The launcher's plugins as Python objects, through the host library that is built beside it. Needs ctypes alone."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

CHAR, INT8, INT32 = 6, 3, 5
"""TensorRT's numbers of the types of fields."""

DATA_TYPES = {"float32": 0, "fp16": 1, "int32": 3, "bf16": 7}
"""TensorRT's numbers of the types of tensors."""

LINEAR, OTHER_FORMAT = 0, 1
BUILD, RUNTIME = 0, 1
_ROOM = 64


@dataclass(frozen=True)
class Field:
    """A plugin field as a parser gives it; ``length`` counts entries."""

    name: str
    type: int
    data: bytes | None
    length: int


@dataclass(frozen=True)
class Tensor:
    """A tensor: its type, its sizes, and which of them are no constants while shapes are derived."""

    type: str
    sizes: tuple[int, ...]
    open: tuple[int, ...] = ()
    format: int = LINEAR


class HostField(ctypes.Structure):
    _fields_ = (
        ("name", ctypes.c_char_p),
        ("data", ctypes.c_void_p),
        ("type", ctypes.c_int32),
        ("length", ctypes.c_int32),
    )


class HostTensor(ctypes.Structure):
    _fields_ = (
        ("type", ctypes.c_int32),
        ("format", ctypes.c_int32),
        ("rank", ctypes.c_int32),
        ("open", ctypes.c_int32),
        ("sizes", ctypes.c_int64 * 8),
    )


class RefusedError(Exception):
    """The library refused; the text is what it gave TensorRT's logger."""


class Host:
    """The launcher library as TensorRT would load it.

    With ``tensorrt``, the path of a TensorRT library that this process has loaded, through its plugin registry.
    """

    def __init__(self, folder: Path, tensorrt: str | None = None) -> None:
        self.library = ctypes.CDLL(str(folder / "libonnxopt_launcher_host.so"))
        for name in ("host_log", "host_field_names", "host_cache_id"):
            getattr(self.library, name).restype = ctypes.c_char_p
        for name in ("host_create", "host_clone"):
            getattr(self.library, name).restype = ctypes.c_void_p
        self.library.host_workspace.restype = ctypes.c_int64
        launcher = str(folder / "libonnxopt_launcher.so").encode()
        if tensorrt is None:
            self.checked(self.library.host_open(launcher))
        else:
            self.checked(self.library.host_open_in_registry(tensorrt.encode(), launcher))

    def log(self) -> str:
        return str(self.library.host_log().decode())

    def checked(self, result: int) -> int:
        if result < 0:
            raise RefusedError(self.log())
        return result

    def field_names(self) -> list[str]:
        return str(self.library.host_field_names().decode()).split()

    def create(self, fields: Sequence[Field], phase: int = BUILD) -> Plugin:
        # What the fields point to lives as long as this call.
        kept = [None if field.data is None else ctypes.create_string_buffer(field.data) for field in fields]
        given = (HostField * max(1, len(fields)))()
        for place, (field, data) in enumerate(zip(fields, kept, strict=True)):
            pointer = None if data is None else ctypes.addressof(data)
            given[place] = HostField(field.name.encode(), pointer, field.type, field.length)
        handle = self.library.host_create(b"node", given, len(fields), phase)
        if not handle:
            raise RefusedError(self.log())
        return Plugin(self, handle)


class Plugin:
    """One plugin object."""

    def __init__(self, host: Host, handle: int) -> None:
        self.host, self.handle = host, ctypes.c_void_p(handle)

    def clone(self) -> Plugin:
        return Plugin(self.host, self.host.library.host_clone(self.handle))

    def destroy(self) -> None:
        self.host.library.host_destroy(self.handle)

    def fields(self) -> list[Field]:
        """What TensorRT would write into an engine."""
        found = (HostField * _ROOM)()
        count = self.host.checked(self.host.library.host_fields(self.handle, found, _ROOM))
        return [
            Field(f.name.decode(), f.type, ctypes.string_at(f.data, f.length * (4 if f.type == INT32 else 1)), f.length)
            for f in found[:count]
        ]

    def output_types(self, inputs: Sequence[Tensor], outputs: int) -> list[int]:
        types = (ctypes.c_int32 * max(1, outputs))()
        self.host.checked(
            self.host.library.host_output_types(self.handle, _tensors(inputs), len(inputs), types, outputs)
        )
        return list(types[:outputs])

    def output_shapes(self, inputs: Sequence[Tensor]) -> list[tuple[tuple[int, ...], int]]:
        """The sizes of each output, and as bits which of them are no constants."""
        found = (HostTensor * _ROOM)()
        count = self.host.checked(
            self.host.library.host_output_shapes(self.handle, _tensors(inputs), len(inputs), found, _ROOM)
        )
        return [(tuple(tensor.sizes[: tensor.rank]), tensor.open) for tensor in found[:count]]

    def supports(self, position: int, inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> bool:
        given = _tensors([*inputs, *outputs])
        return bool(self.host.library.host_supports(self.handle, position, given, len(inputs), len(outputs)))

    def configure(self, inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> None:
        given = _tensors([*inputs, *outputs])
        self.host.checked(self.host.library.host_configure(self.handle, given, len(inputs), len(outputs)))

    def workspace(self, inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> int:
        given = _tensors([*inputs, *outputs])
        return int(self.host.library.host_workspace(self.handle, given, len(inputs), len(outputs)))

    def cache_id(self) -> str:
        return str(self.host.library.host_cache_id(self.handle).decode())

    def shape_change(self, inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> None:
        given = _tensors([*inputs, *outputs])
        self.host.checked(self.host.library.host_shape_change(self.handle, given, len(inputs), len(outputs)))

    def enqueue(
        self,
        inputs: Sequence[Tensor],
        outputs: Sequence[Tensor],
        pointers: Sequence[int],
        workspace: int,
        stream: int = 0,
    ) -> None:
        """``pointers`` are those of all inputs, then those of all outputs."""
        given = _tensors([*inputs, *outputs])
        into, out = pointers[: len(inputs)], pointers[len(inputs) :]
        self.host.checked(
            self.host.library.host_enqueue(
                self.handle,
                given,
                len(inputs),
                len(outputs),
                (ctypes.c_void_p * len(into))(*into),
                (ctypes.c_void_p * len(out))(*out),
                ctypes.c_void_p(workspace),
                ctypes.c_void_p(stream),
            )
        )


def _tensors(tensors: Sequence[Tensor]) -> ctypes.Array[HostTensor]:
    made = (HostTensor * max(1, len(tensors)))()
    for place, tensor in enumerate(tensors):
        bits = sum(1 << axis for axis in tensor.open)
        sizes = (ctypes.c_int64 * 8)(*tensor.sizes)
        made[place] = HostTensor(DATA_TYPES[tensor.type], tensor.format, len(tensor.sizes), bits, sizes)
    return made
