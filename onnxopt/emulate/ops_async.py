"""Asynchronous copies, mbarrier objects, fences, and what surrounds wgmma."""

from __future__ import annotations

from onnxopt.emulate.opcode import Code, Match, Opcode, Typed
from onnxopt.emulate.ptx import Address, Immediate, Operand, Sink
from onnxopt.emulate.rules import check_count, refusal, rule

_SHARED = "space?=shared|shared::cta|shared::cluster"
_ORDER = "sem?=release|acquire|relaxed scope?=cta|cluster"


def _constant(match: Match, operand: Operand, allowed: tuple[int, ...]) -> int:
    if not isinstance(operand, Immediate) or operand.bits not in allowed:
        raise refusal(match, f"{operand} as its size", " or ".join(map(str, allowed)))
    return operand.bits


def _copy(match: Match) -> Code:
    operands = match.instruction.operands[:-1] if match["hint"] else match.instruction.operands
    if len(operands) not in (3, 4):
        raise refusal(match, f"{len(operands)} operands", "3 or 4")
    size = _constant(match, operands[2], (16,) if match["cache"] == "cg" else (4, 8, 16))
    inputs = {"m": Typed(operands[0], "address"), "g": Typed(operands[1], "address")}
    source = f"{size}u"
    if len(operands) == 4:
        inputs["n"] = Typed(operands[3], f"source{size}")
        source = "$n"
    return Code(f"copy_async(t, $line, $m, $g, {size}, {source});", {}, inputs)


def _place(match: Match) -> str:
    return "$m" if match["space"] else "from_generic(t, $line, kSharedWindow, $m)"


def _arrive(match: Match) -> Code:
    operands = match.instruction.operands
    # Without a result the address comes first.
    has_state = not isinstance(operands[0], Address) if operands else False
    state: Operand = operands[0] if has_state else Sink()
    rest = operands[1:] if has_state else operands
    count: Operand = Immediate(1, "int")
    expected: Operand = Immediate(0, "int")
    if match["expect"]:
        check_count(match, 2 + has_state)
        expected = rest[1]
    else:
        check_count(match, 1 + has_state, 2 + has_state)
        count = rest[1] if len(rest) > 1 else count
    inputs = {"m": Typed(rest[0], "address"), "c": Typed(count, "u32"), "x": Typed(expected, "u32")}
    drop = "true" if match["action"] == "arrive_drop" else "false"
    return Code(f"mbarrier_arrive(t, $line, {_place(match)}, $c, $x, {drop})", {"d": Typed(state, "b64")}, inputs)


def _wait(match: Match) -> Code:
    check_count(match, 3, 4)
    predicate, address, wanted = match.instruction.operands[:3]
    wait = "true" if match["mode"] == "try_wait" else "false"
    function, kind = ("mbarrier_test_parity", "u32") if match["parity"] else ("mbarrier_test", "b64")
    return Code(
        f"{function}(t, $line, {_place(match)}, $w, {wait})",
        {"p": Typed(predicate, "pred")},
        {"m": Typed(address, "address"), "w": Typed(wanted, kind)},
    )


def _bulk_load(match: Match) -> Code:
    check_count(match, 5 if match["hint"] else 4)
    target, source, size, barrier = match.instruction.operands[:4]
    inputs = {"m": Typed(target, "address"), "g": Typed(source, "address"), "n": Typed(size, "u32")}
    return Code("bulk_load(t, $line, $m, $g, $n, $b);", {}, {**inputs, "b": Typed(barrier, "address")})


def _bulk_store(match: Match) -> Code:
    check_count(match, 4 if match["hint"] else 3)
    target, source, size = match.instruction.operands[:3]
    inputs = {"g": Typed(target, "address"), "m": Typed(source, "address"), "n": Typed(size, "u32")}
    return Code("bulk_store(t, $line, $g, $m, $n);", {}, inputs)


