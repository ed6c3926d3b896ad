"""Runs every kernel that the plans of given models use on the CPU, against float64, and writes what came out.

    python -m benchmarks.emulated_kernels MODEL... [--target sm_90]... [--dtype fp16]... [--write-doc FILE]

Kernels that differ in sizes of tensors only count as one, since the sizes are constants in address arithmetic. Each
runs a telling sample of one site's jobs in three orders of lanes. A kernel that does not compile is listed with the
reason.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast, get_args

from onnxopt.errors import InputError, OnnxOptError
from onnxopt.kernel_plans import KernelPlanner
from onnxopt.kernels.compiler import architecture_for, compile_kernel
from onnxopt.kernels.report import ResourceReport
from onnxopt.kernels.source import KernelSource, attention_source, merge_source
from onnxopt.model.read import read_model
from onnxopt.plan.tables import AttentionTables, NoTables, attention_tables
from onnxopt.site_reports import input_shapes
from onnxopt.sites import discover
from onnxopt.target import load_target
from onnxopt.target.variant import Element
from onnxopt.verification.kernels import KernelCheck, check_attention, check_merge

# Constants that say how large tensors are, and nothing about the code.
_SIZES = ("HEADS", "Q_ELEMENTS", "K_ELEMENTS", "V_ELEMENTS", "Y_ELEMENTS", "SLOTS", "COLUMNS")


@dataclass(frozen=True)
class Kernel:
    """A kernel of a plan, and the site whose tables it is run with."""

    source: KernelSource
    architecture: str
    site: str
    variants: str
    tables: AttentionTables
    merging: bool


@dataclass(frozen=True)
class Outcome:
    """What running a kernel showed: a check, or why there is none."""

    kernel: Kernel
    report: ResourceReport | None
    check: KernelCheck | None
    problem: str
    seconds: float

    @property
    def passed(self) -> bool:
        """Whether it ran and agreed."""
        return self.check is not None and self.check.passed


def kernels_of(models: Sequence[Path], target: str, element: Element, cache: Path | None) -> Iterator[Kernel]:
    """The different kernels of the models' attention sites on a target, each with the first site that uses it."""
    gpu = load_target(target).need_gpu_profile()
    planner = KernelPlanner.at(gpu, "time", cache, element)
    architecture = architecture_for(gpu.architecture)
    seen = set()
    for path in models:
        findings = discover(read_model(path))
        for site in findings.attention:
            try:
                schedule = planner.attention(site)[0]
                tables = attention_tables(site, schedule, shapes=input_shapes(site, findings.graph))
            except (InputError, NoTables) as reason:
                print(f"left out: {path.stem}/{site.id}: {reason}", file=sys.stderr)
                continue
            sources = [attention_source(tables.kernel.to_json(), schedule.resident)]
            sources += [merge_source(tables.merge.kernel)] if tables.merge is not None else []
            for source in sources:
                code = tuple((name, value) for name, value in source.defines if name not in _SIZES)
                if (source.entry, code) not in seen:
                    seen.add((source.entry, code))
                    variants = ", ".join(variant.describe() for variant in schedule.variants)
                    merging = source is not sources[0]
                    yield Kernel(source, architecture, f"{path.stem}/{site.id}", variants, tables, merging)


def run(kernel: Kernel, cache: Path | None) -> Outcome:
    """Compile a kernel and run it on the CPU."""
    begin = time.perf_counter()
    report, check, problem = None, None, ""
    try:
        compiled = compile_kernel(kernel.source, kernel.architecture, cache)
        report, tables = compiled.report, kernel.tables
        if kernel.merging:
            assert tables.merge is not None
            check = check_merge(compiled, tables.merge.kernel, tables.merge.merges, batch=1, cache=cache)
        else:
            check = check_attention(compiled, tables.kernel.to_json(), tables.arrays(), batch=1, cache=cache)
        problem = "" if check.passed else check.worst().explain()
    except OnnxOptError as error:
        problem = " ".join(str(error).split())[:300]
    return Outcome(kernel, report, check, problem, time.perf_counter() - begin)


