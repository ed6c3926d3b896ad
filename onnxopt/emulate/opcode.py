"""A line of the table of opcodes: which instructions it covers and the C++ that computes them.

**Patterns.** An Opcode covers every instruction that its `pattern` matches. A pattern is the opcode and its
modifiers, separated by blanks: `name` stands for exactly `.name`; `name?` may be absent; `key=a|b|c` is one of the
alternatives, `key?=a|b|c` one of them or none. `Match` holds the instruction and what each key and optional name
matched (absent ones are ""). An instruction that no pattern covers is refused by name with its line.

**Ordinary instructions** are entries whose `emit` returns `Code`: C++ with placeholders for its operands.

**Warp collectives** (mma, ldmatrix, stmatrix, movmatrix, ...) are entries whose `emit` returns a `Collective`. The
lanes of the warp meet at the instruction, and the last to arrive calls

    void function(emu::WarpCall& call);                  // declared in runtime/warp_call.h

once for the whole warp. `call.in[lane][i]` is the i-th 32-bit input word of a lane, `call.out[lane][i]` the i-th
output word, in the order of `inputs` and `outputs`. A 32-bit register is one word, a 16-bit one the low half of a
word, a predicate 0 or 1, a 64-bit one two words, low first; an Address operand is one word: the shared-memory address
(base + offset). Vectors are flattened by the entry. `call.load_shared(lane, address, destination, bytes)` and
`call.store_shared(lane, address, source, bytes)` check bounds, alignment (to `bytes`) and initialisation in the name
of that lane; an error does not return. `function` is any C++ expression that can be called so, a template with its
arguments included ("emu::mma_f16<16>"); it is declared in `runtime/matrix.h`, which is compiled apart from the kernel
with more optimisation.

**wgmma.mma_async** returns a `WarpgroupMma`. The runtime records the operation when the warp issues it and calls

    void function(emu::WarpgroupCall& call);             // declared in runtime/warp_call.h

once per *warp* as late as possible: at the wgmma.wait_group that covers it. `call.rank` (0 to 3) is the warp's place
in its warpgroup: it computes rows 16 * rank to 16 * rank + 15 of the 64. `call.d[i][lane]` is accumulator word i, read
and written in place (when `call.scale_d` is false its contents mean nothing: start from zero). `call.a[i][lane]` are
A's register fragments, nullptr where A is in shared memory; `call.a_descriptor` and `call.b_descriptor` are the
matrix descriptors. `call.read_shared(address, destination, bytes)` reads the asynchronous proxy's view of shared
memory with checks. Signs and transpositions are the ints of `immediates` in the order of the text:
`call.immediates[i]`. The function is declared in `runtime/warpgroup.h`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias

from onnxopt.emulate.ptx import Instruction, Operand


@dataclass(frozen=True)
class Match:
    """An instruction beside the entry that covers it; `parts` maps keys and optional names to what they matched."""

    instruction: Instruction
    parts: Mapping[str, str]

    def __getitem__(self, key: str) -> str:
        return self.parts[key]


@dataclass(frozen=True)
class Typed:
    """An operand and the PTX type as which it is read or written; "address": the number that an Address stands for."""

    operand: Operand
    type: str


@dataclass(frozen=True)
class Code:
    """C++ for one instruction: `string.Template` text in which `$name` is an operand and `$line` the PTX line.

    Text that ends in a semicolon is statements, which assign to `$name` of every output; other text is an expression
    whose value goes to the only output. `copies` marks a plain move of one register's bits.
    """

    text: str
    outputs: Mapping[str, Typed]
    inputs: Mapping[str, Typed]
    copies: bool = False


@dataclass(frozen=True)
class Collective:
    """A call of `function` for the whole warp; see the head of this module. Operands are flat: no Vector."""

    function: str
    outputs: tuple[Operand, ...]
    inputs: tuple[Operand, ...]
    counter: str = ""
    """Name under which RunReport counts the instruction ("mma", "ldmatrix"); once per warp."""


@dataclass(frozen=True)
class WarpgroupMma:
    """A wgmma.mma_async; `a` is either its registers or the one register of a descriptor."""

    function: str
    accumulators: tuple[Operand, ...]
    a: tuple[Operand, ...]
    a_in_registers: bool
    b: Operand
    scale_d: Operand
    immediates: tuple[Operand, ...]


Emission: TypeAlias = Code | Collective | WarpgroupMma
"""What an entry yields."""


@dataclass(frozen=True)
class Opcode:
    """One line of the table. `emit` gets the match; it raises EmulationError for operands that it cannot take."""

    pattern: str
    emit: Callable[[Match], Emission]

    @property
    def name(self) -> str:
        """The opcode that the pattern begins with."""
        return self.pattern.split()[0]

    @cached_property
    def expression(self) -> re.Pattern[str]:
        """The pattern as a regular expression over the dotted name."""
        head, *parts = self.pattern.split()
        return re.compile(re.escape(head) + "".join(map(_part_expression, parts)))

    def match(self, instruction: Instruction) -> Match | None:
        """The instruction's parts, or None where the pattern does not cover it."""
        found = self.expression.fullmatch(instruction.name)
        if found is None:
            return None
        # A group is named by its index because keys may hold characters that no group name may.
        keys = [part.partition("=")[0].rstrip("?") for part in self.pattern.split()[1:] if "=" in part or "?" in part]
        return Match(instruction, {key: value or "" for key, value in zip(keys, found.groups(), strict=True)})


def _part_expression(part: str) -> str:
    key, equals, alternatives = part.partition("=")
    words = "|".join(map(re.escape, alternatives.split("|"))) if equals else re.escape(key.rstrip("?"))
    if key.endswith("?"):
        return rf"(?:\.({words}))?"
    return rf"\.({words})" if equals else rf"\.{words}"
