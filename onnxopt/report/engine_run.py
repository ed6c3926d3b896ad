"""What `run` shows: the latency of an engine, its outputs, and how they compare with the original."""

from __future__ import annotations

from rich.console import Console
from rich.text import Text

from onnxopt.deploy.runner import EngineRun
from onnxopt.deploy.runner_compare import Comparison
from onnxopt.report.console import printable
from onnxopt.report.table import bullet, cell, make_table


def show_run(console: Console, run: EngineRun, compared: Comparison | None) -> None:
    """Latency first, then the outputs."""
    times = run.latency
    title = f"{run.engine}: {run.built.library} on {run.gpu}, batch {times['batch']}, {times['iterations']} inferences"
    console.print(Text(printable(title), style="bold"), soft_wrap=True)
    names = ["min", "p50", "p90", "p99", "mean"]
    table = make_table("", ["latency", *(f"{name} ms" for name in names), "inferences/s"], ["latency"])
    figures = [f"{times[f'{name}_ms']:.4f}" for name in names]
    table.add_row("GPU", *figures, f"{times['inferences_per_second']:.1f}")
    console.print(table)
    reports = {} if compared is None else {report.name: report for report in compared.outputs}
    columns = ["output", "type", "shape", *(["max error", "allowed", "agrees"] if compared else [])]
    outputs = make_table("", columns, ["output", "type", "shape", "agrees"])
    for name, array in run.outputs.items():
        shape = " x ".join(map(str, array.shape)) or "scalar"
        report = reports.get(name)
        errors = (
            [f"{report.max_error:.2g}", f"{report.max_bound:.2g}", "yes" if report.passed else "no"] if report else []
        )
        outputs.add_row(cell(name), str(array.dtype), shape, *errors)
    console.print(outputs)
    if compared is not None:
        console.print(bullet(f"bounds are {compared.bounds}"))
    for note in run.notes:
        console.print(bullet(note))
