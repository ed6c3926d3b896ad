"""What a job does with an operator, whatever it computes: sample, draw, load, judge."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from onnxopt.measure.job.content import Code, Entry, Job
from onnxopt.measure.job.device import Device, Launch
from onnxopt.verification.kernel_rule import Judgement

Array = npt.NDArray[Any]
Kernel = Mapping[str, Any]
Tables = Mapping[str, Array]


@dataclass(frozen=True)
class Output:
    """A tensor that a kernel writes: its handle, an array of its type and shape, and the type of its numbers."""

    handle: Any
    like: Array
    element: str


@dataclass(frozen=True)
class Loaded:
    """An entry on a device: its launches over one set of operands, what the first writes and, if there is one, what
    the second does."""

    launches: tuple[Launch, ...]
    outputs: tuple[Output, ...]
    second: Output | None


class Operator(Protocol):
    """A kind of operators; ``operands`` are what :meth:`draw` gives, and everyone else passes on."""

    def sample(self, kernel: Kernel, tables: Tables, work: int) -> Array:
        """Numbers of jobs that tell everything, of about as much ``work`` as that many scores of an attention."""

    def draw(self, kernel: Kernel, batch: int, seed: int) -> Any:
        """Random operands."""

    def load(self, job: Job, entry: Entry, device: Device, tables: Tables, operands: Any) -> Loaded:
        """Upload tables, operands and poisoned outputs."""

    def only_written(self, kernel: Kernel, tables: Tables, found: Sequence[Array]) -> list[Array]:
        """The outputs of a whole launch with poison wherever no line of ``jobs`` writes."""

    def judge(self, kernel: Kernel, tables: Tables, operands: Any, found: Sequence[Array]) -> list[Judgement]:
        """A judgement of each output of the first kernel."""

    def judge_second(self, entry: Entry, tables: Tables, operands: Any, parts: Sequence[Array], y: Array) -> Judgement:
        """The judgement of what the second kernel made of the first one's ``parts``."""

    def moved_bytes(self, kernel: Kernel) -> int:
        """Bytes of the operands and results of one batch element."""


def launch_of(job: Job, code: Code, device: Device, grid: int, arguments: tuple[Any, ...]) -> Launch:
    """The launch of a compiled kernel."""
    return Launch(job.code(code, device.architecture), code.entry, grid, code.block, code.shared_bytes, arguments)


def poisoned(like: Array, device: Device, element: str) -> Output:
    """An output on a device, of which every element is NaN until it is written."""
    return Output(device.upload(like, output=True), like, element)


def second_kernel(entry: Entry) -> Kernel:
    """The configuration of the second kernel of an entry that has one."""
    assert entry.second_kernel is not None
    return entry.second_kernel


def where_written(values: Array, written: Array) -> Array:
    """The values with NaN wherever ``written`` (a mask of the same shape) is false."""
    return np.where(written, values, np.asarray(np.nan, values.dtype))
