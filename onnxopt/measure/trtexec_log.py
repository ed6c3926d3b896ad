"""What trtexec prints: its performance summary, its version, the GPU, and whether it passed.

The format is that of ``sampleReporting.cpp`` and ``logging.h`` in NVIDIA's public sources, equal in TensorRT 10.8 to
11.1 but for the wording of warnings. The text comes from another program: every number is checked.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from onnxopt.errors import InputError

METRICS = ("Latency", "Enqueue Time", "H2D Latency", "GPU Compute Time", "D2H Latency")
"""The times of one inference that the summary describes, as trtexec names them."""

OLDEST = (10, 9)
"""The first version of TensorRT whose trtexec is supported."""

_STAMP = re.compile(r"^\[\d\d/\d\d/\d{4}-\d\d:\d\d:\d\d\] \[([IWEFV])\] ?")
_RESULT = re.compile(r"^&&&& (PASSED|FAILED|WAIVED) (\S+)")
_RUNNING = re.compile(r"^&&&& RUNNING (\S+) \[TensorRT v(\d{4,6})\]")
_VERSION = re.compile(r"^TensorRT version: (\d{1,3})\.(\d{1,3})\.(\d{1,3})$")
_SUMMARY = "=== Performance summary ==="
_NUMBER = r"([-+]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][-+]?\d+)?|[-+]?(?:nan|inf)(?:inity)?)"
_FIELD = re.compile(rf"^(min|max|mean|median|percentile\(([\d.e+]+)%\)) = {_NUMBER} ms$", re.IGNORECASE)
_TOTAL = re.compile(rf"^{_NUMBER} (qps|s)$", re.IGNORECASE)
_TOTALS = {"Throughput": "qps", "Total Host Walltime": "s", "Total GPU Compute Time": "s"}
_WARNINGS = ("* Throughput may be bound", "* GPU compute time is unstable", "The engine uses ")
_MAX_LINE = 1 << 16
_SHOWN = 120


@dataclass(frozen=True)
class Spread:
    """The distribution of a time over the inferences, in milliseconds; percentiles by their number of 100."""

    min: float
    max: float
    mean: float
    median: float
    percentiles: Mapping[float, float] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """The spread as JSON; percentiles as ``{"99": milliseconds}``."""
        percentiles = {f"{percent:g}": value for percent, value in self.percentiles.items()}
        return {"min": self.min, "max": self.max, "mean": self.mean, "median": self.median, "percentiles": percentiles}


@dataclass(frozen=True)
class Summary:
    """trtexec's performance summary: inferences per second, times in ms by the names in ``METRICS``, totals in s."""

    throughput: float
    times: Mapping[str, Spread]
    host_walltime: float
    gpu_compute: float


@dataclass(frozen=True)
class Log:
    """What one run of trtexec printed; ``result`` is PASSED, FAILED, WAIVED, or empty where it stopped before."""

    program: str
    version: tuple[int, int, int] | None
    device: str
    result: str
    errors: tuple[str, ...]
    warnings: tuple[str, ...]
    summary: Summary | None


def parse_log(text: str) -> Log:
    """Read the output of a run, whether it ended well or not.

    Raises InputError for a summary that is not of the known form, or has a number that is no time.
    """
    program, version, device, result = "", None, "", ""
    errors, warnings, bodies = [], [], []
    for line in text.splitlines():
        severity, body = _unstamped(line[:_MAX_LINE])
        bodies.append(body)
        if found := _RUNNING.match(body):
            program, version = found[1], _numbered(found[2])
        elif found := _RESULT.match(body):
            result = found[1]
        elif found := _VERSION.match(body):
            version = (int(found[1]), int(found[2]), int(found[3]))
        elif body.startswith("Selected Device: "):
            device = body.removeprefix("Selected Device: ").strip()[:_SHOWN]
        elif severity in ("E", "F"):
            errors.append(body)
        elif severity == "W" and body.startswith(_WARNINGS):
            warnings.append(body.removeprefix("* "))
    return Log(program, version, device, result, tuple(errors), tuple(warnings), _summary(bodies))


