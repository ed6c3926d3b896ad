"""Engines by TensorRT-RTX, which builds for a GPU that this machine need not have."""

from __future__ import annotations

import hashlib
import logging
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import onnx

from onnxopt.deploy.child import ChildEnd, Event, module_command, run_child
from onnxopt.deploy.operators import foreign_nodes
from onnxopt.errors import InputError, MissingError
from onnxopt.model.files import atomic_file
from onnxopt.model.read import read_model
from onnxopt.model.write import write_model

_LOG = logging.getLogger(__name__)

ARCHITECTURES = ("sm_75", "sm_80", "sm_86", "sm_89", "sm_120", "sm_121")
"""The architectures that TensorRT-RTX builds engines for."""

_TURING_ADVICE = "Choose an architecture from sm_80 on, or convert the model to fp16"
_SHOWN_FAULTS = 20
_SHOWN_LOG_LINES = 5


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
    """An engine that was written: where, for what, with what, and what identifies it."""

    path: Path
    architecture: str
    tensorrt_rtx: str
    bytes: int
    sha256: str
    layers: int
    max_batch: int | None
    inputs: tuple[EngineTensor, ...]
    outputs: tuple[EngineTensor, ...]


def check_buildable(arch: str) -> None:
    """Refuse at once what a build would refuse after all the work before it.

    Raises InputError for an architecture that TensorRT-RTX does not build for, MissingError where it is not installed.
    """
    _capability(arch)
    if find_spec("tensorrt_rtx") is None:
        raise MissingError("TensorRT-RTX is not installed; install it with: pip install 'onnxopt[rtx]'")


def build_engine(
    model: onnx.ModelProto | str | Path,
    *,
    arch: str,
    out: str | Path,
    progress: Callable[[BuildProgress], None] | None = None,
    max_batch: int = 8,
) -> EngineInfo:
    """Build the engine of a model for an architecture (``sm_89``); write it to ``out``, whole or not at all.

    The network is strongly typed: it computes in the model's own types. A dynamic batch gets the range 1 to
    ``max_batch``, tuned for 1. The build runs in a child process, because the library may abort the process
    on a model that it does not like. The library's log goes to this module's logger.

    Raises InputError for an architecture that TensorRT-RTX does not build for, operators that are not
    standard ONNX, and a model that the parser refuses (naming each node) or that the builder fails or crashes
    on; MissingError where TensorRT-RTX is not installed or the machine runs out of memory.
    """
    out = Path(out).absolute()
    check_buildable(arch)
    capability = _capability(arch)
    if max_batch < 1:
        raise InputError(f"the largest batch is {max_batch}; allowed: 1 or more")
    label = str(model) if isinstance(model, (str, Path)) else f"the model '{model.graph.name}'"
    proto = read_model(model) if isinstance(model, (str, Path)) else model
    _refuse_foreign(label, proto)
    if not out.parent.is_dir():
        raise InputError(f"cannot write {out}: there is no folder {out.parent}; create it first")
    if not os.access(out.parent, os.W_OK | os.X_OK):
        raise InputError(f"cannot write {out}: the folder {out.parent} is not writable; choose another one")
    with tempfile.TemporaryDirectory(prefix=".onnxopt-engine-", dir=out.parent) as folder:
        # The library opens external data itself: it gets a copy that was read with care.
        copy = Path(folder) / "model.onnx"
        write_model(proto, copy)
        del proto
        engine = Path(folder) / "engine"
        request = {
            "model": str(copy),
            "engine": str(engine),
            "capability": capability,
            "max_batch": max_batch,
        }
        done = _build(module_command("onnxopt.deploy.rtx_worker"), request, label, progress)
        size, digest = _move(engine, out)
    inputs = _tensors(done["inputs"])
    dynamic = any(-1 in tensor.shape for tensor in inputs)
    return EngineInfo(
        path=out,
        architecture=arch,
        tensorrt_rtx=str(done["version"]),
        bytes=size,
        sha256=digest,
        layers=int(done["layers"]),
        max_batch=max_batch if dynamic else None,
        inputs=inputs,
        outputs=_tensors(done["outputs"]),
    )


