"""From C++ to a loaded library: g++, and a cache of what it made."""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
import signal
import subprocess
import tempfile
import warnings
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

from onnxopt.emulate.translate import Program
from onnxopt.errors import MissingError, OnnxOptError

_RUNTIME = Path(__file__).resolve().parent / "runtime"
_COMMON = ("-std=c++17", "-fPIC", "-fvisibility=hidden", "-ffp-contract=off", "-fno-strict-aliasing", "-w")
# -Og compiles a long kernel in under half the time of -O1, and the code is as fast.
_KERNEL_FLAGS = (*_COMMON, "-Og")
_LIBRARY_FLAGS = (*_COMMON, "-O2")
_DIGEST_BYTES = hashlib.sha256().digest_size


def build_library(program: Program, cache: Path | None) -> ctypes.CDLL:
    """The program as a loaded library, taken from the folder `cache` or put there (None: a folder of this process).

    Entries are named by a digest of everything that goes into them and end in a digest of themselves; a damaged one
    is built again with a warning. Raises MissingError without g++ and OnnxOptError where g++ fails.
    """
    folder = cache if cache is not None else _process_folder()
    key = _key(*_KERNEL_FLAGS, *_LIBRARY_FLAGS, program.kernel, program.collectives)
    path = folder / f"{key}.so"
    if _read_entry(path) is None:
        library = _link(
            (
                _cached_object(folder, '#include "runtime.h"\n'),
                _cached_object(folder, program.collectives),
                _compile(program.kernel, _KERNEL_FLAGS),
            )
        )
        path = _write_entry(path, library)
    return ctypes.CDLL(str(path))


@lru_cache(maxsize=1)
def _process_directory() -> tempfile.TemporaryDirectory[str]:
    """A folder that goes with the process."""
    return tempfile.TemporaryDirectory(prefix="onnxopt-emulate-")


def _process_folder() -> Path:
    return Path(_process_directory().name)


@lru_cache(maxsize=1)
def _compiler() -> str:
    """The path of g++."""
    path = shutil.which("g++")
    if path is None:
        raise MissingError(
            "running PTX on the CPU needs the C++ compiler g++, which is not on PATH; "
            "install it, on Debian or Ubuntu with `apt install g++`"
        )
    return path


def require_compiler() -> None:
    """MissingError where there is no compiler, before any other work is done."""
    _compiler()


@lru_cache(maxsize=1)
def _compiler_version() -> str:
    words = [_compiler(), "-dumpfullversion", "-dumpmachine"]
    return subprocess.run(words, capture_output=True, text=True, check=False).stdout


@lru_cache(maxsize=1)
def _headers() -> str:
    return "\n".join(path.read_text(encoding="utf-8") for path in sorted(_RUNTIME.glob("*.h")))


def _key(*texts: str) -> str:
    digest = hashlib.sha256()
    for text in (_compiler_version(), _headers(), *texts):
        data = text.encode()
        digest.update(len(data).to_bytes(8, "little") + data)
    return digest.hexdigest()[:40]


def _cached_object(folder: Path, source: str) -> bytes:
    """A translation unit that many kernels share, compiled."""
    path = folder / f"{_key(*_LIBRARY_FLAGS, source)}.o"
    known = _read_entry(path)
    if known is not None:
        return known
    made = _compile(source, _LIBRARY_FLAGS)
    _write_entry(path, made)
    return made


def _compile(source: str, flags: tuple[str, ...]) -> bytes:
    with tempfile.TemporaryDirectory(prefix="onnxopt-emulate-") as name:
        folder = Path(name)
        (folder / "unit.cpp").write_text(source, encoding="utf-8")
        _run([_compiler(), *flags, "-I", str(_RUNTIME), "-c", "unit.cpp", "-o", "unit.o"], folder)
        return (folder / "unit.o").read_bytes()


def _link(objects: tuple[bytes, ...]) -> bytes:
    with tempfile.TemporaryDirectory(prefix="onnxopt-emulate-") as name:
        folder = Path(name)
        names = [f"{index}.o" for index in range(len(objects))]
        for file, data in zip(names, objects, strict=True):
            (folder / file).write_bytes(data)
        # Calls within the library stay there, whatever else the process has loaded.
        _run([_compiler(), "-shared", "-Wl,-Bsymbolic", *names, "-o", "kernel.so"], folder)
        return (folder / "kernel.so").read_bytes()


def _run(words: list[str], folder: Path) -> None:
    # A group of its own, and its temporary files in ours: whatever ends this process, nothing of the compiler stays.
    environment = {**os.environ, "TMPDIR": str(folder)}
    with subprocess.Popen(
        words, cwd=folder, stderr=subprocess.PIPE, text=True, env=environment, start_new_session=True
    ) as done:
        try:
            _, said = done.communicate()
        except BaseException:
            with suppress(ProcessLookupError):
                os.killpg(done.pid, signal.SIGKILL)
            raise
    if done.returncode:
        raise OnnxOptError(
            f"the C++ compiler failed on an emulated kernel ({' '.join(words)}):\n{said[-4000:]}\n"
            "this is a fault of onnxopt; please report it with the PTX"
        )


def is_intact(path: Path) -> bool:
    """Whether a file of the cache folder holds what was once written into it; raises OSError if it cannot be read."""
    data = path.read_bytes()
    return hashlib.sha256(data[:-_DIGEST_BYTES]).digest() == data[-_DIGEST_BYTES:]


def _read_entry(path: Path) -> bytes | None:
    """An entry's contents; None where it is absent or damaged."""
    try:
        data = path.read_bytes()
    except OSError:
        return None
    contents, digest = data[:-_DIGEST_BYTES], data[-_DIGEST_BYTES:]
    if hashlib.sha256(contents).digest() == digest:
        return contents
    warnings.warn(f"the cache entry {path} is damaged and is built again", stacklevel=3)
    return None


def _write_entry(path: Path, contents: bytes) -> Path:
    """Writes an entry in one step and returns where it is: in this process's folder if the cache cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=".new-")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(contents + hashlib.sha256(contents).digest())
            Path(name).replace(path)
        except OSError:
            Path(name).unlink(missing_ok=True)
            raise
    except OSError as error:
        if path.parent == _process_folder():
            raise OnnxOptError(f"cannot write {path} ({error}); free some space in the temporary folder") from error
        warnings.warn(f"cannot write to the cache {path.parent} ({error}); it is not used", stacklevel=3)
        return _write_entry(_process_folder() / path.name, contents)
    return path
