"""What is asked of a process that calls the launcher with a driver or a stand-in for one, and what it answers."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from tests.deploy.launcher_host import Field, Tensor

STREAM = 0x7777
CONTEXT = 0x1000


@dataclass(frozen=True)
class Run:
    """One call: tensors of a batch, and a pointer for each of them and the workspace."""

    inputs: list[Tensor]
    outputs: list[Tensor]
    pointers: list[int]
    workspace: int
    context: int = CONTEXT


@dataclass(frozen=True)
class Request:
    """A plugin's fields, what its kernels' parameters are (a letter each), the GPU that is there, and calls.

    ``fail`` is a function of the driver and the error that it gives.
    """

    fields: list[Field]
    parameters: dict[str, str]
    runs: list[Run]
    device: tuple[int, int, int] = (8, 0, 166912)
    fail: tuple[str, int] = ("", 0)


@dataclass(frozen=True)
class Launched:
    """What the driver was asked to launch, ``image`` being the first bytes of the module's code."""

    entry: str
    grid: tuple[int, ...]
    block: tuple[int, ...]
    shared: int
    shared_allowed: int
    stream: int
    values: list[int]
    module: int
    image: bytes


@dataclass(frozen=True)
class Answer:
    """Launches or the refusal of each call, and how many modules were loaded, unloaded while a plugin was still there,
    and in the end.
    """

    runs: list[list[Launched] | str] = field(default_factory=list)
    loaded: int = 0
    early: int = 0
    unloaded: int = 0


@dataclass(frozen=True)
class Execution:
    """One execution of a plugin: its fields, its tensors, and the contents of its inputs as NumPy arrays."""

    fields: list[Field]
    inputs: list[Tensor]
    outputs: list[Tensor]
    arrays: list[Any]
