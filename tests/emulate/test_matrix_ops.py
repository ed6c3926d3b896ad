"""The table's matrix entries: what they accept, what they call, and what they refuse."""

from __future__ import annotations

import pytest

from onnxopt.emulate.errors import EmulationError
from onnxopt.emulate.matrix_ops import MATRIX_OPCODES
from onnxopt.emulate.opcode import Collective, Emission, WarpgroupMma
from onnxopt.emulate.ptx import Address, Immediate, Instruction, Operand, Register, Vector

ONE, MINUS_ONE, ZERO = (Immediate(value % 2**64, "int") for value in (1, -1, 0))
SHARED = Address(Register("%r9"), 16)


def registers(letter: str, count: int) -> Vector:
    return Vector(tuple(Register(f"%{letter}{i}") for i in range(count)))


def emit(name: str, *operands: Operand) -> Emission | None:
    """What the entry that covers the instruction yields; None where no entry does."""
    opcode, *modifiers = name.split(".")
    instruction = Instruction(12, None, opcode, tuple(modifiers), operands)
    matches = [(entry, entry.match(instruction)) for entry in MATRIX_OPCODES]
    found = [(entry, match) for entry, match in matches if match]
    assert len(found) <= 1
    return found[0][0].emit(found[0][1]) if found else None


@pytest.mark.parametrize(
    ("name", "counts", "function"),
    [
        ("m16n8k16.row.col.f32.f16.f16.f32", (4, 4, 2, 4), "emu::mma_f32<emu::F16, 16>"),
        ("m16n8k8.row.col.f32.bf16.bf16.f32", (4, 2, 1, 4), "emu::mma_f32<emu::BF16, 8>"),
        ("m16n8k4.row.col.f32.tf32.tf32.f32", (4, 2, 1, 4), "emu::mma_f32<emu::TF32, 4>"),
        ("m16n8k8.row.col.f32.tf32.tf32.f32", (4, 4, 2, 4), "emu::mma_f32<emu::TF32, 8>"),
        ("m16n8k16.row.col.f16.f16.f16.f16", (2, 4, 2, 2), "emu::mma_f16<16>"),
        ("m16n8k32.row.col.satfinite.s32.s8.u8.s32", (4, 4, 2, 4), "emu::mma_s32<emu::S8, emu::U8, 32, true>"),
        ("m16n8k16.row.col.s32.u8.u8.s32", (4, 2, 1, 4), "emu::mma_s32<emu::U8, emu::U8, 16, false>"),
    ],
)
def test_mma(name: str, counts: tuple[int, int, int, int], function: str) -> None:
    operands = [registers(letter, count) for letter, count in zip("dabc", counts, strict=True)]
    emission = emit(f"mma.sync.aligned.{name}", *operands)
    d, a, b, c = (operand.items for operand in operands)
    assert emission == Collective(function, outputs=d, inputs=(*a, *b, *c), counter="mma")


@pytest.mark.parametrize("position", range(4))
def test_mma_with_a_register_too_many_is_refused(position: int) -> None:
    counts = [4, 4, 2, 4]
    counts[position] += 1
    name = "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32"
    operands = [registers(letter, count) for letter, count in zip("dabc", counts, strict=True)]
    with pytest.raises(
        EmulationError, match=rf"line 12: {name} has {counts[position]} registers in {'dabc'[position]}"
    ):
        emit(name, *operands)


def test_mma_of_two_types_is_refused() -> None:
    operands = [registers(letter, count) for letter, count in zip("dabc", (4, 4, 2, 4), strict=True)]
    with pytest.raises(EmulationError, match="a is f16 and b is bf16; allowed: the same type"):
        emit("mma.sync.aligned.m16n8k16.row.col.f32.f16.bf16.f32", *operands)


@pytest.mark.parametrize("space", ["shared", "shared::cta"])
@pytest.mark.parametrize("trans", ["", ".trans"])
@pytest.mark.parametrize("count", [1, 2, 4])
def test_loads_and_stores(count: int, trans: str, space: str) -> None:
    data, suffix = registers("r", count), f"sync.aligned.m8n8.x{count}{trans}.{space}.b16"
    arguments = f"<{count}, {'true' if trans else 'false'}>"
    assert emit(f"ldmatrix.{suffix}", data, SHARED) == Collective(
        f"emu::ldmatrix{arguments}", outputs=data.items, inputs=(SHARED,), counter="ldmatrix"
    )
    assert emit(f"stmatrix.{suffix}", SHARED, data) == Collective(
        f"emu::stmatrix{arguments}", outputs=(), inputs=(SHARED, *data.items), counter="stmatrix"
    )


