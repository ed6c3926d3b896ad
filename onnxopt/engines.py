"""Engines from packages and models: what `build` does."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal

from onnxopt.deploy.manifest import check_manifest, package_versions, write_manifest
from onnxopt.deploy.rtx import BuildProgress, EngineInfo, build_engine
from onnxopt.errors import InputError
from onnxopt.lower.compat import lower_for_parsers
from onnxopt.model.read import read_model
from onnxopt.package import RTX_ENGINE, portable_model
from onnxopt.target import load_target

Engine = Literal["rtx"]
_ENGINES: Mapping[Engine, str] = {"rtx": "TensorRT-RTX"}


def build(
    source: str | Path,
    *,
    engine: Engine = "rtx",
    target: str | None = None,
    out: str | Path | None = None,
    engine_progress: Callable[[BuildProgress], None] | None = None,
) -> EngineInfo:
    """Build an engine from a package or from a model; into a package, it becomes part of its manifest.

    A package is checked against its manifest first, and ``target`` defaults to the package's.
    """
    path = Path(source)
    if path.is_dir():
        return _build_in_package(path, engine, target, engine_progress)
    if target is None:
        raise InputError("--target is needed to build an engine from a model, for example --target sm_89")
    chosen = _gpu_target(target)
    place = Path(out) if out is not None else path.with_suffix(".rtx.engine")
    proto = read_model(path)
    lower_for_parsers(proto)
    return build_engine(proto, arch=chosen, out=place, progress=engine_progress)


def _build_in_package(
    folder: Path, engine: Engine, target: str | None, progress: Callable[[BuildProgress], None] | None
) -> EngineInfo:
    manifest = check_manifest(folder)
    chosen = _gpu_target(target or manifest.target)
    model = portable_model(folder, f"an engine of {_ENGINES[engine]}")
    info = build_engine(model, arch=chosen, out=folder / RTX_ENGINE, progress=progress)
    files = sorted({entry.path for entry in manifest.files} | {RTX_ENGINE})
    versions = {**manifest.versions, **package_versions(engine)}
    engines = {entry.path: entry.target for entry in manifest.files} | {RTX_ENGINE: chosen}
    write_manifest(
        folder, target=manifest.target, versions=versions, source=manifest.source, files=files, engines=engines
    )
    return info


def _gpu_target(name: str) -> str:
    architecture = load_target(name).architecture
    if architecture is None:
        raise InputError(f"target '{name}' is no GPU; name one with --target, for example sm_89")
    return architecture
