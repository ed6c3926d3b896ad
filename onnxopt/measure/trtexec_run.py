"""Find trtexec and run it: its output kept, its time limited, and the process gone whatever interrupts."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from onnxopt.deploy.child import signal_name
from onnxopt.errors import InputError, MissingError
from onnxopt.measure.trtexec_log import OLDEST, Log, Summary, parse_log

PROGRAM = "trtexec"

_PLACES = ("/opt/tensorrt/bin/trtexec", "/usr/src/tensorrt/bin/trtexec")
_MAX_OUTPUT = 64 << 20
_POLL_SECONDS = 0.05
_SHOWN_LINES = 8
_SHOWN_WIDTH = 300


@dataclass(frozen=True)
class Measured:
    """A run that passed: its command line and what it measured."""

    command: tuple[str, ...]
    log: Log
    summary: Summary


def find_trtexec(path: str | Path | None = None) -> Path:
    """The program to run: ``path``, else the one on PATH, else where NVIDIA's containers and packages put it.

    Raises MissingError where there is none; InputError for a path that is no program, and for TensorRT-RTX's tool,
    whose options and files are not documented as those of trtexec.
    """
    if path is None:
        found = shutil.which(PROGRAM) or next((place for place in _PLACES if os.access(place, os.X_OK)), None)
        if found is None:
            raise MissingError(
                "trtexec is not on PATH. It is part of NVIDIA's TensorRT: install the package libnvinfer-bin, or "
                "unpack the TensorRT archive and add its folder bin to PATH, or name the program with --trtexec-path"
            )
        return Path(found).absolute()
    place = Path(path).absolute()
    if place.name.split(".")[0] == "tensorrt_rtx":
        raise InputError(
            f"{path}: is the tool of TensorRT-RTX. It has no plugins, its options differ by version, and its "
            "JSON files are not documented, so nothing of it is read; name trtexec of TensorRT 10.9 to 11.x"
        )
    if not place.is_file() or not os.access(place, os.X_OK):
        raise InputError(f"{path}: is no program that can be run; name the file trtexec of a TensorRT installation")
    return place


def run_trtexec(command: Sequence[str], log: Path, *, timeout: float = 3600.0) -> Measured:
    """Run a command line, its output and errors into the file ``log``, and read its performance summary.

    Whatever interrupts this, Ctrl-C included, kills the program and what it has started. Raises InputError with the
    last lines and the command where it fails, takes longer than ``timeout`` seconds, prints without end, or has no
    summary.
    """
    code = _execute(command, log, timeout)
    text = log.read_bytes()[:_MAX_OUTPUT].decode(errors="replace")
    parsed = parse_log(text)
    if code != 0 or parsed.result in ("FAILED", "WAIVED"):
        how = f"was killed by {signal_name(-code)}" if code < 0 else f"ended with exit code {code}"
        verdict = f" ('&&&& {parsed.result}')" if parsed.result else ""
        raise InputError(_report(f"trtexec {how}{verdict}", parsed.errors, text, command))
    if parsed.version is not None and parsed.version[:2] < OLDEST:
        version = ".".join(str(part) for part in parsed.version)
        raise InputError(f"{command[0]} is of TensorRT {version}; allowed: 10.9 to 11.x. Install a newer one")
    if "tensorrt_rtx" in parsed.program.lower():
        raise InputError(f"{command[0]} is the tool of TensorRT-RTX ('{parsed.program}'); name trtexec of TensorRT")
    if parsed.summary is None:
        raise InputError(_report("trtexec printed no performance summary", parsed.errors, text, command))
    return Measured(tuple(command), parsed, parsed.summary)


def _execute(command: Sequence[str], log: Path, timeout: float) -> int:
    """The exit code; a negative one is the signal that ended the program."""
    end = time.monotonic() + timeout
    with log.open("wb") as output:
        try:
            # A session of its own: what a wrapper script starts is ended with it.
            process = subprocess.Popen(
                list(command), stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
            )
        except OSError as error:
            raise InputError(
                f"{command[0]} cannot be run: {error.strerror}; name trtexec with --trtexec-path"
            ) from None
        try:
            while True:
                with suppress(subprocess.TimeoutExpired):
                    return process.wait(_POLL_SECONDS)
                _check_limits(command, log, timeout, end)
        finally:
            # Its children may outlive it: the group is ended in any case.
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _check_limits(command: Sequence[str], log: Path, timeout: float, end: float) -> None:
    size = log.stat().st_size
    if size > _MAX_OUTPUT:
        raise InputError(f"{command[0]} printed {size:,} bytes; at most {_MAX_OUTPUT:,} are read. It was stopped")
    if time.monotonic() > end:
        text = log.read_bytes()[-(1 << 16) :].decode(errors="replace")
        raise InputError(
            _report(
                f"trtexec took longer than {timeout:g} s and was stopped; allow more with --timeout", (), text, command
            )
        )


def _report(what: str, errors: Sequence[str], text: str, command: Sequence[str]) -> str:
    """The failure, the errors in the log or else its last lines, and the command to try."""
    lines = [line for line in text.splitlines() if line.strip()]
    shown = list(errors[-_SHOWN_LINES:]) or lines[-_SHOWN_LINES:]
    body = "".join(f"\n  {line[:_SHOWN_WIDTH]}" for line in shown)
    return f"{what}:{body}\n  the command was: {shlex.join(command)}"
