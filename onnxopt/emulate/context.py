"""Operands of one function as C++: registers, constants, addresses."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Set
from dataclasses import dataclass, field

from onnxopt.emulate.cursor import TYPE_BYTES
from onnxopt.emulate.errors import EmulationError
from onnxopt.emulate.opcode import Typed
from onnxopt.emulate.ptx import Address, Function, Immediate, Negated, Operand, Register, Sink, Symbol
from onnxopt.emulate.rules import CPP_TYPES

_AXES = {"x": 0, "y": 1, "z": 2}
_SPECIAL = {
    "%laneid": "t.lane",
    "%warpid": "(t.index / 32)",
    "%nwarpid": "((block_threads(t) + 31) / 32)",
    "%lanemask_eq": "(1u << t.lane)",
    "%lanemask_lt": "lanes_below(t)",
    "%lanemask_le": "(lanes_below(t) | (1u << t.lane))",
    "%lanemask_gt": "~(lanes_below(t) | (1u << t.lane))",
    "%lanemask_ge": "~lanes_below(t)",
    "%smid": "0u",
    "%nsmid": "1u",
    "%gridid": "uint64_t{0}",
    "%clock": "static_cast<uint32_t>(++t.launch->clock)",
    "%clock64": "(++t.launch->clock)",
    "%clock_hi": "static_cast<uint32_t>(++t.launch->clock >> 32)",
    "%globaltimer": "(++t.launch->clock)",
    "%globaltimer_lo": "static_cast<uint32_t>(++t.launch->clock)",
    "%dynamic_smem_size": "t.launch->dynamic_shared",
    "%total_smem_size": "(t.launch->static_shared + t.launch->dynamic_shared)",
}
_TRIPLES = {
    "%tid": "t.position[{}]",
    "%ntid": "t.launch->threads[{}]",
    "%ctaid": "t.launch->block[{}]",
    "%nctaid": "t.launch->blocks[{}]",
}


@dataclass
class Context:
    """What the names in a function stand for. `used` collects the registers that its code mentions.

    `arrays` are parameters that live in C++ arrays (those of a .func and of calls), as (read, write) expressions.
    `tracked` are registers that may hold an accumulator of wgmma before its wait.
    """

    function: Function
    addresses: Mapping[str, int]
    arrays: Mapping[str, tuple[str, str]]
    tracked: Set[str] = frozenset()
    used: set[str] = field(default_factory=set)

    def register(self, name: str, line: int) -> tuple[str, int]:
        """The C++ variable of a register and its bytes (0: a predicate)."""
        kind = self.function.registers.get(name)
        if kind is None:
            raise EmulationError(f"PTX line {line}: the register {name} is not declared or not supported", line)
        if kind == "b128":
            raise EmulationError(f"PTX line {line}: 128-bit registers ({name}) are not supported", line)
        self.used.add(name)
        return variable_name(name), 0 if kind == "pred" else TYPE_BYTES[kind]

    def read(self, typed: Typed, line: int, moved: bool = False) -> str:
        """A C++ expression of the type that stands for `typed.type`; `moved` where only the bits are passed on."""
        operand, kind = typed.operand, typed.type
        if kind in ("address", "param", "param_out"):
            return self._memory(operand, kind, line)
        if kind.startswith("source"):
            return self._source_size(operand, int(kind.removeprefix("source")), line)
        cpp = CPP_TYPES[kind]
        if isinstance(operand, Negated):
            return f"(!{self.read(Typed(operand.operand, kind), line)})"
        if isinstance(operand, Register):
            return self._read_register(operand, kind, line, moved)
        if isinstance(operand, Immediate):
            return _constant(operand, kind)
        if isinstance(operand, Symbol):
            return f"({cpp}){self.symbol(operand.name, line)}ull"
        raise EmulationError(f"PTX line {line}: {operand} cannot be read as {kind}", line)

    def _read_register(self, operand: Register, kind: str, line: int, moved: bool) -> str:
        cpp = CPP_TYPES[kind]
        special = _special(operand.name)
        if special is not None:
            return special if cpp == "uint32_t" else f"({cpp})({special})"
        name, size = self.register(operand.name, line)
        if (size == 0) != (kind == "pred") or 0 < size < TYPE_BYTES[kind]:
            raise EmulationError(f"PTX line {line}: the register {operand.name} cannot be read as {kind}", line)
        if operand.name in self.tracked and not moved:
            name = f"settled(t, {line}, {name})"
        return as_type(name, kind, size)

    def assign(self, typed: Typed, value: str, line: int) -> str:
        """A statement that gives a register the value of type `typed.type`."""
        if isinstance(typed.operand, Sink):
            return f"(void)({value});"
        if not isinstance(typed.operand, Register):
            raise EmulationError(f"PTX line {line}: {typed.operand} is no destination", line)
        name, size = self.register(typed.operand.name, line)
        if (size == 0) != (typed.type == "pred") or 0 < size < TYPE_BYTES[typed.type]:
            raise EmulationError(f"PTX line {line}: the register {typed.operand.name} cannot hold {typed.type}", line)
        return f"{name} = {as_bits(value, typed.type, size)};"

    def words(self, operand: Operand, line: int) -> list[str]:
        """An operand as 32-bit words, the way collectives take it."""
        if isinstance(operand, Address):
            return [f"static_cast<uint32_t>({self._memory(operand, 'address', line)})"]
        if isinstance(operand, Register) and _special(operand.name) is None:
            name, size = self.register(operand.name, line)
            if size == 8:
                return [f"static_cast<uint32_t>({name})", f"static_cast<uint32_t>({name} >> 32)"]
            return [f"settled(t, {line}, {name})" if operand.name in self.tracked else name]
        return [self.read(Typed(operand, "b32"), line)]

    def symbol(self, name: str, line: int) -> int:
        """The address of a variable in its state space."""
        if name not in self.addresses:
            raise EmulationError(f"PTX line {line}: {name} has no address that a program can use here", line)
        return self.addresses[name]

    def _memory(self, operand: Operand, kind: str, line: int) -> str:
        if not isinstance(operand, Address):
            raise EmulationError(f"PTX line {line}: expected an address in brackets, found {operand}", line)
        base, offset = operand.base, operand.offset
        if kind.startswith("param"):
            if isinstance(base, Symbol) and base.name in self.arrays:
                return f"({self.arrays[base.name][kind == 'param_out']} + {offset})"
            if kind == "param_out":
                raise EmulationError(f"PTX line {line}: an entry's parameters cannot be written", line)
            return f"read_parameter(t, {line}, {self._sum(base, offset, line)}, 1)"
        return self._sum(base, offset, line)

    def _sum(self, base: Register | Symbol | Immediate, offset: int, line: int) -> str:
        if isinstance(base, Symbol):
            return f"{(self.symbol(base.name, line) + offset) % (1 << 64)}ull"
        if isinstance(base, Immediate):
            return f"{(base.bits + offset) % (1 << 64)}ull"
        name, size = self.register(base.name, line)
        if size == 4:
            # Addresses of 32 bits wrap in 32 bits.
            return f"(uint64_t)({name} + {offset % (1 << 32)}u)"
        return f"({name} + {offset % (1 << 64)}ull)" if offset else name

    def _source_size(self, operand: Operand, size: int, line: int) -> str:
        """What a cp.async reads: a number of bytes, or nothing where a predicate says to ignore the source."""
        is_predicate = isinstance(operand, Negated) or (
            isinstance(operand, Register) and self.function.registers.get(operand.name) == "pred"
        )
        if is_predicate:
            return f"({self.read(Typed(operand, 'pred'), line)} ? 0u : {size}u)"
        return self.read(Typed(operand, "u32"), line)


def variable_name(register: str) -> str:
    """The C++ name of a register."""
    return "v_" + register.lstrip("%").replace("$", "_S_").replace("%", "_P_")


def _storage(size: int) -> str:
    return f"uint{8 * size}_t" if size else "bool"


def _special(name: str) -> str | None:
    head, _, axis = name.partition(".")
    if head in _TRIPLES and axis in _AXES:
        return _TRIPLES[head].format(_AXES[axis])
    return _SPECIAL.get(name)


def as_type(value: str, kind: str, size: int) -> str:
    """Bits, in a variable of `size` bytes, as a PTX type. A cast or a plain function: templates cost compile time."""
    cpp = CPP_TYPES[kind]
    if cpp == _storage(size):
        return value
    return f"({cpp}){value}" if "int" in cpp else f"as_{kind}({value})"


def as_bits(value: str, kind: str, size: int) -> str:
    """A value of a PTX type as the contents of a variable of `size` bytes."""
    cpp = CPP_TYPES[kind]
    if cpp == _storage(size):
        return value
    # A signed value widens with its sign, everything else with zeros.
    return f"({_storage(size)})({cpp})({value})" if "int" in cpp else f"bits_of({value})"


def _constant(operand: Immediate, kind: str) -> str:
    bits, cpp = operand.bits, CPP_TYPES[kind]
    if kind == "pred":
        return "true" if bits else "false"
    if kind == "f32" and operand.kind == "f64":
        (value,) = struct.unpack("<d", bits.to_bytes(8, "little"))
        bits = int.from_bytes(struct.pack("<f", value), "little")
    size = TYPE_BYTES[kind]
    number = f"{bits % (1 << (8 * size))}{'ull' if size == 8 else 'u'}"
    return number if cpp in ("uint32_t", "uint64_t") else as_type(number, kind, 0)
