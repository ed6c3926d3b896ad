"""Measured tile times in SQLite: kept by key, given on as lines, and never trusted."""

from __future__ import annotations

import logging
import sqlite3
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from onnxopt.errors import InputError
from onnxopt.target.tile_records import read_tile_records
from onnxopt.target.tile_store import add_records, checked_store, export_lines, import_lines, stored_records
from tests.target import records

RECORD = replace(records.RECORD, extent=(64, 256), masked=False, microseconds=4.5)


def test_a_record_is_kept_once_for_each_key(tmp_path: Path) -> None:
    store = tmp_path / "cache" / "tiles.sqlite"
    assert stored_records(store) == ()
    assert add_records(store, [RECORD, replace(RECORD, extent=(64, 512))]) == 2
    add_records(store, [replace(RECORD, microseconds=4.0)])
    assert [record.microseconds for record in stored_records(store)] == [4.0, 4.5]
    add_records(store, [replace(RECORD, driver="13.1"), replace(RECORD, source="other")])
    assert len(stored_records(store)) == 4


def test_lines_carry_all_records_to_another_store(tmp_path: Path) -> None:
    add_records(tmp_path / "a", [RECORD, replace(RECORD, masked=True)])
    assert export_lines(tmp_path / "a", tmp_path / "lines") == 2
    assert read_tile_records(tmp_path / "lines") == stored_records(tmp_path / "a")
    assert import_lines(tmp_path / "b", tmp_path / "lines") == (2, [])
    assert stored_records(tmp_path / "b") == stored_records(tmp_path / "a")
    with pytest.raises(InputError, match="no such file"):
        import_lines(tmp_path / "b", tmp_path / "missing")


def test_a_damaged_file_or_record_is_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = tmp_path / "tiles.sqlite"
    add_records(store, [RECORD, replace(RECORD, extent=(64, 512))])
    with sqlite3.connect(store) as opened:
        opened.execute("UPDATE tile SET record = replace(record, '4.5', '-4.5') WHERE extent = '[64, 512]'")
    opened.close()
    with caplog.at_level(logging.WARNING):
        assert stored_records(store) == (RECORD,)
    assert "microseconds" in caplog.text
    store.write_bytes(b"nothing of this is SQLite" * 100)
    assert checked_store(store)[1][0][0] == 0
    with pytest.raises(InputError, match="delete it and measure again"):
        add_records(store, [RECORD])


def test_several_writers_lose_nothing(tmp_path: Path) -> None:
    store = tmp_path / "tiles.sqlite"
    records = [replace(RECORD, extent=(64, 16 * n)) for n in range(1, 41)]
    threads = [threading.Thread(target=add_records, args=(store, records[i::4])) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(stored_records(store)) == len(records)
