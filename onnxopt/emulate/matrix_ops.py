"""Matrix instructions in the table of opcodes: mma, ldmatrix, stmatrix, movmatrix, wgmma.mma_async.

Each entry checks how many registers every operand has, and names the C++ function that computes it
(runtime/matrix.h, runtime/warpgroup.h). What is not here is refused by name: mma of m8n8k4, of double, of integers with
fewer than eight bits, sparse and scaled products; wgmma with half accumulators or 8-bit elements; matrix loads that
change the element's size.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from onnxopt.emulate.opcode import Collective, Match, Opcode, WarpgroupMma
from onnxopt.emulate.ptx import Address, Immediate, Operand, Vector
from onnxopt.emulate.rules import check_count, refusal

_ELEMENT_BITS = {"f16": 16, "bf16": 16, "tf32": 32, "s8": 8, "u8": 8}
_WARP_REGISTER_BITS = 32 * 32
_WGMMA_WIDTHS = range(8, 257, 8)


def _mma(function: Callable[[Match, int], str]) -> Callable[[Match], Collective]:
    """An mma of 16 x 8 x k; `function` gets the match and k."""

    def emit(match: Match) -> Collective:
        k = int(match["shape"].rpartition("k")[2])
        d, a, b, c = _operands(match, 4)
        accumulators = 2 if match.instruction.modifiers[-1] == "f16" else 4
        return Collective(
            function(match, k),
            outputs=_registers(match, "d", d, accumulators),
            inputs=(
                *_registers(match, "a", a, 16 * k * _ELEMENT_BITS[match["a"]] // _WARP_REGISTER_BITS),
                *_registers(match, "b", b, 8 * k * _ELEMENT_BITS[match["b"]] // _WARP_REGISTER_BITS),
                *_registers(match, "c", c, accumulators),
            ),
            counter="mma",
        )

    return emit


def _float_mma(match: Match, k: int) -> str:
    if match["a"] != match["b"]:
        raise refusal(match, f"a is {match['a']} and b is {match['b']}", "the same type for both")
    return f"emu::mma_f32<emu::{match['a'].upper()}, {k}>"


def _half_mma(match: Match, k: int) -> str:
    return f"emu::mma_f16<{k}>"


def _integer_mma(match: Match, k: int) -> str:
    saturate = "true" if match["satfinite"] else "false"
    return f"emu::mma_s32<emu::{match['a'].upper()}, emu::{match['b'].upper()}, {k}, {saturate}>"


def _ldmatrix(match: Match) -> Collective:
    count = int(match["count"][1:])
    destination, address = _operands(match, 2)
    return Collective(
        f"emu::ldmatrix<{count}, {_truth(match['trans'])}>",
        outputs=_registers(match, "destination", destination, count),
        inputs=(_address(match, address),),
        counter="ldmatrix",
    )


def _stmatrix(match: Match) -> Collective:
    count = int(match["count"][1:])
    address, source = _operands(match, 2)
    return Collective(
        f"emu::stmatrix<{count}, {_truth(match['trans'])}>",
        outputs=(),
        inputs=(_address(match, address), *_registers(match, "source", source, count)),
        counter="stmatrix",
    )


def _movmatrix(match: Match) -> Collective:
    destination, source = _operands(match, 2)
    return Collective(
        "emu::movmatrix",
        outputs=_registers(match, "destination", destination, 1),
        inputs=_registers(match, "source", source, 1),
        counter="movmatrix",
    )


def _wgmma(match: Match) -> WarpgroupMma:
    n = _wgmma_width(match)
    element = match["a"]
    if element != match["b"]:
        raise refusal(match, f"a is {element} and b is {match['b']}", "the same type for both")
    a_in_registers = len(match.instruction.operands) > 1 and isinstance(match.instruction.operands[1], Vector)
    # Only 16-bit elements can be transposed, and only where they stand in shared memory.
    transpositions = 0 if element == "tf32" else 1 if a_in_registers else 2
    d, a, b, scale_d, *immediates = _operands(match, 6 + transpositions)
    for position, operand in enumerate(immediates):
        _check_immediate(match, operand, (-1, 1) if position < 2 else (0, 1))
    return WarpgroupMma(
        f"emu::wgmma_f32<emu::{element.upper()}, {n}, {_truth(a_in_registers)}>",
        accumulators=_registers(match, "d", d, n // 2),
        a=_registers(match, "a", a, 4 if a_in_registers else 1),
        a_in_registers=a_in_registers,
        b=b,
        scale_d=scale_d,
        immediates=tuple(immediates),
    )


def _wgmma_width(match: Match) -> int:
    shape = re.fullmatch(r"m64n(\d+)k\d+", match["shape"])
    assert shape is not None
    return int(shape[1])


def _truth(value: object) -> str:
    return "true" if value else "false"


def _operands(match: Match, count: int) -> tuple[Operand, ...]:
    check_count(match, count)
    return match.instruction.operands


def _registers(match: Match, name: str, operand: Operand, count: int) -> tuple[Operand, ...]:
    items = operand.items if isinstance(operand, Vector) else (operand,)
    if len(items) != count:
        raise refusal(match, f"{len(items)} registers in {name}", str(count))
    return items


def _address(match: Match, operand: Operand) -> Operand:
    if not isinstance(operand, Address):
        raise refusal(match, f"{operand} where an address belongs", "[address]")
    return operand


def _check_immediate(match: Match, operand: Operand, allowed: tuple[int, int]) -> None:
    bits = {value % 2**64 for value in allowed}
    if not isinstance(operand, Immediate) or operand.kind != "int" or operand.bits not in bits:
        raise refusal(match, f"{operand} as scale or transposition", f"{allowed[0]} or {allowed[1]}")


_SHARED = "space=shared|shared::cta"
_WGMMA_16 = "|".join(f"m64n{n}k16" for n in _WGMMA_WIDTHS)
_WGMMA_8 = "|".join(f"m64n{n}k8" for n in _WGMMA_WIDTHS)

MATRIX_OPCODES = (
    Opcode("mma sync aligned shape=m16n8k8|m16n8k16 row col f32 a=f16|bf16 b=f16|bf16 f32", _mma(_float_mma)),
    Opcode("mma sync aligned shape=m16n8k4|m16n8k8 row col f32 a=tf32 b=tf32 f32", _mma(_float_mma)),
    Opcode("mma sync aligned shape=m16n8k8|m16n8k16 row col f16 a=f16 b=f16 f16", _mma(_half_mma)),
    Opcode(
        "mma sync aligned shape=m16n8k16|m16n8k32 row col satfinite? s32 a=s8|u8 b=s8|u8 s32",
        _mma(_integer_mma),
    ),
    Opcode(f"ldmatrix sync aligned m8n8 count=x1|x2|x4 trans? {_SHARED} b16", _ldmatrix),
    Opcode(f"stmatrix sync aligned m8n8 count=x1|x2|x4 trans? {_SHARED} b16", _stmatrix),
    Opcode("movmatrix sync aligned m8n8 trans b16", _movmatrix),
    Opcode(f"wgmma mma_async sync aligned shape={_WGMMA_16} f32 a=f16|bf16 b=f16|bf16", _wgmma),
    Opcode(f"wgmma mma_async sync aligned shape={_WGMMA_8} f32 a=tf32 b=tf32", _wgmma),
)
"""Every matrix instruction that the emulator computes."""
