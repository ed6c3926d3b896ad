"""NVIDIA's compiler and tools as installed beside this package: where they are, and of which version."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from functools import lru_cache
from importlib import metadata
from pathlib import Path

from onnxopt.errors import MissingError

NVRTC = "nvidia-cuda-nvrtc"
RUNTIME = "nvidia-cuda-runtime"
CRT = "nvidia-cuda-crt"
_COMPILER_PIP = "pip install 'cuda-bindings>=13.0,<13.1' " + " ".join(
    f"'{package}>=13.0,<13.1'" for package in (NVRTC, RUNTIME, CRT)
)


@dataclass(frozen=True)
class Toolchain:
    """What kernels are compiled with: the version of NVRTC, those of its headers, and the folder of these."""

    nvrtc: str
    headers: tuple[tuple[str, str], ...]
    include: Path


@lru_cache(maxsize=1)
def toolchain() -> Toolchain:
    """The installed compiler; nothing of it is loaded. Raises MissingError with the command that installs it."""
    versions = {package: _version(package) for package in (NVRTC, RUNTIME, CRT)}
    missing = [package for package, version in versions.items() if version is None]
    if missing:
        raise MissingError(f"compiling kernels needs {', '.join(missing)}, not installed here: {_COMPILER_PIP}")
    header = _file_of(RUNTIME, "cuda_fp16.h")
    if header is None:
        raise MissingError(f"the headers of {RUNTIME} are missing; install it again: {_COMPILER_PIP}")
    found = {package: version or "" for package, version in versions.items()}
    return Toolchain(found[NVRTC], tuple((name, found[name]) for name in (RUNTIME, CRT)), header.parent)


def missing_compiler(reason: object) -> MissingError:
    """The error where NVRTC cannot be loaded."""
    return MissingError(f"NVRTC, which compiles kernels, cannot be loaded ({reason}): {_COMPILER_PIP}")


def tool(name: str) -> Path:
    """The program ``nvdisasm`` or ``cuobjdump``, of its package or on the PATH; raises MissingError."""
    package = f"nvidia-cuda-{name}"
    found = _file_of(package, name) or shutil.which(name)
    if found is None:
        raise MissingError(f"looking into compiled kernels needs {name}: pip install {package}")
    return Path(found)


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _file_of(package: str, name: str) -> Path | None:
    """A file of a package by the last part of its path."""
    try:
        files = metadata.files(package) or ()
    except metadata.PackageNotFoundError:
        return None
    places = (Path(str(file.locate())) for file in files if file.name == name)
    return next((place.resolve() for place in places if place.is_file()), None)