def test_movmatrix() -> None:
    d, a = Register("%r1"), Register("%r2")
    assert emit("movmatrix.sync.aligned.m8n8.trans.b16", d, a) == Collective(
        "emu::movmatrix", outputs=(d,), inputs=(a,), counter="movmatrix"
    )


def test_wgmma_with_descriptors() -> None:
    d, a, b, scale = registers("f", 64), Register("%rd1"), Register("%rd2"), Register("%p1")
    name = "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16"
    assert emit(name, d, a, b, scale, ONE, MINUS_ONE, ZERO, ONE) == WarpgroupMma(
        "emu::wgmma_f32<emu::BF16, 128, false>", d.items, (a,), False, b, scale, (ONE, MINUS_ONE, ZERO, ONE)
    )


def test_wgmma_with_a_in_registers() -> None:
    d, a, b, scale = registers("f", 4), registers("r", 4), Register("%rd2"), Register("%p1")
    assert emit("wgmma.mma_async.sync.aligned.m64n8k16.f32.f16.f16", d, a, b, scale, ONE, ONE, ONE) == WarpgroupMma(
        "emu::wgmma_f32<emu::F16, 8, true>", d.items, a.items, True, b, scale, (ONE, ONE, ONE)
    )
    assert emit("wgmma.mma_async.sync.aligned.m64n8k8.f32.tf32.tf32", d, a, b, scale, ONE, ONE) == WarpgroupMma(
        "emu::wgmma_f32<emu::TF32, 8, true>", d.items, a.items, True, b, scale, (ONE, ONE)
    )


@pytest.mark.parametrize(
    ("immediates", "message"),
    [
        ((ONE, ONE, ZERO), "7 operands; allowed: 8"),
        ((ZERO, ONE, ZERO, ZERO), "allowed: -1 or 1"),
        ((ONE, ONE, MINUS_ONE, ZERO), "allowed: 0 or 1"),
        ((ONE, ONE, Register("%r1"), ZERO), "allowed: 0 or 1"),
    ],
)
def test_wgmma_with_wrong_immediates_is_refused(immediates: tuple[Operand, ...], message: str) -> None:
    operands = (registers("f", 32), Register("%rd1"), Register("%rd2"), Register("%p1"), *immediates)
    with pytest.raises(EmulationError, match=message):
        emit("wgmma.mma_async.sync.aligned.m64n64k16.f32.f16.f16", *operands)


@pytest.mark.parametrize(
    "name",
    [
        "mma.sync.aligned.m8n8k4.row.col.f32.f16.f16.f32",
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f16",
        "mma.sync.aligned.m16n8k16.row.col.bf16.bf16.bf16.bf16",
        "mma.sync.aligned.m16n8k16.row.row.f32.f16.f16.f32",
        "mma.sync.aligned.m16n8k32.row.col.f32.e4m3.e4m3.f32",
        "mma.sp.sync.aligned.m16n8k32.row.col.f32.f16.f16.f32",
        "ldmatrix.sync.aligned.m8n8.x4.b16",
        "ldmatrix.sync.aligned.m8n8.x3.shared.b16",
        "ldmatrix.sync.aligned.m16n16.x1.trans.shared.b8",
        "stmatrix.sync.aligned.m8n8.x1.shared::cluster.b16",
        "movmatrix.sync.aligned.m8n8.b16",
        "wgmma.mma_async.sync.aligned.m64n12k16.f32.f16.f16",
        "wgmma.mma_async.sync.aligned.m64n264k16.f32.f16.f16",
        "wgmma.mma_async.sync.aligned.m64n64k16.f16.f16.f16",
        "wgmma.mma_async.sync.aligned.m64n64k8.f32.f16.f16",
        "wgmma.mma_async.sp.sync.aligned.m64n64k32.f32.f16.f16",
    ],
)
def test_what_no_entry_covers(name: str) -> None:
    assert emit(name) is None
