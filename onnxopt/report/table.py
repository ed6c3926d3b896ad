"""Results as tables for a terminal, readable from 80 columns on."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Iterable, Sequence

from rich import box
from rich.console import Console, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from onnxopt.decide import SiteReport
from onnxopt.deploy.packaged_kernels import FOLDER
from onnxopt.deploy.rtx import ARCHITECTURES as RTX_ARCHITECTURES
from onnxopt.deploy.tensorrt import ENGINE
from onnxopt.discover.refusal import Refusal
from onnxopt.package import RTX_ENGINE
from onnxopt.report.algorithms import COLUMNS, TEXT_COLUMNS, algorithm_cells, summary
from onnxopt.report.console import printable
from onnxopt.report.sites import SiteGroup, group_sites
from onnxopt.results import Inspection, OptimizeResult, WrittenModel
from onnxopt.verification import VerifyReport

_STYLES = {"rewrite": "green", "keep": "", "ok": "green", "off": "red", "limited": "yellow", "missing": "yellow"}
_SHOWN_NODES = 3
# A rule under the header, and no more lines than needed around it.
_BOX = box.Box("    \n    \n -- \n    \n    \n    \n    \n    \n", ascii=True)


def make_table(title: str, columns: Sequence[str], left: Iterable[str] = ()) -> Table:
    """An empty table; columns are flush right, but for those in ``left``."""
    table = Table(
        title=title or None,
        title_justify="left",
        title_style="bold",
        header_style="bold",
        box=_BOX,
        padding=(0, 1, 0, 0),
        pad_edge=False,
        show_edge=False,
    )
    plain = set(left)
    for name in columns:
        table.add_column(name, justify="left" if name in plain else "right", overflow="fold")
    return table


def cell(text: str) -> Text:
    """Text for a cell: never markup, never control characters, coloured where it is a verdict."""
    return Text(printable(text), style=_STYLES.get(text, ""))


def show_inspection(console: Console, inspection: Inspection) -> None:
    """Sites, one row for those that look alike, the reasons, and what was refused."""
    console.print(_header(inspection), soft_wrap=True)
    _show_sites(console, inspection.sites, inspecting=True)
    _show_algorithms(console, inspection)
    _show_refusals(console, inspection.refusals)
    console.print(Text(_totals(inspection.sites, inspection.refusals)))


def show_optimized(console: Console, result: OptimizeResult) -> None:
    """What was found and rewritten, how the result was verified, and where it is."""
    console.print(_header(result.inspection), soft_wrap=True)
    for model in result.models:
        if len(result.models) > 1:
            console.print(Text(f"{model.file}, the {model.form} form", style="bold"))
        if model.rewritten:
            _show_sites(console, model.rewritten, inspecting=False)
        _show_kept(console, [s for s in model.sites if s.decision != "rewrite"])
    _show_algorithms(console, result.inspection)
    _show_refusals(console, result.inspection.refusals)
    facts = make_table("", ["", " "], left=["", " "])
    facts.show_header = False
    facts.box = None
    facts.padding = (0, 2, 0, 0)
    for name, text in _facts(result):
        facts.add_row(cell(name), cell(text))
    console.print(facts)


def bullet(text: str) -> RenderableType:
    """An indented line under a table."""
    return Padding(Text(printable(text)), (0, 0, 0, 1), expand=False)


def file_size(count: int) -> str:
    """A size in bytes as people read it."""
    for unit, size in (("GB", 10**9), ("MB", 10**6), ("KB", 10**3)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count} bytes"


def _header(inspection: Inspection) -> Text:
    target = inspection.target
    converted = "" if inspection.dtype is None else f" in {inspection.dtype}"
    text = f"{inspection.path}{converted}: opset {inspection.opset}, {inspection.nodes} nodes"
    note = f" ({target.note})" if target.note else ""
    return Text(printable(f"{text}; target {target.name}{note}, form {inspection.form}"), style="bold")


def _show_sites(console: Console, sites: Sequence[SiteReport], inspecting: bool) -> None:
    """A table for each kind; ``inspecting`` tells apart what is rewritten and what is not."""
    grouped = group_sites(sites)
    verdict = ["decision", "gain", "why"] if inspecting else ["gain", "why"]
    left = ["pattern", "bias", "decision"]
    if attention := grouped.of("attention"):
        table = make_table("Attention", ["sites", "queries", "keys", "needed", "heads", "bias", *verdict], left)
        for group in attention:
            table.add_row(*_attention_row(group), *_verdict(group, inspecting))
        console.print(table)
    if convolutions := grouped.of("conv"):
        columns = ["sites", "in", "out", "kernel", "groups", "needed", "pattern", *verdict]
        table = make_table("Convolution", columns, left)
        for group in convolutions:
            table.add_row(*_convolution_row(group), *_verdict(group, inspecting))
        console.print(table)
    for number, reason in enumerate(grouped.reasons, 1):
        console.print(bullet(f"why {number}: {reason}"))
    if any(site.predicted_gain is not None or site.measured_gain is not None for site in sites):
        console.print(bullet("gain: time before / time after; ~ is a prediction"))
    console.print()


def _attention_row(group: SiteGroup) -> list[Text]:
    found = group.first.found
    cells = [
        str(len(group.sites)),
        f"{found['queries']}",
        f"{found['keys']}",
        _percent(found["density"]),
        f"{found['heads']} x {found['head_dim']}",
        str(found["bias"]).replace("_", " "),
    ]
    return [cell(text) for text in cells]


def _convolution_row(group: SiteGroup) -> list[Text]:
    found = group.first.found
    cells = [
        str(len(group.sites)),
        f"{found['in_channels']}",
        f"{found['out_channels']}",
        "x".join(map(str, found["kernel"])),
        f"{found['groups']}",
        _percent(found["density"]),
        str(found["pattern"]),
    ]
    return [cell(text) for text in cells]


def _verdict(group: SiteGroup, inspecting: bool) -> list[Text]:
    cells = [group.gain, str(group.reason)]
    return [cell(text) for text in ([group.first.decision, *cells] if inspecting else cells)]


def _show_kept(console: Console, kept: Sequence[SiteReport]) -> None:
    if not kept:
        return
    grouped = group_sites(kept)
    counts: Counter[tuple[int, str]] = Counter()
    for group in grouped.groups:
        counts[group.reason, group.first.kind] += len(group.sites)
    console.print(Text("Kept as they were", style="bold"))
    for (reason, kind), count in sorted(counts.items()):
        console.print(bullet(f"{count} x {kind}: {grouped.reasons[reason - 1]}"))
    console.print()


def _show_algorithms(console: Console, inspection: Inspection) -> None:
    plan = inspection.algorithms
    if plan is None:
        return
    table = make_table("Convolution algorithms", COLUMNS, TEXT_COLUMNS)
    for row in algorithm_cells(plan):
        table.add_row(*map(cell, row))
    console.print(table)
    for line in summary(plan):
        console.print(bullet(line))
    console.print()


def _show_refusals(console: Console, refusals: Sequence[Refusal]) -> None:
    if not refusals:
        return
    console.print(Text("Refused", style="bold"))
    by_reason: dict[tuple[str, str], list[str]] = {}
    for refusal in refusals:
        by_reason.setdefault((refusal.op, refusal.reason), []).append(refusal.node)
    for (op, reason), nodes in by_reason.items():
        more = f" and {len(nodes) - _SHOWN_NODES} more" if len(nodes) > _SHOWN_NODES else ""
        console.print(bullet(f"{len(nodes)} x {op}: {reason} (at {', '.join(nodes[:_SHOWN_NODES])}{more})"))
    console.print()


def _totals(sites: Sequence[SiteReport], refusals: Sequence[Refusal]) -> str:
    attention = [s for s in sites if s.kind == "attention"]
    groups = len({s.found.get("group", s.id) for s in attention})
    parts = []
    if attention:
        parts.append(f"{len(attention)} attention" + (f" (that form {groups})" if groups < len(attention) else ""))
    if len(sites) > len(attention):
        parts.append(f"{len(sites) - len(attention)} convolution")
    changed = sum(s.decision == "rewrite" for s in sites)
    noun = "site" if len(sites) == 1 else "sites"
    decided = f"{changed} to rewrite, {len(sites) - changed} kept, {len(refusals)} refused"
    return f"{len(sites)} {noun}: {', '.join([*parts, decided])}"


def _facts(result: OptimizeResult) -> list[tuple[str, str]]:
    inspection, rows = result.inspection, []
    for model in result.models:
        rewritten, kept = len(model.rewritten), len(model.sites) - len(model.rewritten)
        nothing = "" if rewritten else "; nothing to gain for this target, so the model stays as it was"
        counts = f"{rewritten} rewritten, {kept} kept, {len(inspection.refusals)} refused{nothing}"
        rows.append((_of(result, "sites", model), counts))
        rows.append((_of(result, "nodes", model), f"{inspection.nodes} before, {model.nodes} after"))
        rows.append((_of(result, "verified", model), _verified(model.verification)))
        rows += [("note", note) for note in (model.verification.notes if model.verification else ())]
    rows += [("lowered", f"{text}, for parsers that lack it") for text in result.lowered]
    rows += [("note", note) for note in result.notes]
    if result.engine is not None:
        engine = result.engine
        rows.append(("engine", f"{engine.title}: {engine.layers} layers, {file_size(engine.bytes)}"))
    rows.append(("package", str(result.package)))
    files = sorted(path for path in result.package.iterdir() if path.is_file())
    rows += [("", f"{path.name} ({file_size(path.stat().st_size)})") for path in files]
    kernels = [path for path in (result.package / FOLDER).glob("*") if path.is_file()]
    if kernels:
        size = file_size(sum(path.stat().st_size for path in kernels))
        rows.append(("", f"{FOLDER}/ ({len(kernels)} files of compiled kernels, {size})"))
    rows.append(("next", _next_step(result)))
    return rows


def _of(result: OptimizeResult, name: str, model: WrittenModel) -> str:
    """A name, with the form where there are several."""
    return f"{name} ({model.form})" if len(result.models) > 1 else name


def _next_step(result: OptimizeResult) -> str:
    name, target = shlex.quote(str(result.package)), result.inspection.target
    original = shlex.quote(str(result.inspection.path))
    if result.engine is not None and result.engine.path.name == ENGINE:
        return f"run it: onnxopt run {name} --inputs FILE.npz --against {original}"
    if any((result.package / FOLDER).glob("*")) and result.engine is None:
        return (
            f"run its kernels on the CPU: onnxopt verify {original} {name} --kernels; build "
            f"its engine on a machine with the GPU: onnxopt build {name} --engine tensorrt"
        )
    if all(model.form == "plugin" for model in result.models):
        return "see with `onnxopt inspect` why no site became an operator with a kernel"
    if target.architecture in RTX_ARCHITECTURES and result.engine is None:
        return f"build its engine: onnxopt build {name}"
    if target.is_cpu and result.rewritten:
        return f"time it beside the original: onnxopt bench {name}"
    if result.engine is not None:
        return f"load {RTX_ENGINE} with TensorRT-RTX on a GPU of {target.name}"
    if result.rewritten:
        return f"build its engine on a machine with the GPU: onnxopt build {name} --engine tensorrt"
    return "choose another --target, or see with `onnxopt inspect` what is in the model"


def _verified(report: VerifyReport | None) -> str:
    if report is None:
        return "no (--no-verify)"
    worst = report.worst
    if worst is None:
        return report.explain()
    return (
        f"{report.explain()}; output '{worst.name}': max error {worst.max_error:.2g} "
        f"(allowed {worst.max_bound:.2g}), rms {worst.rms_error:.2g} (allowed {worst.rms_bound:.2g})"
    )


def _percent(density: float) -> str:
    return f"{density:.0%}" if density >= 0.1 else f"{density:.1%}"
