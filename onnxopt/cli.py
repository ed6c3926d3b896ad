"""The commands: what a user types becomes a call of :mod:`onnxopt.api`, its result a table or a JSON document.

Everything heavy is imported inside the commands, so that ``onnxopt --help`` answers at once.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
import threading
import traceback
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

from onnxopt.commands.machine import cache_app, doctor
from onnxopt.commands.models import inspect, optimize, verify
from onnxopt.commands.options import Settings
from onnxopt.commands.packages import bench, build, run
from onnxopt.commands.profile import profile
from onnxopt.commands.report import report
from onnxopt.errors import InputError, MissingError, OnnxOptError

_INTERRUPTED = 128 + signal.SIGINT
_PIPE_CLOSED = 128 + signal.SIGPIPE
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# What looking at a path that somebody named may end with, whatever it is then used for.
_BAD_PATH = (errno.ENAMETOOLONG, errno.EACCES, errno.EPERM, errno.ELOOP, errno.EROFS)


class _Commands(TyperGroup):
    """Turns every way in which a command can end into a message and an exit code."""

    def invoke(self, ctx: Any) -> Any:
        try:
            result = super().invoke(ctx)
            sys.stdout.flush()
            return result
        except OnnxOptError as error:
            _fail(str(error), error.exit_code)
        except KeyboardInterrupt:
            _fail("interrupted; unfinished files are removed", _INTERRUPTED)
        except BrokenPipeError:
            # Python would complain once more when it flushes the closed pipe at the end.
            with suppress(OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(_PIPE_CLOSED) from None
        except MemoryError:
            _fail("the machine has too little memory for this; use one with more", MissingError.exit_code)
        except OSError as error:
            if error.errno in _BAD_PATH and error.filename:
                reason = f"{error.strerror}; check the path and its permissions"
                _fail(f"cannot use {error.filename}: {reason}", InputError.exit_code)
            if error.errno not in _DISK_FULL:
                self._fail_by_bug(ctx, error)
            where = f" ({error.filename})" if error.filename else ""
            _fail(f"{error.strerror}{where}; free some space", InputError.exit_code)
        except Exception as error:
            if type(error).__module__.split(".")[0] in ("typer", "click"):  # usage errors, and typer's own way to end
                raise
            if _seen_interrupt.is_set():
                _fail("interrupted; unfinished files are removed", _INTERRUPTED)
            self._fail_by_bug(ctx, error)

    def _fail_by_bug(self, ctx: Any, error: Exception) -> NoReturn:
        if ctx.params.get("show_traceback"):
            traceback.print_exception(error)
        text = (str(error).strip().splitlines() or [""])[0]
        hint = "run `onnxopt --traceback ...` and report what it shows"
        _fail(f"{type(error).__name__}: {text}; this is a bug in onnxopt: {hint}", 1)


app = typer.Typer(
    cls=_Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for _command in (inspect, optimize, verify, build, run, bench, report, profile, doctor):
    app.command()(_command)
app.add_typer(cache_app, name="cache")


def main() -> None:
    """The entry point of ``onnxopt``."""
    # A name that the terminal cannot show must not end the command.
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _terminate)
    signal.signal(signal.SIGINT, _interrupt)
    try:
        app(prog_name="onnxopt")
    except KeyboardInterrupt:
        sys.stderr.write("onnxopt: error: interrupted\n")
        sys.exit(_INTERRUPTED)
    finally:
        # What is left to do is Python's own ending, which an interrupt would only garble.
        signal.signal(signal.SIGINT, signal.SIG_IGN)


_seen_interrupt = threading.Event()


def _interrupt(number: int, frame: object) -> NoReturn:
    """Like Python's own handling, but remembered: a native import turns the exception into an ImportError."""
    del number, frame
    _seen_interrupt.set()
    raise KeyboardInterrupt


def _terminate(number: int, frame: object) -> NoReturn:
    """End like after Ctrl-C, so that temporary files go."""
    del frame
    sys.exit(128 + number)


def _fail(message: str, code: int) -> NoReturn:
    from onnxopt.report.console import print_error

    with suppress(BrokenPipeError):
        print_error(message)
    raise typer.Exit(code)


def _print_version(wanted: bool) -> None:
    if wanted:
        from onnxopt import __version__

        typer.echo(f"onnxopt {__version__}")
        raise typer.Exit


@app.callback()
def _common(
    ctx: typer.Context,
    cache: Annotated[
        Path | None,
        typer.Option(metavar="DIR", envvar="ONNXOPT_CACHE", help="Where measurements are kept.", show_default=False),
    ] = None,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Show every log record on standard error.")] = False,
    show_traceback: Annotated[
        bool, typer.Option("--traceback", envvar="ONNXOPT_TRACEBACK", help="Show where an unexpected error arose.")
    ] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Find sparse attention and grouped or pruned convolution in ONNX models, and rewrite them into less work.

    Exit codes: 0 done, also when nothing could be gained; 2 bad usage or input; 3 the models do not agree; 4 the
    machine lacks something, and the message says what to install.
    """
    del version, show_traceback
    ctx.obj = Settings(cache, verbose)


if __name__ == "__main__":
    main()
