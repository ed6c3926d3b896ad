"""What a compiled kernel takes: from the compiler's log, checked against the CUBIN itself."""

from __future__ import annotations

import re
from dataclasses import dataclass

from onnxopt.errors import OnnxOptError
from onnxopt.kernels.cubin import CubinError, kernel_figures

SHARED_SYMBOL = "onnxopt_shared_bytes"
"""The constant in which a kernel publishes how much dynamic shared memory a launch gives it."""

_ENTRY = re.compile(r"Compiling entry function '([^']+)'")
_STACK_LINE = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
_USED = re.compile(r"Used (\d+) registers(.*)")
_SHARED = re.compile(r"(\d+) bytes smem")
_PUBLISHED = re.compile(rf"^\s*(?:\.visible\s+)?\.global[^\n]*?\b{SHARED_SYMBOL}\b\s*(?:=\s*(\d+)\s*)?;", re.MULTILINE)
_MAX_NTID = re.compile(r"\.maxntid\s+(\d+)(?:\s*,\s*(\d+))?(?:\s*,\s*(\d+))?")


@dataclass(frozen=True)
class ResourceReport:
    """What one block or thread takes; bytes, and numbers of registers and threads.

    ``stack`` is that of a thread, ``dynamic_shared`` what the launch must give, ``threads`` those of a block.
    """

    registers: int
    static_shared: int
    dynamic_shared: int
    stack: int
    spill_stores: int
    spill_loads: int
    threads: int

    @property
    def shared(self) -> int:
        """All shared memory of a block."""
        return self.static_shared + self.dynamic_shared


class ReportError(OnnxOptError):
    """Compiler's log, PTX and CUBIN do not fit together; a defect of onnxopt or of the compiler."""


def resource_report(log: str, ptx: str, cubin: bytes, entry: str, architecture: str) -> ResourceReport:
    """The report of an entry. Raises :class:`ReportError` where a figure is missing, or two sources disagree."""
    told = _from_log(log, ptx, entry)
    try:
        seen = kernel_figures(cubin, entry, architecture)
    except CubinError as error:
        raise ReportError(f"the CUBIN of {entry!r} for {architecture} cannot be read: {error}") from None
    for name, value in seen.items():
        if getattr(told, name) != value:
            raise ReportError(
                f"{entry} for {architecture}: the compiler's log says {name} {getattr(told, name)}, the CUBIN {value}; "
                "this version of NVRTC is not understood, install the one that onnxopt requires"
            )
    return told


def _from_log(log: str, ptx: str, entry: str) -> ResourceReport:
    part = _part_of(log, entry)
    stacks = [tuple(map(int, numbers)) for numbers in _STACK_LINE.findall(part)]
    used = _USED.search(part)
    if not stacks or used is None:
        raise ReportError(f"the compiler's log says nothing about the resources of {entry!r}")
    shared = _SHARED.search(used[2])
    return ResourceReport(
        registers=int(used[1]),
        static_shared=int(shared[1]) if shared else 0,
        dynamic_shared=published_shared(ptx, entry),
        # Functions that were not inlined report beside the entry.
        stack=max(stack for stack, _, _ in stacks),
        spill_stores=sum(stores for _, stores, _ in stacks),
        spill_loads=sum(loads for _, _, loads in stacks),
        threads=_threads(ptx, entry),
    )


def _part_of(log: str, entry: str) -> str:
    """The lines about one entry."""
    parts = _ENTRY.split(log)
    return next((text for name, text in zip(parts[1::2], parts[2::2], strict=True) if name == entry), "")


def published_shared(ptx: str, entry: str) -> int:
    """Bytes of dynamic shared memory that a kernel asks for by its constant, which only a kernel without any may lack.

    Raises :class:`ReportError` where it is missing.
    """
    found = _PUBLISHED.search(ptx)
    if found is None and ".extern .shared" not in ptx:
        return 0
    if found is None:
        raise ReportError(f"the source of {entry!r} does not publish {SHARED_SYMBOL}, so nobody can launch it")
    return int(found[1] or 0)


def _threads(ptx: str, entry: str) -> int:
    place = ptx.find(f".entry {entry}(")
    found = _MAX_NTID.search(ptx, max(place, 0), ptx.find("{", place)) if place >= 0 else None
    if found is None:
        raise ReportError(f"the source of {entry!r} does not bound its threads by __launch_bounds__")
    sizes = [int(size or 1) for size in found.groups()]
    return sizes[0] * sizes[1] * sizes[2]
