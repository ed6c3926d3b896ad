"""A short way to write a line of the table for an instruction that computes something from its operands."""

from __future__ import annotations

from string import Template

from onnxopt.emulate.errors import EmulationError
from onnxopt.emulate.opcode import Code, Match, Opcode, Typed

CPP_TYPES = {
    **{f"{letter}{bits}": f"uint{bits}_t" for letter in "bu" for bits in (8, 16, 32, 64)},
    **{f"s{bits}": f"int{bits}_t" for bits in (8, 16, 32, 64)},
    **{kind: kind for kind in ("f16", "bf16", "f16x2", "bf16x2")},
    "f32": "float",
    "f64": "double",
    "tf32": "uint32_t",
    "pred": "bool",
}
"""The C++ type that holds a value of each PTX type; the 16-bit floating-point ones are structures of runtime/half.h."""

INTEGERS = "u16|s16|u32|s32|u64|s64"

_ROUNDINGS = {
    **dict.fromkeys(("rn", "rni"), "nearest"),
    **dict.fromkeys(("rz", "rzi"), "zero"),
    **dict.fromkeys(("rm", "rmi"), "down"),
    **dict.fromkeys(("rp", "rpi"), "up"),
    "rna": "away",
}


def cpp_parts(match: Match) -> dict[str, str]:
    """What each key of the pattern matched, in C++: a type, a rounding, or true and false for a name alone."""
    words: dict[str, str] = {}
    for key, value in match.parts.items():
        if key.startswith("round"):
            words[key] = f"Round::{_ROUNDINGS.get(value, 'nearest')}"
        elif value in CPP_TYPES:
            words[key] = CPP_TYPES[value]
        elif value in ("", key):
            words[key] = "true" if value else "false"
        else:
            words[key] = value
    return words


def typed_operands(match: Match, signature: str) -> tuple[dict[str, Typed], dict[str, Typed]]:
    """Outputs and inputs by name, for a signature such as "d:type <- a:type b:u32".

    A type is the name of a PTX type or a key of the pattern. Raises EmulationError if the number of operands differs.
    """
    left, _, right = signature.partition("<-")
    names = [*left.split(), *right.split()]
    check_count(match, len(names))
    outputs: dict[str, Typed] = {}
    inputs: dict[str, Typed] = {}
    for index, (word, operand) in enumerate(zip(names, match.instruction.operands, strict=True)):
        name, _, kind = word.partition(":")
        side = outputs if index < len(left.split()) else inputs
        side[name] = Typed(operand, match.parts.get(kind, kind))
    return outputs, inputs


def check_count(match: Match, *allowed: int) -> None:
    """Raises EmulationError unless the instruction has one of the allowed numbers of operands."""
    found = len(match.instruction.operands)
    if found not in allowed:
        raise refusal(match, f"{found} operands", " or ".join(map(str, allowed)))


def refusal(match: Match, seen: str, allowed: str) -> EmulationError:
    """The error for an instruction that the table knows in another form."""
    instruction = match.instruction
    return EmulationError(
        f"PTX line {instruction.line}: {instruction.name} has {seen}; allowed: {allowed}", instruction.line
    )


def rule(pattern: str, signature: str, text: str, copies: bool = False) -> Opcode:
    """An entry whose C++ is `text`, with `$key` for what the pattern matched and `$name` for operands."""
    template = Template(text)

    def emit(match: Match) -> Code:
        outputs, inputs = typed_operands(match, signature)
        return Code(template.safe_substitute(cpp_parts(match)), outputs, inputs, copies)

    return Opcode(pattern, emit)
