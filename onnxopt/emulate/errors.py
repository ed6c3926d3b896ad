"""The error of everything that goes wrong in PTX or while it runs."""

from __future__ import annotations

from onnxopt.errors import OnnxOptError


class EmulationError(OnnxOptError):
    """PTX that cannot be run, or that did something wrong while it ran.

    `line` is the PTX line (0: none), `block` and `thread` say who was running (None: nobody in particular).
    """

    def __init__(
        self,
        message: str,
        line: int = 0,
        block: tuple[int, int, int] | None = None,
        thread: tuple[int, int, int] | None = None,
    ) -> None:
        super().__init__(message)
        self.line = line
        self.block = block
        self.thread = thread
