"""Loads tensors that a model keeps in other files, without trusting a word of what the model says about them.

Every path is walked step by step from the model's own folder with descriptors that never follow a link, and
every fact about a file is taken from the opened descriptor: nothing can be exchanged between check and use.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import BinaryIO

from onnxopt.errors import InputError
from onnxopt.model.files import open_regular
from onnxopt.model.tensors import StoredTensor, has_values, tensor_bytes

_KEYS = ("location", "offset", "length", "checksum")
_NUMBER = re.compile(r"[0-9]{1,19}", re.ASCII)


@dataclass(frozen=True)
class ExternalRange:
    """Where the bytes of one tensor lie: a file below the model's folder, and a range of bytes in it."""

    stored: StoredTensor
    location: str
    offset: int
    length: int


def external_range(stored: StoredTensor) -> ExternalRange:
    """Reads and checks what a tensor says about its external data; opens nothing.

    Raises InputError for unknown, repeated or missing keys, a path that leaves the model's folder, a number
    that is not a plain decimal, or a length that differs from what the shape and element type need.
    """
    entries: dict[str, str] = {}
    for entry in stored.tensor.external_data:
        if entry.key not in _KEYS:
            raise InputError(f"{stored.place} has the external data key {entry.key!r}; allowed are {', '.join(_KEYS)}")
        if entry.key in entries:
            raise InputError(f"{stored.place} gives the external data key {entry.key!r} twice")
        entries[entry.key] = entry.value
    if "location" not in entries:
        raise InputError(f"{stored.place} has external data without a location; export the model again")
    location = _location(stored, entries["location"])
    if has_values(stored.tensor):
        raise InputError(f"{stored.place} has values in the model and external data too; export the model again")
    if stored.tensor.data_type == stored.tensor.STRING:
        raise InputError(f"{stored.place} keeps strings in external data, which ONNX does not allow")
    expected = tensor_bytes(stored)
    if "length" in entries and _number(stored, "length", entries["length"]) != expected:
        raise InputError(
            f"{stored.place} has {entries['length']} bytes of external data, but its shape "
            f"{list(stored.tensor.dims)} needs {expected:,}; export the model again"
        )
    offset = _number(stored, "offset", entries.get("offset", "0"))
    return ExternalRange(stored, location, offset, expected)


def load_external(ranges: Iterable[ExternalRange], folder: Path) -> None:
    """Reads each range from below `folder` into its tensor, which then holds its data itself.

    Raises InputError for a link, a file with several names, anything but a regular file, and a range that is
    not inside its file. The caller bounds the total beforehand.
    """
    with _Files(folder) as files:
        for item in ranges:
            data = files.read(item)
            tensor = item.stored.tensor
            tensor.raw_data = data
            tensor.ClearField("external_data")
            tensor.ClearField("data_location")


class _Files:
    """The data files below one folder; the last one stays open, because tensors mostly share one file."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._location: str | None = None
        self._file: BinaryIO | None = None
        self._size = 0

    def __enter__(self) -> _Files:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()

    def read(self, item: ExternalRange) -> bytes:
        """The bytes of a range; the size of the file is compared before anything is allocated."""
        try:
            file = self._open(item)
            if item.offset + item.length > self._size:
                raise InputError(
                    f"{item.stored.place} needs bytes {item.offset:,} to {item.offset + item.length:,} of "
                    f"{self._folder / item.location}, which has {self._size:,}; the file is truncated or "
                    "belongs to another model: copy it again"
                )
            file.seek(item.offset)
            data = file.read(item.length)
        except OSError as error:
            raise InputError(self._explain(item, error)) from None
        if len(data) != item.length:
            raise InputError(f"{self._folder / item.location} became shorter while it was read; try again")
        return data

    def _open(self, item: ExternalRange) -> BinaryIO:
        if self._file is None or self._location != item.location:
            self._close()
            label = f"{self._folder / item.location}, the external data of {item.stored.place},"
            self._file, info = open_regular(_descend(self._folder, item.location), label)
            if info.st_nlink > 1:
                raise InputError(f"{label} is a hard link, one of {info.st_nlink} names of a file; copy the data")
            self._location, self._size = item.location, info.st_size
        return self._file

    def _close(self) -> None:
        if self._file is not None:
            self._file.close()
        self._file = self._location = None

    def _explain(self, item: ExternalRange, error: OSError) -> str:
        path = self._folder / item.location
        owner = f"the external data of {item.stored.place}"
        if _has_link(self._folder, item.location):
            return f"{path}, {owner}, is or passes through a symbolic link; copy the data to that place instead"
        if isinstance(error, FileNotFoundError):
            return f"{path}, {owner}, does not exist; copy it to that place beside the model"
        return f"cannot read {path}, {owner}: {error.strerror or error}"


def _descend(folder: Path, location: str) -> int:
    """Opens folder/location part by part without following links; the caller owns the descriptor."""
    *parents, name = location.split("/")
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW
    with ExitStack() as opened:
        # The model's own folder was named by the user and may be a link.
        current = os.open(folder, os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECTORY)
        opened.callback(os.close, current)
        for parent in parents:
            current = os.open(parent, flags | os.O_DIRECTORY, dir_fd=current)
            opened.callback(os.close, current)
        # Opening a pipe must not wait for a writer.
        return os.open(name, flags | os.O_NONBLOCK, dir_fd=current)


def _has_link(folder: Path, location: str) -> bool:
    """Whether a step of the path is a symbolic link; only to explain a refusal, never to decide one."""
    path = folder
    for part in location.split("/"):
        path = path / part
        if path.is_symlink():
            return True
    return False


def _location(stored: StoredTensor, text: str) -> str:
    """The path in plain form, such as "a/b" for "./a//b"; InputError where it leaves the model's folder."""
    path = PurePosixPath(text)
    if not path.parts or path.is_absolute() or ".." in path.parts or "\\" in text or "\0" in text:
        raise InputError(
            f"{stored.place} has its external data at {text[:200]!r}; allowed is a relative path below the "
            "model's folder, with '/' between its parts and no '..': export the model again"
        )
    return str(path)


def _number(stored: StoredTensor, key: str, text: str) -> int:
    if not _NUMBER.fullmatch(text) or int(text) >= 1 << 63:
        raise InputError(
            f"{stored.place} has the external data {key} {text[:40]!r}; allowed is a whole number from 0 to "
            "2^63 - 1 in decimal digits: export the model again"
        )
    return int(text)
