"""Kernels compiled for an architecture by NVRTC, without a GPU or a driver.

The same source, architecture and compiler give the same bytes on every machine and from every folder: headers are
handed over by name, and no option depends on a place.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from onnxopt.errors import MissingError, OnnxOptError
from onnxopt.kernels.cache import KernelCache
from onnxopt.kernels.compilation import Compilation, CompiledKernel, architecture_for, prepare
from onnxopt.kernels.nvrtc import Compiled, run_nvrtc
from onnxopt.kernels.report import ResourceReport, resource_report
from onnxopt.kernels.source import KernelSource

__all__ = ["CompileError", "CompiledKernel", "architecture_for", "compile_kernel", "run"]

# ptxas remarks of this family say that it changed a kernel to keep it right: an ignored register count, a wait or
# fence of wgmma that it had to add, products that it put one behind the other.
_FAULT = re.compile(r"\(C75\d\d\)")
_COMPILE_TIME = re.compile(r"^ptxas info\s*: Compile time = .*\n?", re.MULTILINE)
_PTX_VERSION = re.compile(r"^// Cuda compilation tools, release [\d.]+, V([\d.]+)", re.MULTILINE)
_SHOWN_LINES = 20


class CompileError(OnnxOptError):
    """A kernel that cannot be used: the compiler refuses it, or keeps values in local memory, or mends its waits.

    ``lines`` are those of the compiler's log that say so, ``report`` what the kernel takes where it was compiled.
    """

    def __init__(
        self, source: KernelSource, architecture: str, lines: Iterable[str], report: ResourceReport | None = None
    ) -> None:
        self.source, self.architecture, self.lines, self.report = source, architecture, tuple(lines), report
        shown = [line for line in self.lines if line.strip()][:_SHOWN_LINES]
        defines = " ".join(f"-D{name}={value}" for name, value in source.defines)
        super().__init__(
            f"the kernel {source.entry!r} cannot be compiled for {architecture}:\n  "
            + "\n  ".join(shown)
            + f"\n  its source is {source.file}, its constants are: {defines or 'none'}\n"
            "The site can stay as it is; please report this"
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return CompileError, (self.source, self.architecture, self.lines, self.report)


def run(compilation: Compilation) -> CompiledKernel:
    """Compile. Raises :class:`CompileError`, or MissingError where NVRTC cannot be loaded."""
    include = f"-I{compilation.toolchain.include}"
    return _judged(compilation, run_nvrtc(compilation.tree, [*compilation.options(), include]))


def compile_kernel(
    source: KernelSource, architecture: str, cache: Path | None = None, folder: Path | None = None
) -> CompiledKernel:
    """A kernel for an architecture such as ``sm_90a``, from the cache folder where it is known there.

    ``folder`` holds the sources; by default those of this package. Raises InputError for a request that cannot be,
    :class:`CompileError` where the compiler refuses the kernel, spills or has to mend it, MissingError where there is
    no compiler.
    """
    (compilation,) = prepare([(source, architecture)], folder)
    kept = KernelCache(cache)
    found = kept.get(compilation)
    if found is None:
        found = run(compilation)
        kept.put(compilation, found)
    return found


def _judged(compilation: Compilation, compiled: Compiled) -> CompiledKernel:
    source, architecture = compilation.source, compilation.architecture
    log = _COMPILE_TIME.sub("", compiled.log)
    if compiled.ptx is None or compiled.cubin is None:
        raise CompileError(source, architecture, log.splitlines())
    made_by = _PTX_VERSION.search(compiled.ptx)
    if made_by is None or made_by[1] != compilation.toolchain.nvrtc:
        raise MissingError(
            f"the NVRTC that was loaded is {made_by[1] if made_by else 'unknown'}, but the installed package is "
            f"{compilation.toolchain.nvrtc}; remove the other one from LD_LIBRARY_PATH and CUDA_HOME"
        )
    report = resource_report(log, compiled.ptx, compiled.cubin, source.entry, architecture)
    faults = [line for line in log.splitlines() if _FAULT.search(line)]
    if report.stack or report.spill_stores or report.spill_loads:
        faults.append(
            f"local memory is used: {report.stack} bytes of stack, {report.spill_stores} of spill stores and "
            f"{report.spill_loads} of spill loads with {report.registers} registers a thread; allowed: none"
        )
    if faults:
        raise CompileError(source, architecture, faults, report)
    return CompiledKernel(
        source, architecture, compiled.cubin, compiled.ptx, report, f"nvrtc {compilation.toolchain.nvrtc}"
    )
