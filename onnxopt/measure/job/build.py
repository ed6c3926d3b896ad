"""Make a job folder: compile every kernel, write tables and launch data, and copy the modules that run it."""

from __future__ import annotations

import ast
import shutil
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import onnxopt
from onnxopt.errors import InputError
from onnxopt.kernels.algorithm_source import algorithm_source
from onnxopt.kernels.compilation import CompiledKernel
from onnxopt.kernels.conv_source import group_conv_source, sum_conv_source
from onnxopt.kernels.pool import Progress, compile_kernels
from onnxopt.kernels.source import KernelSource, attention_source, merge_source
from onnxopt.measure.job.content import Code, Entry, Job, Kind, write_job

Array = npt.NDArray[Any]

_RUNNER = "onnxopt.measure.job.runner"
# Imported by the dry run only, which happens where everything is installed.
_LEFT_OUT = ("onnxopt.measure.job.emulated",)

_STARTER = """import sys
from pathlib import Path

from onnxopt.measure.job.runner import main

if __name__ == "__main__":
    sys.exit(main([str(Path(__file__).resolve().parent), *sys.argv[1:]]))
"""


@dataclass(frozen=True)
class Request:
    """An operator to put into a job: the ``kernel`` part of its configuration, its tables, what was predicted.

    ``second_kernel`` belongs to an operator with split keys or inputs, whose ``tables`` then hold those of the second
    operator too. The rest is as in :class:`onnxopt.measure.job.content.Entry`.
    """

    id: str
    kind: Kind
    purpose: str
    kernel: Mapping[str, Any]
    tables: Mapping[str, Array]
    second_kernel: Mapping[str, Any] | None
    resident: int
    batch: int
    needed: int
    computed: int
    predicted_us: float
    bound_us: float
    record: Mapping[str, Any] | None = None


def build_job(
    folder: Path,
    requests: Sequence[Request],
    architectures: Sequence[str],
    *,
    cache: Path | None = None,
    workers: int | None = None,
    progress: Progress | None = None,
) -> Job:
    """Write a job for the architectures into a folder that does not exist yet or is empty.

    The first architecture's PTX travels too, for GPUs newer than all of them and for the dry run. Raises the compiler's
    errors; InputError where a configuration is not supported.
    """
    check_new_folder(folder)
    sources = [request_sources(request) for request in requests]
    wanted = [(source, arch) for own in sources for source in own for arch in architectures]
    compiled = dict(zip(wanted, compile_kernels(wanted, cache, workers, progress), strict=True))
    kernels = [[[compiled[source, arch] for arch in architectures] for source in own] for own in sources]
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".job.") as draft:
            job = _written(Path(draft, "job"), requests, kernels)
            Path(draft, "job").replace(folder)
    except OSError as error:
        raise InputError(
            f"cannot write the job {folder}: {error.strerror or error}; free space or choose another place"
        ) from error
    return replace(job, folder=folder)


