"""Profiles of processors, read from untrusted JSON: limits and rates, each with the source of its figure."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

from onnxopt.errors import InputError
from onnxopt.model.files import read_file
from onnxopt.target.architecture import ARCHITECTURES, LACKING_TYPES

GPU_SCHEMA = "onnxopt.profile/1"
CPU_SCHEMA = "onnxopt.cpu-profile/1"

# A profile is a few kilobytes; more is not one.
_LARGEST_FILE = 1 << 20

_FIGURE = '{"value": NUMBER, "source": "WHERE IT COMES FROM"}'


@dataclass(frozen=True)
class GpuProfile:
    """Limits and peak rates of one GPU, in bytes, seconds and hertz.

    ``*_flops`` are operations per second of the whole GPU, a multiply-add counted as two: of the matrix units
    without structured sparsity and with sums in fp32 for fp16, bf16 and tf32, of the ordinary lanes for fp32.
    Products of a type in ``lacking_types`` run in the ordinary lanes, so its rate is that of fp32: no rate is 0.
    ``exponentials_per_cycle`` is per multiprocessor. ``sources`` says for each figure where it comes from.
    """

    name: str
    aliases: tuple[str, ...]
    architecture: str
    multiprocessors: int
    shared_memory_per_block_bytes: int
    shared_memory_per_multiprocessor_bytes: int
    registers_per_multiprocessor: int
    registers_per_thread: int
    threads_per_block: int
    threads_per_multiprocessor: int
    blocks_per_multiprocessor: int
    clock_hz: float
    l2_bytes: int
    memory_bytes_per_second: float
    fp16_flops: float
    bf16_flops: float
    tf32_flops: float
    fp32_flops: float
    exponentials_per_cycle: float
    launch_seconds: float
    sources: Mapping[str, str]

    @property
    def lacking_types(self) -> tuple[str, ...]:
        """Types that the matrix units do not take, of ``bf16`` and ``tf32``; a profile's file gives them as null."""
        return LACKING_TYPES.get(self.architecture, ())

    @property
    def exponentials_per_second(self) -> float:
        """Rate of the special-function units of the whole GPU."""
        return self.exponentials_per_cycle * self.multiprocessors * self.clock_hz


@dataclass(frozen=True)
class CpuProfile:
    """Rates of ONNX Runtime on a reference CPU with ``cores`` threads, for predictions without measurements.

    Bandwidths count bytes read and bytes written together. ``sources`` says where each figure comes from.
    """

    name: str
    aliases: tuple[str, ...]
    cores: int
    fp32_flops: float
    exponentials_per_second: float
    memory_bytes_per_second: float
    gather_bytes_per_second: float
    transpose_bytes_per_second: float
    node_seconds: float
    sources: Mapping[str, str]


_Profile = TypeVar("_Profile", GpuProfile, CpuProfile)

# Wide enough for the processors of the coming years, narrow enough to catch a wrong unit.
_RANGES: Mapping[str, tuple[float, float]] = {
    "multiprocessors": (1, 1024),
    "shared_memory_per_block_bytes": (16 << 10, 4 << 20),
    "shared_memory_per_multiprocessor_bytes": (16 << 10, 4 << 20),
    "registers_per_multiprocessor": (16 << 10, 1 << 20),
    "registers_per_thread": (63, 1024),
    "threads_per_block": (256, 4096),
    "threads_per_multiprocessor": (512, 8192),
    "blocks_per_multiprocessor": (4, 256),
    "clock_hz": (1e8, 1e10),
    "l2_bytes": (64 << 10, 4 << 30),
    "memory_bytes_per_second": (1e9, 1e14),
    "fp16_flops": (1e11, 1e17),
    "bf16_flops": (1e10, 1e17),
    "tf32_flops": (1e10, 1e17),
    "fp32_flops": (1e9, 1e16),
    "exponentials_per_cycle": (1, 1024),
    "launch_seconds": (1e-7, 1e-3),
    "cores": (1, 4096),
    "exponentials_per_second": (1e6, 1e14),
    "gather_bytes_per_second": (1e8, 1e14),
    "transpose_bytes_per_second": (1e8, 1e14),
    "node_seconds": (1e-9, 1e-3),
}


def read_profile(path: str | Path) -> GpuProfile:
    """Read and check a GPU's profile; InputError names the file, the field, its value and the range."""
    path = Path(path)
    profile = _parsed(path, GPU_SCHEMA, GpuProfile)
    if profile.shared_memory_per_block_bytes > profile.shared_memory_per_multiprocessor_bytes:
        raise InputError(
            f"{path}: field 'shared_memory_per_block_bytes' is {profile.shared_memory_per_block_bytes}, "
            f"more than a multiprocessor has ({profile.shared_memory_per_multiprocessor_bytes})"
        )
    if profile.threads_per_block > profile.threads_per_multiprocessor:
        raise InputError(
            f"{path}: field 'threads_per_block' is {profile.threads_per_block}, more than a multiprocessor "
            f"holds ({profile.threads_per_multiprocessor})"
        )
    return profile


