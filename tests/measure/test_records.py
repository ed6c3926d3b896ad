"""Tuning records survive damage, other versions and other processes."""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
from dataclasses import replace
from pathlib import Path

import pytest

from onnxopt.errors import InputError
from onnxopt.measure import records
from onnxopt.measure.cache import clear_cache, list_cache, verify_cache
from onnxopt.measure.environment import Environment, current_environment
from onnxopt.measure.paths import default_cache_dir
from onnxopt.measure.records import FILE_NAME, Record, RecordStore, format_line, parse_line, read_records
from onnxopt.measure.timing import PairTiming

TIMING = PairTiming(original_us=30.0, candidate_us=10.0, ratio=3.0, low=2.9, high=3.2, pairs=21)
ENVIRONMENT = Environment(machine="some processor, 2 cores", onnxruntime="1.0", threads=0)


def record(number: int = 0, ratio: float = 3.0) -> Record:
    timing = replace(TIMING, ratio=ratio, low=min(ratio, 2.9), high=max(ratio, 3.2))
    return Record(key=f"{number:064x}", kind="attention", timing=timing, environment=ENVIRONMENT)


def test_record_comes_back_in_another_store(tmp_path: Path) -> None:
    path = tmp_path / "new" / FILE_NAME
    store = RecordStore(path)
    assert store.find(record().key) is None
    store.add(record())
    assert store.find(record().key) == record()
    assert RecordStore(path).find(record().key) == record()


def test_last_record_of_a_key_wins(tmp_path: Path) -> None:
    path = tmp_path / FILE_NAME
    store = RecordStore(path)
    store.add(record(1, ratio=3.0))
    store.add(record(1, ratio=0.5))
    assert store.find(record(1).key) == RecordStore(path).find(record(1).key) == record(1, ratio=0.5)


def test_store_does_not_change_while_it_is_used(tmp_path: Path) -> None:
    path = tmp_path / FILE_NAME
    store = RecordStore(path)
    assert store.find(record().key) is None
    RecordStore(path).add(record())
    assert store.find(record().key) is None


def test_damaged_lines_are_a_warning_and_the_rest_counts(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / FILE_NAME
    content = [
        format_line(record(1)),
        b"{half a li\n",
        b"\xff\xfe\n",
        b"\n",
        b"[1]\n",
        b"7\n",
        format_line(record(2)),
    ]
    path.write_bytes(b"".join(content))
    store = RecordStore(path)
    with caplog.at_level(logging.WARNING):
        assert store.find(record(2).key) == record(2)
    assert store.find(record(1).key) == record(1)
    assert "line 2 is left out: it is not JSON" in caplog.text
    assert "1 more lines" in caplog.text


def test_record_after_half_a_line_is_not_lost(tmp_path: Path) -> None:
    path = tmp_path / FILE_NAME
    path.write_bytes(format_line(record(1)) + b'{"schema":"onnxopt.rec')
    RecordStore(path).add(record(2))
    found, problems = read_records(path)
    assert [r.key for r in found] == [record(1).key, record(2).key]
    assert [p.line for p in problems] == [2]


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        ("schema", "onnxopt.record/2", "schema is 'onnxopt.record/2'"),
        ("key", "zz", "64 hexadecimal digits"),
        ("key", ["a"], "64 hexadecimal digits"),
        ("kind", "a" * 201, "printable text of 1 to 200"),
        ("kind", "a\x1b[31m", "printable text"),
        ("machine", "", "printable text"),
        ("onnxruntime", 1, "printable text"),
        ("ratio", -1, "above 0"),
        ("ratio", float("nan"), "above 0"),
        ("ratio", float("inf"), "above 0"),
        ("ratio", "3", "above 0"),
        ("ratio", True, "above 0"),
        ("ratio", 10**400, "above 0"),
        ("ratio", 4.0, "between low and high"),
        ("original_us", 1e300, "at most 1e+12"),
        ("pairs", 0, "whole number from 1"),
        ("pairs", 1.5, "whole number from 1"),
        ("threads", -1, "whole number from 0"),
        ("more", 1, "unknown fields"),
    ],
)
def test_values_that_cannot_be_believed(field: str, value: object, reason: str) -> None:
    entry = json.loads(format_line(record()))
    entry[field] = value
    with pytest.raises(ValueError, match=reason.replace("+", r"\+")):
        parse_line(json.dumps(entry).encode())


