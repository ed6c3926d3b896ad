"""The measured tile times of this machine: a SQLite file, so that several processes may add to it at once.

Each (GPU, driver, NVRTC, source, shape, size) has one record, the latest. The file is untrusted: what it holds is read
as the lines that :mod:`onnxopt.target.tile_records` checks field by field; a damaged one is left out with a warning.
"""

from __future__ import annotations

import json
import logging
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from onnxopt.errors import InputError
from onnxopt.target.tile_records import (
    TileRecord,
    checked_tile_records,
    format_tile_record,
    parse_tile_record,
    write_tile_records,
)

FILE_NAME = "tuning-gpu.sqlite"
_MOST_BYTES = 256 << 20
_MOST_RECORDS = 1_000_000
_WAIT_SECONDS = 20.0

_TABLE = """
CREATE TABLE IF NOT EXISTS tile (
  gpu TEXT, driver TEXT, nvrtc TEXT, source TEXT, kind TEXT, element TEXT, variant TEXT, widths TEXT, extent TEXT,
  masked INTEGER, resident INTEGER, record TEXT NOT NULL,
  PRIMARY KEY (gpu, driver, nvrtc, source, kind, element, variant, widths, extent, masked, resident)
) WITHOUT ROWID
"""

_log = logging.getLogger(__name__)


def stored_records(path: Path) -> tuple[TileRecord, ...]:
    """The usable records in the order of their keys; none where there is no such file, or a damaged one (a warning)."""
    records, problems = checked_store(path)
    for number, reason in problems[:3]:
        _log.warning("%s%s: %s", path, f", record {number} is left out" if number else "", reason)
    return records


def checked_store(path: Path) -> tuple[tuple[TileRecord, ...], list[tuple[int, str]]]:
    """The usable records, and each that is not, by its number in the file (0: the file as a whole), with the reason."""
    if not path.exists():
        return (), []
    try:
        if path.stat().st_size > _MOST_BYTES:
            return (), [(0, f"larger than {_MOST_BYTES:,} bytes; delete it and measure again")]
        with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True, timeout=_WAIT_SECONDS)) as store:
            query = (
                "SELECT record FROM tile ORDER BY gpu, driver, nvrtc, source, kind, element, variant, widths, extent"
            )
            rows = store.execute(f"{query}, masked, resident LIMIT {_MOST_RECORDS}").fetchall()
    except (OSError, sqlite3.Error) as error:
        return (), [(0, f"the measured tile times are not used: {error}; delete the file and measure again")]
    records, problems = [], []
    for number, (line,) in enumerate(rows, start=1):
        try:
            records.append(parse_tile_record(line.encode() if isinstance(line, str) else bytes(line)))
        except (TypeError, ValueError) as error:
            problems.append((number, str(error)))
    return tuple(records), problems


def add_records(path: Path, records: Iterable[TileRecord]) -> int:
    """Add records, each in place of an older one of the same key; how many there were.

    Raises ValueError for a record that could not be read back, InputError where the file cannot be written.
    """
    lines = [(*_key(record), format_tile_record(record).decode().rstrip("\n")) for record in records]
    with _writable(path) as store:
        store.execute(_TABLE)
        store.executemany(f"INSERT OR REPLACE INTO tile VALUES ({', '.join('?' * 12)})", lines)
    return len(lines)


def import_lines(path: Path, lines: Path) -> tuple[int, list[tuple[int, str]]]:
    """Add the records of a file of lines; how many, and the lines that could not be used with the reason.

    Raises InputError where that file does not exist or the store cannot be written.
    """
    if not lines.is_file():
        raise InputError(f"{lines}: no such file; name one that `onnxopt profile --export` has written")
    records, problems = checked_tile_records(lines)
    return add_records(path, records), problems


def export_lines(path: Path, lines: Path) -> int:
    """Write all usable records as lines; how many.

    Raises InputError where there are none, or the file cannot be written.
    """
    records, problems = checked_store(path)
    if not records:
        said = f": {problems[0][1]}" if problems else ""
        raise InputError(f"{path}: no measured tile times to export{said}; `onnxopt profile` measures them")
    for number, reason in problems[:3]:
        _log.warning("%s, record %d is left out: %s", path, number, reason)
    write_tile_records(lines, records)
    return len(records)


def _key(record: TileRecord) -> tuple[str | int, ...]:
    sizes = (json.dumps(record.widths), json.dumps(record.extent))
    names = (record.gpu, record.driver, record.nvrtc, record.source, record.kind, record.element, record.variant)
    return (*names, *sizes, int(record.masked), record.resident)


@contextmanager
def _writable(path: Path) -> Iterator[sqlite3.Connection]:
    """A transaction; nothing of it stays where it fails."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with closing(sqlite3.connect(path, timeout=_WAIT_SECONDS)) as store, store:
            yield store
    except (OSError, sqlite3.Error) as error:
        raise InputError(
            f"cannot write {path}: {error}; free space or correct its permissions, or delete it and measure again"
        ) from error
