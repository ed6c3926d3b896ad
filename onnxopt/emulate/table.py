"""The table of opcodes as a whole."""

from __future__ import annotations

from functools import lru_cache

from onnxopt.emulate.errors import EmulationError
from onnxopt.emulate.matrix_ops import MATRIX_OPCODES
from onnxopt.emulate.opcode import Emission, Opcode
from onnxopt.emulate.ops_async import ASYNC_OPCODES
from onnxopt.emulate.ops_compare import COMPARISON_OPCODES
from onnxopt.emulate.ops_convert import CONVERSION_OPCODES
from onnxopt.emulate.ops_float import FLOAT_OPCODES
from onnxopt.emulate.ops_integer import INTEGER_OPCODES
from onnxopt.emulate.ops_memory import MEMORY_OPCODES
from onnxopt.emulate.ops_warp import WARP_OPCODES
from onnxopt.emulate.ptx import Instruction

OPCODES: tuple[Opcode, ...] = (
    *INTEGER_OPCODES,
    *FLOAT_OPCODES,
    *CONVERSION_OPCODES,
    *COMPARISON_OPCODES,
    *MEMORY_OPCODES,
    *WARP_OPCODES,
    *ASYNC_OPCODES,
    *MATRIX_OPCODES,
)
"""Every instruction that the emulator knows, branches and calls apart (see emit.py)."""


@lru_cache(maxsize=1)
def _by_name() -> dict[str, tuple[Opcode, ...]]:
    names: dict[str, list[Opcode]] = {}
    for opcode in OPCODES:
        names.setdefault(opcode.name, []).append(opcode)
    return {name: tuple(entries) for name, entries in names.items()}


def emission_of(instruction: Instruction) -> Emission:
    """What the table has for an instruction. Raises EmulationError that names an instruction that it does not have."""
    entries = _by_name().get(instruction.opcode, ())
    for entry in entries:
        match = entry.match(instruction)
        if match is not None:
            return entry.emit(match)
    known = f"{instruction.opcode} is known with other modifiers" if entries else "the emulator does not know it"
    raise EmulationError(
        f"PTX line {instruction.line}: {instruction.name} is not supported ({known}); "
        "use another instruction, or add it to onnxopt/emulate",
        instruction.line,
    )
