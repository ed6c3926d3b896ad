"""Accesses to the registers of wgmma.mma_async, for its rules on wgmma.fence and on fragments in flight."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from onnxopt.emulate.opcode import Code, Collective, Emission, WarpgroupMma
from onnxopt.emulate.ptx import Instruction, Label, Operand, Register, Vector

_LIMIT = 4096
"""kTouchable of the runtime."""


class OperandRegisters:
    """The accumulators and register fragments in the body of a function, numbered; and the code that notes accesses.

    Instructions are given to `accesses` in the order of the body.
    """

    def __init__(self, body: Sequence[Instruction | Label], first: int) -> None:
        """Numbers begin at ``first``, so that functions of one program have their own."""
        self._numbers: dict[str, int] = {}
        self._fragments: set[str] = set()
        self._noted: set[int] = set()
        self._place = -1
        for part in body:
            if isinstance(part, Instruction) and part.name.startswith("wgmma.mma_async"):
                accumulators, a = (_vector_names(operand) for operand in part.operands[:2])
                self._fragments.update(a)
                for name in (*accumulators, *a):
                    self._numbers.setdefault(name, first + len(self._numbers))
        self.end = first + len(self._numbers)

    def numbers(self, mma: WarpgroupMma) -> str:
        """The numbers of an operation's registers, those of A behind the accumulators; 65535: not checked."""
        names = [*_names(mma.accumulators), *(_names(mma.a) if mma.a_in_registers else ())]
        return ", ".join(str(number if (number := self._numbers[name]) < _LIMIT else 0xFFFF) for name in names)

    def accesses(self, instruction: Instruction, emission: Emission | None, place: int, site: int) -> str:
        """C++ in front of an instruction at a place of the body; empty where nothing is to be noted.

        An access is noted once in a stretch of code that runs as a whole: the runtime forgets it only at a
        wgmma.fence.
        """
        if place != self._place + 1 or emission is None or instruction.opcode == "wgmma":
            self._noted = set()
        self._place = place
        if not self._numbers or not isinstance(emission, Code | Collective):
            return ""
        reads, writes = _operands(emission)
        written = [name for name in writes if name in self._fragments and self._numbers[name] < _LIMIT]
        text = "".join(f"check_fragment(t, {site}u, {self._numbers[name]}); " for name in written)
        if isinstance(emission, Code) and emission.copies:
            return text
        touched = {self._numbers[name] for name in (*reads, *writes) if name in self._numbers} - self._noted
        if instruction.predicate is None:
            self._noted |= touched
        return text + "".join(f"touch(t, {number}); " for number in sorted(touched) if number < _LIMIT)


def _operands(emission: Code | Collective) -> tuple[list[str], list[str]]:
    if isinstance(emission, Collective):
        return list(_names(emission.inputs)), list(_names(emission.outputs))
    reads, writes = ([typed.operand for typed in part.values()] for part in (emission.inputs, emission.outputs))
    return list(_names(reads)), list(_names(writes))


def _names(operands: Iterable[Operand]) -> Iterator[str]:
    return (operand.name for operand in operands if isinstance(operand, Register))


def _vector_names(operand: Operand) -> tuple[str, ...]:
    return tuple(_names(operand.items)) if isinstance(operand, Vector) else ()
