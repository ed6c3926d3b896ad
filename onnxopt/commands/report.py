"""The command that shows a package to a person: report."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from onnxopt.commands.options import Json, Settings


def report(
    ctx: typer.Context,
    package: Annotated[Path, typer.Argument(metavar="DIR", help="A package.", show_default=False)],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", metavar="FILE", help="Where to write it (default: DIR/report.html).", show_default=False
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Write an HTML page with pictures of every planned site; it needs no network and no server."""
    from onnxopt.report.console import output_console, print_json, printable
    from onnxopt.report.package_report import write_report
    from onnxopt.report.progress import reporting

    settings: Settings = ctx.obj
    with reporting(settings.verbose) as reporter:
        reporter.stage("drawing the report")
        written = write_report(package, output)
    if json:
        print_json(written.to_json())
        return
    size = max(1, round(written.bytes / 1000))
    pictures = f"{written.pictures:,} picture{'' if written.pictures == 1 else 's'}"
    text = f"{written.path}: {written.planned} of {written.sites} sites with a schedule, {pictures} ({size:,} kB)"
    output_console().print(printable(text), soft_wrap=True)
