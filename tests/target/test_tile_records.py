"""Measured tile times survive damage, and nothing is taken from a file unchecked."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from onnxopt.errors import InputError
from onnxopt.target import tile_records
from onnxopt.target.tile_records import (
    format_tile_record,
    parse_tile_record,
    read_tile_records,
    write_tile_records,
)
from onnxopt.target.variant import Resources
from tests.target.records import RECORD

CONV = replace(RECORD, kind="conv", variant="mma 64x32x128 w4 s3", widths=(9,), extent=(60, 20), masked=False)


def test_records_come_back_as_they_were_written(tmp_path: Path) -> None:
    path = tmp_path / "tiles.jsonl"
    assert read_tile_records(path) == ()
    write_tile_records(path, [RECORD, CONV])
    assert read_tile_records(path) == (RECORD, CONV)


def test_equal_records_are_equal_bytes(tmp_path: Path) -> None:
    write_tile_records(tmp_path / "a", [RECORD, CONV])
    write_tile_records(tmp_path / "b", read_tile_records(tmp_path / "a"))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_record_gives_the_compilers_resources() -> None:
    assert RECORD.resources == Resources(168, 41984, 128, estimated=False)


def test_damaged_lines_are_a_warning_and_the_rest_counts(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "tiles.jsonl"
    other = format_tile_record(RECORD).replace(b"tile-record/2", b"tile-record/9")
    damage = [b"{half a li\n", b"\xff\xfe\n", b"[]\n", other, b"[" * 2000 + b"\n", b"x" * 5000 + b"\n", b"\n"]
    path.write_bytes(format_tile_record(RECORD) + b"".join(damage) + format_tile_record(CONV))
    with caplog.at_level(logging.WARNING):
        assert read_tile_records(path) == (RECORD, CONV)
    assert "line 2 is left out: it is not JSON" in caplog.text
    assert "3 more lines are left out" in caplog.text


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("kind", "gemm", "allowed: attention, conv"),
        ("gpu", "", "printable text"),
        ("gpu", "a\nb", "printable text"),
        ("architecture", "sm_70", "allowed: sm_75"),
        ("element", "int8", "allowed: fp16"),
        ("variant", "x" * 201, "1 to 200 characters"),
        ("widths", [64], "attention has two"),
        ("widths", [64, 64, 64], "a list of 1 to 2"),
        ("widths", [0, 64], "from 1 to 4096"),
        ("widths", 64, "a list of"),
        ("extent", [64, 10**9], "from 1 to 16777216"),
        ("extent", [64, 1.5], "a whole number"),
        ("masked", 1, "true or false"),
        ("resident", 0, "from 1 to 256"),
        ("resident", True, "a whole number"),
        ("microseconds", -1.0, "from 0.001"),
        ("microseconds", "fast", "a number"),
        ("microseconds", 10**400, "a number"),
        ("threads", 10**6, "from 1 to 4096"),
        ("registers", 0, "from 1 to 1024"),
        ("shared_bytes", 1 << 30, "from 0 to"),
        ("clock_hz", 1.0, "from 1e+08"),
        ("date", "2026-13-01", "YYYY-MM-DD"),
        ("date", "20261101", "YYYY-MM-DD"),
    ],
)
def test_every_field_is_checked(field: str, value: Any, message: str) -> None:
    entry = json.loads(format_tile_record(RECORD)) | {field: value}
    with pytest.raises(ValueError, match=field) as caught:
        parse_tile_record(json.dumps(entry).encode())
    assert message in str(caught.value)


@pytest.mark.parametrize("text", ["NaN", "Infinity", "-Infinity"])
def test_no_time_is_infinite_or_nan(text: str) -> None:
    with pytest.raises(ValueError, match="microseconds"):
        parse_tile_record(format_tile_record(RECORD).replace(b"12.5", text.encode()))
    with pytest.raises(ValueError, match="not JSON compliant"):
        format_tile_record(replace(RECORD, microseconds=float(text)))


def test_missing_and_unknown_fields_are_named() -> None:
    entry = json.loads(format_tile_record(RECORD))
    with pytest.raises(ValueError, match="resident"):
        parse_tile_record(json.dumps({k: v for k, v in entry.items() if k != "resident"}).encode())
    with pytest.raises(ValueError, match="surprise"):
        parse_tile_record(json.dumps(entry | {"surprise": 1}).encode())


def test_a_file_that_is_too_large_is_not_read_or_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "tiles.jsonl"
    write_tile_records(path, [RECORD])
    before = path.read_bytes()
    monkeypatch.setattr(tile_records, "MAX_FILE_BYTES", len(before))
    with pytest.raises(InputError, match="delete the file"):
        write_tile_records(path, [RECORD, CONV])
    assert path.read_bytes() == before
    monkeypatch.setattr(tile_records, "MAX_FILE_BYTES", len(before) - 1)
    with caplog.at_level(logging.WARNING):
        assert read_tile_records(path) == ()
    assert "not used" in caplog.text


def test_a_folder_is_not_a_file_of_records(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert read_tile_records(tmp_path) == ()
    assert "not used" in caplog.text
    with pytest.raises(InputError):
        write_tile_records(tmp_path, [RECORD])
