"""The commands about this machine: doctor, and the cache."""

from __future__ import annotations

import typer

from onnxopt.commands.options import Json, Settings, cache_folder
from onnxopt.errors import InputError

cache_app = typer.Typer(no_args_is_help=True, help="The folder in which measurements are kept between runs.")


def doctor(ctx: typer.Context, json: Json = False) -> None:
    """Show what this machine can do, and what to install for the rest."""
    from onnxopt.deploy.doctor import examine, to_json
    from onnxopt.report.console import output_console, print_json
    from onnxopt.report.facts import show_checks
    from onnxopt.report.progress import reporting

    settings: Settings = ctx.obj
    with reporting(settings.verbose) as reporter:
        reporter.stage("looking at this machine")
        checks = examine(cache_folder(settings))
    if json:
        print_json(to_json(checks))
    else:
        show_checks(output_console(), checks)


@cache_app.command("list")
def list_files(ctx: typer.Context) -> None:
    """Show what the cache holds."""
    from onnxopt.measure.cache import list_cache
    from onnxopt.report.console import output_console
    from onnxopt.report.facts import show_cache

    folder = cache_folder(ctx.obj)
    show_cache(output_console(), folder, list_cache(folder))


@cache_app.command("verify")
def verify_files(ctx: typer.Context) -> None:
    """Look for entries that cannot be used; exit code 2 if there are any."""
    from onnxopt.measure.cache import list_cache, verify_cache
    from onnxopt.report.console import output_console
    from onnxopt.report.facts import show_cache

    folder = cache_folder(ctx.obj)
    damaged = verify_cache(folder)
    show_cache(output_console(), folder, damaged or list_cache(folder))
    if damaged:
        count = sum(len(file.problems) for file in damaged)
        raise InputError(
            f"{folder}: {count} entries cannot be used and are skipped; `onnxopt cache clear` removes them"
        )


@cache_app.command("clear")
def clear_files(ctx: typer.Context) -> None:
    """Delete what the cache holds. Nothing is lost but the time to measure again."""
    from onnxopt.measure.cache import clear_cache
    from onnxopt.report.console import output_console

    folder = cache_folder(ctx.obj)
    removed = clear_cache(folder)
    output_console().print(f"{folder}: {len(removed)} files deleted", soft_wrap=True)
