"""One instruction as C++ statements."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from string import Template

from onnxopt.emulate.context import Context, variable_name
from onnxopt.emulate.errors import EmulationError
from onnxopt.emulate.opcode import Code, Collective, Emission, Typed, WarpgroupMma
from onnxopt.emulate.operands import OperandRegisters
from onnxopt.emulate.ptx import Immediate, Instruction, Operand, Register, Sink, Symbol, Vector
from onnxopt.emulate.rules import CPP_TYPES

_OPPOSITE = {True: "!", False: ""}


@dataclass
class Shared:
    """What the functions of a program have in common: warp-wide C++ functions, and counters for the report."""

    functions: list[tuple[str, str]] = field(default_factory=list)
    """(C++ function, type of its call) in the order of their first use; their place is their number."""
    counters: list[str] = field(default_factory=list)
    operands: int = 0
    """Registers of wgmma.mma_async so far."""

    def function(self, name: str, call: str) -> str:
        """The name under which the kernel's translation unit knows a warp-wide function."""
        if (name, call) not in self.functions:
            self.functions.append((name, call))
        return f"matrix_{self.functions.index((name, call))}"

    def counter(self, name: str) -> int:
        """The number of a counter."""
        if name not in self.counters:
            self.counters.append(name)
        return self.counters.index(name)


class Emitter:
    """Writes the instructions of one function."""

    def __init__(self, context: Context, shared: Shared, labels: Mapping[str, int]) -> None:
        self._context = context
        self._shared = shared
        self._labels = labels
        self._on_line: dict[int, int] = {}
        self._site = 0
        self._operands = OperandRegisters(context.function.body, shared.operands)
        shared.operands = self._operands.end
        self._branches = {targets.name: targets.labels for targets in context.function.branch_targets}

    def instruction(
        self, instruction: Instruction, emission: Emission | None, place: int, settle: Sequence[str]
    ) -> str:
        """C++ for an instruction at `place` in its body; `settle` are accumulators that its wait may complete."""
        # Lanes meet at an instruction, and inline assembly may have several on one line.
        number = self._on_line.get(instruction.line, 0)
        self._on_line[instruction.line] = number + 1
        self._site = instruction.line | (number % 256 << 24)
        text = self._control(instruction, place) if emission is None else self._ordinary(instruction, emission)
        text = self._operands.accesses(instruction, emission, place, self._site) + text
        if settle:
            text += "".join(f" resolve(t, {variable_name(name)});" for name in settle)
        if instruction.predicate is None:
            return text
        predicate = instruction.predicate
        condition = self._context.read(Typed(predicate.register, "pred"), instruction.line)
        return f"if ({_OPPOSITE[predicate.negated]}{condition}) {{ {text} }}"

    def _ordinary(self, instruction: Instruction, emission: Emission) -> str:
        if isinstance(emission, Code):
            return self._code(instruction, emission)
        if isinstance(emission, Collective):
            return self._collective(instruction, emission)
        return self._warpgroup(instruction, emission)

    def _code(self, instruction: Instruction, code: Code) -> str:
        line = instruction.line
        values = {name: self._context.read(typed, line, code.copies) for name, typed in code.inputs.items()}
        values["line"] = f"{self._site}u"
        if not code.text.endswith(";"):
            (output,) = code.outputs.values()
            return self._context.assign(output, Template(code.text).substitute(values), line)
        values.update({name: f"{name}_o" for name in code.outputs})
        declared = "".join(f"{CPP_TYPES[typed.type]} {name}_o; " for name, typed in code.outputs.items())
        assigned = "".join(" " + self._context.assign(typed, f"{name}_o", line) for name, typed in code.outputs.items())
        text = Template(code.text).substitute(values)
        return f"{{ {declared}{text}{assigned} }}" if text != ";" else ""

    def _words(self, operands: Sequence[Operand], line: int) -> list[str]:
        return [word for operand in operands for word in self._context.words(operand, line)]

    def _results(self, operands: Sequence[Operand], array: str, line: int) -> str:
        """Assignments of words to registers."""
        lines, word = [], 0
        for operand in operands:
            if isinstance(operand, Sink):
                word += 1
                continue
            if not isinstance(operand, Register):
                raise EmulationError(f"PTX line {line}: {operand} is no destination", line)
            _, size = self._context.register(operand.name, line)
            value = f"{array}[{word}]"
            if size == 8:
                value = f"({value} | (uint64_t{{{array}[{word + 1}]}} << 32))"
            kind = {0: "pred", 2: "b16", 4: "b32", 8: "b64"}[size]
            cast = f"static_cast<{CPP_TYPES[kind]}>({value})"
            lines.append(self._context.assign(Typed(operand, kind), cast, line))
            word += 2 if size == 8 else 1
        return " ".join(lines)

    def _collective(self, instruction: Instruction, collective: Collective) -> str:
        line = instruction.line
        words = self._words(collective.inputs, line)
        function = self._shared.function(collective.function, "WarpCall")
        counter = self._shared.counter(collective.counter or instruction.opcode)
        return (
            f"{{ const uint32_t in_[] = {{{', '.join(words)}}}; uint32_t out_[{max(1, 2 * len(collective.outputs))}]; "
            f"counted_collective(t, {self._site}u, in_, out_, {function}, {counter}); "
            f"{self._results(collective.outputs, 'out_', line)} }}"
        )

    def _warpgroup(self, instruction: Instruction, mma: WarpgroupMma) -> str:
        line = instruction.line
        # Accumulators may still be places of earlier operations, which is what reading them raw passes on.
        accumulators = [self._context.register(_register(item, line), line)[0] for item in mma.accumulators]
        fragments = self._words(mma.a, line) if mma.a_in_registers else []
        descriptor = "0" if mma.a_in_registers else self._context.read(Typed(mma.a[0], "b64"), line)
        numbers = ", ".join(str(_signed(item, line)) for item in mma.immediates)
        function = self._shared.function(mma.function, "WarpgroupCall")
        issue = (
            f"{self._site}u, {function}, {len(accumulators)}, {len(fragments)}, {descriptor}, "
            f"{self._context.read(Typed(mma.b, 'b64'), line)}, {self._context.read(Typed(mma.scale_d, 'pred'), line)}, "
            f"{{{numbers}}}, {self._shared.counter('wgmma')}, registers_"
        )
        back = " ".join(f"{name} = d_[{index}];" for index, name in enumerate(accumulators))
        return (
            f"{{ static const uint16_t registers_[] = {{{self._operands.numbers(mma)}}}; "
            f"const WarpgroupIssue issue_{{{issue}}}; uint32_t d_[] = {{{', '.join(accumulators)}}}; "
            f"const uint32_t a_[] = {{{', '.join(fragments) or '0'}}}; warpgroup_mma(t, issue_, d_, a_); {back} }}"
        )

    def _control(self, instruction: Instruction, place: int) -> str:
        line, operands = instruction.line, instruction.operands
        if instruction.opcode == "bra":
            return self._branch(operands[0], place, line)
        if instruction.opcode == "brx":
            return self._branch_table(operands, place, line)
        if instruction.opcode == "call":
            return self._call(operands, line)
        if instruction.opcode == "ret":
            return "return;"
        if instruction.opcode == "exit":
            return "exit_thread(t);"
        return f'fail(t, {line}, "{instruction.opcode} was executed");'

    def _branch(self, target: Operand, place: int, line: int) -> str:
        if not isinstance(target, Symbol) or target.name not in self._labels:
            raise EmulationError(f"PTX line {line}: a branch to {target}, which is no label", line)
        backward = f"step(t, {line}); " if self._labels[target.name] <= place else ""
        return f"{backward}goto {label_name(target.name)};"

    def _branch_table(self, operands: Sequence[Operand], place: int, line: int) -> str:
        index, table = operands
        if not isinstance(table, Symbol) or table.name not in self._branches:
            raise EmulationError(f"PTX line {line}: brx.idx needs .branchtargets, found {table}", line)
        cases = "".join(
            f"case {number}: {self._branch(Symbol(label), place, line)} "
            for number, label in enumerate(self._branches[table.name])
        )
        chosen = self._context.read(Typed(index, "u32"), line)
        other = f'default: fail(t, {line}, "brx.idx has an index beyond its targets");'
        return f"switch ({chosen}) {{ {cases}{other} }}"

    def _call(self, operands: Sequence[Operand], line: int) -> str:
        results, name, arguments = call_parts(operands, line)
        given = ", ".join(self._array(item, 0, line) for item in arguments) or "nullptr"
        wanted = ", ".join(self._array(item, 1, line) for item in results) or "nullptr"
        return (
            f"{{ const uint8_t* const given_[] = {{{given}}}; uint8_t* const wanted_[] = {{{wanted}}}; "
            f"{function_name(name)}(t, given_, wanted_); }}"
        )

    def _array(self, operand: Operand, side: int, line: int) -> str:
        if not isinstance(operand, Symbol) or operand.name not in self._context.arrays:
            raise EmulationError(f"PTX line {line}: a call takes .param variables, found {operand}", line)
        return self._context.arrays[operand.name][side]


