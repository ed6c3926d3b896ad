"""Builds of engines by a library of NVIDIA's, from this side: a worker process does it, and its answers become words.

TensorRT and TensorRT-RTX have the same classes, so that one worker serves both; see
:mod:`onnxopt.deploy.tensorrt_worker`.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from onnxopt.deploy.batch_range import BatchRange
from onnxopt.deploy.child import ChildEnd, Event, run_child
from onnxopt.errors import InputError, MissingError
from onnxopt.model.files import atomic_file

_LOG = logging.getLogger(__name__)

WORKER = "onnxopt.deploy.tensorrt_worker"

_SHOWN_FAULTS = 20
_SHOWN_LOG_LINES = 5


@dataclass(frozen=True)
class Library:
    """A library that builds and runs engines: the module to import, and its name in sentences."""

    module: str
    name: str


TENSORRT = Library("tensorrt", "TensorRT")
TENSORRT_RTX = Library("tensorrt_rtx", "TensorRT-RTX")


@dataclass(frozen=True)
class BuildProgress:
    """How far a build is: ``step`` of ``steps`` of a phase; a phase may have a ``parent`` in which it runs.

    Before the builder itself reports, a phase without steps (0 of 0) names what is being done.
    """

    phase: str
    parent: str | None
    step: int
    steps: int


@dataclass(frozen=True)
class EngineTensor:
    """An input or output of an engine; a size of -1 is the dynamic batch."""

    name: str
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class EngineInfo:
    """An engine that was written: where, for what, with what, and what identifies it.

    ``batch`` is None where the batch is fixed. ``gpu`` names the GPU that it was built on, where one was needed, and
    ``way`` how operators of our own are in it.
    """

    path: Path
    architecture: str
    library: Library
    version: str
    bytes: int
    sha256: str
    layers: int
    batch: BatchRange | None
    inputs: tuple[EngineTensor, ...]
    outputs: tuple[EngineTensor, ...]
    gpu: str = ""
    way: str = ""

    @property
    def max_batch(self) -> int | None:
        """The largest batch, None where it is fixed."""
        return None if self.batch is None else self.batch.largest

    @property
    def title(self) -> str:
        """What it is, in a few words."""
        on = f", {self.gpu}" if self.gpu else ""
        return f"{self.library.name} {self.version} for {self.architecture}{on}"

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; the version stands under the name of the library's module."""
        return {
            "path": str(self.path),
            "architecture": self.architecture,
            self.library.module: self.version,
            "bytes": self.bytes,
            "sha256": self.sha256,
            "layers": self.layers,
            "max_batch": self.max_batch,
            "batch": None if self.batch is None else self.batch.sizes,
            "inputs": [asdict(tensor) for tensor in self.inputs],
            "outputs": [asdict(tensor) for tensor in self.outputs],
            **({"gpu": self.gpu} if self.gpu else {}),
            **({"way": self.way} if self.way else {}),
        }


def check_writable(out: Path) -> None:
    """Raise InputError where the engine could not be written in the end."""
    if not out.parent.is_dir():
        raise InputError(f"cannot write {out}: there is no folder {out.parent}; create it first")
    if not os.access(out.parent, os.W_OK | os.X_OK):
        raise InputError(f"cannot write {out}: the folder {out.parent} is not writable; choose another one")
    if out.exists() and not out.is_file():
        raise InputError(f"cannot write {out}: it is a folder or a device; give the name of a file")


def run_worker(
    command: Sequence[str],
    request: Mapping[str, Any],
    library: Library,
    label: str,
    progress: Callable[[BuildProgress], None] | None,
    advice: Callable[[str], str] = lambda _: "",
    doing: str = "build",
) -> Event:
    """Run a worker and return its ``done`` event; every other end raises.

    ``label`` names the model in messages, ``doing`` what is done with it; ``advice`` turns the library's last errors
    into what to do about them. Raises InputError for a model that the parser refuses or that the library fails or
    crashes on, MissingError where the machine runs out of memory.
    """
    state = _Conversation(progress)
    end = run_child(command, request, state.hear)
    result = state.result
    if end.code == 0 and result is not None and result["event"] == "done":
        return result
    if result is not None and result["event"] == "refused":
        faults = [_fault(error) for error in result["errors"]]
        raise InputError(
            f"{library.name} cannot parse {label}; nodes in the way: {len(faults)}\n  " + listed(faults, "\n  ")
        )
    if result is not None and result["event"] == "failed":
        details = state.last_errors()
        hint = advice(details)
        raise InputError(
            f"{library.name} cannot {doing} {label}: {result['message']}{details}" + (f"\n  {hint}" if hint else "")
        )
    raise _crash(end, library, label, state)


