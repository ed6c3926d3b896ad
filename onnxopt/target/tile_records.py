"""Measured times of single tiles of our kernels on a GPU, as lines that one machine gives to another.

One JSON object per line. The file is untrusted: every line is checked field by field, and a damaged one is left out
with a warning.
"""

from __future__ import annotations

import datetime
import json
import logging
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args

from onnxopt.errors import InputError
from onnxopt.model.files import atomic_write, read_file
from onnxopt.target.architecture import ARCHITECTURES
from onnxopt.target.variant import Element, Resources

SCHEMA = "onnxopt.tile-record/2"
MAX_FILE_BYTES = 64 << 20
MAX_LINE_BYTES = 2048
MAX_TEXT = 200

Kind = Literal["attention", "conv"]

_DATE = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")
_SHOWN_WARNINGS = 3

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TileRecord:
    """How long one block of a kernel kept its place while ``resident`` of its kind shared each multiprocessor.

    ``variant`` is the shape as its ``describe()`` says it. For ``attention``, ``widths`` are the head's width and its
    values' width, and ``extent`` the rows and keys of the strip; for ``conv``, ``widths`` is the number of taps alone
    and ``extent`` the outputs and inputs of the part. ``microseconds`` leaves the launch out. ``registers`` (of a
    thread) and ``shared_bytes`` (of a block) are the compiler's. ``driver`` and ``nvrtc`` are versions, ``source`` is
    the hash of the kernel's source and constants. ``clock_hz`` is the multiprocessors' clock during the measurement,
    ``date`` is written YYYY-MM-DD.
    """

    kind: Kind
    gpu: str
    architecture: str
    element: Element
    variant: str
    widths: tuple[int, ...]
    extent: tuple[int, int]
    masked: bool
    resident: int
    microseconds: float
    threads: int
    registers: int
    shared_bytes: int
    driver: str
    nvrtc: str
    source: str
    clock_hz: float
    date: str

    @property
    def resources(self) -> Resources:
        """What a block of the kernel takes, as its compiler reported."""
        return Resources(self.registers, self.shared_bytes, self.threads, estimated=False)


def read_tile_records(path: Path) -> tuple[TileRecord, ...]:
    """The usable records of a file, in its order; none where there is no such file.

    What cannot be used (a damaged line, another version's, a file that is too large or not readable) is left out with a
    warning in the log.
    """
    if not path.exists():
        return ()
    records, problems = checked_tile_records(path)
    for line, reason in problems[:_SHOWN_WARNINGS]:
        _log.warning("%s, line %d is left out: %s", path, line, reason)
    if len(problems) > _SHOWN_WARNINGS:
        _log.warning("%s: %d more lines are left out", path, len(problems) - _SHOWN_WARNINGS)
    return records