CONTROL = frozenset({"bra", "brx", "call", "ret", "exit", "trap", "brkpt"})
"""Opcodes that the table leaves out because they need labels and functions."""


def call_parts(operands: Sequence[Operand], line: int) -> tuple[tuple[Operand, ...], str, tuple[Operand, ...]]:
    """The results, the function and the arguments of a call."""
    items = list(operands)
    results = items.pop(0).items if items and isinstance(items[0], Vector) else ()  # type: ignore[union-attr]
    if not items or not isinstance(items[0], Symbol):
        raise EmulationError(f"PTX line {line}: only calls of a named function are supported", line)
    target = items.pop(0)
    assert isinstance(target, Symbol)
    arguments = items[0].items if items and isinstance(items[0], Vector) else ()
    return results, target.name, arguments


def label_name(name: str) -> str:
    """The C++ label for a PTX one."""
    return "L_" + re.sub(r"\W", "_", name)


def function_name(name: str) -> str:
    """The C++ function for a PTX one."""
    return "f_" + re.sub(r"\W", "_", name)


def _register(operand: Operand, line: int) -> str:
    if not isinstance(operand, Register):
        raise EmulationError(f"PTX line {line}: accumulators must be registers, found {operand}", line)
    return operand.name


def _signed(operand: Operand, line: int) -> int:
    if not isinstance(operand, Immediate):
        raise EmulationError(f"PTX line {line}: expected a constant, found {operand}", line)
    return operand.bits - (1 << 64) if operand.bits >> 63 else operand.bits
