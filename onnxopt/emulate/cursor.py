"""Reading tokens one after another, and the variable declarations that modules and functions share."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import NoReturn

from onnxopt.emulate.errors import EmulationError
from onnxopt.emulate.lexer import Token, number_bits
from onnxopt.emulate.ptx import Variable

TYPE_BYTES = {
    **{f"{letter}{bits}": bits // 8 for letter in "bus" for bits in (8, 16, 32, 64)},
    "b128": 16,
    **dict.fromkeys(("f16", "bf16"), 2),
    **dict.fromkeys(("f32", "f16x2", "bf16x2", "tf32"), 4),
    "f64": 8,
    "pred": 1,
}
"""Bytes of each type."""

STATE_SPACES = frozenset({"global", "const", "shared", "local", "param"})


class Cursor:
    """A place in a list of tokens."""

    def __init__(self, tokens: Iterable[Token]) -> None:
        self._tokens = list(tokens)
        self._place = 0

    @property
    def token(self) -> Token:
        """The next token, which stays next."""
        return self._tokens[self._place]

    def ahead(self, count: int) -> Token:
        """The token `count` places after the next one; the end where there is none."""
        return self._tokens[min(self._place + count, len(self._tokens) - 1)]

    def take(self) -> Token:
        """The next token, which is used up."""
        token = self._tokens[self._place]
        self._place = min(self._place + 1, len(self._tokens) - 1)
        return token

    def accept(self, text: str) -> bool:
        """Uses up the next token if it is `text`."""
        if self.token.text != text:
            return False
        self.take()
        return True

    def expect(self, text: str) -> Token:
        """Uses up the next token, which must be `text`."""
        if self.token.text != text:
            self.fail(f"expected {text!r}")
        return self.take()

    def word(self) -> str:
        """Uses up a name."""
        if self.token.kind != "word":
            self.fail("expected a name")
        return self.take().text

    def integer(self) -> int:
        """Uses up a whole number with its sign."""
        negative = self.accept("-")
        if self.token.kind != "number":
            self.fail("expected a number")
        bits, _ = number_bits(self.take().text)
        return -bits if negative else bits

    def skip_line(self) -> None:
        """Uses up the tokens that stand on the line of the next one."""
        line = self.token.line
        while self.token.kind != "end" and self.token.line == line:
            self.take()

    def fail(self, message: str) -> NoReturn:
        """Raises an error at the next token."""
        token = self.token
        raise EmulationError(f"PTX line {token.line}: {message}, found {token.text!r}", token.line)


def read_variables(cursor: Cursor, space: str, extern: bool) -> list[Variable]:
    """The declarations behind a state space, without the closing semicolon: `.align 4 .b8 name[24] = {...}, ...`."""
    alignment, lanes, kind = 0, 1, ""
    while cursor.token.kind == "directive":
        name = cursor.take().text[1:]
        if name == "align":
            alignment = cursor.integer()
        elif name in TYPE_BYTES:
            kind = name
        elif name in ("v2", "v4"):
            lanes = int(name[1:])
        elif name not in STATE_SPACES and name != "ptr":
            cursor.fail(f".{name} of a variable is not supported")
    if not kind:
        cursor.fail("expected the type of a variable")
    found = [_read_variable(cursor, space, extern, kind, lanes, alignment)]
    while space not in ("param",) and cursor.accept(","):
        found.append(_read_variable(cursor, space, extern, kind, lanes, alignment))
    return found


def _read_variable(cursor: Cursor, space: str, extern: bool, kind: str, lanes: int, alignment: int) -> Variable:
    element = TYPE_BYTES[kind] * lanes
    line, name = cursor.token.line, cursor.word()
    size: int | None = element
    while cursor.accept("["):
        if cursor.accept("]"):
            size = None
            continue
        count = cursor.integer()
        size = None if size is None else size * count
        cursor.expect("]")
    initial: bytes | None = None
    references: tuple[tuple[int, str, int], ...] = ()
    if cursor.accept("="):
        data, references = _read_initialiser(cursor, kind)
        size = len(data) if size is None else size
        initial = data.ljust(size, b"\0")
    return Variable(line, name, space, alignment or element, size, initial, extern, references)


def _read_initialiser(cursor: Cursor, kind: str) -> tuple[bytes, tuple[tuple[int, str, int], ...]]:
    data = bytearray()
    references: list[tuple[int, str, int]] = []

    def value() -> None:
        if cursor.accept("{"):
            while not cursor.accept("}"):
                value()
                cursor.accept(",")
        elif cursor.token.kind == "word":
            references.append((len(data), *_read_reference(cursor)))
            data.extend(bytes(TYPE_BYTES[kind]))
        else:
            data.extend(_constant_bytes(cursor, kind))

    value()
    return bytes(data), tuple(references)


def _read_reference(cursor: Cursor) -> tuple[str, int]:
    name = cursor.word()
    if name == "generic":
        cursor.expect("(")
        name = cursor.word()
        cursor.expect(")")
    return name, cursor.integer() if cursor.accept("+") else 0


def _constant_bytes(cursor: Cursor, kind: str) -> bytes:
    negative = cursor.accept("-")
    if cursor.token.kind != "number":
        cursor.fail("expected a constant")
    bits, form = number_bits(cursor.take().text)
    size = TYPE_BYTES[kind]
    if form == "f64" and kind == "f32":
        (number,) = struct.unpack("<d", bits.to_bytes(8, "little"))
        return struct.pack("<f", -number if negative else number)
    return ((-bits if negative else bits) % (1 << (8 * size))).to_bytes(size, "little")
