"""Files appear whole or not at all, whatever happens while they are written."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest

from onnxopt.errors import InputError
from onnxopt.model.files import atomic_file, atomic_write, memory_budget, read_file


def test_a_file_is_written_and_replaced(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    atomic_write(path, b"one")
    atomic_write(str(path), b"two")
    assert path.read_bytes() == b"two"
    assert os.listdir(tmp_path) == ["plan.json"]


def test_the_file_follows_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        atomic_write(tmp_path / "file", b"")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o644


@pytest.mark.parametrize("error", [KeyboardInterrupt(), MemoryError(), InputError("refused")])
def test_an_interruption_leaves_the_old_file_and_nothing_else(tmp_path: Path, error: BaseException) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def write_half() -> None:
        with atomic_file(path) as file:
            file.write(b"half")
            raise error

    with pytest.raises(type(error)):
        write_half()
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


def test_a_full_disk_is_reported_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InputError, match="No space left on device; nothing was written") as caught:
        atomic_write(tmp_path / "file", b"data")
    assert str(tmp_path / "file") in str(caught.value)
    assert os.listdir(tmp_path) == []


def test_a_missing_folder_is_reported(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no folder .*; create it first"):
        atomic_write(tmp_path / "absent" / "file", b"")


def test_a_folder_is_not_replaced(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is a folder"):
        atomic_write(tmp_path, b"")


def test_a_device_is_not_replaced() -> None:
    with pytest.raises(InputError, match="is a device"):
        atomic_write("/dev/null", b"")
    assert stat.S_ISCHR(Path("/dev/null").stat().st_mode)


def test_a_path_with_a_zero_byte_is_refused() -> None:
    with pytest.raises(InputError, match="null"):
        atomic_write("a\0b", b"")


def test_a_link_is_replaced_and_not_followed(tmp_path: Path) -> None:
    (tmp_path / "target").write_bytes(b"old")
    (tmp_path / "link").symlink_to("target")
    atomic_write(tmp_path / "link", b"new")
    assert (tmp_path / "target").read_bytes() == b"old"
    assert not (tmp_path / "link").is_symlink()


def test_a_file_is_read_up_to_the_limit(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"12345")
    assert read_file(tmp_path / "file", 5) == b"12345"
    with pytest.raises(InputError, match="has 5 bytes; at most 4"):
        read_file(tmp_path / "file", 4)


def test_refusing_a_folder_closes_it(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        with pytest.raises(InputError, match="is a folder"):
            read_file(tmp_path, 100)
    assert len(os.listdir("/proc/self/fd")) == before


def test_the_budget_is_a_share_of_memory() -> None:
    assert 1 << 28 < memory_budget() < 1 << 50
