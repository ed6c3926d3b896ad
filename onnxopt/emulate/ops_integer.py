"""Integer and logic instructions."""

from __future__ import annotations

from onnxopt.emulate.opcode import Code, Match, Opcode, Typed
from onnxopt.emulate.ptx import Immediate
from onnxopt.emulate.rules import CPP_TYPES, INTEGERS, check_count, refusal, rule

_THREE = "d:type <- a:type b:type c:type"
_TWO = "d:type <- a:type b:type"
_ONE = "d:type <- a:type"
_BITS = "type=b16|b32|b64"
_WIDE = {"u16": "u32", "s16": "s32", "u32": "u64", "s32": "s64"}


def _wide(function: str) -> Opcode:
    """mul.wide and mad.wide, whose result is twice as wide."""
    operands = 3 if function == "mul" else 4

    def emit(match: Match) -> Code:
        check_count(match, operands)
        narrow, wide = match["type"], _WIDE[match["type"]]
        destination, a, b, *rest = match.instruction.operands
        product = f"mul_wide<{CPP_TYPES[wide]}>($a, $b)"
        inputs = {"a": Typed(a, narrow), "b": Typed(b, narrow)}
        if rest:
            inputs["c"] = Typed(rest[0], wide)
            product = f"wrap_add<{CPP_TYPES[wide]}>({product}, $c)"
        return Code(product, {"d": Typed(destination, wide)}, inputs)

    return Opcode(f"{function} wide type={'|'.join(_WIDE)}", emit)


def _modular(name: str, sign: str) -> Opcode:
    """Arithmetic modulo a power of two, which is the same for signed and unsigned numbers."""

    def emit(match: Match) -> Code:
        check_count(match, 3)
        kind = f"u{match['type'][1:]}"
        destination, a, b = (Typed(operand, kind) for operand in match.instruction.operands)
        # 16-bit factors would be promoted to int, whose overflow is undefined.
        text = f"({CPP_TYPES[kind]})({'1u * ' if kind == 'u16' else ''}$a {sign} $b)"
        return Code(text, {"d": destination}, {"a": a, "b": b})

    return Opcode(f"{name} type={INTEGERS}", emit)


def _logic3(match: Match) -> Code:
    check_count(match, 5)
    destination, a, b, c, table = match.instruction.operands
    if not isinstance(table, Immediate):
        raise refusal(match, "a table that is no constant", "a constant")
    inputs = {name: Typed(operand, "b32") for name, operand in (("a", a), ("b", b), ("c", c))}
    return Code(f"logic3<{table.bits & 0xFF}>($a, $b, $c)", {"d": Typed(destination, "b32")}, inputs)


