"""The choice of convolution algorithms against exhaustive search and a dynamic program, on whole networks.

No GPU is needed: times are predicted by the cost model. The exit code is 1 where a choice is not the best one.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

from benchmarks.planner_page import facts, table
from benchmarks.portable_cpu import CORPUS, ROOT, Case, make_model
from onnxopt.algorithm_choice import AlgorithmPlan, AlgorithmSettings, plan_algorithms
from onnxopt.decide import Judge, SiteReport
from onnxopt.errors import InputError
from onnxopt.kernel_plans import KernelPlanner
from onnxopt.model.files import atomic_write
from onnxopt.model.read import read_model
from onnxopt.plan.algorithms.choice import choose_algorithms
from onnxopt.plan.algorithms.problem import KEEP, Choice, Network
from onnxopt.report.algorithms import conversions
from onnxopt.site_reports import Planning
from onnxopt.sites import Findings, discover
from onnxopt.target import Target, load_target
from onnxopt.target.variant import Element
from onnxopt.validate.algorithm_choice import best_by_elimination, best_by_enumeration, validate_choice, windows

DOCUMENT = ROOT / "docs" / "algorithm_choice.md"
MODELS = ("vgg16.dynamo.op18", "resnet101.dynamo.op18", "inception_v4.dynamo.op18")
ELEMENTS: tuple[Element, ...] = ("fp16", "fp32")
BUDGETS: tuple[int | None, ...] = (None, 64 * 10**6, 8 * 10**6, 10**6, 0)
WINDOWS = (2, 3)
# Enumeration of more combinations than this takes minutes for all windows of a network.
_MOST_COMBINATIONS = 10_000
_CLOSE = 1e-6
_INTRODUCTION = (
    "One integer program chooses the algorithm of every convolution of a network, within a budget of workspace and "
    "constants, with changes of layout on the edges ([planning.md](planning.md), [algorithms.md](algorithms.md)). Here "
    "its choice is held against other ways to find the best one: *windows* are two or three neighbouring layers with "
    "the changes of layout around them, all different ones of up to 10,000 combinations, of which every one is tried "
    "under the same budget; the *dynamic program* finds the best choice of the whole network, where no budget binds, "
    "by eliminating layouts one after another.",
    "**All times are predicted by the cost model, for a batch of 1; nothing here has run on a GPU.** The predicted "
    "time of keeping a layer is that of an ideal engine, so with `keep` allowed little else is chosen until measured "
    "times say otherwise; *ours only* is the choice without `keep` for layers that have any other algorithm.",
)
_COLUMNS = (
    *("network", "type", "Winograd", "options", "budget MB", "us", "bound us", "gap", "changes of layout", "chosen"),
    *("dynamic program us", "best single", "all kept us", "windows", "of them off", "seconds"),
)


@dataclass(frozen=True)
class Result:
    """One choice and what it was compared with; ``optimum`` is None under a budget."""

    name: str
    element: Element
    winograd: bool
    kept: bool
    budget: int | None
    choice: Choice
    changes: int
    chosen: dict[str, int]
    optimum: float | None
    single: tuple[str, float]
    kept_us: float
    windows: int
    off: int
    seconds: float

    @property
    def best(self) -> bool:
        """Whether nothing found a better choice."""
        beaten = self.optimum is not None and self.choice.microseconds > self.optimum * (1 + _CLOSE)
        return not beaten and not self.off and self.choice.status == "optimal"


def planned(findings: Findings, target: Target, element: Element, winograd: bool) -> AlgorithmPlan:
    """The choice for a model without a budget; its dense convolutions have all options."""
    graph = findings.graph
    gpu = target.need_gpu_profile()
    planning = Planning(
        Judge(graph.model, graph, target, None, False, lambda _: None),
        "time",
        kernels=KernelPlanner.at(gpu, "time", None),
        dtype=element,
    )
    sites = [
        (site, SiteReport(f"conv-{number}", "conv", {}, "keep", ""))
        for number, site in enumerate(findings.convolutions)
    ]
    return plan_algorithms(planning, sites, AlgorithmSettings(None, winograd), None)


def without_keep(network: Network) -> Network:
    """The network in which every layer that has another option has no ``keep``."""
    layers = []
    for layer in network.layers:
        own = tuple(option for option in layer.options if option.algorithm != KEEP)
        layers.append(replace(layer, options=own or layer.options))
    return replace(network, layers=tuple(layers))


def compared(network: Network, budget: int | None) -> tuple[int, int]:
    """How many different windows were searched, and in how many the choice is not the best one."""
    seen: set[str] = set()
    off = 0
    for window in (window for size in WINDOWS for window in windows(network, size)):
        key = repr([layer.options for layer in window.layers]) + repr(window.conversions)
        combinations = 2**window.regions
        for layer in window.layers:
            combinations *= len(layer.options)
        if key in seen or combinations > _MOST_COMBINATIONS:
            continue
        seen.add(key)
        choice = choose_algorithms(window, budget)
        validate_choice(window, choice, budget)
        best = best_by_enumeration(window, budget)
        off += abs(choice.microseconds - best) > _CLOSE * max(1.0, best)
    return len(seen), off


def results(name: str, findings: Findings, target: Target, budgets: Sequence[int | None]) -> Iterator[Result]:
    """Every choice for a network that is compared."""
    for element, winograd in product(ELEMENTS, (False, True)):
        plan = planned(findings, target, element, winograd)
        for kept, network in ((True, plan.network), (False, without_keep(plan.network))):
            for budget in budgets:
                start = time.perf_counter()
                choice = choose_algorithms(network, budget)
                seconds = time.perf_counter() - start
                validate_choice(network, choice, budget)
                own = replace(plan, network=network, choice=choice)
                counted: dict[str, int] = {}
                for option in choice.options(network).values():
                    counted[option.algorithm] = counted.get(option.algorithm, 0) + 1
                searched, off = compared(network, budget)
                yield Result(
                    name,
                    element,
                    winograd,
                    kept,
                    budget,
                    choice,
                    conversions(own),
                    dict(sorted(counted.items(), key=lambda item: (-item[1], item[0]))),
                    best_by_elimination(network) if budget is None else None,
                    plan.best_single,
                    plan.kept_us,
                    searched,
                    off,
                    seconds,
                )


def row(result: Result) -> list[str]:
    """The cells of a result."""
    choice = result.choice
    return [
        result.name,
        result.element,
        "yes" if result.winograd else "no",
        "all" if result.kept else "ours only",
        "any" if result.budget is None else f"{result.budget / 1e6:g}",
        f"{choice.microseconds:.2f}",
        f"{choice.bound_us:.2f}",
        f"{choice.gap:.2%}",
        str(result.changes),
        ", ".join(f"{count} {name}" for name, count in result.chosen.items()),
        "" if result.optimum is None else f"{result.optimum:.2f}",
        f"{result.single[0]} {result.single[1]:.2f}",
        f"{result.kept_us:.2f}",
        str(result.windows),
        str(result.off),
        f"{result.seconds:.2f}",
    ]


def page(found: Sequence[Result], planning_seconds: dict[str, float], known: dict[str, str]) -> str:
    """The whole page."""
    wrong = sum(not result.best for result in found)
    searched = sum(result.windows for result in found)
    lines = ["# The choice of convolution algorithms", "", *(line for text in _INTRODUCTION for line in (text, ""))]
    lines += [f"- {key}: {value}" for key, value in known.items()]
    lines += [
        f"- {len(found)} choices, {wrong} of them not proved to be the best; {searched:,} windows, "
        f"{sum(r.off for r in found)} of them off; slowest choice {max(r.seconds for r in found):.2f} s",
        "- finding and planning all layers of a network, in all types: "
        + ", ".join(f"{name} {seconds:.1f} s" for name, seconds in planning_seconds.items()),
        "",
        *table(_COLUMNS, [row(result) for result in found]),
    ]
    return "\n".join(lines).rstrip() + "\n"


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The options of the command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.algorithm_choice", description=__doc__)
    parser.add_argument("--corpus", type=Path, default=CORPUS, help="the folder of exported models")
    parser.add_argument("--target", default="sm_90", help="the GPU")
    parser.add_argument("--models", nargs="+", default=list(MODELS), help="tags of the corpus, or files")
    parser.add_argument("--quick", action="store_true", help="no budgets but one")
    parser.add_argument("--write-doc", action="store_true", help=f"write {DOCUMENT.relative_to(ROOT)}")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str]) -> int:
    """Print the page; 1 where a choice is not proved to be the best."""
    options = parse(arguments)
    target = load_target(options.target)
    found: list[Result] = []
    seconds: dict[str, float] = {}
    for tag in options.models:
        with tempfile.TemporaryDirectory(prefix="onnxopt-bench-") as folder:
            file = Path(tag)
            path = file if file.is_file() else make_model(Case(tag, "corpus", str(options.corpus)), Path(folder))
            findings = discover(read_model(path))
        name = path.name.partition(".")[0]
        start = time.perf_counter()
        for element in ELEMENTS:
            planned(findings, target, element, True)
        seconds[name] = time.perf_counter() - start
        for result in results(name, findings, target, BUDGETS[:2] if options.quick else BUDGETS):
            found.append(result)
            print(" | ".join(row(result)), file=sys.stderr)
    known = facts(arguments)
    known["command"] = known["command"].replace("benchmarks.planner", "benchmarks.algorithm_choice")
    known["target"] = f"{target.name} ({target.need_gpu_profile().name})"
    text = page(found, seconds, known)
    print(text, end="")
    if options.write_doc:
        atomic_write(DOCUMENT, text.encode())
    return 0 if all(result.best for result in found) else 1


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except InputError as problem:
        print(f"error: {problem}", file=sys.stderr)
        sys.exit(InputError.exit_code)
