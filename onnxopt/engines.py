"""Engines from packages and models: what `build` does."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal

from onnxopt.deploy import tensorrt
from onnxopt.deploy.manifest import BuiltFor, add_to_manifest, check_manifest, package_versions
from onnxopt.deploy.rtx import build_engine
from onnxopt.deploy.tensorrt import TensorrtOptions
from onnxopt.deploy.tensorrt_build import TENSORRT_RTX, BuildProgress, EngineInfo
from onnxopt.errors import InputError
from onnxopt.lower.compat import lower_for_parsers
from onnxopt.model.read import read_model
from onnxopt.package import RTX_ENGINE, portable_model
from onnxopt.target import load_target

Engine = Literal["rtx", "tensorrt"]
Progress = Callable[[BuildProgress], None]


def build(
    source: str | Path,
    *,
    engine: Engine = "rtx",
    target: str | None = None,
    out: str | Path | None = None,
    options: TensorrtOptions | None = None,
    engine_progress: Progress | None = None,
) -> EngineInfo:
    """Build an engine from a package or from a model; into a package, it becomes part of its manifest.

    A package is checked against its manifest first, and ``target`` defaults to the package's. TensorRT builds for the
    GPU of this machine, which ``target`` then has to be; ``options`` are for it, but for the batch, which
    TensorRT-RTX takes too.
    """
    path = Path(source)
    chosen = options or TensorrtOptions()
    if engine == "rtx" and chosen != TensorrtOptions(batch=chosen.batch, cache=chosen.cache):
        raise InputError("--way, --launcher, --timing-cache, --workspace-memory and --tf32 need --engine tensorrt")
    if path.is_dir():
        into = _tensorrt_in_package if engine == "tensorrt" else _rtx_in_package
        return into(path, target, chosen, engine_progress)
    if out is not None and path.exists() and Path(out).exists() and path.samefile(out):
        raise InputError(f"-o {out}: is the model itself, which the engine would replace; choose another file")
    if engine == "tensorrt":
        return _tensorrt_from_model(path, target, out, chosen, engine_progress)
    if target is None:
        raise InputError("--target is needed to build an engine from a model, for example --target sm_89")
    place = Path(out) if out is not None else path.with_suffix(".rtx.engine")
    architecture = _gpu_target(target)
    proto = read_model(path)
    lower_for_parsers(proto)
    return build_engine(proto, arch=architecture, out=place, progress=engine_progress, batch=chosen.batch)


def _tensorrt_from_model(
    path: Path, target: str | None, out: str | Path | None, options: TensorrtOptions, progress: Progress | None
) -> EngineInfo:
    architecture = None if target is None else _gpu_target(target)
    place = Path(out) if out is not None else path.with_suffix(".tensorrt.engine")
    proto = read_model(path)
    lower_for_parsers(proto)
    return tensorrt.build_engine(proto, str(path), place, options, target=architecture, progress=progress)


def _tensorrt_in_package(
    folder: Path, target: str | None, options: TensorrtOptions, progress: Progress | None
) -> EngineInfo:
    manifest = check_manifest(folder, besides=tensorrt.ENGINE)
    way = tensorrt.chosen_way(folder, manifest, options.way)
    # Standard operators run on any GPU, whichever one they were planned for.
    planned = load_target(manifest.target).architecture if way != "portable" else None
    architecture = planned if target is None else _gpu_target(target)
    if planned is not None and architecture != planned:
        raise InputError(
            f"{folder}: its kernels are for {planned}, and {architecture} was asked for; optimise the original model "
            f"with --target {architecture}, or use --way portable"
        )
    return tensorrt.build_in_package(folder, options, target=architecture, progress=progress)


def _rtx_in_package(
    folder: Path, target: str | None, options: TensorrtOptions, progress: Progress | None
) -> EngineInfo:
    manifest = check_manifest(folder, besides=RTX_ENGINE)
    architecture = _gpu_target(target or manifest.target)
    model = portable_model(folder, f"an engine of {TENSORRT_RTX.name}")
    info = build_engine(model, arch=architecture, out=folder / RTX_ENGINE, progress=progress, batch=options.batch)
    built = BuiltFor(architecture, library=f"{TENSORRT_RTX.module} {info.version}")
    add_to_manifest(folder, manifest, RTX_ENGINE, built, package_versions("rtx"))
    return info


def _gpu_target(name: str) -> str:
    architecture = load_target(name).architecture
    if architecture is None:
        raise InputError(f"target '{name}' is no GPU; name one with --target, for example sm_89")
    return architecture
