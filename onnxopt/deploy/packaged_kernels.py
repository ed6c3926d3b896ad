"""The kernels that lie in a package: written, and read back with care, machine code and PTX as the manifest says."""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path

from onnxopt.deploy.manifest import checked_file
from onnxopt.errors import InputError
from onnxopt.kernels.compilation import CompiledKernel
from onnxopt.kernels.cubin import kernel_figures
from onnxopt.kernels.report import ReportError, ResourceReport, published_shared
from onnxopt.kernels.source import KernelSource
from onnxopt.model.files import atomic_write, read_file

FOLDER = "kernels"
MOST_CODE_BYTES = 64 << 20
_TARGET = re.compile(r"^\.target\s+(\w+)", re.MULTILINE)


def cubin_name(name: str, architecture: str) -> str:
    """Where a package has the machine code of an operator, or of one of its tactics."""
    return f"{FOLDER}/{name}.{architecture}.cubin"


def ptx_name(name: str) -> str:
    """Where a package has the PTX of an operator, or of one of its tactics."""
    return f"{FOLDER}/{name}.ptx"


def write_kernel(package: Path, name: str, compiled: CompiledKernel) -> None:
    """Write a kernel below a package's folder: machine code, and PTX for engines and the CPU."""
    (package / FOLDER).mkdir(exist_ok=True)
    atomic_write(package / cubin_name(name, compiled.architecture), compiled.cubin)
    atomic_write(package / ptx_name(name), compiled.ptx.encode())


def packaged_architecture(package: Path, listed: Collection[str], name: str) -> str:
    """What a kernel's machine code in a package is for; ``listed`` are the files of its manifest.

    Raises InputError where the manifest lists no such kernel.
    """
    begin, end = f"{FOLDER}/{name}.", ".cubin"
    found = sorted(n.removeprefix(begin).removesuffix(end) for n in listed if n.startswith(begin) and n.endswith(end))
    # A tactic of an operator has a number where an operator's own kernel has its architecture.
    found = [architecture for architecture in found if "." not in architecture]
    if not found or ptx_name(name) not in listed:
        raise InputError(
            f"{package}: its manifest lists no kernel of the operator {name}; optimize the original model again"
        )
    return found[0]


def packaged_kernel(package: Path, name: str, source: KernelSource, architecture: str) -> CompiledKernel:
    """A kernel as the package has it; of ``source`` only its entry is used.

    Raises InputError where a file is not what the manifest says; CubinError or ReportError where machine code and PTX
    are not of one kernel.
    """
    files = (cubin_name(name, architecture), ptx_name(name))
    cubin, text = (read_file(checked_file(package, file), MOST_CODE_BYTES) for file in files)
    try:
        ptx = text.decode()
    except UnicodeDecodeError:
        raise ReportError(f"{files[1]} is no text") from None
    target = _TARGET.search(ptx)
    if target is None or target[1] != architecture:
        raise ReportError(f"{files[1]} is for {target[1] if target else 'nothing'}, expected {architecture}")
    figures = kernel_figures(cubin, source.entry, architecture)
    shared = published_shared(ptx, source.entry)
    report = ResourceReport(dynamic_shared=shared, spill_stores=0, spill_loads=0, **figures)
    return CompiledKernel(source, architecture, cubin, ptx, report, "")
