"""Run the engine of a package on this machine's GPU: its outputs, and how long it takes.

An engine file is executable code: it is loaded only after its sum agrees with the manifest, in a process of its own,
and only on the GPU and with the version of the library that it was built for.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from onnxopt.deploy import tensorrt
from onnxopt.deploy.child import module_command
from onnxopt.deploy.manifest import BuiltFor, check_manifest, file_sha256
from onnxopt.deploy.runner_engine import MAX_ITERATIONS
from onnxopt.deploy.tensorrt import launcher_library
from onnxopt.deploy.tensorrt_build import TENSORRT, TENSORRT_RTX, BuildProgress, Library, run_worker
from onnxopt.deploy.tensorrt_machine import INSTALL, installed_version
from onnxopt.errors import InputError, MissingError
from onnxopt.model.files import atomic_file
from onnxopt.target.device import Device, find_device

Array = npt.NDArray[Any]
RunEngine = Literal["tensorrt", "rtx"]

SCHEMA = "onnxopt.run/1"

_WORKER = "onnxopt.deploy.runner_worker"
_LIBRARIES: Mapping[RunEngine, Library] = {"tensorrt": TENSORRT, "rtx": TENSORRT_RTX}
_FILES: Mapping[RunEngine, str] = {"tensorrt": tensorrt.ENGINE, "rtx": "model.rtx.engine"}
_WARM_UP = 20


@dataclass(frozen=True)
class EngineRun:
    """What came of a run: the engine, where it ran, its latency, its outputs, and what else a user should know."""

    engine: Path
    built: BuiltFor
    gpu: str
    latency: Mapping[str, Any]
    outputs: Mapping[str, Array]
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """The document ``onnxopt.run/1``."""
        shapes = {name: {"dtype": str(a.dtype), "shape": list(a.shape)} for name, a in self.outputs.items()}
        return {
            "schema": SCHEMA,
            "engine": str(self.engine),
            "library": self.built.library,
            "gpu": self.gpu,
            "architecture": self.built.target,
            "latency": dict(self.latency),
            "outputs": shapes,
            "notes": list(self.notes),
        }


def run_package(
    folder: str | Path,
    inputs: str | Path,
    *,
    engine: RunEngine = "tensorrt",
    iterations: int = 100,
    launcher: Path | None = None,
    graph: bool = True,
    out: str | Path | None = None,
    progress: Callable[[BuildProgress], None] | None = None,
) -> EngineRun:
    """Run a package's engine on the arrays of an .npz file; with ``out`` its outputs go to such a file.

    bfloat16 stands in both as float32. Times are those of a CUDA graph of the engine where one can be made, taken with
    the GPU's clock, without copies between CPU and GPU. Raises InputError for a package that is not what its manifest
    says, an engine for another GPU or version, and inputs that the engine does not take; MissingError without a GPU or
    the library.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder}: is no folder; give a package that `onnxopt optimize` has written")
    if not 1 <= iterations <= MAX_ITERATIONS:
        raise InputError(f"--iterations is {iterations}; allowed: 1 to {MAX_ITERATIONS:,}")
    library, name = _LIBRARIES[engine], _FILES[engine]
    entry = check_manifest(folder).entry(name)
    if entry is None or entry.built is None:
        raise InputError(f"{folder}: has no {name}; build it with: onnxopt build {folder} --engine {engine}")
    device = check_place(folder / name, entry.built, library)
    plugins = launcher_library(launcher) if entry.built.way == "launcher" else None
    done, outputs = _executed(
        folder / name,
        entry.sha256,
        Path(inputs),
        library,
        iterations,
        graph=graph,
        launcher=plugins,
        out=out,
        progress=progress,
    )
    notes = [f"no CUDA graph: {done['note']}"] if done["note"] else []
    if entry.built.driver and entry.built.driver != device.driver_version:
        notes.append(f"built with a driver for {entry.built.driver}; this one is for {device.driver_version}")
    return EngineRun(folder / name, entry.built, device.name, done["latency"], outputs, tuple(notes))


def run_engine(
    engine: Path, inputs: Path, *, iterations: int = 100, graph: bool = True, launcher: Path | None = None
) -> tuple[dict[str, Any], dict[str, Array]]:
    """Run a TensorRT engine that was just built on this machine, and trusted for that; its latency and outputs.

    ``launcher`` is the library of plugins that it needs, if any. Raises as :func:`run_package`, but checks no manifest.
    """
    done, outputs = _executed(engine, file_sha256(engine), inputs, TENSORRT, iterations, graph=graph, launcher=launcher)
    return done["latency"], outputs


def _executed(
    engine: Path,
    sha256: str,
    inputs: Path,
    library: Library,
    iterations: int,
    *,
    graph: bool,
    launcher: Path | None,
    out: str | Path | None = None,
    progress: Callable[[BuildProgress], None] | None = None,
) -> tuple[dict[str, Any], dict[str, Array]]:
    """What the worker says of a run, and the outputs."""
    with tempfile.TemporaryDirectory(prefix="onnxopt-run-") as place:
        made = Path(place) / "outputs.npz"
        request = {
            "library": library.module,
            "engine": str(engine.absolute()),
            "sha256": sha256,
            "inputs": str(inputs.absolute()),
            "outputs": str(made),
            "iterations": iterations,
            "warm_up": _WARM_UP,
            "graph": graph,
        }
        if launcher is not None:
            request["launcher"] = str(launcher)
        done = run_worker(module_command(_WORKER), request, library, str(engine), progress, doing="run")
        with np.load(made, allow_pickle=False) as arrays:
            outputs: dict[str, Array] = {name: arrays[name] for name in arrays.files}
        if out is not None:
            _copy(made, Path(out))
    return dict(done), outputs


def check_place(engine: Path, built: BuiltFor, library: Library) -> Device:
    """The GPU of this machine, after comparing it and the library with what the engine was built for.

    Raises InputError where they differ, with what was found and what was expected, MissingError where there is none.
    """
    install = "install it with: pip install 'onnxopt[rtx]'" if library is TENSORRT_RTX else INSTALL
    version = installed_version(library, install)
    wanted = built.library.removeprefix(f"{library.module} ")
    if wanted and wanted != version:
        raise InputError(
            f"{engine} was built with {library.name} {wanted}, and {version} is installed; an engine runs with the "
            f"version that built it: install that one, or build the engine again"
        )
    search = find_device()
    if search.device is None:
        raise MissingError(f"an engine runs on a GPU, and this machine has none: {search.reason}")
    device = search.device
    found, expected = f"{device.name} ({device.architecture})", f"{built.gpu or 'a GPU'} ({built.target})"
    if built.target != device.architecture or built.gpu not in ("", device.name):
        raise InputError(
            f"{engine} was built for {expected}, and this machine has {found}; build the engine again on this machine"
        )
    return device


def _copy(source: Path, target: Path) -> None:
    with source.open("rb") as content, atomic_file(target) as file:
        while block := content.read(1 << 20):
            file.write(block)
