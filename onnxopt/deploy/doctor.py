"""What this machine can do, what is missing for the rest, and how to install it. Looking changes nothing."""

from __future__ import annotations

import platform
import shutil
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from onnxopt.deploy.launcher import INCLUDE_VARIABLE, find_headers, find_launcher
from onnxopt.deploy.tensorrt_machine import PIP as TENSORRT_PIP
from onnxopt.errors import MissingError
from onnxopt.kernels.packages import tool, toolchain
from onnxopt.measure.trtexec_run import find_trtexec
from onnxopt.target.device import find_device

SCHEMA = "onnxopt.doctor/1"

Status = Literal["ok", "missing", "limited"]

# An import that takes longer than this hangs.
_PATIENCE_SECONDS = 60
# Room for the weights, the two forms and the engine of a model of the usual size.
_WANTED_DISK_BYTES = 2 << 30
_COMPILER = "g++"
_KERNEL = b'extern "C" __global__ void probe(float *x) {\n  x[threadIdx.x] += 1.0f;\n}\n'


@dataclass(frozen=True)
class Check:
    """One thing that was looked at.

    ``status``: ``ok``; ``limited`` (there, but not enough for everything); ``missing``. ``found`` says what
    is there or why it is not, ``needed_for`` what does not work without it, ``install`` what to do about it.
    """

    name: str
    status: Status
    found: str
    needed_for: str
    install: str


def examine(cache: Path | None = None) -> list[Check]:
    """Look at everything, always in the same order. Never raises and never hangs.

    ``cache`` is the folder for compiled kernels and tuning records; its check is left out where it is None.
    """
    checks = [
        _python(),
        _package("onnx", "reading and writing models", "pip install 'onnx>=1.21'"),
        _package("onnxruntime", "verifying, and measuring on the CPU", "pip install onnxruntime"),
        _package("tensorrt_rtx", "building engines without a GPU", "pip install 'onnxopt[rtx]'"),
        _package("tensorrt", "building and running TensorRT engines", TENSORRT_PIP),
        _package("cuda.bindings", "compiling kernels, and finding a GPU", "pip install 'cuda-bindings>=13.0,<13.1'"),
        _nvrtc(),
        _gpu(),
        _compiler(),
        _tool("cuobjdump"),
        _tool("nvdisasm"),
        _trtexec(),
        _launcher(),
        _disk(cache or Path.cwd()),
    ]
    return checks if cache is None else [*checks, _cache(cache)]


def to_json(checks: list[Check]) -> dict[str, Any]:
    """The checks as a document of the schema ``onnxopt.doctor/1``."""
    return {"schema": SCHEMA, "checks": [asdict(check) for check in checks]}


def _check(name: str, status: Status, found: str, needed_for: str, install: str) -> Check:
    return Check(name, status, found, needed_for, "" if status == "ok" else install)


def _python() -> Check:
    supported = (3, 10) <= sys.version_info[:2] <= (3, 13)
    found = f"{platform.python_version()} at {sys.executable}"
    return _check("Python", "ok" if supported else "limited", found, "everything", "use a Python from 3.10 to 3.13")


def _package(module: str, needed_for: str, install: str) -> Check:
    """A package is there when it can be imported, which is tried in a process of its own."""
    name = module.replace("_", "-").replace(".", "-")
    try:
        present = find_spec(module) is not None
    except (ImportError, ValueError):
        present = False
    if not present:
        return _check(name, "missing", "not installed", needed_for, install)
    try:
        found = version(name)
    except PackageNotFoundError:
        found = "version unknown"
    fault = _import_fault(module)
    if fault:
        return _check(name, "missing", f"{found}, but it cannot be imported: {fault}", needed_for, install)
    return _check(name, "ok", found, needed_for, install)


def _import_fault(module: str) -> str:
    command = [sys.executable, "-c", f"import {module}"]
    # From the user's folder a file there could take the place of a library, and would be run.
    home = Path(__file__).resolve().parents[2]
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, timeout=_PATIENCE_SECONDS, check=False, cwd=home
        )
    except subprocess.TimeoutExpired:
        return f"the import did not end within {_PATIENCE_SECONDS} s"
    except OSError as error:
        return f"no process could be started ({error})"
    if done.returncode == 0:
        return ""
    lines = done.stderr.decode(errors="replace").strip().splitlines()
    return lines[-1] if lines else f"the import ended with code {done.returncode}"


def _nvrtc() -> Check:
    """Compile a kernel to machine code, which needs no driver, and look for the headers that ours include."""
    needed, install = "compiling kernels", "pip install 'nvidia-cuda-nvrtc>=13.0,<13.1'"
    try:
        found = _compile_probe()
    except Exception as error:  # whatever a foreign compiler raises means that it cannot be used
        return _check("NVRTC", "missing", f"{type(error).__name__}: {error}", needed, install)
    try:
        toolchain()
    except MissingError as error:
        problem, _, pip = str(error).partition(": ")
        return _check("NVRTC", "limited", f"{found}, but {problem}", needed, pip or install)
    return _check("NVRTC", "ok", found, needed, install)


