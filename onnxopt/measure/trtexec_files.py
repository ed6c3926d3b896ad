"""The JSON files that trtexec exports: the times of each inference, times by layer, and what the layers are.

The formats are those of ``exportJSONTrace`` and ``exportJSONProfile`` in ``sampleReporting.cpp``, and of TensorRT's
engine inspector. The files are another program's: sizes, types and numbers are checked.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from onnxopt.errors import InputError, shown
from onnxopt.measure.trtexec_log import Summary
from onnxopt.model.files import read_file

_MAX_TIMES = 256 << 20
_MAX_PROFILE = 64 << 20
_MAX_LAYERS = 256 << 20
_MAX_ENTRIES = 5_000_000
_TRACE = ("startEnqMs", "endEnqMs", "h2dMs", "computeMs", "d2hMs", "latencyMs")
_PROFILE = ("timeMs", "averageMs", "medianMs", "percentage")
# Names stand in the profile as they are: a quote or a backslash in one makes the line invalid JSON.
_PROFILE_LINE = re.compile(
    r'^, \{ "name" : "(.*)", "timeMs" : (\S+), "averageMs" : (\S+), "medianMs" : (\S+), "percentage" : (\S+) \}$'
)
_COUNT_LINE = re.compile(r'^ *\{ "count" : (\d{1,18}) \}$')
_METADATA = re.compile(r"\[ONNX Layer: (.*?)(?: \| [^\]]*)?\]")
_SEPARATOR = "\x1e"
# Six digits are printed, and trtexec adds up in single precision.
_AGREEMENT = 1e-3


@dataclass(frozen=True)
class LayerTime:
    """The mean and median time of a layer in milliseconds, over the inferences of the profiling run."""

    name: str
    mean: float
    median: float


@dataclass(frozen=True)
class Trace:
    """The inferences behind a summary: their number, and the medians of latency and GPU time in milliseconds."""

    queries: int
    latency: float
    gpu_compute: float


def read_trace(path: Path) -> Trace:
    """Read ``--exportTimes``; raises InputError for a file of another form, or without inferences."""
    entries = _list(_json(path, _read(path, _MAX_TIMES)), str(path))
    if not entries:
        raise InputError(f"{path} has no inferences; run trtexec for longer")
    compute, latency = [], []
    for number, entry in enumerate(entries):
        where = f"{path}, inference {number}"
        values = {name: _number(entry, name, where) for name in _TRACE} if isinstance(entry, dict) else {}
        if not values:
            raise InputError(f"{where} is {shown(entry)}; allowed: an object")
        compute.append(values["computeMs"])
        latency.append(values["latencyMs"])
    return Trace(len(entries), median(latency), median(compute))


def check_trace(trace: Trace, summary: Summary) -> None:
    """Raises InputError where the exported inferences are not those of the printed summary."""
    for name, found in (("Latency", trace.latency), ("GPU Compute Time", trace.gpu_compute)):
        printed = summary.times[name].median
        if abs(found - printed) > _AGREEMENT * max(abs(found), abs(printed)) + 1e-5:
            raise InputError(
                f"the median of trtexec's '{name}' is {printed:g} ms in its summary and {found:g} ms in its exported "
                "times; they are not of one run: run it again"
            )


def read_profile(path: Path) -> tuple[LayerTime, ...]:
    """Read ``--exportProfile``; raises InputError for a file of another form, or a layer without a finite time."""
    content = _read(path, _MAX_PROFILE)
    # As written first: a backslash in a name can be valid JSON, and mean something else there.
    entries = _profile_lines(content) or _list(_json(path, content), str(path))
    if not entries or not isinstance(entries[0], dict) or not isinstance(entries[0].get("count"), int):
        raise InputError(
            f"{path} does not begin with the number of inferences; this version reads TensorRT 10.9 to 11.x"
        )
    if entries[0]["count"] < 1 or isinstance(entries[0]["count"], bool):
        raise InputError(f"{path} is over {entries[0]['count']} inferences; run trtexec for longer")
    layers = []
    for number, entry in enumerate(entries[1:]):
        where = f"{path}, layer {number}"
        if not isinstance(entry, dict) or not isinstance(entry.get("name"), str):
            raise InputError(f"{where} is {shown(entry)}; allowed: an object with a name")
        values = {name: _number(entry, name, where) for name in _PROFILE}
        if min(values.values()) < 0:
            raise InputError(f"{where} has a negative time: {shown(entry)}")
        layers.append(LayerTime(entry["name"], values["averageMs"], values["medianMs"]))
    if not layers:
        raise InputError(f"{path} has no layers; the engine was not profiled")
    return tuple(layers)


def read_layers(path: Path) -> dict[str, tuple[str, ...]]:
    """Read ``--exportLayerInfo``: by layer the nodes of the ONNX model that it was made from, as far as it is said.

    An engine that was not built with detailed profiling has names alone, and so no nodes. Raises InputError for a file
    of another form.
    """
    document = _json(path, _read(path, _MAX_LAYERS))
    if not isinstance(document, dict):
        raise InputError(f"{path} is {shown(document)}; allowed: an object with 'Layers'")
    layers: dict[str, tuple[str, ...]] = {}
    for number, entry in enumerate(_list(document.get("Layers"), f"'Layers' of {path}")):
        where = f"{path}, layer {number}"
        if isinstance(entry, str):
            layers.setdefault(entry, ())
            continue
        if not isinstance(entry, dict) or not isinstance(entry.get("Name"), str):
            raise InputError(f"{where} is {shown(entry)}; allowed: a name, or an object with a 'Name'")
        metadata = entry.get("Metadata", "")
        if not isinstance(metadata, str):
            raise InputError(f"{where} has the 'Metadata' {shown(metadata)}; allowed: a text")
        before = layers.get(entry["Name"], ())
        layers[entry["Name"]] = tuple(dict.fromkeys((*before, *metadata_nodes(metadata))))
    return layers


def metadata_nodes(metadata: str) -> tuple[str, ...]:
    """The nodes in a layer's metadata: ``[ONNX Layer: NAME | ...]``, several of them apart by the character 30."""
    found = []
    for part in metadata.split(_SEPARATOR):
        text = part.strip()
        # A name may itself have brackets: the part as a whole is tried before the brackets in it.
        if text.startswith("[ONNX Layer: ") and text.endswith("]") and text.count("[ONNX Layer: ") == 1:
            found.append(text.removeprefix("[ONNX Layer: ")[:-1].partition(" | ")[0])
        else:
            found += _METADATA.findall(text)
    return tuple(dict.fromkeys(found))


