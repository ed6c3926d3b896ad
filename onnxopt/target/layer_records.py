"""Measured times of whole convolution layers on a GPU, by algorithm: what the choice among algorithms starts from.

They are kept beside the tile times, and travel as lines of JSON like those. Both are untrusted.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from onnxopt.target import record_lines
from onnxopt.target.architecture import ARCHITECTURES
from onnxopt.target.record_file import read_lines, writable
from onnxopt.target.variant import Element

SCHEMA = "onnxopt.layer-record/1"

Layout = Literal["first", "last"]
LAYOUTS: tuple[Layout, ...] = get_args(Layout)
"""Where the channels of a tensor are: behind the batch, as in ONNX, or behind the positions."""

_TABLE = "CREATE TABLE IF NOT EXISTS layer (key TEXT PRIMARY KEY, record TEXT NOT NULL) WITHOUT ROWID"
_MOST = (1 << 31) - 1

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LayerShape:
    """A convolution's geometry over three axes (leading ones of size 1 where it has fewer), with its batch.

    ``pads`` are in front of each axis, then behind.
    """

    batch: int
    channels: int
    outputs: int
    groups: int
    size: tuple[int, ...]
    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    pads: tuple[int, ...]


@dataclass(frozen=True)
class LayerRecord:
    """How long a layer took with one algorithm in one layout, launches of all its steps included.

    ``algorithm`` is one of ours or ``keep``, then ``host`` names the library that computed it. ``driver`` and ``nvrtc``
    are versions, ``source`` is the hash of the kernels' sources and constants (``none`` for a library's).
    ``clock_hz`` is the multiprocessors' clock during the measurement, ``date`` is written YYYY-MM-DD.
    """

    gpu: str
    architecture: str
    element: Element
    shape: LayerShape
    algorithm: str
    layout: Layout
    microseconds: float
    host: str
    driver: str
    nvrtc: str
    source: str
    clock_hz: float
    date: str


def format_layer_record(record: LayerRecord) -> bytes:
    """The record as one line without its end; ValueError where :func:`parse_layer_record` would refuse it."""
    fields = asdict(record)
    line = record_lines.format_line(SCHEMA, {**fields.pop("shape"), **fields})
    parse_layer_record(line)
    return line


def parse_layer_record(line: bytes) -> LayerRecord:
    """The record in a line. Raises ValueError with the field and the value that is wrong."""
    values = record_lines.parse_line(line, SCHEMA, _CHECKS)
    shape = LayerShape(**{name: values.pop(name) for name in _SHAPE_CHECKS})
    return LayerRecord(shape=shape, **values)


def stored_layers(path: Path) -> tuple[LayerRecord, ...]:
    """The usable records of the file in the order of their keys; what cannot be used is a warning in the log."""
    lines, problem = read_lines(path, "layer", "key")
    if problem:
        _log.warning("%s: %s", path, problem)
    records = []
    for number, line in enumerate(lines, start=1):
        try:
            records.append(parse_layer_record(line))
        except ValueError as error:
            _log.warning("%s, layer %d is left out: %s", path, number, error)
    return tuple(records)


def add_layers(path: Path, records: Iterable[LayerRecord]) -> int:
    """Add records, each in place of an older one of the same key; how many there were.

    Raises ValueError for a record that could not be read back, InputError where the file cannot be written.
    """
    rows = [(_key(record), format_layer_record(record).decode()) for record in records]
    with writable(path) as store:
        store.execute(_TABLE)
        store.executemany("INSERT OR REPLACE INTO layer VALUES (?, ?)", rows)
    return len(rows)


def _key(record: LayerRecord) -> str:
    fields: dict[str, Any] = asdict(record)
    for name in ("microseconds", "clock_hz", "date"):
        del fields[name]
    return json.dumps(fields, sort_keys=True)


def _sizes(count: int, smallest: int, largest: int = _MOST) -> record_lines.Check:
    return record_lines.wholes(count, count, largest, smallest)


_SHAPE_CHECKS: Mapping[str, record_lines.Check] = {
    "batch": record_lines.whole(1, _MOST),
    "channels": record_lines.whole(1, _MOST),
    "outputs": record_lines.whole(1, _MOST),
    "groups": record_lines.whole(1, _MOST),
    "size": _sizes(3, 1),
    "kernel": _sizes(3, 1),
    "strides": _sizes(3, 1),
    "dilations": _sizes(3, 1),
    "pads": _sizes(6, 0),
}
_CHECKS: Mapping[str, record_lines.Check] = {
    **_SHAPE_CHECKS,
    "gpu": record_lines.text,
    "architecture": record_lines.one_of(ARCHITECTURES),
    "element": record_lines.one_of(get_args(Element)),
    "algorithm": record_lines.text,
    "layout": record_lines.one_of(LAYOUTS),
    "microseconds": record_lines.number(1e-3, 1e9),
    "host": record_lines.text,
    "driver": record_lines.text,
    "nvrtc": record_lines.text,
    "source": record_lines.text,
    "clock_hz": record_lines.number(1e8, 1e10),
    "date": record_lines.date,
}


def three_axes(values: Sequence[int], fill: int) -> tuple[int, ...]:
    """Sizes of one to three axes as three, with ``fill`` in front."""
    return (fill,) * (3 - len(values)) + tuple(values)
