"""PTX text as a stream of tokens that know their lines."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

from onnxopt.emulate.errors import EmulationError


class Token(NamedTuple):
    """`kind` is "word" (names, dotted opcodes), "directive", "number", "string", "sign" or "end"."""

    kind: str
    text: str
    line: int


_TOKEN = re.compile(
    r"""
    (?P<newline>\n)
  | (?P<blank>[ \t\r\f]+ | //[^\n]*)
  | (?P<comment>/\*.*?\*/)
  | (?P<string>"[^"\n]*")
  | (?P<directive>\.[A-Za-z_]\w*(?:::\w+)?)
  | (?P<number>0[fF][0-9a-fA-F]{8} | 0[dD][0-9a-fA-F]{16} | 0[xX][0-9a-fA-F]+U? | 0[bB][01]+U?
      | \d+\.\d*(?:[eE][+-]?\d+)? | \d+U?)
  | (?P<word>(?:[A-Za-z][\w$]*|[_$%][\w$]+|_(?![\w$]))(?:\.[A-Za-z0-9_]+(?:::[\w:]+)?)*)
  | (?P<sign>[{}()\[\],;:@!|<>=+\-])
    """,
    re.VERBOSE | re.DOTALL,
)


def tokens(text: str) -> Iterator[Token]:
    """All tokens of `text`, then one of kind "end". Raises EmulationError at a character that PTX does not have."""
    line, place = 1, 0
    while place < len(text):
        found = _TOKEN.match(text, place)
        if found is None:
            raise EmulationError(f"PTX line {line}: cannot read {text[place : place + 20]!r}", line)
        place = found.end()
        kind = found.lastgroup
        if kind == "newline":
            line += 1
        elif kind == "comment":
            line += found.group().count("\n")
        elif kind != "blank":
            assert kind is not None
            yield Token(kind, found.group(), line)
    yield Token("end", "", line)


def number_bits(text: str) -> tuple[int, str]:
    """A number's bits modulo 2^64 and its kind: "int", "f32" or "f64"."""
    import struct

    prefix = text[:2].lower()
    if prefix == "0f":
        return int(text[2:], 16), "f32"
    if prefix == "0d":
        return int(text[2:], 16), "f64"
    if "." in text:
        return int.from_bytes(struct.pack("<d", float(text)), "little"), "f64"
    digits = text.rstrip("U")
    if prefix == "0x":
        return int(digits, 16), "int"
    if prefix == "0b":
        return int(digits[2:], 2), "int"
    octal = len(digits) > 1 and digits[0] == "0"
    return int(digits, 8 if octal else 10), "int"
