"""Instructions in which the lanes of a warp, or the threads of a block, meet."""

from __future__ import annotations

from onnxopt.emulate.opcode import Code, Match, Opcode, Typed
from onnxopt.emulate.ptx import Immediate, Operand, Pair, Sink
from onnxopt.emulate.rules import check_count, refusal, rule

_ALL_THREADS = Immediate(0, "int")


def _meet(function: str, outputs: dict[str, Typed], inputs: dict[str, Typed], mask: Operand) -> Code:
    """A collective whose words are the inputs and outputs in their order."""
    words = ", ".join(_word(name, typed.type) for name, typed in inputs.items())
    lines = [f"const uint32_t in_[] = {{{words}}};", "uint32_t out_[2];"]
    lines.append(f"collective(t, $line, $mask, in_, out_, {function});")
    for index, (name, typed) in enumerate(outputs.items()):
        value = f"out_[{index}] != 0" if typed.type == "pred" else f"out_[{index}]"
        lines.append(f"${name} = {value};")
    return Code(" ".join(lines), outputs, {**inputs, "mask": Typed(mask, "b32")})


def _word(name: str, kind: str) -> str:
    if kind == "b64":
        return f"static_cast<uint32_t>(${name}), static_cast<uint32_t>(${name} >> 32)"
    return f"${name}"


def _with_predicate(destination: Operand) -> dict[str, Typed]:
    first, second = (destination.first, destination.second) if isinstance(destination, Pair) else (destination, Sink())
    return {"d": Typed(first, "b32"), "p": Typed(second, "pred")}


def _shuffle(match: Match) -> Code:
    check_count(match, 5)
    destination, a, b, c, mask = match.instruction.operands
    function = {"up": "shuffle_up", "down": "shuffle_down", "bfly": "shuffle_butterfly", "idx": "shuffle_index"}
    inputs = {"a": Typed(a, "b32"), "b": Typed(b, "b32"), "c": Typed(c, "b32")}
    return _meet(function[match["mode"]], _with_predicate(destination), inputs, mask)


def _vote(match: Match) -> Code:
    check_count(match, 3)
    destination, a, mask = match.instruction.operands
    function = {"all": "all", "any": "any", "uni": "uniform", "ballot": "ballot"}[match["mode"]]
    return _meet(f"vote_{function}", {"d": Typed(destination, match["type"])}, {"a": Typed(a, "pred")}, mask)


def _reduce(match: Match) -> Code:
    check_count(match, 3)
    destination, a, mask = match.instruction.operands
    operation = match["operation"]
    if operation in ("min", "max"):
        operation += {"s32": "_signed", "u32": "_unsigned", "f32": "_float"}[match["type"]]
    return _meet(f"reduce_{operation}", {"d": Typed(destination, "b32")}, {"a": Typed(a, "b32")}, mask)


def _match_any(match: Match) -> Code:
    check_count(match, 3)
    destination, a, mask = match.instruction.operands
    return _meet("match_any", {"d": Typed(destination, "b32")}, _two_words(match, a), mask)


def _match_all(match: Match) -> Code:
    check_count(match, 3)
    destination, a, mask = match.instruction.operands
    return _meet("match_all", _with_predicate(destination), _two_words(match, a), mask)


def _two_words(match: Match, a: Operand) -> dict[str, Typed]:
    if match["type"] == "b64":
        return {"a": Typed(a, "b64")}
    return {"a": Typed(a, "b32"), "zero": Typed(Immediate(0, "int"), "b32")}


def _elect(match: Match) -> Code:
    check_count(match, 2)
    destination, mask = match.instruction.operands
    return _meet("elect", _with_predicate(destination), {"mask_word": Typed(mask, "b32")}, mask)


def _warp_barrier(match: Match) -> Code:
    check_count(match, 1)
    return Code(
        "collective(t, $line, $mask, nullptr, nullptr, meet_only);",
        {},
        {"mask": Typed(match.instruction.operands[0], "b32")},
    )


def _barrier_operands(match: Match, operands: tuple[Operand, ...]) -> dict[str, Typed]:
    count = operands[1] if len(operands) > 1 else _ALL_THREADS
    return {"id": Typed(operands[0], "u32"), "count": Typed(count, "u32")}


def _barrier(match: Match) -> Code:
    check_count(match, *((2,) if match["mode"] == "arrive" else (1, 2)))
    inputs = _barrier_operands(match, match.instruction.operands)
    return Code(f"barrier_{match['mode']}(t, $line, $id, $count);", {}, inputs)


def _barrier_reduction(match: Match) -> Code:
    check_count(match, 3, 4)
    destination, *barrier, predicate = match.instruction.operands
    inputs = {**_barrier_operands(match, tuple(barrier)), "p": Typed(predicate, "pred")}
    call = "barrier_count(t, $line, $id, $count, $p)"
    kind = "u32" if match["operation"] == "popc" else "pred"
    if match["type"] != kind:
        raise refusal(match, f"the type {match['type']}", kind)
    text = {
        "popc": call,
        "or": f"{call} != 0",
        "and": f"{call} == ($count != 0 ? $count : block_threads(t))",
    }[match["operation"]]
    return Code(text, {"d": Typed(destination, kind)}, inputs)


WARP_OPCODES = (
    Opcode("shfl sync mode=up|down|bfly|idx b32", _shuffle),
    Opcode("vote sync mode=all|any|uni type=pred", _vote),
    Opcode("vote sync mode=ballot type=b32", _vote),
    Opcode("redux sync operation=add|min|max type=u32|s32", _reduce),
    Opcode("redux sync operation=and|or|xor type=b32", _reduce),
    Opcode("redux sync operation=min|max type=f32", _reduce),
    Opcode("match any sync type=b32|b64", _match_any),
    Opcode("match all sync type=b32|b64", _match_all),
    Opcode("elect sync", _elect),
    rule("activemask b32", "d:b32 <-", "active_lanes(t)"),
    Opcode("bar warp sync", _warp_barrier),
    Opcode("bar cta? mode=sync|arrive", _barrier),
    Opcode("barrier cta? mode=sync|arrive aligned?", _barrier),
    Opcode("bar cta? red operation=popc|and|or type=u32|pred", _barrier_reduction),
    Opcode("barrier cta? red operation=popc|and|or aligned? type=u32|pred", _barrier_reduction),
)
"""Collectives of warps and barriers of blocks."""