def test_missing_field_deep_nesting_and_long_line() -> None:
    entry = json.loads(format_line(record()))
    del entry["pairs"]
    with pytest.raises(ValueError, match="fields: .'pairs'"):
        parse_line(json.dumps(entry).encode())
    with pytest.raises(ValueError, match="not JSON"):
        parse_line(b"[" * 2000)
    with pytest.raises(ValueError, match="at most 2,048"):
        parse_line(b"1" * 3000)


def test_record_that_could_not_be_read_back_is_not_kept(tmp_path: Path) -> None:
    store = RecordStore(tmp_path / FILE_NAME)
    with pytest.raises(ValueError, match="above 0"):
        store.add(record(ratio=-1.0))
    assert list(tmp_path.iterdir()) == []


def test_oversize_file_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / FILE_NAME
    RecordStore(path).add(record(1))
    monkeypatch.setattr(records, "MAX_FILE_BYTES", path.stat().st_size - 1)
    store = RecordStore(path)
    assert store.find(record(1).key) is None
    store.add(record(2))
    assert store.find(record(2).key) == record(2)
    assert "are allowed" in caplog.text
    assert "onnxopt cache clear" in caplog.text


def test_place_that_cannot_be_written_is_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("not a folder")
    store = RecordStore(tmp_path / "file" / FILE_NAME)
    store.add(record())
    assert store.find(record().key) == record()
    assert "is not kept" in caplog.text


def test_link_and_pipe_are_not_written_through(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (tmp_path / "link").symlink_to(victim)
    os.mkfifo(tmp_path / "pipe")
    for name in ("link", "pipe"):
        RecordStore(tmp_path / name).add(record())
    assert victim.read_text() == "precious"
    assert caplog.text.count("is not kept") == 2


def _write_many(path: Path, first: int, count: int) -> None:
    store = RecordStore(path)
    for number in range(first, first + count):
        store.add(record(number))


def test_two_processes_write_into_one_file(tmp_path: Path) -> None:
    path = tmp_path / FILE_NAME
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=_write_many, args=(path, first, 200)) for first in (0, 1000)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(60)
        assert writer.exitcode == 0
    found, problems = read_records(path)
    assert problems == []
    assert sorted(int(r.key, 16) for r in found) == [*range(200), *range(1000, 1200)]


def test_lock_that_is_never_given_back_costs_the_record_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    import fcntl

    monkeypatch.setattr(records, "_LOCK_SECONDS", 0.01)
    path = tmp_path / FILE_NAME
    with path.open("wb") as holder:
        fcntl.flock(holder, fcntl.LOCK_EX)
        RecordStore(path).add(record())
    assert "kept it locked" in caplog.text


def test_cache_is_listed_verified_and_cleared(tmp_path: Path) -> None:
    assert (
        list_cache(tmp_path / "missing")
        == verify_cache(tmp_path / "missing")
        == clear_cache(tmp_path / "missing")
        == []
    )
    path = tmp_path / FILE_NAME
    RecordStore(path).add(record())
    (tmp_path / "mine.txt").write_text("stays")
    (file,) = list_cache(tmp_path)
    assert (file.path, file.entries, file.problems) == (path, 1, ())
    assert verify_cache(tmp_path) == []
    with path.open("ab") as stream:
        stream.write(b"broken\n")
    (file,) = verify_cache(tmp_path)
    assert [(p.line, p.reason) for p in file.problems] == [(2, "it is not JSON")]
    assert clear_cache(tmp_path) == [path]
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]


def test_cache_folder_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="is not a folder"):
        list_cache(tmp_path / "file")


@pytest.mark.parametrize(
    ("environment", "platform", "expected"),
    [
        ({"HOME": "/home/me"}, "linux", "/home/me/.cache/onnxopt"),
        ({"HOME": "/home/me", "XDG_CACHE_HOME": "/fast"}, "linux", "/fast/onnxopt"),
        ({"HOME": "/home/me", "XDG_CACHE_HOME": "relative"}, "linux", "/home/me/.cache/onnxopt"),
        ({"HOME": "/Users/me"}, "darwin", "/Users/me/Library/Caches/onnxopt"),
        ({"HOME": "/home/me", "LOCALAPPDATA": "/local"}, "win32", "/local/onnxopt"),
    ],
)
def test_default_folder(environment: dict[str, str], platform: str, expected: str) -> None:
    assert default_cache_dir(environment, platform) == Path(expected)


def test_environment_of_this_machine_fits_into_a_record() -> None:
    environment = current_environment(threads=2)
    line = format_line(replace(record(), environment=environment))
    assert parse_line(line).environment == environment
