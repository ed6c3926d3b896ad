"""Engines by TensorRT, which builds for the GPU of this machine.

A package's operators get into an engine in one of three *ways*: ``aot`` (the generated plugin module gives TensorRT the
kernels, and the engine holds them), ``launcher`` (the launcher library's plugin, whose fields hold the kernels) and
``portable`` (standard operators, no kernels of our own).
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import onnx

from onnxopt.deploy.aot_model import AOT_MODEL
from onnxopt.deploy.batch_range import BatchRange, check_batch
from onnxopt.deploy.child import module_command
from onnxopt.deploy.launcher import find_launcher
from onnxopt.deploy.launcher_model import LAUNCHER_MODEL
from onnxopt.deploy.manifest import BuiltFor, Manifest, add_to_manifest, check_manifest, checked_file, copy_files
from onnxopt.deploy.plugin_module import PLUGIN_MODULE
from onnxopt.deploy.tensorrt_build import (
    TENSORRT,
    WORKER,
    BuildProgress,
    EngineInfo,
    check_writable,
    kept_engine,
    run_worker,
)
from onnxopt.deploy.tensorrt_cache import default_timing_cache, read_timings, write_timings
from onnxopt.deploy.tensorrt_machine import Machine, check_machine
from onnxopt.errors import InputError, MissingError
from onnxopt.model.graph import nodes_within
from onnxopt.model.read import read_model
from onnxopt.model.write import write_model
from onnxopt.package import PORTABLE

Way = Literal["aot", "launcher", "portable"]

ENGINE = "model.tensorrt.engine"
MODELS: Mapping[Way, str] = {
    "aot": AOT_MODEL,
    "launcher": LAUNCHER_MODEL,
    "portable": PORTABLE,
}

_OWN_DOMAIN = "onnxopt"
_MAX_WORKSPACE_MB = 1 << 24


@dataclass(frozen=True)
class TensorrtOptions:
    """How an engine is built.

    ``way`` defaults to ``aot`` where the package has it, else ``portable``. ``launcher`` is the launcher library, by
    default the one that is found. ``timing_cache`` is a file, by default one of the folder ``cache``; where neither is
    named nothing is kept. ``workspace`` bounds the scratch memory of a layer, in megabytes. ``tf32`` lets float32
    products be rounded to TF32, which TensorRT would do unasked, and which no verification saw.
    """

    way: Way | None = None
    launcher: Path | None = None
    timing_cache: Path | None = None
    cache: Path | None = None
    workspace: int | None = None
    tf32: bool = False
    batch: BatchRange | None = None

    def __post_init__(self) -> None:
        if self.workspace is not None and not 1 <= self.workspace <= _MAX_WORKSPACE_MB:
            raise InputError(f"--workspace-memory is {self.workspace}; allowed: 1 to {_MAX_WORKSPACE_MB} megabytes")
        if self.launcher is not None and self.way != "launcher":
            raise InputError("--launcher names the library of the way 'launcher'; add --way launcher, or leave it out")


def build_in_package(
    folder: Path,
    options: TensorrtOptions,
    *,
    target: str | None = None,
    progress: Callable[[BuildProgress], None] | None = None,
) -> EngineInfo:
    """Build the engine of a package, into it and into its manifest.

    In the way ``aot`` the package's plugin module is *run*, in the worker: everything in the package is held against
    its manifest first, but whoever made the package made the module. Kernels need the architecture that they were
    planned for, ``target``. Raises InputError and MissingError as :func:`check_machine` and :func:`build_engine` do.
    """
    manifest = check_manifest(folder, besides=ENGINE)
    way = chosen_way(folder, manifest, options.way)
    machine = check_machine(target)
    model = checked_file(folder, MODELS[way])
    with tempfile.TemporaryDirectory(prefix="onnxopt-plugins-") as place:
        extra: dict[str, Any] = {}
        if way == "aot":
            extra["module"] = str(_copied_module(folder, manifest, Path(place)))
        elif way == "launcher":
            extra["launcher"] = str(launcher_library(options.launcher))
        info = _build(read_model(model), str(model), machine, way, options, extra, folder / ENGINE, progress)
    device = machine.device
    library = f"{TENSORRT.module} {info.version}"
    rounded = "allowed" if options.tf32 else ""
    built = BuiltFor(device.architecture, device.name, device.driver_version, library, way, rounded)
    add_to_manifest(folder, manifest, ENGINE, built, {TENSORRT.module: info.version})
    return info


def build_engine(
    model: onnx.ModelProto,
    label: str,
    out: Path,
    options: TensorrtOptions,
    *,
    target: str | None = None,
    progress: Callable[[BuildProgress], None] | None = None,
) -> EngineInfo:
    """Build the engine of a model without operators of our own; write it to ``out``, whole or not at all.

    The network is strongly typed: it computes in the model's own types. The build runs in a child process.
    Raises InputError for operators of our own, a way that a model alone does not have, and a model that TensorRT
    refuses; MissingError as :func:`check_machine` does, and where memory runs out.
    """
    if options.way not in (None, "portable"):
        raise InputError(
            f"--way {options.way} needs the plugins of a package, and {label} is a model; build the package"
        )
    own = [node for top in model.graph.node for node in (top, *nodes_within(top)) if node.domain == _OWN_DOMAIN]
    if own:
        raise InputError(
            f"{label} has {len(own)} operators of our own, such as '{own[0].name}'; their kernels are in the package "
            "that it came with: build that"
        )
    machine = check_machine(target)
    return _build(model, label, machine, "portable", options, {}, out.absolute(), progress)


def chosen_way(folder: Path, manifest: Manifest, asked: Way | None) -> Way:
    """The way that is asked for, by default the first of ``aot`` and ``portable`` that the package has.

    Raises InputError where it has not what the way needs.
    """
    has = {way: manifest.entry(name) is not None for way, name in MODELS.items()}
    has["aot"] = has["aot"] and manifest.entry(PLUGIN_MODULE) is not None
    if asked is None:
        asked = "aot" if has["aot"] or not has["portable"] else "portable"
    if has[asked]:
        return asked
    needed = MODELS[asked] + (f" and {PLUGIN_MODULE}" if asked == "aot" else "")
    there = [way for way in MODELS if has[way]]
    advice = f"use --way {there[0]}, or optimise" if there else "optimise"
    form = "both" if asked == "portable" else "plugin"
    raise InputError(
        f"{folder}: has no {needed}, which the way '{asked}' needs; {advice} the original again with --form {form}"
    )


def _copied_module(folder: Path, manifest: Manifest, place: Path) -> Path:
    """The plugin module with what it reads, compared with the manifest, in a folder that nobody else changes."""
    apart = (".onnx", ".engine", ".html", ".json", ".data")
    copy_files(folder, (entry for entry in manifest.files if not entry.path.endswith(apart)), place)
    return place / PLUGIN_MODULE


def launcher_library(given: Path | None) -> Path:
    """The launcher library, as it is named or found; raises InputError or MissingError where there is none."""
    found = find_launcher(given)
    if found.path is not None:
        return found.path.absolute()
    if given is not None:
        raise InputError(f"--launcher {given}: there is no launcher library; give the path of the library")
    raise MissingError(
        f"the launcher library was not found (looked at {', '.join(found.looked)}); build it with: python -m "
        "onnxopt.deploy.launcher, or name it with --launcher"
    )


def _build(
    model: onnx.ModelProto,
    label: str,
    machine: Machine,
    way: Way,
    options: TensorrtOptions,
    extra: Mapping[str, Any],
    out: Path,
    progress: Callable[[BuildProgress], None] | None,
) -> EngineInfo:
    check_batch(model, label, options.batch)
    check_writable(out)
    batches = options.batch or BatchRange()
    with tempfile.TemporaryDirectory(prefix=".onnxopt-engine-", dir=out.parent.absolute()) as folder:
        copy, engine = Path(folder) / "model.onnx", Path(folder) / "engine"
        write_model(model, copy)
        request = {
            "library": TENSORRT.module,
            "model": str(copy),
            "engine": str(engine),
            "batch": batches.sizes,
            "tf32": options.tf32,
            **({} if options.workspace is None else {"workspace_bytes": options.workspace << 20}),
            **extra,
        }
        timings = _timing_cache(options, machine)
        if timings is not None:
            request |= _lent_timings(timings, Path(folder))
        done = run_worker(module_command(WORKER), request, TENSORRT, label, progress, _advice)
        device = machine.device
        info = kept_engine(engine, out, done, TENSORRT, device.architecture, batches, gpu=device.name, way=way)
        if timings is not None and Path(request["new_timing_cache"]).is_file():
            write_timings(timings, Path(request["new_timing_cache"]).read_bytes())
    return info


def _timing_cache(options: TensorrtOptions, machine: Machine) -> Path | None:
    if options.timing_cache is not None:
        return options.timing_cache.absolute()
    if options.cache is None:
        return None
    return default_timing_cache(options.cache, machine.version, machine.device.name)


def _lent_timings(path: Path, folder: Path) -> dict[str, str]:
    """Hand the worker a checked copy of the timings, and a place for the new ones."""
    lent, new = folder / "timings", folder / "timings.new"
    timings = read_timings(path)
    if timings is not None:
        lent.write_bytes(timings)
    return {"timing_cache": str(lent), "new_timing_cache": str(new)}


def _advice(errors: str) -> str:
    if "Plugin not found" in errors or "plugin creator" in errors.lower():
        return "An operator's plugin was not there: build the package itself, or use --way portable"
    if "Cuda Runtime" in errors and "memory" in errors.lower():
        return "The GPU ran out of memory: lower --workspace-memory or the largest batch (--batch)"
    return ""
