"""What running convolution kernels on the CPU showed, and the page that says so."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import cast, get_args

from onnxopt.errors import InputError
from onnxopt.target.variant import Element


@dataclass(frozen=True)
class Outcome:
    """What running a kernel showed; ``share`` is the largest error over what the rule allows.

    ``label`` says what was run, for the first layer that has the kernel.
    """

    label: str
    passed: bool
    share: float
    problem: str
    seconds: float


@dataclass(frozen=True)
class Selection:
    """For which target and type kernels are planned; of them every ``each``-th is run."""

    target: str
    element: Element
    each: int = 1

    @classmethod
    def read(cls, text: str) -> Selection:
        """From TARGET:TYPE[:EACH]; raises InputError for anything else."""
        target, element, each = (*text.split(":"), *["1"] * 3)[:3]
        if text.count(":") not in (1, 2) or element not in get_args(Element) or not each.isdecimal() or each == "0":
            raise InputError(f"--kernels {text!r}; allowed: TARGET:TYPE or TARGET:TYPE:EACH, such as sm_80:bf16:10")
        return cls(target, cast(Element, element), int(each))


@dataclass
class Row:
    """A model under one selection: its layers, the kernels that were run for it, and those that were not."""

    model: str
    selection: Selection
    layers: int = 0
    shapes: set[str] = field(default_factory=set)
    outcomes: dict[str, Outcome] = field(default_factory=dict)
    left_out: set[tuple[object, ...]] = field(default_factory=set)
    refused: list[str] = field(default_factory=list)


def left_out(found: Sequence[Row]) -> int:
    """How many different kernels were not run."""
    return len({(row.selection, key) for row in found for key in row.left_out})


def page(found: Sequence[Row]) -> str:
    """The outcomes as a page of Markdown."""
    ran = {name: outcome for row in found for name, outcome in row.outcomes.items()}
    failed = {name: outcome for name, outcome in ran.items() if not outcome.passed}
    left = left_out(found)
    lines = [
        "# Convolution kernels run on the CPU",
        "",
        "Emulated: the PTX that the compiler made, run by `onnxopt/emulate` in three orders of lanes and compared with",
        "float64 by the numeric rule. It says nothing about speed, and nothing here ran on a GPU. Made by",
        "`python -m benchmarks.emulated_convolutions`.",
        "",
        "A *layer* is a geometry, a kind of connections and what is fused; a *run* is of the kernel that its plan asks",
        "for, with the tables of the first layer that has it. Kernels whose tensors differ only in numbers of channels",
        "with the same rest of 16 count as one. Layers keep their own sizes: a sample of jobs that shows every shape,",
        "tail and border bounds the work. Dense layers are computed by `GroupConv` and by every algorithm that takes",
        "them. These run whole, on a layer with fewer channels (the same rest of 16) and positions (the same rest of",
        "8), with the tiles of the layer at its own size. `error` is the largest error as a share of what the rule",
        "allows; that of a plain implementation in the same precision is 0.5. Seconds are those of one CPU core.",
        "",
        f"{len(ran) - len(failed)} of {len(ran)} runs agree"
        + (f"; {left} were left out for lack of time." if left else "; none was left out."),
        "",
        "| model | target | type | layers | runs | shapes and algorithms | error | seconds | left out |",
        "| --- | --- | --- | ---: | ---: | --- | ---: | ---: | ---: |",
    ]
    lines += [_line(row) for row in found]
    if failed:
        lines += ["", "## What does not agree or cannot be compiled", ""]
        lines += [f"- {name}: {outcome.problem}" for name, outcome in sorted(failed.items())]
    refused = sorted({reason for row in found for reason in row.refused})
    if refused:
        lines += ["", "## Layers without an operator", ""]
        lines += [f"- {reason}" for reason in refused]
    return "\n".join(lines) + "\n"


def _line(row: Row) -> str:
    own, chosen = row.outcomes.values(), row.selection
    worst = max((outcome.share for outcome in own), default=0.0)
    each = "" if chosen.each == 1 else f", one of {chosen.each}"
    shapes = ", ".join(sorted(row.shapes))
    seconds = sum(outcome.seconds for outcome in own)
    return (
        f"| {row.model} | {chosen.target} | {chosen.element}{each} | {row.layers} | {len(row.outcomes)} | {shapes} | "
        f"{worst:.2f} | {seconds:.0f} | {len(row.left_out) or ''} |"
    )
