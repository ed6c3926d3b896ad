"""Tuning records: what was measured, kept in a file, so that a later plan is a function of the records.

One JSON object per line, appended by any number of processes. The file is untrusted: every line is checked,
and a damaged one is a warning, never an error.
"""

from __future__ import annotations

import json
import logging
import math
import os
import re
import stat
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onnxopt.errors import InputError, shown
from onnxopt.measure.environment import Environment
from onnxopt.measure.timing import PairTiming
from onnxopt.model.files import read_file

SCHEMA = "onnxopt.record/1"
FILE_NAME = "tuning-cpu.jsonl"
MAX_FILE_BYTES = 64 << 20
MAX_LINE_BYTES = 2048
MAX_TEXT = 200

_MAX_PAIRS = 1_000_000
_MAX_MICROSECONDS = 1e12
_MAX_RATIO = 1e9
_MAX_THREADS = 4096
_LOCK_SECONDS = 5.0
_KEY = re.compile(r"[0-9a-f]{64}")
_NUMBERS = ("original_us", "candidate_us", "ratio", "low", "high")
_FIELDS = {"schema", "key", "kind", "machine", "onnxruntime", "threads", "pairs", *_NUMBERS}

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Record:
    """One measured choice: ``key`` from ``record_key``, ``kind`` the kind of site ('attention', 'conv')."""

    key: str
    kind: str
    timing: PairTiming
    environment: Environment


@dataclass(frozen=True)
class LineProblem:
    """A line (counted from 1; 0 is the file as a whole) that cannot be used, and why."""

    line: int
    reason: str


class RecordStore:
    """The records of one file. What the file holds when it is first asked is what this store knows, plus what
    it adds.

    Nothing here raises for the state of the disk: a cache that cannot be read or written costs time, not the
    result.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._records: dict[str, Record] | None = None

    def find(self, key: str) -> Record | None:
        """The last record with this key."""
        return self._load().get(key)

    def add(self, record: Record) -> None:
        """Keep a record, here and in the file. Raises ValueError for one that could not be read back."""
        line = format_line(record)
        self._load()[record.key] = record
        try:
            _append(self.path, line)
        except OSError as error:
            _log.warning("the tuning record is not kept: cannot write %s: %s", self.path, error.strerror or error)

    def _load(self) -> dict[str, Record]:
        if self._records is None:
            records, problems = read_records(self.path)
            for problem in problems[:3]:
                _log.warning("%s, line %d is left out: %s", self.path, problem.line, problem.reason)
            if len(problems) > 3:
                _log.warning("%s: %d more lines are left out; see `onnxopt cache verify`", self.path, len(problems) - 3)
            self._records = {record.key: record for record in records}
        return self._records


def read_records(path: Path) -> tuple[list[Record], list[LineProblem]]:
    """The usable records of a file, in its order, and what is not usable; a missing file has neither."""
    if not path.exists():
        return [], []
    try:
        content = read_file(path, MAX_FILE_BYTES)
    except InputError as error:
        return [], [LineProblem(0, str(error))]
    records: list[Record] = []
    problems: list[LineProblem] = []
    for number, line in enumerate(content.split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            records.append(parse_line(line))
        except ValueError as error:
            problems.append(LineProblem(number, str(error)))
    return records, problems


def format_line(record: Record) -> bytes:
    """The record as one line with its end; ValueError where ``parse_line`` would refuse it."""
    timing, environment = record.timing, record.environment
    entry = {
        "schema": SCHEMA,
        "key": record.key,
        "kind": record.kind,
        **{name: getattr(timing, name) for name in _NUMBERS},
        "pairs": timing.pairs,
        "machine": environment.machine,
        "onnxruntime": environment.onnxruntime,
        "threads": environment.threads,
    }
    line = json.dumps(entry, separators=(",", ":")).encode()
    parse_line(line)
    return line + b"\n"


def parse_line(line: bytes) -> Record:
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
        raise ValueError(f"its schema is {shown(entry.get('schema'))}; this version reads {SCHEMA!r}")
    if set(entry) != _FIELDS:
        raise ValueError(f"missing or unknown fields: {shown(sorted(set(entry) ^ _FIELDS))}")
    key = entry["key"]
    if not isinstance(key, str) or not _KEY.fullmatch(key):
        raise ValueError(f"key is {shown(key)}; it must be 64 hexadecimal digits")
    limits = {"original_us": _MAX_MICROSECONDS, "candidate_us": _MAX_MICROSECONDS}
    numbers = {name: _number(entry, name, limits.get(name, _MAX_RATIO)) for name in _NUMBERS}
    if not numbers["low"] <= numbers["ratio"] <= numbers["high"]:
        raise ValueError("ratio must lie between low and high")
    return Record(
        key=key,
        kind=_text(entry, "kind"),
        timing=PairTiming(**numbers, pairs=_whole(entry, "pairs", 1, _MAX_PAIRS)),
        environment=Environment(
            machine=_text(entry, "machine"),
            onnxruntime=_text(entry, "onnxruntime"),
            threads=_whole(entry, "threads", 0, _MAX_THREADS),
        ),
    )


def _number(entry: Mapping[str, Any], name: str, largest: float) -> float:
    value = entry[name]
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value <= largest or math.isnan(value):
        raise ValueError(f"{name} is {shown(value)}; it must be a number above 0 and at most {largest:g}")
    return float(value)


def _whole(entry: Mapping[str, Any], name: str, smallest: int, largest: int) -> int:
    value = entry[name]
    if isinstance(value, bool) or not isinstance(value, int) or not smallest <= value <= largest:
        raise ValueError(f"{name} is {shown(value)}; it must be a whole number from {smallest} to {largest}")
    return value


def _text(entry: Mapping[str, Any], name: str) -> str:
    value = entry[name]
    if not isinstance(value, str) or not 0 < len(value) <= MAX_TEXT or not value.isprintable():
        raise ValueError(f"{name} is {shown(value)}; it must be printable text of 1 to {MAX_TEXT} characters")
    return value


def _append(path: Path, line: bytes) -> None:
    """One write at the end of the file, under a lock, so that lines of two processes never mix."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(
        path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW, 0o644
    )
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError("it is not a regular file")
        with _locked(descriptor):
            size = os.fstat(descriptor).st_size
            if size + len(line) > MAX_FILE_BYTES:
                raise OSError(f"it has reached {MAX_FILE_BYTES >> 20} MiB; run `onnxopt cache clear`")
            # A process that was killed while writing leaves half a line; the next line must not continue it.
            broken = size > 0 and os.pread(descriptor, 1, size - 1) != b"\n"
            content = b"\n" + line if broken else line
            if os.write(descriptor, content) != len(content):
                raise OSError("the disk is full")
    finally:
        os.close(descriptor)


@contextmanager
def _locked(descriptor: int) -> Iterator[None]:
    """An exclusive lock on the file; a process that hangs while it holds the lock must not stop this one."""
    import fcntl

    deadline = time.monotonic() + _LOCK_SECONDS
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            if time.monotonic() >= deadline:
                raise OSError(f"another process has kept it locked for {_LOCK_SECONDS:.0f} s") from None
            time.sleep(0.005)
    try:
        yield
    finally:
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_UN)
