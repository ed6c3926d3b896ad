"""The two streams: results on standard output, everything else on standard error.

Text from a model (names of nodes and tensors) is untrusted: it is shown without the control characters with which a
file could steer a terminal, and never read as markup.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from typing import Any, NoReturn

from rich.console import Console


class _Console(Console):
    """A console that leaves a closed pipe to whoever started it, instead of ending the process."""

    def on_broken_pipe(self) -> NoReturn:
        raise BrokenPipeError


def wants_plain(environment: Mapping[str, str] | None = None) -> bool:
    """Whether the user asked for text without colours and moving parts (``NO_COLOR``, or a terminal that has none)."""
    environment = os.environ if environment is None else environment
    return bool(environment.get("NO_COLOR")) or environment.get("TERM") == "dumb"


def output_console() -> Console:
    """Standard output, for results; without any escape code in a pipe, or where the user wants it plain."""
    return _console(stderr=False)


def message_console() -> Console:
    """Standard error, for progress, logs and errors."""
    return _console(stderr=True)


def printable(text: str) -> str:
    """The text with control characters written out, so that it cannot steer a terminal; lines stay lines."""
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text)


def print_json(document: Mapping[str, Any]) -> None:
    """Write one JSON document, and nothing else, to standard output."""
    sys.stdout.write(json.dumps(document, indent=1, ensure_ascii=True, allow_nan=False) + "\n")


def print_error(message: str, label: str = "error") -> None:
    """One message on standard error, in the form of Unix tools; never wrapped, so that it can be searched."""
    sys.stderr.write(f"onnxopt: {label}: {printable(message)}\n")


def _console(stderr: bool) -> Console:
    if wants_plain():
        return _Console(stderr=stderr, color_system=None, markup=False, highlight=False, emoji=False)
    return _Console(stderr=stderr, markup=False, highlight=False, emoji=False)
