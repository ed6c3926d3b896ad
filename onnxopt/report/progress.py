"""Progress and log records on standard error: a moving line in a terminal, plain lines elsewhere."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, Task, TextColumn, TimeElapsedColumn
from rich.progress_bar import ProgressBar

from onnxopt.report.console import message_console, printable, wants_plain


class Phase(Protocol):
    """How far the build of an engine is; see :class:`onnxopt.deploy.tensorrt_build.BuildProgress`."""

    @property
    def phase(self) -> str: ...
    @property
    def parent(self) -> str | None: ...
    @property
    def step(self) -> int: ...
    @property
    def steps(self) -> int: ...


class Reporter(Protocol):
    """What a command tells about its progress."""

    def stage(self, message: str) -> None:
        """What is being done now."""

    def counting(self, message: str, done: int, total: int) -> None:
        """What is being done now, and how much of it is done."""

    def building(self, state: Phase) -> None:
        """How far the build of an engine is."""


class _Bar:
    """One moving line that disappears at the end."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._task = progress.add_task("", total=None)

    def stage(self, message: str) -> None:
        self._progress.update(self._task, description=printable(message), total=None, completed=0)

    def counting(self, message: str, done: int, total: int) -> None:
        text = printable(f"{message}, {done} of {total}")
        self._progress.update(self._task, description=text, total=total or None, completed=done)

    def building(self, state: Phase) -> None:
        text = printable(_build_stage(state))
        self._progress.update(self._task, description=text, total=state.steps or None, completed=state.step)


class _Lines:
    """A line for every stage, for log files."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._last = ""
        self._nested: set[str] = set()

    def stage(self, message: str) -> None:
        if message != self._last:
            self._last = message
            self._console.print(printable(f"onnxopt: {message}"), soft_wrap=True)

    def counting(self, message: str, done: int, total: int) -> None:
        # One line for all: a log file has no use for each step.
        if total:
            self.stage(f"{message}: {total}")

    def building(self, state: Phase) -> None:
        if state.parent is not None:  # only the first report of a phase names the one around it
            self._nested.add(state.phase)
        if state.phase not in self._nested:
            self.stage(_build_stage(state))


def _build_stage(state: Phase) -> str:
    # Phases of the builder itself mean little without saying what they belong to.
    return f"building the engine: {state.phase}" if state.steps else state.phase


class _KnownTotal(BarColumn):
    """The bar, only where it is known how much there is to do."""

    def render(self, task: Task) -> ProgressBar:
        return ProgressBar(width=0) if task.total is None else super().render(task)


class _LogHandler(logging.Handler):
    """Log records as single lines above the moving one."""

    def __init__(self, console: Console) -> None:
        super().__init__(logging.DEBUG)
        self._console = console

    def emit(self, record: logging.LogRecord) -> None:
        try:
            text = f"onnxopt: {record.levelname.lower()}: {record.getMessage()}"
            self._console.print(printable(text), soft_wrap=True)
        except Exception:  # a log record that cannot be shown must not end the work
            self.handleError(record)


@contextmanager
def reporting(verbose: bool = False) -> Iterator[Reporter]:
    """Show progress, warnings, and with ``verbose`` every log record of this project, while the block runs."""
    console = message_console()
    handler = _LogHandler(console)
    root, own = logging.getLogger(), logging.getLogger("onnxopt")
    level = own.level
    root.addHandler(handler)
    own.setLevel(logging.DEBUG if verbose else logging.WARNING)
    try:
        if not console.is_terminal or wants_plain():
            yield _Lines(console)
            return
        columns = (
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            _KnownTotal(bar_width=24),
            TimeElapsedColumn(),
        )
        with Progress(*columns, console=console, transient=True) as progress:
            yield _Bar(progress)
    finally:
        own.setLevel(level)
        root.removeHandler(handler)
