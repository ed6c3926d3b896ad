"""Whether a kernel compiled among others is the kernel alone: the same text, but for parameters that go unused."""

from __future__ import annotations

import re
from dataclasses import dataclass

_POINTER = ".param .u64"
_DECLARED = re.compile(r"(\.param\s[^,]*?\S)\s+(\S+)")


def same_code(alone: str, among: str, entry: str, own: tuple[int, int], others: tuple[int, int]) -> bool:
    """Whether two PTX texts are of one kernel, of which ``among`` is called with tables of other kernels too.

    ``own`` are the operands and tables that the kernel alone begins its parameters with, ``others`` the tables of other
    kernels between these two and behind them. Then both compute the same, and running one of them is enough. Texts that
    are not understood count as different.
    """
    plain, longer = _parts(alone, entry), _parts(among, entry)
    if plain is None or longer is None or len(plain.types) < sum(own):
        return False
    operands, inputs = own[0], sum(own)
    before, after = ([_POINTER] * count for count in others)
    types = [*plain.types[:operands], *before, *plain.types[operands:inputs], *after, *plain.types[inputs:]]
    moved = [n + (n >= operands) * others[0] + (n >= inputs) * others[1] for n in range(len(plain.types))]
    use = re.compile(rf"\b{re.escape(entry)}_param_(\d+)\b")
    if any(int(found[1]) >= len(moved) for found in use.finditer(plain.body)):
        return False
    body = use.sub(lambda found: f"{entry}_param_{moved[int(found[1])]}", plain.body)
    return (plain.head, types, body) == (longer.head, longer.types, longer.body)


@dataclass(frozen=True)
class _Parts:
    """A PTX text around the parameters of its entry, and the types of these."""

    head: str
    types: list[str]
    body: str


def _parts(text: str, entry: str) -> _Parts | None:
    found = list(re.finditer(rf"\.entry\s+{re.escape(entry)}\s*\(([^)]*)\)", text))
    if len(found) != 1:
        return None
    declared = [_DECLARED.fullmatch(part.strip()) for part in found[0][1].split(",")]
    types = [match[1] for n, match in enumerate(declared) if match is not None and match[2] == f"{entry}_param_{n}"]
    if len(types) != len(declared):
        return None
    return _Parts(text[: found[0].start()], types, text[found[0].end() :])
