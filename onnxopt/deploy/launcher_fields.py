"""The fields from which the launcher library makes a plugin: everything that it knows of an operator.

They are attributes of an ONNX node. TensorRT's parser hands over those that the library names: an integer or a list of
them as int32, a text with a zero byte behind it, a tensor of int8 as its bytes. Everything binary is such a tensor:
readers of ONNX take the text of an attribute for UTF-8. ``plugins/launcher/source/fields.h`` has the other side.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Literal

from onnxopt.deploy.engine_operators import ONNX_TYPES, Grid, Output, TensorType
from onnxopt.errors import InputError
from onnxopt.kernels.compilation import CompiledKernel

FORMAT = 1
PLUGIN_NAME = "OnnxoptKernel"
"""What the creator in the library is called, and the operator of a node that is handed to it."""

Field = tuple[int, ...] | str | bytes
"""Numbers, a text or bytes."""

ArgumentKind = Literal["input", "batch", "output", "workspace", "unused"]

_KINDS: tuple[ArgumentKind, ...] = ("input", "batch", "output", "workspace", "unused")
_ARCHITECTURE = re.compile(r"sm_([0-9]{2,3})([af]?)")
_MAGIC, _CODE_VERSION, _ALIGNMENT = b"ONNXOPTK", 1, 16
_HEADER, _RECORD = struct.Struct("<8sII"), struct.Struct("<IIIIQQ")
_CUBIN, _PTX = 0, 1
_LARGEST = 2**31 - 1


@dataclass(frozen=True)
class LauncherInput:
    """An input: elements of a batch element or, of a table, in all."""

    type: TensorType
    table: bool
    elements: int


@dataclass(frozen=True)
class LauncherKernel:
    """A kernel and its launch. ``arguments`` are in order, each a kind and which of them; ``compiled`` for each GPU."""

    entry: str
    grid: Grid
    threads: int
    shared_bytes: int
    arguments: tuple[tuple[ArgumentKind, int], ...]
    compiled: tuple[CompiledKernel, ...]


@dataclass(frozen=True)
class LauncherProgram:
    """What one plugin computes: its kernels run one behind the other.

    ``workspace`` has the bytes that each part of the workspace takes for a batch element.
    """

    name: str
    inputs: tuple[LauncherInput, ...]
    outputs: tuple[Output, ...]
    workspace: tuple[int, ...]
    kernels: tuple[LauncherKernel, ...]


def launcher_fields(program: LauncherProgram) -> dict[str, Field]:
    """The fields of a program by name, in the order in which the library knows them.

    Raises InputError for a number that does not fit 32 bits, and for an architecture with an unknown name.
    """
    fields: dict[str, Field] = {
        "format": (FORMAT,),
        "operator": program.name,
        "inputs": tuple(chain.from_iterable((ONNX_TYPES[i.type], int(i.table), i.elements) for i in program.inputs)),
        "outputs": tuple(chain.from_iterable(_output(output) for output in program.outputs)),
        "workspace": (len(program.workspace), *program.workspace),
        "entries": ",".join(kernel.entry for kernel in program.kernels),
        "launches": tuple(chain.from_iterable(_launch(kernel) for kernel in program.kernels)),
        "arguments": tuple(chain.from_iterable(_arguments(kernel) for kernel in program.kernels)),
        "code": _code([kernel.compiled for kernel in program.kernels]),
    }
    return {**fields, "checksum": checksum(fields)}


def checksum(fields: Mapping[str, Field]) -> str:
    """CRC-32 of all fields but ``checksum``, in their order, as the library computes it."""
    rest = 0
    for name, field in fields.items():
        content = field_bytes(field)
        for part in (name.encode() + b"\0", struct.pack("<Q", len(content)), content):
            rest = zlib.crc32(part, rest)
    return f"{rest:08x}"


def field_bytes(field: Field) -> bytes:
    """A field as the library has it in memory. Raises InputError for a number that does not fit 32 bits."""
    if isinstance(field, bytes):
        return field
    if isinstance(field, str):
        return field.encode() + b"\0"
    wrong = next((number for number in field if not -1 <= number <= _LARGEST), None)
    if wrong is not None:
        raise InputError(f"a field of the launcher has the number {wrong:,}; allowed: -1 to {_LARGEST:,}")
    return struct.pack(f"<{len(field)}i", *field)


def _output(output: Output) -> tuple[int, ...]:
    sizes = (-1 if size is None else size for size in output.shape)
    return (ONNX_TYPES[output.type], output.elements, len(output.shape), *sizes)


def _launch(kernel: LauncherKernel) -> tuple[int, ...]:
    grid = kernel.grid
    return (grid.factor, grid.count, grid.size, kernel.threads, kernel.shared_bytes)


def _arguments(kernel: LauncherKernel) -> tuple[int, ...]:
    pairs = ((_KINDS.index(kind), index) for kind, index in kernel.arguments)
    return (len(kernel.arguments), *chain.from_iterable(pairs))


def _code(kernels: Sequence[Sequence[CompiledKernel]]) -> bytes:
    """Machine code of every kernel for every GPU and, where another GPU could take it, PTX for the oldest of them."""
    images = [image for number, compiled in enumerate(kernels) for image in _images(number, compiled)]
    place = _up(_HEADER.size + _RECORD.size * len(images))
    records, contents = b"", b""
    for number, kind, architecture, suffix, data in images:
        records += _RECORD.pack(number, kind, architecture, suffix, place + len(contents), len(data))
        contents += data.ljust(_up(len(data)), b"\0")
    return (_HEADER.pack(_MAGIC, _CODE_VERSION, len(images)) + records).ljust(place, b"\0") + contents


def _images(number: int, compiled: Sequence[CompiledKernel]) -> list[tuple[int, int, int, int, bytes]]:
    if not compiled:
        raise InputError(
            f"kernel {number} of an operator has no machine code; compile it for at least one architecture"
        )
    named = sorted((*_parsed(kernel.architecture), kernel) for kernel in _distinct(compiled))
    images = [(number, _CUBIN, architecture, suffix, kernel.cubin) for architecture, suffix, kernel in named]
    general = [(architecture, kernel) for architecture, suffix, kernel in named if not suffix]
    if general:
        architecture, kernel = general[0]
        images.append((number, _PTX, architecture, 0, kernel.ptx.encode() + b"\0"))
    return images


def _distinct(compiled: Sequence[CompiledKernel]) -> list[CompiledKernel]:
    names = [kernel.architecture for kernel in compiled]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise InputError(f"a kernel is given twice for {twice}; give one for each architecture")
    return list(compiled)


def _parsed(architecture: str) -> tuple[int, int]:
    found = _ARCHITECTURE.fullmatch(architecture)
    if found is None:
        raise InputError(f"a kernel is for {architecture[:40]!r}; allowed: names such as sm_89 or sm_90a")
    return int(found[1]), ord(found[2]) if found[2] else 0


def _up(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT
