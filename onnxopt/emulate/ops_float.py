"""Floating-point instructions of every width, packed pairs included."""

from __future__ import annotations

from string import Template

from onnxopt.emulate.opcode import Code, Match, Opcode
from onnxopt.emulate.rules import CPP_TYPES, rule, typed_operands

_SIGNATURES = {1: "d:type <- a:type", 2: "d:type <- a:type b:type", 3: "d:type <- a:type b:type c:type"}
_LETTERS = "abc"
_HALVES = {"f16x2": "f16", "bf16x2": "bf16"}


def _float(pattern: str, operands: int, function: str) -> Opcode:
    """An instruction on the type that `type` matched; of a packed pair, on each half.

    `function` is a C++ function template's call without operands, in which `$T` stands for the type and `$round` for
    the rounding; `.ftz` flushes operands and result, `.sat` clamps the result.
    """

    def emit(match: Match) -> Code:
        outputs, inputs = typed_operands(match, _SIGNATURES[operands])
        kind = match["type"]
        element = _HALVES.get(kind, kind)
        parts = _words(match, element)
        flush = "flush<true>" if match.parts.get("ftz") else ""
        values = [f"{flush}({{{letter}}})" if flush else f"{{{letter}}}" for letter in _LETTERS[:operands]]
        call = f"{Template(function).substitute(parts)}({', '.join(values)})"
        call = f"saturate<true>({call})" if match.parts.get("sat") else call
        call = f"{flush}({call})" if flush else call
        if kind not in _HALVES:
            return Code(call.format(**{letter: f"${letter}" for letter in _LETTERS}), outputs, inputs)
        names = {letter: f"{letter}_" for letter in _LETTERS}
        arguments = ", ".join(f"{CPP_TYPES[element]} {names[letter]}" for letter in _LETTERS[:operands])
        given = ", ".join(f"${letter}" for letter in _LETTERS[:operands])
        text = f"each_half({given}, []({arguments}) {{ return {call.format(**names)}; }})"
        return Code(text, outputs, inputs)

    return Opcode(pattern, emit)


def _extreme(name: str, pattern: str) -> Opcode:
    """The smallest or largest of two or, on newer architectures, three numbers."""
    two = _float(pattern, 2, f"float_{name}<$T, $NaN>")
    three = _float(pattern, 3, f"float_{name}3<$T, $NaN>")
    return Opcode(pattern, lambda match: (three if len(match.instruction.operands) == 4 else two).emit(match))


def _words(match: Match, element: str) -> dict[str, str]:
    roundings = {"rz": "zero", "rm": "down", "rp": "up"}
    return {
        "T": CPP_TYPES[element],
        "round": f"Round::{roundings.get(match.parts.get('round', ''), 'nearest')}",
        "NaN": "true" if match.parts.get("NaN") else "false",
    }


_HALF = "f16|f16x2|bf16|bf16x2"

FLOAT_OPCODES = (
    *(
        entry
        for name in ("add", "mul")
        for entry in (
            _float(f"{name} round?=rn|rz|rm|rp ftz? sat? type=f32", 2, f"float_{name}<$T, $round>"),
            _float(f"{name} round?=rn type=f64", 2, f"float_{name}<$T, $round>"),
            _float(f"{name} round?=rn ftz? sat? type={_HALF}", 2, f"float_{name}<$T, $round>"),
        )
    ),
    _float("sub round?=rn|rz|rm|rp ftz? sat? type=f32", 2, "float_sub<$T, $round>"),
    _float("sub round?=rn type=f64", 2, "float_sub<$T, $round>"),
    _float(f"sub round?=rn ftz? sat? type={_HALF}", 2, "float_sub<$T, $round>"),
    _float("fma round=rn|rz|rm|rp ftz? sat? type=f32", 3, "float_fma<$T, $round>"),
    _float("mad round=rn|rz|rm|rp ftz? sat? type=f32", 3, "float_fma<$T, $round>"),
    _float("fma round=rn type=f64", 3, "float_fma<$T, $round>"),
    _float(f"fma round=rn ftz? sat? type={_HALF}", 3, "float_fma<$T, $round>"),
    _float(f"fma round=rn ftz? relu type={_HALF}", 3, "float_fma_relu<$T>"),
    _float(f"neg ftz? type=f32|f64|{_HALF}", 1, "float_neg<$T>"),
    _float(f"abs ftz? type=f32|f64|{_HALF}", 1, "float_abs<$T>"),
    *(_extreme(name, f"{name} ftz? NaN? type=f32|f64|{_HALF}") for name in ("min", "max")),
    rule("copysign type=f32|f64", _SIGNATURES[2], "float_copysign($a, $b)"),
    _float("div round=rn|rz|rm|rp ftz? type=f32", 2, "float_div<$T, $round>"),
    _float("div round=rn type=f64", 2, "float_div<$T, $round>"),
    _float("div approx=approx|full ftz? type=f32", 2, "float_div<$T, Round::nearest>"),
    _float("rcp mode=approx|rn ftz? type=f32|f64", 1, "rcp"),
    _float("sqrt mode=approx|rn ftz? type=f32|f64", 1, "sqrt_of"),
    _float("rsqrt approx ftz? type=f32|f64", 1, "rsqrt"),
    _float("ex2 approx ftz? type=f32|f16|f16x2|bf16|bf16x2", 1, "ex2"),
    _float("lg2 approx ftz? type=f32", 1, "lg2"),
    _float("sin approx ftz? type=f32", 1, "sin_of"),
    _float("cos approx ftz? type=f32", 1, "cos_of"),
    _float(f"tanh approx type=f32|{_HALF}", 1, "tanh_of"),
    rule(
        "testp test=finite|infinite|number|notanumber|normal|subnormal type=f32|f64",
        "d:pred <- a:type",
        "test_$test($a)",
    ),
)
"""Floating-point arithmetic."""