def _profile_lines(content: bytes) -> list[Mapping[str, Any]]:
    """The entries of a profile, line by line as it is written; none where a line is of another form."""
    lines = content.decode(errors="replace").split("\n")
    head = _COUNT_LINE.match(lines[1]) if len(lines) > 2 and lines[0] == "[" else None
    if head is None or lines[-2:] != ["]", ""]:
        return []
    found = [_PROFILE_LINE.match(line) for line in lines[2:-2]]
    entries: list[Mapping[str, Any]] = [{"count": int(head[1])}]
    for match in found:
        if match is None:
            return []
        numbers = zip(_PROFILE, (_float(text) for text in match.groups()[1:]), strict=True)
        entries.append({"name": match[1], **dict(numbers)})
    return entries


def _float(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def _read(path: Path, limit: int) -> bytes:
    if not path.is_file():
        raise InputError(f"trtexec has not written {path}; look at its output for the reason")
    return read_file(path, limit)


def _parsed(content: bytes) -> Any:
    try:
        # Metadata has control characters in its texts.
        return json.loads(content.decode(errors="replace"), strict=False)
    except RecursionError:
        raise InputError("trtexec's JSON is nested too deep; it is damaged: run trtexec again") from None


def _json(path: Path, content: bytes) -> Any:
    try:
        return _parsed(content)
    except ValueError as error:
        raise InputError(f"{path} is not valid JSON ({error}); trtexec has not finished it: run it again") from None


def _list(found: Any, what: str) -> Sequence[Any]:
    if not isinstance(found, list) or len(found) > _MAX_ENTRIES:
        raise InputError(f"{what} is {shown(found)}; allowed: a list of up to {_MAX_ENTRIES:,} entries")
    return found


def _number(entry: Mapping[str, Any], name: str, where: str) -> float:
    value = entry.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InputError(f"{where} has {shown(value)} in '{name}'; allowed: a number")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise InputError(f"{where} has {value} in '{name}'; allowed: a finite number. Run trtexec for longer")
    return number
