"""What PTX text says, as data: the module, its functions and variables, and every instruction with its line.

Names and meanings are those of NVIDIA's "Parallel Thread Execution ISA"; nothing here interprets an instruction.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias


@dataclass(frozen=True)
class Register:
    """A register, special ones included: `%r1`, `%tid.x`. `name` keeps the percent sign and the component."""

    name: str


@dataclass(frozen=True)
class Immediate:
    """A constant. `bits` is its value modulo 2^64, or its bits where `kind` is "f32" or "f64" instead of "int"."""

    bits: int
    kind: str


@dataclass(frozen=True)
class Symbol:
    """The name of a variable, a parameter, a label or a function."""

    name: str


@dataclass(frozen=True)
class Vector:
    """`{a, b, ...}`, also a register list of a matrix instruction."""

    items: tuple[Operand, ...]


@dataclass(frozen=True)
class Address:
    """`[base + offset]`; a base that is a number is Immediate."""

    base: Register | Symbol | Immediate
    offset: int


@dataclass(frozen=True)
class Pair:
    """`first|second`: a result and the predicate beside it."""

    first: Operand
    second: Operand


@dataclass(frozen=True)
class Negated:
    """`!predicate`."""

    operand: Register


@dataclass(frozen=True)
class Sink:
    """`_`: a result that is not wanted."""


Operand: TypeAlias = Register | Immediate | Symbol | Vector | Address | Pair | Negated | Sink


@dataclass(frozen=True)
class Predicate:
    """`@p` or `@!p` in front of an instruction."""

    register: Register
    negated: bool


@dataclass(frozen=True)
class Instruction:
    """One instruction. `line` counts from 1 in the PTX text; `add.rn.f32` has opcode "add", modifiers ("rn", "f32")."""

    line: int
    predicate: Predicate | None
    opcode: str
    modifiers: tuple[str, ...]
    operands: tuple[Operand, ...]

    @property
    def name(self) -> str:
        """The opcode with its modifiers, as the text has it."""
        return ".".join((self.opcode, *self.modifiers))


@dataclass(frozen=True)
class Label:
    """A place to branch to; unique within its function (a label of an inner scope is renamed)."""

    line: int
    name: str


@dataclass(frozen=True)
class BranchTargets:
    """`.branchtargets`: the labels that an indirect branch chooses from."""

    name: str
    labels: tuple[str, ...]


@dataclass(frozen=True)
class Variable:
    """A variable of a state space ("global", "const", "shared", "local", "param").

    `size` counts bytes, None an extern array without bounds; `initial` is its bytes (None: not given); `references`
    are places that hold the address of another variable: (offset here, its name, offset in it).
    """

    line: int
    name: str
    space: str
    alignment: int
    size: int | None
    initial: bytes | None
    extern: bool
    references: tuple[tuple[int, str, int], ...] = ()


@dataclass(frozen=True)
class Function:
    """A `.entry` or `.func`. `registers` maps each name to its type ("b32", "pred"), scoped names already unique.

    `limits` are the launch bounds of an entry: "maxntid" and "reqntid" with three numbers, others as they stand.
    """

    line: int
    name: str
    entry: bool
    results: tuple[Variable, ...]
    parameters: tuple[Variable, ...]
    limits: Mapping[str, tuple[int, ...]]
    registers: Mapping[str, str]
    variables: tuple[Variable, ...]
    branch_targets: tuple[BranchTargets, ...]
    body: tuple[Instruction | Label, ...]


@dataclass(frozen=True)
class Module:
    """All of a PTX text."""

    version: str
    target: str
    variables: tuple[Variable, ...]
    functions: tuple[Function, ...]
