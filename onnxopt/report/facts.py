"""Tables and documents for everything but sites: engines, benchmarks, the cache, this machine."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from onnxopt.deploy.doctor import Check
from onnxopt.deploy.manifest import FILE_NAME
from onnxopt.deploy.tensorrt_build import EngineInfo
from onnxopt.measure.bench import Bench
from onnxopt.measure.cache import CacheFile
from onnxopt.measure.timing import PairTiming
from onnxopt.package import package_files
from onnxopt.report.console import printable
from onnxopt.report.table import bullet, cell, file_size, make_table
from onnxopt.results import OptimizeResult, WrittenModel

OPTIMIZE_SCHEMA = "onnxopt.optimize/1"
BUILD_SCHEMA = "onnxopt.build/1"


def optimize_document(result: OptimizeResult) -> dict[str, Any]:
    """The document ``onnxopt.optimize/1``: that of ``inspect`` with what became of it."""
    return {
        **result.inspection.to_json(),
        "schema": OPTIMIZE_SCHEMA,
        "package": str(result.package),
        "files": sorted([*package_files(result.package), FILE_NAME]),
        "models": [_model(model) for model in result.models],
        "nodes_after": result.nodes_after,
        "lowered": list(result.lowered),
        "notes": list(result.notes),
        "verification": None if result.verification is None else result.verification.to_json(),
        "engine": None if result.engine is None else result.engine.to_json(),
    }


def _model(model: WrittenModel) -> dict[str, Any]:
    return {
        "file": model.file,
        "form": model.form,
        "nodes": model.nodes,
        "rewritten": [site.id for site in model.rewritten],
        "verified": None if model.verification is None else model.verification.passed,
    }


def build_document(info: EngineInfo) -> dict[str, Any]:
    """The document ``onnxopt.build/1``."""
    return {"schema": BUILD_SCHEMA, **info.to_json()}


def show_engine(console: Console, info: EngineInfo) -> None:
    """What was built, and what it takes and gives."""
    table = make_table("", ["tensor", "direction", "type", "shape"], ["tensor", "direction", "type", "shape"])
    for direction, tensors in (("input", info.inputs), ("output", info.outputs)):
        for tensor in tensors:
            shape = " x ".join("batch" if size == -1 else str(size) for size in tensor.shape)
            table.add_row(cell(tensor.name), direction, tensor.dtype, shape or "scalar")
    console.print(table)
    batch = f", batch {info.batch.smallest} to {info.batch.largest}" if info.batch is not None else ""
    way = f", way {info.way}" if info.way else ""
    text = f"{info.path}: {info.title}, {info.layers} layers"
    console.print(Text(printable(f"{text}, {file_size(info.bytes)}{batch}{way}")), soft_wrap=True)


def show_bench(console: Console, bench: Bench) -> None:
    """The whole model, then each rewritten site."""
    title = f"{bench.against} beside {bench.package}; batch 1, {bench.environment.machine}"
    console.print(Text(printable(title), style="bold"), soft_wrap=True)
    columns = ["what", "nodes", "original ms", "optimised ms", "ratio", "95 % interval", "pairs"]
    table = make_table("", columns, ["what"])
    table.add_row("whole model", "", *_timing(bench.model))
    for site in bench.sites:
        if site.timing is not None:
            table.add_row(cell(site.id), f"{site.nodes_before} to {site.nodes_after}", *_timing(site.timing))
    console.print(table)
    for site in bench.sites:
        if site.timing is None:
            console.print(bullet(f"{site.id}: not timed: {site.note}"))
    if bench.note:
        console.print(bullet(bench.note))
    console.print(Text("ratio = original time / optimised time: above 1 is faster"))


def show_checks(console: Console, checks: Sequence[Check]) -> None:
    """What this machine can do, then what to install for the rest."""
    table = make_table("", ["what", "status", "found"], ["what", "status", "found"])
    for check in checks:
        table.add_row(cell(check.name), cell(check.status), cell(check.found))
    console.print(table)
    wanting = [check for check in checks if check.status != "ok"]
    for check in wanting:
        console.print(bullet(f"{check.name}, for {check.needed_for}: {check.install}"))
    if not wanting:
        console.print(Text("nothing is missing"))


def show_cache(console: Console, folder: Path, files: Sequence[CacheFile]) -> None:
    """The files of the cache."""
    if not files:
        console.print(Text(printable(f"{folder}: empty")), soft_wrap=True)
        return
    table = make_table("", ["file", "holds", "entries", "unusable", "size"], ["file", "holds"])
    for file in files:
        table.add_row(
            cell(file.path.name), file.kind, str(file.entries), str(len(file.problems)), file_size(file.size_bytes)
        )
    console.print(Text(printable(str(folder))), soft_wrap=True)
    console.print(table)
    for file in files:
        for problem in file.problems:
            place = f"{file.path.name}, line {problem.line}" if problem.line else file.path.name
            console.print(bullet(f"{place}: {problem.reason}"))


def _timing(timing: PairTiming) -> list[str]:
    return [
        f"{timing.original_us / 1e3:.3f}",
        f"{timing.candidate_us / 1e3:.3f}",
        f"{timing.ratio:.2f}",
        f"{timing.low:.2f} to {timing.high:.2f}",
        str(timing.pairs),
    ]
