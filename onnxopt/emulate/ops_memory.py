"""Loads, stores, atomics, and hints to the caches (which do nothing here)."""

from __future__ import annotations

from collections.abc import Callable

from onnxopt.emulate.cursor import TYPE_BYTES
from onnxopt.emulate.opcode import Code, Match, Opcode, Typed
from onnxopt.emulate.ptx import Operand, Vector
from onnxopt.emulate.rules import CPP_TYPES, check_count, refusal, rule

_SPACES = {"": "generic", "shared::cta": "shared", "const": "global", "param::entry": "param", "param::func": "param"}
_TYPES = "|".join(f"{letter}{bits}" for letter in "bus" for bits in (8, 16, 32, 64)) + "|f32|f64|f16|bf16"
_ORDER = "sem?=weak|volatile|relaxed|acquire|release scope?=cta|cluster|gpu|sys"
_CACHE = (
    "cop?=ca|cg|cs|lu|cv|wb|wt nc?"
    " l1?=L1::evict_normal|L1::evict_unchanged|L1::evict_first|L1::evict_last|L1::no_allocate"
    " l2?=L2::evict_normal|L2::evict_first|L2::evict_last hint?=L2::cache_hint size?=L2::64B|L2::128B|L2::256B"
)
_ACCESS = f"{_CACHE} vector?=v2|v4|v8 type={_TYPES}"


def _items(match: Match, operand: Operand) -> tuple[Operand, ...]:
    items = operand.items if isinstance(operand, Vector) else (operand,)
    expected = int(match["vector"][1:]) if match["vector"] else 1
    if len(items) != expected:
        raise refusal(match, f"{len(items)} registers", str(expected))
    return items


def _without_policy(match: Match, operands: int) -> tuple[Operand, ...]:
    """The operands without the cache policy that .L2::cache_hint adds."""
    check_count(match, operands + 1 if match.parts.get("hint") else operands)
    return match.instruction.operands[:operands]


def _plain(kind: str) -> str:
    """The integer type whose load does the same: only signed types that may widen are their own."""
    return kind if kind[0] == "s" else f"b{8 * TYPE_BYTES[kind]}"


def space_of(match: Match) -> str:
    """The state space as the runtime's functions name it: "global", "shared", "local", "param" or "generic"."""
    return _SPACES.get(match["space"], match["space"])


def _load(match: Match) -> Code:
    destination, address = _without_policy(match, 2)
    items, kind, space = _items(match, destination), match["type"], space_of(match)
    kind, size = _plain(kind), TYPE_BYTES[kind]
    if space == "param":
        source = "$m"
    else:
        source = f"read_{space}(t, $line, $m, {size * len(items)})"
    lines = [f"const uint8_t* from_ = {source};"]
    lines += [f"$d{i} = fetch_{kind}(from_ + {i * size});" for i in range(len(items))]
    outputs = {f"d{i}": Typed(item, kind) for i, item in enumerate(items)}
    return Code(" ".join(lines), outputs, {"m": Typed(address, "param" if space == "param" else "address")})


def _store(match: Match) -> Code:
    address, source = _without_policy(match, 2)
    items, kind, space = _items(match, source), match["type"], space_of(match)
    kind, size = _plain(kind), TYPE_BYTES[kind]
    if space == "param":
        target = "$m"
    else:
        target = f"write_{space}(t, $line, $m, {size * len(items)})"
    lines = [f"uint8_t* to_ = {target};"]
    lines += [f"keep_{kind}(to_ + {i * size}, $a{i});" for i in range(len(items))]
    inputs = {f"a{i}": Typed(item, kind) for i, item in enumerate(items)}
    inputs["m"] = Typed(address, "param_out" if space == "param" else "address")
    return Code(" ".join(lines), {}, inputs)


