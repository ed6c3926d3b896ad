"""The commands that take a package: build, bench."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from onnxopt.commands.options import EngineKind, Json, Settings
from onnxopt.errors import InputError


def build(
    ctx: typer.Context,
    source: Annotated[Path, typer.Argument(metavar="DIR|MODEL", help="A package, or a model.", show_default=False)],
    engine: Annotated[EngineKind, typer.Option(help="The engine to build.")] = EngineKind.rtx,
    target: Annotated[
        str | None,
        typer.Option(metavar="T", help="The GPU to build for (default: the package's target).", show_default=False),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            help="The engine of a model (default: MODEL.rtx.engine).",
            show_default=False,
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Build an engine from a package, into it, or from a model."""
    from onnxopt.api import build as run
    from onnxopt.report.console import output_console, print_json
    from onnxopt.report.facts import build_document, show_engine
    from onnxopt.report.progress import reporting

    if output is not None and source.is_dir():
        raise InputError(f"-o {output}: the engine of a package goes into the package {source}; leave out -o")
    settings: Settings = ctx.obj
    with reporting(settings.verbose) as reporter:
        info = run(source, engine=engine.value, target=target, out=output, engine_progress=reporter.building)
    if json:
        print_json(build_document(info))
    else:
        show_engine(output_console(), info)


def bench(
    ctx: typer.Context,
    package: Annotated[Path, typer.Argument(metavar="DIR", help="A package.", show_default=False)],
    against: Annotated[
        Path | None,
        typer.Option(
            metavar="MODEL", help="The original (default: looked for beside the package).", show_default=False
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Time a package beside the original on this CPU: the whole model, and each rewritten site."""
    from onnxopt.measure.bench import bench_package
    from onnxopt.report.console import output_console, print_json
    from onnxopt.report.facts import show_bench
    from onnxopt.report.progress import reporting

    settings: Settings = ctx.obj
    with reporting(settings.verbose) as reporter:
        result = bench_package(package, against, progress=reporter.stage)
    if json:
        print_json(result.to_json())
    else:
        show_bench(output_console(), result)