def read_cpu_profile(path: str | Path) -> CpuProfile:
    """Read and check a CPU's profile; raises InputError like :func:`read_profile`."""
    return _parsed(Path(path), CPU_SCHEMA, CpuProfile)


def _parsed(path: Path, schema: str, kind: type[_Profile]) -> _Profile:
    document = _read_object(path)
    if document.get("schema") != schema:
        raise InputError(f"{path}: field 'schema' is {_shown(document.get('schema'))}; this version reads '{schema}'")
    figures = document.get("figures")
    if not isinstance(figures, dict):
        raise InputError(f"{path}: field 'figures' is {_shown(figures)}; an object of figures is needed")
    values: dict[str, Any] = {"name": _text(path, document, "name"), "aliases": _aliases(path, document)}
    sources: dict[str, str] = {}
    lacking: tuple[str, ...] = ()
    for field in fields(kind):
        if field.name == "architecture":
            values["architecture"] = _architecture(path, document)
            lacking = tuple(f"{t}_flops" for t in LACKING_TYPES.get(values["architecture"], ()))
        elif field.name in lacking:
            sources[field.name] = _absent(path, figures, field.name, values["architecture"])
        elif field.name in _RANGES:
            values[field.name], sources[field.name] = _figure(path, figures, field.name, field.type == "int")
    values.update((name, values["fp32_flops"]) for name in lacking)
    unknown = sorted(set(figures) - set(sources))
    if unknown:
        raise InputError(f"{path}: unknown field '{unknown[0]}'; the fields are {', '.join(sources)}")
    return kind(**values, sources=sources)


def _read_object(path: Path) -> dict[str, Any]:
    data = read_file(path, _LARGEST_FILE)
    try:
        document = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: the profile is not valid JSON ({error})") from error
    if not isinstance(document, dict):
        raise InputError(f"{path}: a profile is a JSON object, this is {_shown(document)}")
    return document


def _figure(path: Path, figures: dict[str, Any], name: str, whole: bool) -> tuple[float, str]:
    low, high = _RANGES[name]
    allowed = f"allowed: {'a whole number' if whole else 'a number'} from {low:g} to {high:g}"
    value, source = _entry(path, figures, name, allowed)
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    # An integer beyond the range of floats compares well with them, but cannot be converted to one.
    if not number or not low <= value <= high or (whole and value != int(value)):
        raise InputError(f"{path}: field '{name}' is {_shown(value)}; {allowed}")
    return (int(value) if whole else float(value)), source


def _absent(path: Path, figures: dict[str, Any], name: str, architecture: str) -> str:
    """The source of a rate that the architecture does not have, which a profile says with null."""
    kind = name.removesuffix("_flops")
    allowed = f"allowed: null, because the matrix units of {architecture} do not take {kind}"
    value, source = _entry(path, figures, name, allowed)
    if value is not None:
        raise InputError(f"{path}: field '{name}' is {_shown(value)}; {allowed}")
    return source


def _entry(path: Path, figures: dict[str, Any], name: str, allowed: str) -> tuple[Any, str]:
    """A figure's value as it is written, and its source."""
    entry = figures.get(name)
    if entry is None:
        raise InputError(f"{path}: field '{name}' is missing; {allowed}, written as {_FIGURE}")
    if not isinstance(entry, dict) or "value" not in entry:
        raise InputError(f"{path}: field '{name}' is {_shown(entry)}; a figure is written as {_FIGURE}")
    source = entry.get("source")
    if not isinstance(source, str) or not source.strip():
        raise InputError(f"{path}: field '{name}' has the source {_shown(source)}; say where the figure comes from")
    return entry["value"], source


def _text(path: Path, document: dict[str, Any], name: str) -> str:
    value = document.get(name)
    if not isinstance(value, str) or not 0 < len(value) <= 100 or not value.isprintable():
        raise InputError(f"{path}: field '{name}' is {_shown(value)}; allowed: a text of 1 to 100 characters")
    return value


def _aliases(path: Path, document: dict[str, Any]) -> tuple[str, ...]:
    value = document.get("aliases", [])
    if not isinstance(value, list) or len(value) > 16 or not all(isinstance(a, str) and a for a in value):
        raise InputError(f"{path}: field 'aliases' is {_shown(value)}; allowed: a list of up to 16 names")
    return tuple(value)


def _architecture(path: Path, document: dict[str, Any]) -> str:
    value = document.get("architecture")
    if not isinstance(value, str) or value not in ARCHITECTURES:
        raise InputError(f"{path}: field 'architecture' is {_shown(value)}; allowed: {', '.join(ARCHITECTURES)}")
    return value


def _shown(value: object) -> str:
    """A value for a message, cut short."""
    try:
        text = json.dumps(value)
    except ValueError:  # an integer of thousands of digits
        text = "a number too long to show"
    return text if len(text) <= 80 else text[:77] + "..."
