"""Finding TensorRT's headers and the launcher library, and building the one with the other."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from onnxopt.errors import InputError, MissingError, OnnxOptError
from onnxopt.resources import resource_dir

LIBRARY = "libonnxopt_launcher.so"
HEADER = "NvInferRuntime.h"
LIBRARY_VARIABLE = "ONNXOPT_LAUNCHER"
"""Names a built library, or the folder that holds it."""

INCLUDE_VARIABLE = "TENSORRT_INCLUDE"
"""Names the folder with TensorRT's headers."""

BUILD_FOLDER = Path("build", "launcher")
"""Where the library is built, below the current folder, unless another place is named."""

_ROOT_VARIABLES = ("TENSORRT_ROOT", "TensorRT_ROOT", "TRT_ROOT")
_PREFIXES = "CMAKE_PREFIX_PATH"
_SYSTEM_INCLUDES = (
    "/usr/include/x86_64-linux-gnu",
    "/usr/include/aarch64-linux-gnu",
    "/usr/include",
    "/usr/local/include",
    "/usr/local/tensorrt/include",
    "/opt/tensorrt/include",
)
_SHOWN_LINES = 15
_BUILD_SECONDS = 900


@dataclass(frozen=True)
class Found:
    """The first place that has what was looked for, None where none has; ``looked`` are all, in their order."""

    path: Path | None
    looked: tuple[str, ...]


def find_headers(chosen: str | Path | None = None, environment: Mapping[str, str] = os.environ) -> Found:
    """The folder with TensorRT's ``NvInferRuntime.h``.

    Places in their order: ``chosen``, the variable TENSORRT_INCLUDE, ``include`` below TENSORRT_ROOT and below each
    folder of CMAKE_PREFIX_PATH, then where distributions and NVIDIA's archives put headers. One that is named by
    ``chosen`` or TENSORRT_INCLUDE is the only one.
    """
    named = str(chosen) if chosen else environment.get(INCLUDE_VARIABLE, "")
    if named:
        return _first([Path(named)], HEADER)
    roots = [environment[name] for name in _ROOT_VARIABLES if environment.get(name)]
    roots += [prefix for prefix in environment.get(_PREFIXES, "").split(os.pathsep) if prefix]
    return _first([*(Path(root, "include") for root in roots), *map(Path, _SYSTEM_INCLUDES)], HEADER)


def find_launcher(chosen: str | Path | None = None, environment: Mapping[str, str] = os.environ) -> Found:
    """The built launcher library.

    Places in their order: ``chosen`` or the variable ONNXOPT_LAUNCHER, a file or the folder that holds it and then the
    only one; ``build/launcher`` below the checkout that this package runs from; the folders of LD_LIBRARY_PATH. Not the
    current folder: a library is code, and may lie there beside a model from anywhere.
    """
    named = str(chosen) if chosen else environment.get(LIBRARY_VARIABLE, "")
    if named:
        place = Path(named)
        return _first([place], LIBRARY) if _is_there(place.is_dir) else _first([place.parent], place.name)
    folders = []
    checkout = Path(__file__).resolve().parents[2]
    if (checkout / "plugins" / "launcher").is_dir():
        folders.append(checkout / BUILD_FOLDER)
    folders += [Path(folder) for folder in environment.get("LD_LIBRARY_PATH", "").split(os.pathsep) if folder]
    return _first(list(dict.fromkeys(folders)), LIBRARY)


def build_launcher(headers: str | Path | None = None, folder: Path = BUILD_FOLDER, *, host: bool = False) -> Path:
    """Build the library in ``folder`` with CMake and return where it is; ``host`` builds what tests call it with too.

    Raises MissingError without headers, CMake or a C++ compiler, InputError where a named folder has no headers or the
    library cannot be built with them.
    """
    found = find_headers(headers)
    if found.path is None:
        looked = ", ".join(found.looked)
        kind = InputError if headers is not None else MissingError
        raise kind(
            f"{HEADER} of TensorRT 10 or 11 was not found (looked at {looked}); get the folder include of NVIDIA's "
            f"TensorRT archive or its public repository, and name it with {INCLUDE_VARIABLE}"
        )
    cmake = shutil.which("cmake")
    if cmake is None:
        raise MissingError("CMake is not in PATH; install it: pip install cmake, or apt install cmake")
    source = resource_dir("plugins") / "launcher"
    options = [f"-DTENSORRT_INCLUDE={found.path.resolve()}", f"-DLAUNCHER_HOST={'ON' if host else 'OFF'}"]
    _run([cmake, "-S", str(source), "-B", str(folder), *options])
    _run([cmake, "--build", str(folder), "--parallel", "4"])
    return folder / LIBRARY


def main(arguments: list[str] | None = None) -> int:
    """``python -m onnxopt.deploy.launcher [FOLDER OF HEADERS]``: build the library and say where it is."""
    given = sys.argv[1:] if arguments is None else arguments
    try:
        if len(given) > 1 or any(word.startswith("-") for word in given):
            raise InputError("give nothing, or the folder with TensorRT's headers")
        print(build_launcher(given[0] if given else None))
    except OnnxOptError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("error: interrupted", file=sys.stderr)
        return 128 + signal.SIGINT
    return 0


def _first(folders: list[Path], name: str) -> Found:
    found = next((folder for folder in folders if _is_there((folder / name).is_file)), None)
    looked = tuple(str(folder) for folder in folders)
    if found is None:
        return Found(None, looked)
    return Found(found if name == HEADER else found / name, looked)


def _is_there(look: Callable[[], bool]) -> bool:
    """A place that may not be looked at has nothing for us."""
    try:
        return look()
    except OSError:
        return False


def _run(command: list[str]) -> None:
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_BUILD_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise InputError(f"the launcher cannot be built: {error}") from None
    if done.returncode != 0:
        lines = (done.stdout + done.stderr).strip().splitlines()[-_SHOWN_LINES:]
        raise InputError("the launcher cannot be built; the last lines of the build are:\n" + "\n".join(lines))


if __name__ == "__main__":
    raise SystemExit(main())