def kept_engine(
    source: Path,
    out: Path,
    done: Mapping[str, Any],
    library: Library,
    architecture: str,
    batch: BatchRange,
    *,
    gpu: str = "",
    way: str = "",
) -> EngineInfo:
    """Copy an engine to its place, whole or not at all; what it is follows from the worker's ``done`` event."""
    size, digest = _copied(source, out)
    inputs, outputs = _described(done["inputs"]), _described(done["outputs"])
    return EngineInfo(
        path=out,
        architecture=architecture,
        library=library,
        version=str(done["version"]),
        bytes=size,
        sha256=digest,
        layers=int(done["layers"]),
        batch=batch if any(-1 in tensor.shape for tensor in inputs) else None,
        inputs=inputs,
        outputs=outputs,
        gpu=gpu,
        way=way,
    )


def _copied(source: Path, target: Path) -> tuple[int, str]:
    """Size in bytes and SHA-256 of what was copied."""
    digest = hashlib.sha256()
    size = 0
    with source.open("rb") as engine, atomic_file(target) as file:
        while block := engine.read(1 << 22):
            digest.update(block)
            size += file.write(block)
    return size, digest.hexdigest()


def _described(tensors: Sequence[Mapping[str, Any]]) -> tuple[EngineTensor, ...]:
    return tuple(EngineTensor(t["name"], t["dtype"], tuple(t["shape"])) for t in tensors)


def listed(items: Sequence[str], separator: str) -> str:
    """The first of many items, and how many more there are."""
    rest = len(items) - _SHOWN_FAULTS
    return separator.join(items[:_SHOWN_FAULTS]) + (f"{separator}and {rest} more" if rest > 0 else "")


class _Conversation:
    """What the worker has said so far."""

    def __init__(self, progress: Callable[[BuildProgress], None] | None) -> None:
        self._progress = progress
        self._errors: list[str] = []
        self.stage = "starting"
        self.result: Event | None = None

    def hear(self, event: Event) -> None:
        kind = event.get("event")
        if kind == "log":
            self._log(str(event["severity"]), str(event["text"]))
        elif kind == "warning":
            _LOG.warning("%s", event["text"])
        elif kind == "stage":
            self.stage = str(event["name"])
            self._show(BuildProgress(self.stage, None, 0, 0))
        elif kind == "progress":
            self.stage = str(event["phase"])
            self._show(BuildProgress(self.stage, event["parent"], int(event["step"]), int(event["steps"])))
        elif kind in ("done", "refused", "failed"):
            self.result = event

    def last_errors(self) -> str:
        """The last errors of the library's log, as the end of a message."""
        return "".join(f"\n  {text}" for text in self._errors[-_SHOWN_LOG_LINES:])

    def _show(self, state: BuildProgress) -> None:
        if self._progress is not None:
            self._progress(state)

    def _log(self, severity: str, text: str) -> None:
        # Errors come back in the exception, and the warnings are about matters that no user can change.
        _LOG.log(logging.DEBUG if severity == "INFO" else logging.INFO, "%s", text)
        if severity in ("ERROR", "INTERNAL_ERROR"):
            self._errors.append(text)


def _crash(end: ChildEnd, library: Library, label: str, state: _Conversation) -> InputError | MissingError:
    """The error for a worker that ended without a result."""
    if end.signal == "SIGKILL":
        return MissingError(
            f"the process with {library.name} for {label} was killed during: {state.stage}. Nothing was "
            "written. Most likely the machine ran out of memory; use one with more"
        )
    how = f"crashed ({end.signal})" if end.signal else f"stopped with exit code {end.code}"
    last = "\n  " + end.tail.splitlines()[-1] if end.tail else ""
    details = state.last_errors() + last
    return InputError(f"{library.name} {how} on {label}, during: {state.stage}. Nothing was written{details}")


def _fault(error: Mapping[str, Any]) -> str:
    """A parser error in words; the parser's own text may be no more than 'false'."""
    code = str(error["code"]).lower().replace("_", " ")
    text = " ".join(str(error["text"]).split())
    where = f" in function {' / '.join(error['functions'])}" if error["functions"] else ""
    detail = "" if text in ("", "false") else f": {text}"
    return f"'{error['node']}' ({error['operator']}){where}: {code}{detail}"
