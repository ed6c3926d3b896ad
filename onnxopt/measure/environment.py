"""What a timing on the CPU depends on besides the models."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from pathlib import Path

_CPU_INFO = Path("/proc/cpuinfo")
_CPU_INFO_BYTES = 1 << 16


@dataclass(frozen=True)
class Environment:
    """The machine, ONNX Runtime's version, and the number of threads (0: ONNX Runtime's own choice)."""

    machine: str
    onnxruntime: str
    threads: int


def current_environment(threads: int = 0) -> Environment:
    """The environment of this process."""
    import onnxruntime

    return Environment(machine=machine_name(), onnxruntime=str(onnxruntime.__version__), threads=threads)


def machine_name() -> str:
    """The processor and the cores that this process may use: 'AMD EPYC 9354 (25/17), 2 cores, x86_64'."""
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:  # only Linux has it
        cores = os.cpu_count() or 1
    return f"{_processor()[:120]}, {cores} cores, {platform.machine()}"


def _processor() -> str:
    """The name with the family and model numbers, since a virtual machine often shows only a brand."""
    fields: dict[str, str] = {}
    try:
        with _CPU_INFO.open(encoding="utf-8", errors="replace") as file:
            for line in file.read(_CPU_INFO_BYTES).splitlines():
                name, _, value = line.partition(":")
                fields.setdefault(name.strip(), value.strip())
    except OSError:
        return platform.processor() or "unknown processor"
    name = fields.get("model name") or platform.processor() or "unknown processor"
    numbers = [fields[key] for key in ("cpu family", "model") if key in fields]
    return f"{name} ({'/'.join(numbers)})" if numbers else name