INTEGER_OPCODES = (
    *(_modular(name, sign) for name, sign in (("add", "+"), ("sub", "-"), ("mul lo", "*"))),
    rule("add sat type=s32", _TWO, "add_saturated<$type>($a, $b)"),
    rule("sub sat type=s32", _TWO, "sub_saturated<$type>($a, $b)"),
    rule(f"mul hi type={INTEGERS}", _TWO, "mul_high<$type>($a, $b)"),
    rule("mul24 lo type=u32|s32", _TWO, "mul_24<$type>($a, $b)"),
    rule(f"mad lo type={INTEGERS}", _THREE, "wrap_add<$type>(wrap_mul<$type>($a, $b), $c)"),
    rule(f"mad hi type={INTEGERS}", _THREE, "wrap_add<$type>(mul_high<$type>($a, $b), $c)"),
    _wide("mul"),
    _wide("mad"),
    rule(f"div type={INTEGERS}", _TWO, "divide<$type>($a, $b)"),
    rule(f"rem type={INTEGERS}", _TWO, "remainder<$type>($a, $b)"),
    rule(f"min type={INTEGERS}", _TWO, "int_min<$type>($a, $b)"),
    rule(f"max type={INTEGERS}", _TWO, "int_max<$type>($a, $b)"),
    rule("neg type=s16|s32|s64", _ONE, "wrap_neg<$type>($a)"),
    rule("abs type=s16|s32|s64", _ONE, "int_abs<$type>($a)"),
    rule(f"sad type={INTEGERS}", _THREE, "sum_of_differences<$type>($a, $b, $c)"),
    rule("dp4a at=u32|s32 bt=u32|s32", "d:u32 <- a:u32 b:u32 c:u32", "dot4<$at, $bt>($a, $b, $c)"),
    # The condition code is a local variable of the translated function.
    rule("add cc type=u32|s32|b32|u64|s64", _TWO, "$d = add_carry($a, $b, false, carry);"),
    rule("addc cc type=u32|s32|b32|u64|s64", _TWO, "$d = add_carry($a, $b, carry, carry);"),
    rule("addc type=u32|s32|b32|u64|s64", _TWO, "bool out_; $d = add_carry($a, $b, carry, out_); (void)out_;"),
    rule("sub cc type=u32|s32|b32|u64|s64", _TWO, "$d = sub_borrow($a, $b, false, carry);"),
    rule("subc cc type=u32|s32|b32|u64|s64", _TWO, "$d = sub_borrow($a, $b, carry, carry);"),
    rule("subc type=u32|s32|b32|u64|s64", _TWO, "bool out_; $d = sub_borrow($a, $b, carry, out_); (void)out_;"),
    rule("mad lo cc type=u32", _THREE, "$d = add_carry(wrap_mul<$type>($a, $b), $c, false, carry);"),
    rule("mad hi cc type=u32", _THREE, "$d = add_carry(mul_high<$type>($a, $b), $c, false, carry);"),
    rule("madc lo cc type=u32", _THREE, "$d = add_carry(wrap_mul<$type>($a, $b), $c, carry, carry);"),
    rule("madc hi cc type=u32", _THREE, "$d = add_carry(mul_high<$type>($a, $b), $c, carry, carry);"),
    rule(
        "madc lo type=u32", _THREE, "bool out_; $d = add_carry(wrap_mul<$type>($a, $b), $c, carry, out_); (void)out_;"
    ),
    rule(
        "madc hi type=u32", _THREE, "bool out_; $d = add_carry(mul_high<$type>($a, $b), $c, carry, out_); (void)out_;"
    ),
    *(rule(f"{name} {_BITS}", _TWO, f"$a {sign} $b") for name, sign in (("and", "&"), ("or", "|"), ("xor", "^"))),
    *(rule(f"{name} type=pred", _TWO, f"$a {sign} $b") for name, sign in (("and", "&&"), ("or", "||"), ("xor", "!="))),
    rule(f"not {_BITS}", _ONE, "static_cast<$type>(~$a)"),
    rule("not type=pred", _ONE, "!$a"),
    rule(f"cnot {_BITS}", _ONE, "static_cast<$type>($a == 0)"),
    Opcode("lop3 b32", _logic3),
    rule(f"shl {_BITS}", "d:type <- a:type n:u32", "shift_left<$type>($a, $n)"),
    rule(f"shr type=b16|b32|b64|{INTEGERS}", "d:type <- a:type n:u32", "shift_right<$type>($a, $n)"),
    *(
        rule(
            f"shf {side} {mode} b32",
            "d:b32 <- a:b32 b:b32 n:u32",
            f"funnel_shift<{str(side == 'l').lower()}, {str(mode == 'wrap').lower()}>($a, $b, $n)",
        )
        for side in "lr"
        for mode in ("wrap", "clamp")
    ),
    rule("popc type=b32|b64", "d:u32 <- a:type", "population($a)"),
    rule("clz type=b32|b64", "d:u32 <- a:type", "leading_zeros($a)"),
    rule("bfind shiftamt? type=u32|s32|u64|s64", "d:u32 <- a:type", "find_bit<$type, $shiftamt>($a)"),
    rule("brev type=b32|b64", _ONE, "reverse_bits($a)"),
    rule("bfe type=u32|s32|u64|s64", "d:type <- a:type n:u32 c:u32", "extract_field<$type>($a, $n, $c)"),
    rule("bfi type=b32|b64", "d:type <- a:type b:type n:u32 c:u32", "insert_field<$type>($a, $b, $n, $c)"),
    rule("prmt b32", "d:b32 <- a:b32 b:b32 c:b32", "permute_bytes($a, $b, $c)"),
    rule(
        "prmt b32 mode=f4e|b4e|rc8|ecl|ecr|rc16",
        "d:b32 <- a:b32 b:b32 c:b32",
        'permute_bytes($a, $b, permute_selector("$mode", $c))',
    ),
)
"""Integer arithmetic, logic and bit fields."""
