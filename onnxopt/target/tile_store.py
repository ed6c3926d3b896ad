"""The measured tile times of this machine: a SQLite file, so that several processes may add to it at once.

Each (GPU, driver, NVRTC, source, shape, size) has one record, the latest. The file is untrusted: what it holds is read
as the lines that :mod:`onnxopt.target.tile_records` checks field by field; a damaged one is left out with a warning.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable
from pathlib import Path

from onnxopt.errors import InputError
from onnxopt.model.files import atomic_write, read_file
from onnxopt.target import layer_records
from onnxopt.target.record_file import FILE_NAME as FILE_NAME
from onnxopt.target.record_file import read_lines, writable
from onnxopt.target.record_lines import schema_of
from onnxopt.target.tile_records import MAX_FILE_BYTES, TileRecord, format_tile_record, parse_tile_record

_ORDER = "gpu, driver, nvrtc, source, kind, element, variant, widths, extent, masked, resident"
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
    lines, problem = read_lines(path, "tile", _ORDER)
    if problem:
        return (), [(0, problem)]
    records, problems = [], []
    for number, line in enumerate(lines, start=1):
        try:
            records.append(parse_tile_record(line))
        except ValueError as error:
            problems.append((number, str(error)))
    return tuple(records), problems


def add_records(path: Path, records: Iterable[TileRecord]) -> int:
    """Add records, each in place of an older one of the same key; how many there were.

    Raises ValueError for a record that could not be read back, InputError where the file cannot be written.
    """
    lines = [(*_key(record), format_tile_record(record).decode().rstrip("\n")) for record in records]
    with writable(path) as store:
        store.execute(_TABLE)
        store.executemany(f"INSERT OR REPLACE INTO tile VALUES ({', '.join('?' * 12)})", lines)
    return len(lines)


def import_lines(path: Path, lines: Path) -> tuple[int, list[tuple[int, str]]]:
    """Add the records of a file of lines, tiles and layers; how many, and the lines not used with the reason.

    Raises InputError where that file does not exist or the store cannot be written.
    """
    if not lines.is_file():
        raise InputError(f"{lines}: no such file; name one that `onnxopt profile --export` has written")
    tiles: list[TileRecord] = []
    layers: list[layer_records.LayerRecord] = []
    problems = []
    for number, line in enumerate(read_file(lines, MAX_FILE_BYTES).split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            if schema_of(line) == layer_records.SCHEMA:
                layers.append(layer_records.parse_layer_record(line))
            else:
                tiles.append(parse_tile_record(line))
        except ValueError as error:
            problems.append((number, str(error)))
    count = add_records(path, tiles) if tiles else 0
    return count + (layer_records.add_layers(path, layers) if layers else 0), problems


def export_lines(path: Path, lines: Path) -> int:
    """Write all usable records, tiles and layers, as lines; how many.

    Raises InputError where there are none, or the file cannot be written.
    """
    records, problems = checked_store(path)
    layers = layer_records.stored_layers(path)
    if not records and not layers:
        said = f": {problems[0][1]}" if problems else ""
        raise InputError(f"{path}: no measured tile times to export{said}; `onnxopt profile` measures them")
    for number, reason in problems[:3]:
        _log.warning("%s, record %d is left out: %s", path, number, reason)
    own = [format_tile_record(record) for record in records]
    own += [layer_records.format_layer_record(record) + b"\n" for record in layers]
    atomic_write(lines, b"".join(own))
    return len(own)


def _key(record: TileRecord) -> tuple[str | int, ...]:
    sizes = (json.dumps(record.widths), json.dumps(record.extent))
    names = (record.gpu, record.driver, record.nvrtc, record.source, record.kind, record.element, record.variant)
    return (*names, *sizes, int(record.masked), record.resident)
