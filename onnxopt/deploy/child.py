"""Run foreign native code in a child process, so that its crash is an error message and Ctrl-C ends it.

The child reads one JSON request from its standard input and answers with one JSON object per line on its
standard output. Its standard error is kept to explain a crash.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

Event = Mapping[str, Any]

# Of what a crashing library prints, the end explains the crash.
_TAIL_BYTES = 2000


@dataclass(frozen=True)
class ChildEnd:
    """How a child ended: exit code, the signal that ended it if one did, the end of its error output."""

    code: int
    signal: str | None
    tail: str


def module_command(module: str) -> list[str]:
    """The command that runs a module of this package with this interpreter."""
    return [sys.executable, "-m", module]


def run_child(command: Sequence[str], request: Event, on_event: Callable[[Event], None]) -> ChildEnd:
    """Start ``command``, hand it ``request``, and pass each of its answers to ``on_event`` until it ends.

    Whatever interrupts this, Ctrl-C or an exception of ``on_event``, kills the child first.
    """
    # From the package's parent `-m` finds the package, installed or not; from the user's folder a file there
    # could take the place of a library.
    home = Path(__file__).resolve().parents[2]
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(
            list(command), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, cwd=home
        )
        try:
            _converse(process, request, on_event)
            code = process.wait()
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
            for stream in (process.stdin, process.stdout):
                if stream is not None and not stream.closed:
                    stream.close()
        errors.seek(max(0, errors.seek(0, os.SEEK_END) - _TAIL_BYTES))
        tail = errors.read().decode(errors="replace").strip()
    return ChildEnd(code, signal_name(-code) if code < 0 else None, tail)


def _converse(process: subprocess.Popen[bytes], request: Event, on_event: Callable[[Event], None]) -> None:
    assert process.stdin is not None and process.stdout is not None
    _send_request(process.stdin, request)
    for line in process.stdout:
        try:
            event = json.loads(line)
        except ValueError:  # the line that a crash cut off
            continue
        if isinstance(event, dict):
            on_event(event)


def _send_request(stream: IO[bytes], request: Event) -> None:
    try:
        with stream:
            stream.write(json.dumps(request).encode())
    except BrokenPipeError:  # the child is already gone; its exit code says why
        return


def signal_name(number: int) -> str:
    """What a signal is called, such as ``SIGKILL``."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


class Channel:
    """The child's side: its original standard output, kept for events.

    Native libraries print to file descriptor 1 as they like, so that descriptor is pointed at standard error.
    """

    def __init__(self) -> None:
        self._stream = os.fdopen(os.dup(1), "w", encoding="utf-8")
        os.dup2(2, 1)

    def request(self) -> dict[str, Any]:
        """The request that the parent sent."""
        request = json.load(sys.stdin)
        assert isinstance(request, dict)
        return request

    def send(self, event: str, **values: Any) -> None:
        """Send an event; ends this process where the parent is gone, because nobody needs the result then."""
        try:
            self._stream.write(json.dumps({"event": event, **values}) + "\n")
            self._stream.flush()
        except BrokenPipeError:
            os._exit(1)
