"""PTX text as data: names of scopes, operands, variables with their bytes, and what cannot be read."""

from __future__ import annotations

import pytest

from onnxopt.emulate import EmulationError
from onnxopt.emulate.lexer import number_bits
from onnxopt.emulate.parser import parse_ptx
from onnxopt.emulate.ptx import Address, Immediate, Instruction, Label, Negated, Pair, Register, Sink, Symbol, Vector
from tests.emulate.running import ptx_text


def _instructions(body: str) -> list[Instruction]:
    (function,) = parse_ptx(ptx_text(body, parameters=0)).functions
    return [part for part in function.body if isinstance(part, Instruction)][:-1]


def test_operands() -> None:
    body = (
        "@!%p1 ld.global.nc.L2::128B.v2.f32 {%f1, _}, [%rd1+-8];\n"
        "setp.lt.and.f32 %p1|%p2, %f1, 0f3F800000, !%p3; /* several\nlines */ mov.u32 %r1, WARP_SZ; // rest\n"
        "st.shared.b32 [area+0x10], -1; mov.u32 %r2, %tid.x;"
    )
    load, compare, width, store, special = _instructions(body)
    assert load.name == "ld.global.nc.L2::128B.v2.f32" and load.predicate is not None and load.predicate.negated
    assert load.operands == (Vector((Register("%f1"), Sink())), Address(Register("%rd1"), -8))
    one = Immediate(0x3F800000, "f32")
    assert compare.operands[0] == Pair(Register("%p1"), Register("%p2"))
    assert compare.operands[1:] == (Register("%f1"), one, Negated(Register("%p3")))
    assert width.operands[1] == Immediate(32, "int")
    assert store.operands == (Address(Symbol("area"), 16), Immediate((1 << 64) - 1, "int"))
    assert special.operands[1] == Register("%tid.x")
    assert [part.line - load.line for part in (compare, width, store)] == [1, 2, 3]


def test_names_of_inner_scopes_are_their_own() -> None:
    inner = "{ .reg .pred p; not.pred p, p; }"
    scope = f"{{ .reg .pred p; .reg .b32 x<2>; bra OUT; OUT: mov.u32 x1, %r1; {inner} not.pred p, p; }}"
    (function,) = parse_ptx(ptx_text(scope + scope + "mov.u32 %r1, %r2;", parameters=0)).functions
    labels = [part.name for part in function.body if isinstance(part, Label)]
    assert len(set(labels)) == 2
    branches = [part for part in function.body if isinstance(part, Instruction) and part.opcode == "bra"]
    assert [part.operands for part in branches] == [(Symbol(label),) for label in labels]
    inverted = [part.operands[0] for part in function.body if isinstance(part, Instruction) and part.opcode == "not"]
    assert len(set(inverted)) == 4
    assert all(isinstance(name, Register) and function.registers[name.name] == "pred" for name in inverted)


def test_variables() -> None:
    head = (
        ".global .align 8 .u64 table[3] = {one, generic(two)+4, 7};\n.const .align 4 .f32 one = 0f3F800000;\n"
        ".visible .global .align 4 .b8 two[8] = {1, 255, -1};\n.extern .shared .align 1024 .b8 dynamic[];\n"
        ".global .v4 .f32 wide[2];"
    )
    table, one, two, dynamic, wide = parse_ptx(ptx_text("", parameters=0, head=head)).variables
    assert table.initial == bytes(16) + (7).to_bytes(8, "little") and table.size == 24
    assert table.references == ((0, "one", 0), (8, "two", 4))
    assert (one.space, one.initial) == ("const", bytes.fromhex("0000803f"))
    assert two.initial == bytes([1, 255, 255, 0, 0, 0, 0, 0])
    assert (dynamic.size, dynamic.extern, dynamic.alignment) == (None, True, 1024)
    assert (wide.size, wide.alignment) == (32, 16)


@pytest.mark.parametrize(
    ("text", "bits", "kind"),
    [
        ("0x1F", 31, "int"),
        ("0b101", 5, "int"),
        ("017", 15, "int"),
        ("42U", 42, "int"),
        ("0", 0, "int"),
        ("0fBF800000", 0xBF800000, "f32"),
        ("0d3FF0000000000000", 0x3FF0000000000000, "f64"),
        ("1.0", 0x3FF0000000000000, "f64"),
    ],
)
def test_numbers(text: str, bits: int, kind: str) -> None:
    assert number_bits(text) == (bits, kind)


@pytest.mark.parametrize(
    ("text", "match"),
    [
        (".version 9.0 .target sm_80 .address_size 32", "only 64-bit addresses"),
        (".alias a, b;", "PTX line 1: the directive .alias is not supported"),
        (".entry run() { mov.u32 %r1, 3;", "the function has no end"),
        (
            ".entry run() .reqnctapercluster 2, 1, 1 { ret; }",
            "the directive .reqnctapercluster of run is not supported",
        ),
        (".entry run() { cp.async.bulk.tensor.2d [%r1], [map, {%r2, %r3}], [%r4]; }", "tensor maps are not supported"),
        (".entry run() { mov.u32 %r1 }", "expected ';'"),
        (".global .b32 x = [;", "expected a constant"),
        (".global .managed x;", "PTX line 1: .managed of a variable is not supported"),
    ],
)
def test_what_cannot_be_read(text: str, match: str) -> None:
    with pytest.raises(EmulationError, match=match) as caught:
        parse_ptx(text)
    assert caught.value.line == 1
