"""Two runs of trtexec side by side, by trtexec's own names, and where the layers differ."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from onnxopt.measure.trtexec_bench import Side, TrtexecBench, ratio
from onnxopt.measure.trtexec_layers import LayerGroup
from onnxopt.measure.trtexec_log import METRICS
from onnxopt.report.console import printable
from onnxopt.report.table import bullet, cell, make_table

_SHOWN_SITES = 3
_COLUMNS = ("original", "optimised", "ratio")


def show_trtexec_bench(console: Console, bench: TrtexecBench) -> None:
    """The summaries, then the layers of each rewritten site and all others, then what to know about the figures."""
    where = ", ".join(part for part in (f"TensorRT {bench.version}" if bench.version else "", bench.device) if part)
    title = f"{bench.original.file} beside {bench.optimised.file}; batch {bench.batch}" + (
        f"; {where}" if where else ""
    )
    console.print(Text(printable(title), style="bold"), soft_wrap=True)
    console.print(_summaries(bench.original, bench.optimised))
    console.print(_layers(bench))
    for note in _remarks(bench):
        console.print(bullet(note))
    console.print(
        Text("ratio: above 1, the optimised model is faster; layers by their mean time, in a run of their own")
    )


def _summaries(original: Side, optimised: Side) -> Table:
    """Every figure of trtexec's performance summary, times in milliseconds."""
    table = make_table("Performance summary", ["", "", *_COLUMNS], ["", ""])
    before, after = original.measured.summary, optimised.measured.summary
    table.add_row("Throughput", "qps", *_pair(before.throughput, after.throughput, higher_is_better=True))
    for name in METRICS:
        old, new = before.times[name], after.times[name]
        rows = [(part, getattr(old, part), getattr(new, part)) for part in ("min", "max", "mean", "median")]
        if old.max == new.max == 0:
            rows = [("all", 0.0, 0.0)]
        else:
            rows += [(f"percentile({p:g}%)", old.percentiles[p], new.percentiles[p]) for p in old.percentiles]
        for number, (part, left, right) in enumerate(rows):
            table.add_row(name if number == 0 else "", f"{part} ms", *_pair(left, right))
    table.add_row("Total Host Walltime", "s", f"{before.host_walltime:.4g}", f"{after.host_walltime:.4g}", "")
    table.add_row("Total GPU Compute Time", "s", f"{before.gpu_compute:.4g}", f"{after.gpu_compute:.4g}", "")
    table.add_row("queries", "", str(original.trace.queries), str(optimised.trace.queries), "")
    return table


def _layers(bench: TrtexecBench) -> Table:
    """The layers of each group of sites, and all others, in milliseconds an inference."""
    table = make_table("Layers", ["sites", "layers", "original ms", "optimised ms", "ratio"], ["sites"])
    for group in bench.difference.groups:
        table.add_row(cell(_sites(group)), _counts(group), *_pair(group.original_ms, group.optimised_ms))
    other = bench.difference.other
    table.add_row("other", _counts(other), *_pair(other.original_ms, other.optimised_ms))
    return table


def _remarks(bench: TrtexecBench) -> list[str]:
    remarks = list(bench.notes)
    for name, side in (("original", bench.original), ("optimised", bench.optimised)):
        remarks += [f"trtexec about the {name} model: {warning}" for warning in side.measured.log.warnings]
    shared = sum(group.shared for group in bench.difference.groups)
    if shared:
        remarks.append(f"{shared} layers of sites also compute nodes of no site; they count as the sites'")
    if bench.difference.unresolved:
        remarks.append(
            f"{bench.difference.unresolved} layers name only the first and last of their nodes; they count as other"
        )
    return remarks


def _sites(group: LayerGroup) -> str:
    rest = len(group.sites) - _SHOWN_SITES
    return ", ".join(group.sites[:_SHOWN_SITES]) + (f" and {rest} more" if rest > 0 else "")


def _counts(group: LayerGroup) -> str:
    return f"{len(group.original)} to {len(group.optimised)}"


def _pair(original: float, optimised: float, *, higher_is_better: bool = False) -> tuple[str, str, str]:
    found = ratio(optimised, original) if higher_is_better else ratio(original, optimised)
    return f"{original:.5g}", f"{optimised:.5g}", "" if found is None else f"{found:.2f}"
