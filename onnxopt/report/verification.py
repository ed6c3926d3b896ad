"""How models and kernels were verified, as tables for a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.text import Text

from onnxopt.report.console import printable
from onnxopt.report.table import bullet, cell, make_table
from onnxopt.verification import OutputReport, VerifyReport
from onnxopt.verification.kernel_report import KernelReport


def show_verification(console: Console, report: VerifyReport) -> None:
    """The worst errors of every output against what is allowed, over all runs; of a package, model by model."""
    if report.models:
        for name, of_model in report.models:
            console.print(Text(printable(name), style="bold"))
            show_verification(console, of_model)
        _show_kernels(console, report.kernels)
        return
    runs = "1 run" if len(report.draws) == 1 else f"{len(report.draws)} runs"
    console.print(Text(f"{runs}, reference: {report.reference}; errors relative to the output's maximum", style="bold"))
    columns = ["output", "max error", "allowed", "rms error", "allowed ", "verdict"]
    table = make_table("", columns, ["output", "verdict"])
    for output in worst_outputs(report):
        errors = (output.max_error, output.max_bound, output.rms_error, output.rms_bound)
        table.add_row(cell(output.name), *(f"{e:.2g}" for e in errors), cell("ok" if output.passed else "off"))
    console.print(table)
    for note in report.notes:
        console.print(Text(printable(f"note: {note}")))
    if report.first_bad_site is not None:
        site = report.first_bad_site
        console.print(
            Text(printable(f"first site that is off: {site.site} (tensor '{site.output.name}': {site.output.reason})"))
        )
    agree = all(draw.passed for draw in report.draws)
    console.print(Text("the models agree" if agree else printable(report.explain())))
    _show_kernels(console, report.kernels)


def _show_kernels(console: Console, kernels: Sequence[KernelReport] | None) -> None:
    """The worst errors of every kernel that was emulated against what is allowed."""
    if kernels is None:
        return
    if not kernels:
        console.print(Text("the package has no kernels: no site became an operator of our own"))
        return
    console.print(Text("kernels, emulated on the CPU; errors relative to the output's maximum", style="bold"))
    columns = ["sites", "compiled for", "jobs", "orders", "max error", "allowed", "verdict"]
    table = make_table("", columns, ["sites", "compiled for", "verdict"])
    for kernel in kernels:
        worst = kernel.worst
        errors = ["", ""] if worst is None else [worst.shown_error(), f"{worst.max_bound:.2g}"]
        name = kernel.label + (" (merge)" if kernel.operator.startswith("Merge") else "")
        verdict = cell("ok" if kernel.passed else "off")
        counts = (str(kernel.jobs), str(len(kernel.orders)))
        table.add_row(cell(name), cell(kernel.architecture), *counts, *errors, verdict)
    console.print(table)
    for kernel in kernels:
        if not kernel.passed:
            console.print(bullet(f"{kernel.operator} ({kernel.label}): {kernel.explain()}"))
    if any(kernel.alike for kernel in kernels):
        console.print(Text("unlisted tactics are their site's own kernel, with parameters that go unused"))
    if all(kernel.passed for kernel in kernels):
        console.print(Text("the kernels, emulated, compute what their tables say"))


def worst_outputs(report: VerifyReport) -> list[OutputReport]:
    """For every output the run in which it was farthest off, relative to what is allowed."""
    worst: dict[str, OutputReport] = {}
    for draw in report.draws:
        for output in draw.outputs:
            known = worst.get(output.name)
            if known is None or _severity(output) > _severity(known):
                worst[output.name] = output
    return list(worst.values())


def _severity(report: OutputReport) -> tuple[bool, float]:
    return not report.passed, max(
        report.max_error / (report.max_bound or 1.0), report.rms_error / (report.rms_bound or 1.0)
    )