def check_new_folder(folder: Path) -> None:
    """InputError where a job could not be put in place: something stands there already."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder}: is there already and not empty; name a new folder")


def _written(folder: Path, requests: Sequence[Request], kernels: Sequence[Sequence[Sequence[CompiledKernel]]]) -> Job:
    for name in ("tables", "kernels"):
        (folder / name).mkdir(parents=True)
    entries = [_entry(folder, request, own) for request, own in zip(requests, kernels, strict=True)]
    compiler = kernels[0][0][0].compiler if kernels else ""
    versions = {"onnxopt": onnxopt.__version__, "nvrtc": compiler, "numpy": version("numpy")}
    job = Job(folder, versions, tuple(entries))
    write_job(job)
    carry_modules(folder)
    return job


def request_sources(request: Request) -> list[KernelSource]:
    """The sources of a request's kernels: one, two where results are partial, or one for each step.

    Raises InputError where a configuration is not supported.
    """
    second = request.second_kernel
    if request.kind == "algorithm":
        return [algorithm_source(step["operator"], step["kernel"]) for step in request.kernel["steps"]]
    if request.kind == "conv":
        first = group_conv_source(request.kernel, request.resident)
        return [first] if second is None else [first, sum_conv_source(second)]
    first = attention_source(request.kernel, request.resident)
    return [first] if second is None else [first, merge_source(second)]


def _entry(folder: Path, request: Request, kernels: Sequence[Sequence[CompiledKernel]]) -> Entry:
    content = sha256()
    for name, table in request.tables.items():
        content.update(name.encode())
        content.update(np.ascontiguousarray(table).tobytes())
    tables = f"tables/{content.hexdigest()[:16]}.npz"
    with (folder / tables).open("wb") as file:
        np.savez_compressed(file, **{name: _plain(table) for name, table in request.tables.items()})  # type: ignore[arg-type]
    codes = [_code(folder, own) for own in kernels]
    return Entry(
        id=request.id,
        kind=request.kind,
        purpose=request.purpose,
        kernel=request.kernel,
        second_kernel=request.second_kernel,
        tables=tables,
        first=codes[0],
        second=None if request.second_kernel is None else codes[1],
        batch=request.batch,
        resident=request.resident,
        needed=request.needed,
        computed=request.computed,
        predicted_us=request.predicted_us,
        bound_us=request.bound_us,
        record=None if request.record is None else {**request.record, **_compiled(request.purpose, kernels)},
        further=tuple(codes[1:]) if request.second_kernel is None else (),
    )


def _compiled(purpose: str, kernels: Sequence[Sequence[CompiledKernel]]) -> dict[str, Any]:
    """What a tuning record says about the kernel that was measured; that of a layer is about all its kernels."""
    kernel = kernels[0][0]
    measured = kernels if purpose == "layer" else kernels[:1]
    texts = [own[0].ptx + "\n".join(f"{name}={value}" for name, value in own[0].source.defines) for own in measured]
    found = {"nvrtc": kernel.compiler, "source": sha256("".join(texts).encode()).hexdigest()[:16]}
    if purpose == "layer":
        return found
    return {**found, "registers": kernel.report.registers, "shared_bytes": kernel.report.dynamic_shared}


def _plain(table: Array) -> Array:
    """Without types that NumPy does not know by itself: those of bf16 travel as float32, which holds them exactly."""
    return table if table.dtype.kind in "iuf" and table.dtype.name != "bfloat16" else table.astype(np.float32)


def _code(folder: Path, kernels: Sequence[CompiledKernel]) -> Code:
    first = kernels[0]
    cubins = {}
    for kernel in kernels:
        name = f"kernels/{sha256(kernel.cubin).hexdigest()[:16]}.{kernel.architecture}.cubin"
        (folder / name).write_bytes(kernel.cubin)
        cubins[kernel.architecture] = name
    ptx = f"kernels/{sha256(first.ptx.encode()).hexdigest()[:16]}.ptx"
    (folder / ptx).write_text(first.ptx)
    return Code(
        entry=first.source.entry,
        cubins=cubins,
        ptx=ptx,
        block=first.report.threads,
        shared_bytes=first.report.dynamic_shared,
        registers=first.report.registers,
    )


def carry_modules(folder: Path, roots: Sequence[str] = (_RUNNER,)) -> tuple[str, ...]:
    """Copy modules and what they import of onnxopt below ``folder``, by default the runner; the modules' names.

    Packages become empty ones, since only named modules are imported from them.
    """
    root = Path(onnxopt.__file__).parent
    found: dict[str, Path] = {}
    waiting = list(roots)
    while waiting:
        name = waiting.pop()
        path = root.joinpath(*name.split(".")[1:]).with_suffix(".py")
        if name in found or name in _LEFT_OUT or not path.is_file():
            continue
        found[name] = path
        waiting += _imports(path)
    for name, path in found.items():
        place = folder.joinpath(*name.split(".")).with_suffix(".py")
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, place)
        for package in _packages(name):
            folder.joinpath(*package.split("."), "__init__.py").touch()
    if _RUNNER in found:
        (folder / "run.py").write_text(_STARTER)
    return tuple(sorted(found))


def _imports(path: Path) -> Iterable[str]:
    """The modules of onnxopt that a file imports outside of functions that only run elsewhere."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("onnxopt."):
            yield node.module
            yield from (f"{node.module}.{name.name}" for name in node.names)


def _packages(name: str) -> Iterable[str]:
    parts = name.split(".")
    for end in range(1, len(parts)):
        yield ".".join(parts[:end])
