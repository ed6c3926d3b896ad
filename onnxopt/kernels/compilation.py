"""A request to compile a kernel, checked and complete: nothing else decides the bytes that come out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onnxopt.errors import InputError
from onnxopt.kernels.fields import ELEMENTS
from onnxopt.kernels.packages import Toolchain, toolchain
from onnxopt.kernels.report import ResourceReport
from onnxopt.kernels.source import KernelSource
from onnxopt.kernels.source_tree import SourceTree, read_tree
from onnxopt.target.architecture import LACKING_TYPES

ARCHITECTURES = (
    *("sm_75", "sm_80", "sm_86", "sm_87", "sm_88", "sm_89", "sm_90", "sm_90a", "sm_100", "sm_100a", "sm_103a"),
    *("sm_110", "sm_120", "sm_121"),
)
"""What kernels can be compiled for; ``a`` marks the instructions of one architecture alone, such as ``wgmma``."""

# What an architecture's own instructions need; a CUBIN runs on that architecture either way.
_SPECIFIC = {"sm_90": "sm_90a", "sm_100": "sm_100a", "sm_103": "sm_103a"}

OPTIONS = ("--std=c++17", "-default-device", "--no-source-include", "--ptxas-options=-v")
"""Options of every compilation, beside the architecture, the folder of CUDA's headers and the constants."""


@dataclass(frozen=True)
class CompiledKernel:
    """A kernel for one architecture: machine code, PTX, what it takes, and which compiler made it."""

    source: KernelSource
    architecture: str
    cubin: bytes
    ptx: str
    report: ResourceReport
    compiler: str


@dataclass(frozen=True)
class Compilation:
    """All that decides the bytes of a compiled kernel."""

    source: KernelSource
    architecture: str
    tree: SourceTree
    toolchain: Toolchain

    def options(self) -> list[str]:
        """The options for NVRTC, but for the folder of CUDA's headers."""
        constants = [f"-D{name}={value}" for name, value in self.source.defines]
        return [f"--gpu-architecture={self.architecture}", *OPTIONS, *constants]

    def facts(self) -> dict[str, Any]:
        """What a cache's key is the hash of."""
        return {
            "file": self.source.file,
            "entry": self.source.entry,
            "options": self.options(),
            "sources": self.tree.digest(),
            "nvrtc": self.toolchain.nvrtc,
            "headers": dict(self.toolchain.headers),
        }


def architecture_for(target_architecture: str) -> str:
    """What to compile for a target: ``sm_90a`` for ``sm_90``, itself for most. Raises InputError for an unknown one."""
    architecture = _SPECIFIC.get(target_architecture, target_architecture)
    check_architecture(architecture)
    return architecture


def check_architecture(architecture: str) -> None:
    """InputError, with the list of those that there are, for anything else."""
    if architecture not in ARCHITECTURES:
        raise InputError(f"kernels cannot be compiled for {architecture[:40]!r}; allowed: {', '.join(ARCHITECTURES)}")


def prepare(requests: Sequence[tuple[KernelSource, str]], folder: Path | None = None) -> list[Compilation]:
    """Check requests, each a source and an architecture, and read the sources below ``folder`` or this package's own.

    Raises InputError for an unknown architecture, and for a type or path that an architecture does not have;
    MissingError without a compiler.
    """
    for source, architecture in requests:
        _check(source, architecture)
    trees = {file: read_tree(file, folder) for file in sorted({source.file for source, _ in requests})}
    return [Compilation(source, architecture, trees[source.file], toolchain()) for source, architecture in requests]


def _check(source: KernelSource, architecture: str) -> None:
    check_architecture(architecture)
    lacking = LACKING_TYPES.get(architecture, ())
    if source.define("ELEMENT") in lacking:
        allowed = ", ".join(name for name in ELEMENTS if name not in lacking)
        raise InputError(
            f"kernels for {architecture} cannot compute in {source.define('ELEMENT')}; allowed there: {allowed}"
        )
    if source.define("PATH_WGMMA") == "1" and architecture != "sm_90a":
        raise InputError(f"kernels for {architecture} have no path 'wgmma'; allowed there: mma; wgmma needs sm_90a")