def _compile_probe() -> str:
    from cuda.bindings import nvrtc

    def checked(result: tuple[Any, ...]) -> Any:
        if result[0] != nvrtc.nvrtcResult.NVRTC_SUCCESS:
            raise RuntimeError(f"NVRTC answers {result[0].name}")
        return result[1] if len(result) == 2 else result[1:]

    major, minor = checked(nvrtc.nvrtcVersion())
    program = checked(nvrtc.nvrtcCreateProgram(_KERNEL, b"probe.cu", 0, [], []))
    try:
        checked(nvrtc.nvrtcCompileProgram(program, 1, [b"--gpu-architecture=sm_89"]))
        size = checked(nvrtc.nvrtcGetCUBINSize(program))
    finally:
        nvrtc.nvrtcDestroyProgram(program)
    if not size:
        raise RuntimeError("the compiled kernel is empty")
    return f"{major}.{minor}, compiles for sm_89"


def _gpu() -> Check:
    needed = "measuring on a GPU, and building TensorRT engines"
    install = "install an NVIDIA driver of version 580 or later on a machine with a GPU"
    search = find_device()
    if search.device is None:
        return _check("GPU", "missing", search.reason, needed, install)
    device = search.device
    found = (
        f"{device.name} ({device.architecture}, {device.multiprocessors} multiprocessors, "
        f"{device.memory_bytes / 2**30:.0f} GiB), driver for {device.driver_version}"
    )
    return _check("GPU", "ok", found, needed, install)


def _compiler() -> Check:
    needed = "`onnxopt verify --kernels`, which runs kernels on the CPU"
    path = shutil.which(_COMPILER)
    if path is not None:
        return _check("C++ compiler", "ok", _first_line([path, "--version"]) or path, needed, "")
    install = "install g++ (Debian and Ubuntu: apt install g++)"
    return _check("C++ compiler", "missing", f"{_COMPILER} is not in PATH", needed, install)


def _tool(name: str) -> Check:
    """A program of NVIDIA's that looks into compiled kernels."""
    try:
        found = str(tool(name))
    except MissingError:
        return _check(name, "missing", "not installed", "looking into kernels", f"pip install nvidia-cuda-{name}")
    return _check(name, "ok", found, "looking into kernels", "")


def _first_line(command: list[str]) -> str:
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, timeout=_PATIENCE_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    lines = done.stdout.decode(errors="replace").splitlines()
    return lines[0] if lines else ""


def _trtexec() -> Check:
    needed = "comparing speeds with NVIDIA's own tool"
    try:
        found = str(find_trtexec())
    except MissingError:
        install = "unpack NVIDIA's TensorRT archive and add its folder bin to PATH"
        return _check("trtexec", "missing", "not in PATH", needed, install)
    return _check("trtexec", "ok", found, needed, "")


def _launcher() -> Check:
    """The library that runs our kernels in an engine of trtexec, and the headers that it is built with."""
    needed = "engines of model.launcher.onnx, as trtexec builds them"
    library, headers = find_launcher(), find_headers()
    if library.path is not None:
        return _check("launcher library", "ok", str(library.path), needed, "")
    found = f"not built (looked at {', '.join(library.looked)})"
    if headers.path is not None:
        install = f"{INCLUDE_VARIABLE}={headers.path} python -m onnxopt.deploy.launcher"
        return _check(
            "launcher library", "missing", f"{found}; TensorRT's headers are at {headers.path}", needed, install
        )
    found += f", and TensorRT's headers were not found (looked at {', '.join(headers.looked)})"
    install = (
        "get the folder include of NVIDIA's TensorRT archive, then: "
        f"{INCLUDE_VARIABLE}=/path/to/include python -m onnxopt.deploy.launcher"
    )
    return _check("launcher library", "missing", found, needed, install)


def _disk(near: Path) -> Check:
    needed = "optimised models, kernels and engines"
    folder = _existing(near)
    try:
        free = shutil.disk_usage(folder).free
    except OSError as error:
        return _check("disk space", "limited", f"unknown at {folder}: {error}", needed, "choose another folder")
    enough = free >= _WANTED_DISK_BYTES
    found = f"{free / 2**30:.1f} GiB free at {folder}"
    return _check("disk space", "ok" if enough else "limited", found, needed, "free at least 2 GiB")


def _cache(folder: Path) -> Check:
    """Tried with a temporary file in the nearest folder that exists, so that none has to be made."""
    needed = "keeping compiled kernels and measurements between runs"
    near = _existing(folder)
    try:
        with tempfile.TemporaryFile(dir=near):
            pass
    except OSError as error:
        install = f"make {near} a folder that you may write to, or set XDG_CACHE_HOME to one"
        return _check("cache folder", "missing", f"{folder}: {error.strerror or error}", needed, install)
    found = f"{folder}, writable" if near == folder else f"{folder}, made when needed"
    return _check("cache folder", "ok", found, needed, "")


def _existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that exists."""
    folder = folder.absolute()
    return next((f for f in (folder, *folder.parents) if f.exists()), folder)
