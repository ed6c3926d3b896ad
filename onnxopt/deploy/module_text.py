"""The text of a generated plugin module: one section for each operator, with signatures of its own.

Names come from a model that may be anyone's, so nothing but checked names and numbers reaches the text.
"""

from __future__ import annotations

import keyword
import re
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from math import prod
from string import Template
from typing import Any

from onnxopt.deploy.engine_operators import EngineOperator, Output, Port, Tactic, TensorType
from onnxopt.errors import InputError

TENSORRT_TYPES: Mapping[TensorType, tuple[str, str]] = {
    "fp16": ("FP16", "float16"),
    "bf16": ("BF16", "bfloat16"),
    "float32": ("FP32", "float32"),
    "int32": ("INT32", "int32"),
}
"""What ``tensorrt.plugin`` calls a type in a combination of formats, and the module ``tensorrt`` by itself."""

_LINE = 116
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*")
# Of this form is nothing else that the module defines.
_OPERATOR = re.compile(r"[A-Z][a-z][A-Za-z0-9]*_[a-z0-9_]+")
_MOST_SIZES = 8
_FILE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.]*")
_SHA256 = re.compile(r"[0-9a-f]{64}")
# Parameters that TensorRT gives a meaning of its own, and what the functions call their own values.
_TAKEN = ("outputs", "stream", "tactic", "inputs", "batch", "combination")


@dataclass(frozen=True)
class KernelFiles:
    """The files of a tactic's kernel: their name up to the suffix, and the SHA-256 of PTX and machine code."""

    name: str
    ptx_sha256: str
    cubin_sha256: str


def parameter_names(operator: EngineOperator) -> tuple[str, ...]:
    """What inputs are called in Python: operands as they are, tables with the number of their tactic behind them."""
    owners = {
        tactic.first_table + table: number
        for number, tactic in enumerate(operator.tactics, 1)
        for table in range(tactic.tables)
    }
    operands = [_free(port.name) for port in operator.operands]
    tables = [f"{port.name}_{owners[place]}" for place, port in enumerate(operator.tables)]
    return (*operands, *tables)


def operator_section(
    template: Template, operator: EngineOperator, kernels: Sequence[KernelFiles], architecture: str
) -> str:
    """The part of a module that defines and registers one operator, whose tactics have ``kernels`` in the same order.

    A digest of the part and of the ``architecture`` of its kernels tells it from others of the same name. Raises
    InputError for a description that is not whole or has a name that Python or a file cannot have.
    """
    check_operator(operator, kernels)
    values = _values(operator, kernels)
    digest = sha256(f"{architecture}\n{template.substitute(values, digest='')}".encode()).hexdigest()
    return template.substitute(values, digest=digest)


def _values(operator: EngineOperator, kernels: Sequence[KernelFiles]) -> dict[str, Any]:
    """What the template's names stand for."""
    names = parameter_names(operator)
    outputs = operator.outputs
    return {
        "name": operator.name,
        "batch_elements": operator.batch_elements,
        "tactics": "\n".join(_tactic(t, k) for t, k in zip(operator.tactics, kernels, strict=True)),
        "descriptions": _parameters(names, "TensorDesc"),
        "tensors": _parameters(names, "Tensor"),
        "returns": ", ".join(["TensorDesc"] * len(outputs)),
        "tensor_returns": ", ".join(["Tensor"] * len(outputs)),
        "ports": _ports(names, operator),
        "result": _result(operator, names[0]),
        "formats": _formats([*operator.inputs, *outputs]),
        "numbers": list(range(1, len(operator.tactics) + 1)),
        "first": names[0],
        "inputs": _wrapped([f"{name}," for name in names], " " * 12),
    }


def check_operator(operator: EngineOperator, kernels: Sequence[KernelFiles]) -> None:
    """InputError where a description cannot be written as a plugin, naming the operator and what is wrong."""
    what = f"operator {operator.name[:80]!r}"
    ports: list[Port | Output] = [*operator.inputs, *operator.outputs]
    for port in ports:
        if not _NAME.fullmatch(port.name) or port.type not in TENSORRT_TYPES:
            raise InputError(
                f"{what}: a tensor {port.name[:80]!r} of type {str(port.type)[:20]!r}; allowed: names of letters, "
                f"digits and underscores, and the types {', '.join(TENSORRT_TYPES)}"
            )
        if len(port.shape) > _MOST_SIZES:
            raise InputError(f"{what}: {port.name!r} has {len(port.shape)} sizes; TensorRT takes up to {_MOST_SIZES}")
    names = [(_OPERATOR, operator.name), *((_NAME, tactic.entry) for tactic in operator.tactics)]
    names += [(_FILE, files.name) for files in kernels]
    wrong = next((name for pattern, name in names if not pattern.fullmatch(name)), None)
    if wrong is not None:
        raise InputError(
            f"{what}: the name {wrong[:80]!r}; allowed: letters, digits and underscores, as in GroupConv_1f"
        )
    if any(not _SHA256.fullmatch(digest) for files in kernels for digest in (files.ptx_sha256, files.cubin_sha256)):
        raise InputError(f"{what}: a kernel's SHA-256 is no number of 64 hexadecimal digits")
    if not operator.tactics or not operator.operands or not operator.outputs:
        raise InputError(f"{what}: it has no tactic, no operand or no output; each of them is needed")
    if len(kernels) != len(operator.tactics):
        raise InputError(f"{what}: {len(kernels)} kernels for {len(operator.tactics)} tactics; each has one")
    owned = [t.first_table + table for t in operator.tactics for table in range(t.tables)]
    if owned != list(range(len(operator.tables))):
        raise InputError(f"{what}: the tables of its tactics are not its {len(operator.tables)} tables, each once")
    inputs = parameter_names(operator)
    twice = next((name for name in inputs if inputs.count(name) > 1), None)
    if twice is not None:
        raise InputError(f"{what}: two inputs are called {twice!r}; each needs a name of its own")


