"""Measured times of single tiles of our kernels on a GPU, as lines that one machine gives to another.

One JSON object per line. The file is untrusted: every line is checked field by field, and a damaged one is left out
with a warning.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, get_args

from onnxopt.errors import InputError
from onnxopt.model.files import atomic_write, read_file
from onnxopt.target import record_lines
from onnxopt.target.architecture import ARCHITECTURES
from onnxopt.target.variant import Element, Resources

SCHEMA = "onnxopt.tile-record/2"
MAX_FILE_BYTES = 64 << 20

Kind = Literal["attention", "conv"]

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
    line = record_lines.format_line(SCHEMA, asdict(record))
    parse_tile_record(line)
    return line + b"\n"


def parse_tile_record(line: bytes) -> TileRecord:
    """The record in a line. Raises ValueError with the field and the value that is wrong."""
    values = record_lines.parse_line(line, SCHEMA, _CHECKS)
    if len(values["widths"]) != (2 if values["kind"] == "attention" else 1):
        seen = record_lines.shown(values["widths"])
        raise ValueError(f"widths is {seen}; attention has two, a convolution has one")
    return TileRecord(**values)


_CHECKS: Mapping[str, record_lines.Check] = {
    "kind": record_lines.one_of(get_args(Kind)),
    "gpu": record_lines.text,
    "architecture": record_lines.one_of(ARCHITECTURES),
    "element": record_lines.one_of(get_args(Element)),
    "variant": record_lines.text,
    "widths": record_lines.wholes(1, 2, 4096),
    "extent": record_lines.wholes(2, 2, 1 << 24),
    "masked": record_lines.flag,
    "resident": record_lines.whole(1, 256),
    "microseconds": record_lines.number(1e-3, 1e9),
    "threads": record_lines.whole(1, 4096),
    "registers": record_lines.whole(1, 1024),
    "shared_bytes": record_lines.whole(0, 4 << 20),
    "driver": record_lines.text,
    "nvrtc": record_lines.text,
    "source": record_lines.text,
    "clock_hz": record_lines.number(1e8, 1e10),
    "date": record_lines.date,
}