def _unstamped(line: str) -> tuple[str, str]:
    """The letter of a line's severity and the line behind it; the result lines have no stamp."""
    found = _STAMP.match(line)
    return (found[1], line[found.end() :].rstrip()) if found else ("", line.rstrip())


def _numbered(digits: str) -> tuple[int, int, int]:
    """The version in NVIDIA's number: 101000 is 10.10.0; up to TensorRT 8 it was 8601 for 8.6.1."""
    number = int(digits)
    unit = 100 if len(digits) > 4 else 10
    return (
        (number // 10000, number // 100 % 100, number % 100)
        if unit == 100
        else (number // 1000, number // 100 % 10, number % 100)
    )


def _summary(lines: Sequence[str]) -> Summary | None:
    places = [index for index, line in enumerate(lines) if line == _SUMMARY]
    if not places:
        return None
    if len(places) > 1:
        raise InputError(f"trtexec's output has {len(places)} performance summaries; a run has one")
    totals: dict[str, float] = {}
    times: dict[str, Spread] = {}
    for line in lines[places[0] + 1 :]:
        name, separator, rest = line.partition(": ")
        if not separator or (name not in _TOTALS and name not in METRICS):
            continue
        if name in totals or name in times:
            raise InputError(f"trtexec's performance summary has '{name}' twice")
        if name in _TOTALS:
            totals[name] = _total(name, rest)
        else:
            times[name] = _spread(name, rest)
    missing = [name for name in (*_TOTALS, *METRICS) if name not in totals and name not in times]
    if missing:
        raise InputError(
            f"trtexec's performance summary lacks {', '.join(missing)}; this version reads the format of TensorRT "
            "10.9 to 11.x"
        )
    return Summary(totals["Throughput"], times, totals["Total Host Walltime"], totals["Total GPU Compute Time"])


def _total(name: str, text: str) -> float:
    found = _TOTAL.match(text)
    if not found or found[2] != _TOTALS[name]:
        raise InputError(f"trtexec's '{name}' is {_shown(text)}; allowed: a number and {_TOTALS[name]}")
    value = _number(found[1], f"trtexec's '{name}'")
    if value <= 0:
        raise InputError(f"trtexec's '{name}' is {value:g} {_TOTALS[name]}; allowed: more than 0")
    return value


def _spread(name: str, text: str) -> Spread:
    values: dict[str, float] = {}
    percentiles: dict[float, float] = {}
    for part in text.split(", "):
        found = _FIELD.match(part)
        if not found:
            raise InputError(f"trtexec's '{name}' has {_shown(part)}; allowed: a name, ' = ' and milliseconds")
        value = _number(found[3], f"'{found[1]}' of trtexec's '{name}'")
        if value < 0:
            raise InputError(f"'{found[1]}' of trtexec's '{name}' is {value:g} ms; allowed: 0 or more")
        if found[2] is None:
            values[found[1]] = value
        else:
            percentiles[_number(found[2], f"a percentile of trtexec's '{name}'")] = value
    missing = [key for key in ("min", "max", "mean", "median") if key not in values]
    if missing:
        raise InputError(f"trtexec's '{name}' lacks {', '.join(missing)}: {_shown(text)}")
    if not values["min"] <= values["median"] <= values["max"]:
        raise InputError(f"trtexec's '{name}' is not in order from min over median to max: {_shown(text)}")
    return Spread(values["min"], values["max"], values["mean"], values["median"], percentiles)


def _number(text: str, what: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise InputError(f"{what} is {_shown(text)}; allowed: a number") from None
    if not math.isfinite(value):
        raise InputError(f"{what} is {text}; allowed: a finite number. The run measured nothing: run it for longer")
    return value


def _shown(text: str) -> str:
    return repr(text if len(text) <= _SHOWN else text[:_SHOWN] + "...")