def _free(name: str) -> str:
    return f"{name}_" if name in _TAKEN or keyword.iskeyword(name) else name


def _parameters(names: Iterable[str], kind: str) -> str:
    return _wrapped([f"{name}: {kind}," for name in names], " " * 8)


def _wrapped(parts: Sequence[str], indent: str) -> str:
    """Parts in as few lines as they fill; none is broken up."""
    joined = " ".join(part.replace(" ", "\0") for part in parts)
    lines = textwrap.wrap(joined, _LINE, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False)
    return "\n".join(lines).replace("\0", " ")


def _tactic(tactic: Tactic, files: KernelFiles) -> str:
    grid = tactic.grid
    lines = [
        f'kernel="{files.name}",',
        f'entry="{tactic.entry}",',
        f'ptx_sha256="{files.ptx_sha256}",',
        f'cubin_sha256="{files.cubin_sha256}",',
        f"grid=Grid(factor={grid.factor}, count={grid.count}, size={grid.size}),",
        f"threads={tactic.threads},",
        f"shared_bytes={tactic.shared_bytes},",
    ]
    return textwrap.indent("\n".join(["Tactic(", *(f"    {line}" for line in lines), "),"]), " " * 12)


def _ports(names: Sequence[str], operator: EngineOperator) -> str:
    ports: list[tuple[str, Port | Output]] = list(zip(names, operator.inputs, strict=True))
    ports += [(port.name, port) for port in operator.outputs]
    return "\n".join(f"    {name}: {port.type} {_sizes(port.shape)}" for name, port in ports)


def _sizes(shape: Sequence[int | None]) -> str:
    """Sizes as a reader expects them, `?` where one follows the batch."""
    return "[" + ", ".join("?" if size is None else str(size) for size in shape) + "]"


def _result(operator: EngineOperator, first: str) -> str:
    """What the description gives: the outputs, with the batch in symbols where a size is open."""
    made = ", ".join(_described(output) for output in operator.outputs)
    needed = any(None in output.shape for output in operator.outputs)
    before = [f"        batch = {operator.name}.operator.batch({first})"] if needed else []
    line = f"        return ({made}{',' if len(operator.outputs) == 1 else ''})"
    if len(line) <= _LINE:
        return "\n".join([*before, line])
    lines = [f"            {_described(output)}," for output in operator.outputs]
    return "\n".join([*before, "        return (", *lines, "        )"])


def _described(output: Output) -> str:
    sizes = [_open_size(output) if size is None else str(size) for size in output.shape]
    shape = f"({', '.join(sizes)}{',' if len(sizes) == 1 else ''})"
    return f"trtp.from_shape_expr({shape}, trt.{TENSORRT_TYPES[output.type][1]})"


def _open_size(output: Output) -> str:
    """The size that follows the batch, as an expression of it."""
    known = prod(size for size in output.shape if size is not None)
    times, rest = divmod(output.elements, known)
    if rest:
        return f"batch * {output.elements} // {known}"
    return "batch" if times == 1 else f"batch * {times}"


def _formats(ports: Sequence[Port | Output]) -> str:
    """One statement for each type: which inputs and outputs have it."""
    places: dict[TensorType, list[str]] = {}
    for place, port in enumerate(ports):
        places.setdefault(port.type, []).append(str(place))
    lines = []
    for kind, own in places.items():
        name = TENSORRT_TYPES[kind][0]
        line = f'        combination.pos([{", ".join(own)}], "{name}", "LINEAR")'
        if len(line) > _LINE:
            numbers = _wrapped([f"{number}," for number in own], " " * 16)
            line = "\n".join(
                [
                    "        combination.pos(",
                    "            [",
                    numbers,
                    "            ],",
                    f'            "{name}",',
                    '            "LINEAR",',
                    "        )",
                ]
            )
        lines.append(line)
    return "\n".join(lines)
