"""Comparisons and selections."""

from __future__ import annotations

from onnxopt.emulate.opcode import Code, Match, Opcode, Typed
from onnxopt.emulate.ptx import Negated, Pair
from onnxopt.emulate.rules import CPP_TYPES, check_count, rule

_SIGNS = {"eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">="}
_INTEGER_SIGNS = {**_SIGNS, "lo": "<", "ls": "<=", "hi": ">", "hs": ">="}
_INTEGER_TYPES = "b16|u16|s16|b32|u32|s32|b64|u64|s64"
_FLOAT_TYPES = "f16|bf16|f32|f64"
_FLOAT_COMPARISONS = "eq|ne|lt|le|gt|ge|equ|neu|ltu|leu|gtu|geu|num|nan"
_COMBINATIONS = {"": "compared_", "and": "compared_ && $c", "or": "compared_ || $c", "xor": "compared_ != $c"}
_OPPOSITES = {"": "!compared_", "and": "!compared_ && $c", "or": "!compared_ || $c", "xor": "!compared_ != $c"}


def _comparison(match: Match, a: str = "$a", b: str = "$b") -> str:
    """A C++ condition. Ordered comparisons are false with NaN, those that end in u are true."""
    name, kind = match["test"], match["type"].removesuffix("x2")
    if kind not in _FLOAT_TYPES.split("|"):
        return f"{a} {_INTEGER_SIGNS[name]} {b}"
    x, y = (f"flush<true>({value})" if match["ftz"] else value for value in (a, b))
    if kind in ("f16", "bf16"):
        x, y = f"wide({x})", f"wide({y})"
    unordered = f"({x} != {x} || {y} != {y})"
    if name in ("num", "nan"):
        return f"!{unordered}" if name == "num" else unordered
    # C++ says true for != with NaN, PTX does not.
    if name == "ne":
        return f"({x} != {y} && !{unordered})"
    sign = _SIGNS[name[:2]]
    return f"({x} {sign} {y} || {unordered})" if name.endswith("u") else f"{x} {sign} {y}"


def _setp(match: Match) -> Code:
    combination = match["combine"]
    check_count(match, 4 if combination else 3)
    destination, a, b, *third = match.instruction.operands
    inputs = {"a": Typed(a, match["type"]), "b": Typed(b, match["type"])}
    if third:
        inputs["c"] = Typed(third[0], "pred")
    first = destination.first if isinstance(destination, Pair) else destination
    outputs = {"p": Typed(first, "pred")}
    text = f"const bool compared_ = {_comparison(match)}; $p = {_COMBINATIONS[combination]};"
    if isinstance(destination, Pair):
        outputs["q"] = Typed(destination.second, "pred")
        text += f" $q = {_OPPOSITES[combination]};"
    return Code(text, outputs, inputs)


def _setp_pair(match: Match) -> Code:
    check_count(match, 3)
    destination, a, b = match.instruction.operands
    pair = destination if isinstance(destination, Pair) else Pair(destination, destination)
    outputs = {"p": Typed(pair.first, "pred"), "q": Typed(pair.second, "pred")}
    text = f"$p = {_comparison(match, '$a.low', '$b.low')}; $q = {_comparison(match, '$a.high', '$b.high')};"
    return Code(text, outputs, {"a": Typed(a, match["type"]), "b": Typed(b, match["type"])})


def _set(match: Match) -> Code:
    check_count(match, 3)
    destination, a, b = match.instruction.operands
    to, kind = match["to"], match["type"]
    inputs = {"a": Typed(a, kind), "b": Typed(b, kind)}
    if kind.endswith("x2"):
        one = "0x3C00" if kind == "f16x2" else "0x3F80"
        low, high = (_comparison(match, f"$a.{half}", f"$b.{half}") for half in ("low", "high"))
        yes = one if to == kind else "0xFFFF"
        text = f"static_cast<uint32_t>(({low}) ? {yes}u : 0u) | (static_cast<uint32_t>(({high}) ? {yes}u : 0u) << 16)"
        return Code(text, {"d": Typed(destination, "b32")}, inputs)
    if to in _FLOAT_TYPES.split("|"):
        text = f"from_double<{CPP_TYPES[to]}>(({_comparison(match)}) ? 1.0 : 0.0)"
    else:
        text = f"static_cast<{CPP_TYPES[to]}>(({_comparison(match)}) ? -1 : 0)"
    return Code(text, {"d": Typed(destination, to)}, inputs)


def _selp(match: Match) -> Code:
    check_count(match, 4)
    destination, a, b, predicate = match.instruction.operands
    if isinstance(predicate, Negated):
        a, b, predicate = b, a, predicate.operand
    kind = match["type"]
    kind = f"b{kind[1:]}" if kind[0] in "usfb" and kind[1:].isdigit() else kind
    inputs = {"a": Typed(a, kind), "b": Typed(b, kind), "c": Typed(predicate, "pred")}
    return Code("$c ? $a : $b", {"d": Typed(destination, kind)}, inputs)


_SELECTED = f"{_INTEGER_TYPES}|f32|f64"

COMPARISON_OPCODES = (
    Opcode(f"setp test={'|'.join(_INTEGER_SIGNS)} combine?=and|or|xor ftz? type={_INTEGER_TYPES}", _setp),
    Opcode(f"setp test={_FLOAT_COMPARISONS} combine?=and|or|xor ftz? type={_FLOAT_TYPES}", _setp),
    Opcode(f"setp test={_FLOAT_COMPARISONS} ftz? type=f16x2|bf16x2", _setp_pair),
    Opcode(f"set test={'|'.join(_INTEGER_SIGNS)} ftz? to=u32|s32|f32 type={_INTEGER_TYPES}", _set),
    Opcode(f"set test={_FLOAT_COMPARISONS} ftz? to=u16|s16|u32|s32|f16|bf16|f32 type={_FLOAT_TYPES}", _set),
    Opcode(f"set test={_FLOAT_COMPARISONS} ftz? to=f16x2|bf16x2|u32 type=f16x2|bf16x2", _set),
    Opcode(f"selp type={_SELECTED}", _selp),
    rule(f"slct type={_SELECTED} s32", "d:type <- a:type b:type c:s32", "$c >= 0 ? $a : $b"),
    rule(f"slct ftz? type={_SELECTED} f32", "d:type <- a:type b:type c:f32", "$c >= 0.0f ? $a : $b"),
)
"""setp, set, selp and slct."""