_CHANGES: dict[str, Callable[[str], str]] = {
    "and": lambda kind: "old_ & b_",
    "or": lambda kind: "old_ | b_",
    "xor": lambda kind: "old_ ^ b_",
    "exch": lambda kind: "b_",
    "inc": lambda kind: "old_ >= b_ ? 0u : old_ + 1",
    "dec": lambda kind: "old_ == 0 || old_ > b_ ? b_ : old_ - 1",
    "cas": lambda kind: "old_ == b_ ? c_ : old_",
    "add": lambda kind: _added(kind),
    "min": lambda kind: _extreme(kind, "min"),
    "max": lambda kind: _extreme(kind, "max"),
}


def _added(kind: str) -> str:
    if kind in ("f16x2", "bf16x2"):
        element = kind.removesuffix("x2")
        add = f"[]({element} x_, {element} y_) {{ return float_add<{element}, Round::nearest>(x_, y_); }}"
        return f"each_half(old_, b_, {add})"
    if "f" in kind:
        return f"float_add<{CPP_TYPES[kind]}, Round::nearest>(old_, b_)"
    return f"wrap_add<{CPP_TYPES[kind]}>(old_, b_)"


def _extreme(kind: str, name: str) -> str:
    return f"float_{name}<{kind}, false>(old_, b_)" if "f" in kind else f"int_{name}(old_, b_)"


def _atomic(match: Match) -> Code:
    """atom, and red, which is the same without a result."""
    wants_result = match.instruction.opcode == "atom"
    operation, kind, space = match["operation"], match["type"], space_of(match)
    operands = list(_without_policy(match, 2 + wants_result + (operation == "cas")))
    outputs = {"d": Typed(operands.pop(0), kind)} if wants_result else {}
    inputs = {"m": Typed(operands.pop(0), "address"), "b": Typed(operands.pop(0), kind)}
    cpp = CPP_TYPES[kind]
    text = f"const {cpp} b_ = $b; "
    if operands:
        inputs["c"] = Typed(operands.pop(0), kind)
        text += f"const {cpp} c_ = $c; "
    change = f"[=]({cpp} old_) -> {cpp} {{ return {_CHANGES[operation](kind)}; }}"
    call = f"atomic<{cpp}>(t, $line, read_{space}, write_{space}, $m, {change});"
    return Code(text + (f"$d = {call}" if wants_result else call), outputs, inputs)


_ATOMIC_ORDER = "sem?=relaxed|acquire|release|acq_rel scope?=cta|cluster|gpu|sys space?=global|shared|shared::cta"
_ATOMICS = (
    ("and|or|xor", "b32|b64"),
    ("exch|cas", "b16|b32|b64"),
    ("inc|dec", "u32"),
    ("add", "u32|s32|u64|f32|f64"),
    ("min|max", "u32|s32|u64|s64"),
)

MEMORY_OPCODES = (
    Opcode(
        f"ld {_ORDER} space?=global|shared|shared::cta|local|const|param|param::entry|param::func {_ACCESS}",
        _load,
    ),
    Opcode(f"ldu space?=global vector?=v2|v4 type={_TYPES}", _load),
    Opcode(f"st {_ORDER} space?=global|shared|shared::cta|local|param|param::func {_ACCESS}", _store),
    *(
        Opcode(f"{name} {_ATOMIC_ORDER} operation={operations} hint?=L2::cache_hint type={kinds}", _atomic)
        for name in ("atom", "red")
        for operations, kinds in _ATOMICS
    ),
    *(
        Opcode(
            f"{name} {_ATOMIC_ORDER} operation=add|min|max noftz hint?=L2::cache_hint type=f16|bf16|f16x2|bf16x2",
            _atomic,
        )
        for name in ("atom", "red")
    ),
    rule("prefetch space?=global|local level=L1|L2|L2::evict_last|L2::evict_normal", "<- m:address", ";"),
    rule("prefetchu L1", "<- m:address", ";"),
    rule("applypriority space?=global L2::evict_normal", "<- m:address n:u32", ";"),
    rule(
        "createpolicy fractional primary=L2::evict_first|L2::evict_last|L2::evict_normal|L2::evict_unchanged b64",
        "d:b64 <- a:f32",
        "uint64_t{0}",
    ),
)
"""Memory in every state space. Cache operators and hints change nothing."""
