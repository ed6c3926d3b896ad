"""The planner's results as a page: goals by section, then every layer with every method."""

from __future__ import annotations

import platform
import shlex
from collections.abc import Iterator, Sequence
from datetime import date

from benchmarks.planner_goals import Goal, beats
from benchmarks.planner_measure import Result
from onnxopt.plan.baselines import Baseline

SECTIONS = {
    1: "Waste of masks, planned for the fewest pairs",
    2: "Predicted time against every fixed shape",
    3: "Hidden structure of convolutions, planned for the fewest connections",
    4: "Proven gaps",
    5: "Seconds of planning",
    6: "Every layer of the corpus against every method",
}
INTRODUCTION = (
    "What the planner reaches, on models of a GPU and without one. *Waste* is computed over needed pairs (attention) "
    "or connections (convolution), after rounding up to what the kernel computes. *Time* is predicted by the cost "
    "model for one launch in fp16, for our plans and for every other method alike. A *gap* is how much better the best "
    "plan of the searched space could be at most.",
    "The other methods: *tiles* are squares of the matrix in the model's own order, of which those with a needed pair "
    "are computed; a *fixed shape* cuts the rows evenly, gathers the keys, and uses one shape of the kernel (the best "
    "one) in the model's order or in the best order known; *greedy blocks* grow right and down, from the first entry "
    "not covered, while at least 60 % of them is needed, in three orders. *Dense*, *as written* (the groups of the "
    "model's nodes) and *parts of 64* outputs in the model's order are partitions of convolutions. All cover exactly "
    "but for greedy blocks; beside them is what they compute again, and how many of the microseconds go into a second "
    "launch that merges or adds up partial results (for convolutions nothing but the launch itself is charged). A "
    "method's fewest pairs and its least time may come from different shapes.",
)
_ATTENTION = ("tiles of 64x64", "tiles of 128x128", "fixed shape", "fixed shape, best order", "greedy blocks")
_CONV = ("dense", "as written", "parts of 64", "greedy blocks")


def facts(arguments: Sequence[str]) -> dict[str, str]:
    """What the figures depend on."""
    import numpy
    import scipy

    import onnxopt
    from onnxopt.measure.environment import machine_name

    versions = {"onnxopt": onnxopt.__version__, "Python": platform.python_version()}
    versions |= {"numpy": numpy.__version__, "scipy": scipy.__version__}
    return {
        "command": f"`{shlex.join(['python', '-m', 'benchmarks.planner', *arguments])}`",
        "date": date.today().isoformat(),
        "machine (seconds are of one thread of it)": machine_name(),
        "versions": ", ".join(f"{name} {version}" for name, version in versions.items()),
    }


def goal_lines(goals: Sequence[Goal], notes: dict[int, str]) -> Iterator[str]:
    """The goals as Markdown tables, one a section."""
    for number, title in SECTIONS.items():
        own = [goal for goal in goals if goal.section == number]
        if not own and number not in notes:
            continue
        yield f"## {number}. {title}"
        yield ""
        if number in notes:
            yield notes[number]
            yield ""
        if own:
            yield from table(["what", "goal", "figure", ""], [[g.what, g.goal, g.figure, g.verdict] for g in own])


def layer_lines(results: Sequence[Result]) -> Iterator[str]:
    """The tables of all layers: waste and microseconds of each method."""
    for kind, methods in (("attention", _ATTENTION), ("conv", _CONV)):
        own = [result for result in results if result.kind == kind and result.planned]
        if own:
            yield f"### {'Attention' if kind == 'attention' else 'Convolution'}: computed | predicted microseconds"
            yield ""
            header = ["layer", "needed", "ours, fewest", "ours, fastest", *methods, "best"]
            yield from table(header, [_row(result, methods) for result in own])
    left_out = [result for result in results if not result.planned]
    if left_out:
        yield "Not planned:"
        yield ""
        yield from (f"- {result.layer}: {result.note}" for result in left_out)


def _row(result: Result, methods: Sequence[str]) -> list[str]:
    assert result.waste is not None
    assert result.time is not None
    cells = [result.layer, f"{result.needed:,}"]
    cells += [f"{plan.computed:,} / {plan.predicted_us:.2f}" for plan in (result.waste, result.time)]
    known = {own.method: own for own in result.baselines}
    for method in methods:
        own = known.get(method)
        cells.append(f"{own.computed:,} / {own.predicted_us:.2f}{_beside(own, result.needed)}" if own else "")
    few, fast = beats(result)
    return [*cells, "both" if few and fast else "computed only" if few else "time only" if fast else "neither"]


def _beside(own: Baseline, needed: int) -> str:
    notes = [f"{own.repeated / needed:.0%} again"] if own.repeated else []
    notes += [f"{own.merging_us:.2f} merging"] if own.merging_us else []
    return f" ({', '.join(notes)})" if notes else ""


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """A Markdown table and an empty line."""
    for cells in (header, ["---"] * len(header), *rows):
        yield "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
    yield ""


def page(
    goals: Sequence[Goal], results: Sequence[Result], notes: dict[int, str], known: dict[str, str], target: str
) -> str:
    """The whole page."""
    missed = sum(not goal.met for goal in goals)
    lines = ["# The planner", "", *(line for text in INTRODUCTION for line in (text, ""))]
    lines += [f"- {key}: {value}" for key, value in known.items()]
    lines += [
        f"- target, where none is named: {target}",
        f"- {len(goals)} figures, {missed} of them miss their goal",
        "",
    ]
    lines += [*goal_lines(goals, notes), *layer_lines(results)]
    return "\n".join(lines).rstrip() + "\n"