def described(source: KernelSource) -> str:
    """What a kernel is specialised for, in words."""
    flags = ("MASKS", "BIASES", "OWN_VALUES", "EXTRAS", "SPLIT", "WEIGHTS")
    on = [flag.lower().replace("_", " ") for flag in flags if source.define(flag) == "1"]
    widths = f"d{source.define('WIDTH') or '-'}/{source.define('VALUE_WIDTH')}"
    return f"{source.define('ELEMENT')} {widths}{': ' + ', '.join(on) if on else ''}"


def page(outcomes: Sequence[Outcome], versions: Mapping[str, Any]) -> str:
    """The outcomes as a page of Markdown."""
    passed = sum(outcome.passed for outcome in outcomes)
    lines = [
        "# Kernels run on the CPU",
        "",
        "Emulated: the PTX that the compiler made, run by `onnxopt/emulate` in three orders of lanes and compared with",
        "float64 by the numeric rule. It says nothing about speed, and nothing here ran on a GPU. Made by",
        "`python -m benchmarks.emulated_kernels`; " + ", ".join(f"{k} {v}" for k, v in versions.items()) + ".",
        "",
        f"{passed} of {len(outcomes)} kernels agree. `error` is the largest error as a share of what the rule allows;",
        "that of a plain implementation in the same precision is 0.5.",
        "",
        "| architecture | kernel | shapes | first site | registers | shared bytes | jobs | error |",
        "| --- | --- | --- | --- | ---: | ---: | ---: | ---: |",
    ]
    for outcome in outcomes:
        kernel = outcome.kernel
        what = "merge " if kernel.merging else ""
        head = f"| {kernel.architecture} | {what}{described(kernel.source)} | {kernel.variants} | {kernel.site} |"
        if outcome.check is None or outcome.report is None:
            lines.append(f"{head} | | | {outcome.problem.replace('|', '/')} |")
            continue
        worst = outcome.check.worst()
        share = worst.max_error / worst.max_bound if worst.max_bound else 0.0
        said = f"{share:.2f}" if outcome.passed else f"{share:.2f}: {outcome.problem}"
        resources = f"{outcome.report.registers} | {outcome.report.dynamic_shared}"
        lines.append(f"{head} {resources} | {outcome.check.jobs} | {said} |")
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run all; 0 if every kernel agreed."""
    parser = argparse.ArgumentParser(prog="emulated_kernels", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("models", nargs="+", help="models whose attention sites are planned")
    parser.add_argument("--target", action="append", help="a GPU target; may be given several times")
    parser.add_argument("--dtype", action="append", choices=get_args(Element), help="a compute type; several allowed")
    parser.add_argument("--write-doc", help="file for the page")
    parser.add_argument("--cache", help="folder for plans, kernels and programs")
    parser.add_argument("--seconds", type=float, default=1e9, help="begin no kernel after this time")
    options = parser.parse_args(arguments)
    cache = Path(options.cache) if options.cache else None
    end, outcomes = time.monotonic() + options.seconds, []
    for target in options.target or ["sm_90"]:
        for element in options.dtype or ["fp16"]:
            for kernel in kernels_of([Path(m) for m in options.models], target, cast(Element, element), cache):
                if time.monotonic() > end:
                    print("time is up: further kernels are left out", file=sys.stderr)
                    break
                outcomes.append(run(kernel, cache))
                last = outcomes[-1]
                state = "passed" if last.passed else f"FAILED ({last.problem})"
                name = f"{kernel.architecture} {described(kernel.source)} [{kernel.variants}]"
                print(f"{state}: {name} {last.seconds:.1f} s", flush=True)
    if options.write_doc:
        versions = {"targets": " ".join(options.target or ["sm_90"]), "types": " ".join(options.dtype or ["fp16"])}
        Path(options.write_doc).write_text(page(outcomes, versions))
    failed = sum(not outcome.passed for outcome in outcomes)
    print(f"{len(outcomes) - failed} of {len(outcomes)} kernels agree")
    return 1 if failed or not outcomes else 0


if __name__ == "__main__":
    sys.exit(main())
