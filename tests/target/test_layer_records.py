"""Measured layer times: kept by key beside tile times, given on as lines, and never trusted."""

from __future__ import annotations

import json
import logging
import sqlite3
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from onnxopt.target.layer_records import (
    LayerRecord,
    LayerShape,
    add_layers,
    format_layer_record,
    parse_layer_record,
    stored_layers,
    three_axes,
)
from onnxopt.target.tile_store import add_records, export_lines, import_lines, stored_records
from tests.target import records

SHAPE = LayerShape(1, 64, 128, 1, (1, 28, 28), (1, 3, 3), (1, 2, 2), (1, 1, 1), (0, 1, 1, 0, 1, 1))
RECORD = LayerRecord(
    gpu="NVIDIA H200",
    architecture="sm_90",
    element="fp16",
    shape=SHAPE,
    algorithm="im2col",
    layout="first",
    microseconds=11.5,
    host="onnxopt 0.1",
    driver="580.1",
    nvrtc="13.0.88",
    source="0123456789abcdef",
    clock_hz=1.83e9,
    date="2026-11-20",
)


def test_a_record_comes_back_as_it_was() -> None:
    assert parse_layer_record(format_layer_record(RECORD)) == RECORD


def test_a_layer_is_kept_once_for_each_key(tmp_path: Path) -> None:
    store = tmp_path / "cache" / "times.sqlite"
    assert stored_layers(store) == ()
    add_records(store, [records.RECORD])
    assert stored_layers(store) == ()
    add_layers(store, [RECORD, replace(RECORD, algorithm="keep", host="cuDNN 9.15")])
    add_layers(store, [replace(RECORD, microseconds=10.0, date="2026-11-21")])
    assert sorted(record.microseconds for record in stored_layers(store)) == [10.0, 11.5]
    assert stored_records(store) == (records.RECORD,)


def test_lines_carry_tiles_and_layers(tmp_path: Path) -> None:
    add_records(tmp_path / "a", [records.RECORD])
    add_layers(tmp_path / "a", [RECORD])
    assert export_lines(tmp_path / "a", tmp_path / "lines") == 2
    with (tmp_path / "lines").open("ab") as file:
        file.write(b'{"schema": "onnxopt.layer-record/1"}\n')
    count, problems = import_lines(tmp_path / "b", tmp_path / "lines")
    assert count == 2
    assert [number for number, _ in problems] == [3]
    assert stored_layers(tmp_path / "b") == (RECORD,)
    assert stored_records(tmp_path / "b") == (records.RECORD,)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("layout", "middle"),
        ("microseconds", -1),
        ("microseconds", True),
        ("size", [28, 28]),
        ("pads", [0, 0, 0, 0, 0, -1]),
        ("kernel", [1, 0, 3]),
        ("batch", 0),
        ("element", "fp8"),
        ("algorithm", ""),
        ("date", "yesterday"),
    ],
)
def test_a_damaged_field_is_named(field: str, value: Any) -> None:
    entry = json.loads(format_layer_record(RECORD))
    entry[field] = value
    with pytest.raises(ValueError, match=field):
        parse_layer_record(json.dumps(entry).encode())


def test_a_damaged_row_is_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = tmp_path / "times.sqlite"
    add_layers(store, [RECORD, replace(RECORD, element="bf16")])
    with closing(sqlite3.connect(store)) as opened, opened:
        opened.execute("UPDATE layer SET record = replace(record, '11.5', '-1') WHERE record LIKE '%bf16%'")
    with caplog.at_level(logging.WARNING):
        assert stored_layers(store) == (RECORD,)
    assert "microseconds" in caplog.text


def test_axes_in_front_are_filled() -> None:
    assert three_axes((3, 4), 1) == (1, 3, 4)
    assert three_axes((1, 2, 3), 0) == (1, 2, 3)