def _on_barrier(pattern: str, signature: str, text: str) -> Opcode:
    inner = rule(pattern, signature, text)

    def emit(match: Match) -> Code:
        code = inner.emit(match)
        assert isinstance(code, Code)
        return Code(code.text.replace("$at", _place(match)), code.outputs, code.inputs)

    return Opcode(pattern, emit)


_NOTHING = ("<-", ";")

ASYNC_OPCODES = (
    Opcode(
        "cp async cache=ca|cg shared=shared|shared::cta global hint?=L2::cache_hint size?=L2::64B|L2::128B|L2::256B",
        _copy,
    ),
    rule("cp async commit_group", "<-", "copy_commit(t);"),
    rule("cp async wait_group", "<- n:u32", "copy_wait(t, $n);"),
    rule("cp async wait_all", "<-", "copy_wait_all(t);"),
    _on_barrier(
        f"cp async mbarrier arrive noinc? {_SHARED} b64", "<- m:address", "copy_arrive(t, $line, $at, !$noinc);"
    ),
    Opcode(
        "cp async bulk to=shared::cluster|shared::cta global mbarrier::complete_tx::bytes hint?=L2::cache_hint",
        _bulk_load,
    ),
    Opcode("cp async bulk global shared::cta bulk_group hint?=L2::cache_hint", _bulk_store),
    rule("cp async bulk commit_group", "<-", "bulk_commit(t);"),
    rule("cp async bulk wait_group read?", "<- n:u32", "bulk_wait(t, $n);"),
    rule("cp async bulk prefetch L2 global", "<- m:address n:u32", ";"),
    _on_barrier(f"mbarrier init {_SHARED} b64", "<- m:address n:u32", "mbarrier_init(t, $line, $at, $n);"),
    _on_barrier(f"mbarrier inval {_SHARED} b64", "<- m:address", "mbarrier_invalidate(t, $line, $at);"),
    Opcode(f"mbarrier action=arrive|arrive_drop expect?=expect_tx {_ORDER} {_SHARED} b64", _arrive),
    Opcode(f"mbarrier action=arrive|arrive_drop expect?=expect_tx noComplete {_ORDER} {_SHARED} b64", _arrive),
    _on_barrier(
        f"mbarrier expect_tx {_ORDER} {_SHARED} b64", "<- m:address n:u32", "mbarrier_expect(t, $line, $at, $n);"
    ),
    _on_barrier(
        f"mbarrier complete_tx {_ORDER} {_SHARED} b64", "<- m:address n:u32", "mbarrier_complete(t, $line, $at, $n);"
    ),
    Opcode(f"mbarrier mode=test_wait|try_wait parity? {_ORDER} {_SHARED} b64", _wait),
    rule("mbarrier pending_count b64", "d:u32 <- a:b64", "mbarrier_pending($a)"),
    rule("fence proxy async space?=global|shared::cta|shared::cluster", "<-", "fence_proxy(t);"),
    rule("fence proxy alias", *_NOTHING),
    rule("fence mbarrier_init release cluster", *_NOTHING),
    rule("fence sem?=sc|acq_rel|acquire|release scope=cta|cluster|gpu|sys", *_NOTHING),
    rule("membar scope=cta|gl|sys", *_NOTHING),
    rule("wgmma fence sync aligned", "<-", "warpgroup_fence(t, $line);"),
    rule("wgmma commit_group sync aligned", "<-", "warpgroup_commit(t, $line);"),
    rule("wgmma wait_group sync aligned", "<- n:u32", "warpgroup_wait(t, $line, $n);"),
    rule("setmaxnreg direction=inc|dec sync aligned u32", "<- n:u32", "check_registers(t, $line, $n);"),
    rule("griddepcontrol action=launch_dependents|wait", *_NOTHING),
    rule("nanosleep u32", "<- n:u32", "yield(t);"),
)
"""What happens later, and the fences between."""