def _capability(arch: str) -> str:
    if arch not in ARCHITECTURES:
        raise InputError(
            f"TensorRT-RTX does not build engines for '{arch}'; allowed: {', '.join(ARCHITECTURES)}. "
            "Choose one of them as the target"
        )
    return arch.replace("_", "").upper()


def _refuse_foreign(label: str, model: onnx.ModelProto) -> None:
    foreign = foreign_nodes(model)
    if foreign:
        raise InputError(
            f"{label} has {len(foreign)} nodes that are not standard ONNX, and TensorRT-RTX has no plugins: "
            f"{_listed(foreign, ', ')}. Build the engine from the portable form, which has standard operators"
        )


def _build(
    command: Sequence[str],
    request: Mapping[str, Any],
    label: str,
    progress: Callable[[BuildProgress], None] | None,
) -> Event:
    """Run the worker and return its ``done`` event; every other end raises."""
    state = _Conversation(progress)
    end = run_child(command, request, state.hear)
    result = state.result
    if end.code == 0 and result is not None and result["event"] == "done":
        return result
    if result is not None and result["event"] == "refused":
        faults = [_fault(error) for error in result["errors"]]
        raise InputError(
            f"TensorRT-RTX cannot parse {label}; nodes in the way: {len(faults)}\n  " + _listed(faults, "\n  ")
        )
    if result is not None and result["event"] == "failed":
        details = state.last_errors()
        # Measured with 1.7.1: every fp32 matrix product is refused for sm_75, and every fp16 one is built.
        advice = f"\n  {_TURING_ADVICE}" if "FP32 GEMM is not supported" in details else ""
        raise InputError(f"TensorRT-RTX cannot build {label}: {result['message']}{details}{advice}")
    raise _crash(end, label, state)


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


def _crash(end: ChildEnd, label: str, state: _Conversation) -> InputError | MissingError:
    """The error for a worker that ended without a result."""
    if end.signal == "SIGKILL":
        return MissingError(
            f"the process that built the engine of {label} was killed during: {state.stage}. Nothing was "
            "written. Most likely the machine ran out of memory; use one with more"
        )
    how = f"crashed ({end.signal})" if end.signal else f"stopped with exit code {end.code}"
    last = "\n  " + end.tail.splitlines()[-1] if end.tail else ""
    details = state.last_errors() + last
    return InputError(f"TensorRT-RTX {how} on {label}, during: {state.stage}. Nothing was written{details}")


def _fault(error: Mapping[str, Any]) -> str:
    """A parser error in words; the parser's own text may be no more than 'false'."""
    code = str(error["code"]).lower().replace("_", " ")
    text = " ".join(str(error["text"]).split())
    where = f" in function {' / '.join(error['functions'])}" if error["functions"] else ""
    detail = "" if text in ("", "false") else f": {text}"
    return f"'{error['node']}' ({error['operator']}){where}: {code}{detail}"


def _listed(items: Sequence[str], separator: str) -> str:
    rest = len(items) - _SHOWN_FAULTS
    return separator.join(items[:_SHOWN_FAULTS]) + (f"{separator}and {rest} more" if rest > 0 else "")


def _move(source: Path, target: Path) -> tuple[int, str]:
    """Copy the engine to its place atomically; returns its size in bytes and its SHA-256."""
    digest = hashlib.sha256()
    size = 0
    with source.open("rb") as engine, atomic_file(target) as file:
        while block := engine.read(1 << 22):
            digest.update(block)
            size += file.write(block)
    return size, digest.hexdigest()


def _tensors(described: Sequence[Mapping[str, Any]]) -> tuple[EngineTensor, ...]:
    return tuple(EngineTensor(t["name"], t["dtype"], tuple(t["shape"])) for t in described)