def checked_tile_records(path: Path) -> tuple[tuple[TileRecord, ...], list[tuple[int, str]]]:
    """The usable records of a file, and each line that is not (0: the file as a whole) with the reason."""
    try:
        content = read_file(path, MAX_FILE_BYTES)
    except InputError as error:
        return (), [(0, f"the measured tile times are not used: {error}")]
    records: list[TileRecord] = []
    problems = []
    for number, line in enumerate(content.split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            records.append(parse_tile_record(line))
        except ValueError as error:
            problems.append((number, str(error)))
    return tuple(records), problems


def write_tile_records(path: Path, records: Iterable[TileRecord]) -> None:
    """Write the records as the whole content of a file.

    Raises ValueError for a record that could not be read back, InputError where the file cannot be written.
    """
    _write(path, b"".join(map(format_tile_record, records)))


def _write(path: Path, content: bytes) -> None:
    if len(content) > MAX_FILE_BYTES:
        raise InputError(
            f"cannot write {path}: it would have {len(content):,} bytes, and at most {MAX_FILE_BYTES:,} are allowed; "
            "delete the file and measure again"
        )
    atomic_write(path, content)


def format_tile_record(record: TileRecord) -> bytes:
    """The record as one line with its end; ValueError where ``parse_tile_record`` would refuse it."""
    line = json.dumps({"schema": SCHEMA, **asdict(record)}, separators=(",", ":"), allow_nan=False).encode()
    parse_tile_record(line)
    return line + b"\n"


def parse_tile_record(line: bytes) -> TileRecord:
    """The record in a line. Raises ValueError with the field and the value that is wrong."""
    if len(line) > MAX_LINE_BYTES:
        raise ValueError(f"it has {len(line):,} bytes; at most {MAX_LINE_BYTES:,} are allowed")
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        raise ValueError("it is not JSON") from None
    if not isinstance(entry, dict):
        raise ValueError("it is not a JSON object")
    if entry.get("schema") != SCHEMA:
        raise ValueError(f"its schema is {_shown(entry.get('schema'))}; this version reads {SCHEMA!r}")
    names = {field.name for field in fields(TileRecord)}
    if set(entry) != names | {"schema"}:
        raise ValueError(f"missing or unknown fields: {_shown(sorted(set(entry) ^ (names | {'schema'})))}")
    values = {name: check(entry, name) for name, check in _CHECKS.items()}
    if len(values["widths"]) != (2 if values["kind"] == "attention" else 1):
        raise ValueError(f"widths is {_shown(entry['widths'])}; attention has two, a convolution has one")
    return TileRecord(**values)


_Check = Callable[[Mapping[str, Any], str], Any]


def _whole(smallest: int, largest: int) -> _Check:
    def check(entry: Mapping[str, Any], name: str) -> int:
        return _whole_number(entry[name], name, smallest, largest)

    return check


def _wholes(fewest: int, most: int, largest: int) -> _Check:
    def check(entry: Mapping[str, Any], name: str) -> tuple[int, ...]:
        value = entry[name]
        if not isinstance(value, list) or not fewest <= len(value) <= most:
            raise ValueError(f"{name} is {_shown(value)}; it must be a list of {fewest} to {most} whole numbers")
        return tuple(_whole_number(item, name, 1, largest) for item in value)

    return check


def _number(smallest: float, largest: float) -> _Check:
    def check(entry: Mapping[str, Any], name: str) -> float:
        value = entry[name]
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not smallest <= value <= largest:
            raise ValueError(f"{name} is {_shown(value)}; it must be a number from {smallest:g} to {largest:g}")
        return float(value)

    return check


def _one_of(allowed: Iterable[str]) -> _Check:
    names = tuple(allowed)

    def check(entry: Mapping[str, Any], name: str) -> str:
        value = entry[name]
        if not isinstance(value, str) or value not in names:
            raise ValueError(f"{name} is {_shown(value)}; allowed: {', '.join(names)}")
        return value

    return check


def _text(entry: Mapping[str, Any], name: str) -> str:
    value = entry[name]
    if not isinstance(value, str) or not 0 < len(value) <= MAX_TEXT or not value.isprintable():
        raise ValueError(f"{name} is {_shown(value)}; it must be printable text of 1 to {MAX_TEXT} characters")
    return value


def _flag(entry: Mapping[str, Any], name: str) -> bool:
    value = entry[name]
    if not isinstance(value, bool):
        raise ValueError(f"{name} is {_shown(value)}; it must be true or false")
    return value


def _date(entry: Mapping[str, Any], name: str) -> str:
    value = entry[name]
    try:
        if isinstance(value, str) and _DATE.fullmatch(value):
            datetime.date.fromisoformat(value)
            return value
    except ValueError:
        pass
    raise ValueError(f"{name} is {_shown(value)}; it must be a date written YYYY-MM-DD")


def _whole_number(value: Any, name: str, smallest: int, largest: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not smallest <= value <= largest:
        raise ValueError(f"{name} is {_shown(value)}; it must be a whole number from {smallest} to {largest}")
    return value


def _shown(value: object) -> str:
    text = ascii(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


_CHECKS: Mapping[str, _Check] = {
    "kind": _one_of(get_args(Kind)),
    "gpu": _text,
    "architecture": _one_of(ARCHITECTURES),
    "element": _one_of(get_args(Element)),
    "variant": _text,
    "widths": _wholes(1, 2, 4096),
    "extent": _wholes(2, 2, 1 << 24),
    "masked": _flag,
    "resident": _whole(1, 256),
    "microseconds": _number(1e-3, 1e9),
    "threads": _whole(1, 4096),
    "registers": _whole(1, 1024),
    "shared_bytes": _whole(0, 4 << 20),
    "driver": _text,
    "nvrtc": _text,
    "source": _text,
    "clock_hz": _number(1e8, 1e10),
    "date": _date,
}
