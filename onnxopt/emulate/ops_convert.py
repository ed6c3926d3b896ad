"""Moves, conversions of numbers and of addresses."""

from __future__ import annotations

from onnxopt.emulate.opcode import Code, Match, Opcode, Typed
from onnxopt.emulate.ptx import Operand, Vector
from onnxopt.emulate.rules import CPP_TYPES, check_count, cpp_parts, refusal, rule, typed_operands

_FLOATS = ("f16", "bf16", "f32", "f64")
_INTEGERS = tuple(f"{sign}{bits}" for bits in (8, 16, 32, 64) for sign in "us")
_ALL = "|".join((*_INTEGERS, *_FLOATS))
_MOVED = "b16|u16|s16|b32|u32|s32|f32|b64|u64|s64|f64|f16|bf16|f16x2|bf16x2|pred"
_WINDOWS = {"shared": "kSharedWindow", "shared::cta": "kSharedWindow", "local": "kLocalWindow"}
_WINDOWS["param"] = "kParameterWindow"


def _mov(match: Match) -> Code:
    check_count(match, 2)
    destination, source = match.instruction.operands
    # A move keeps bits, so it is one of an unsigned integer whatever the type says.
    kind = "pred" if match["type"] == "pred" else f"b{_bits(match['type'])}"
    if isinstance(destination, Vector):
        return _unpack(match, destination, source, kind)
    if isinstance(source, Vector):
        return _pack(match, destination, source, kind)
    return Code("$a", {"d": Typed(destination, kind)}, {"a": Typed(source, kind)}, copies=True)


def _bits(kind: str) -> int:
    return 32 if kind.endswith("x2") else int("".join(filter(str.isdigit, kind)))


def _part(match: Match, vector: Vector, kind: str) -> int:
    bits = int(kind[1:]) // len(vector.items)
    if bits not in (8, 16, 32):
        raise refusal(match, f"{len(vector.items)} parts", "2 or 4")
    return bits


def _unpack(match: Match, destination: Vector, source: Operand, kind: str) -> Code:
    bits = _part(match, destination, kind)
    outputs = {f"d{i}": Typed(item, f"b{bits}") for i, item in enumerate(destination.items)}
    lines = [f"$d{i} = static_cast<uint{bits}_t>(whole_ >> {bits * i});" for i in range(len(outputs))]
    text = f"const {CPP_TYPES[kind]} whole_ = $a; " + " ".join(lines)
    return Code(text, outputs, {"a": Typed(source, kind)})


def _pack(match: Match, destination: Operand, source: Vector, kind: str) -> Code:
    bits = _part(match, source, kind)
    inputs = {f"a{i}": Typed(item, f"b{bits}") for i, item in enumerate(source.items)}
    whole = CPP_TYPES[kind]
    text = " | ".join(f"(static_cast<{whole}>($a{i}) << {bits * i})" for i in range(len(inputs)))
    return Code(text, {"d": Typed(destination, kind)}, inputs)


def _convert(match: Match) -> Code:
    outputs, inputs = typed_operands(match, "d:to <- a:from")
    to, source = match["to"], match["from"]
    words = cpp_parts(match)
    value = "flush<true>($a)" if source in _FLOATS and match["ftz"] else "$a"
    rounding = words["round"]
    if to in _FLOATS and source in _FLOATS:
        text = _float_to_float(match, value, rounding)
        text = f"saturate<true>({text})" if match["sat"] else text
        text = f"flush<true>({text})" if match["ftz"] else text
    elif to in _FLOATS:
        text = f"saturate<{words['sat']}>(integer_to_float<{CPP_TYPES[to]}>({value}, {rounding}))"
    elif source in _FLOATS:
        text = f"float_to_integer<{CPP_TYPES[to]}>(wide({value}), {rounding})"
    elif match["sat"]:
        text = f"integer_saturated<{CPP_TYPES[to]}>({value})"
    else:
        text = f"static_cast<{CPP_TYPES[to]}>({value})"
    return Code(text, outputs, inputs)


def _float_to_float(match: Match, value: str, rounding: str) -> str:
    to = CPP_TYPES[match["to"]]
    if match["round"].endswith("i"):
        return f"from_double<{to}>(to_integral(wide({value}), {rounding}))"
    if match["to"] == match["from"]:
        return value
    if match["from"] == "f32" and match["to"] in ("f16", "bf16") and match["round"] == "rn":
        return f"{to}{{narrow_{match['to']}({value})}}"
    return f"from_double<{to}>(wide({value}), {rounding})"


def _narrowing(match: Match) -> Code:
    """f32 to a 16-bit type with .relu or .satfinite, and two of them into a packed pair (the first is the high one)."""
    words = cpp_parts(match)
    rest = f"{words['round']}, {words['relu']}, {words['satfinite']}"
    if not match["to"].endswith("x2"):
        outputs, inputs = typed_operands(match, "d:to <- a:f32")
        return Code(f"narrowed<{CPP_TYPES[match['to']]}>($a, {rest})", outputs, inputs)
    outputs, inputs = typed_operands(match, "d:to <- a:f32 b:f32")
    element = match["to"].removesuffix("x2")
    if match["round"] == "rn" and not match["relu"] and not match["satfinite"]:
        low, high = (f"{element}{{narrow_{element}({value})}}" for value in ("$b", "$a"))
    else:
        low, high = (f"narrowed<{element}>({value}, {rest})" for value in ("$b", "$a"))
    return Code(f"{match['to']}{{{low}, {high}}}", outputs, inputs)


def _cvta(match: Match) -> Code:
    outputs, inputs = typed_operands(match, "d:u64 <- a:u64")
    window = _WINDOWS.get(match["space"])
    if window is None:
        text = "$a"
    elif match["to"]:
        text = f"from_generic(t, $line, {window}, $a)"
    else:
        text = f"to_generic({window}, $a)"
    return Code(text, outputs, inputs)


CONVERSION_OPCODES = (
    Opcode(f"mov type={_MOVED}", _mov),
    Opcode(f"cvt round?=rn|rz|rm|rp|rni|rzi|rmi|rpi ftz? sat? to={_ALL} from={_ALL}", _convert),
    Opcode("cvt round=rn|rz relu? satfinite? to=f16|bf16 f32", _narrowing),
    Opcode("cvt round=rn|rz relu? satfinite? to=f16x2|bf16x2 f32", _narrowing),
    rule("cvt round=rna|rn|rz satfinite? tf32 f32", "d:b32 <- a:f32", "narrow_tf32($a, $round)"),
    Opcode("cvta to?=to space=global|shared|shared::cta|local|const|param u64", _cvta),
    rule("isspacep global", "d:pred <- a:u64", "($a >> kWindowBits) >= kFirstWindow"),
    rule("isspacep shared", "d:pred <- a:u64", "($a >> kWindowBits) == kSharedWindow"),
    rule("isspacep local", "d:pred <- a:u64", "($a >> kWindowBits) == kLocalWindow"),
)
"""Moves and conversions. Of two lines for one instruction the first counts."""
