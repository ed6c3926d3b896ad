"""Reads and writes whole files safely: a reader sees the old file or the new one, never a part of it."""

from __future__ import annotations

import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from onnxopt.errors import InputError


def memory_budget() -> int:
    """Bytes that a single input may occupy unless the caller says otherwise: 3/4 of the machine's memory."""
    try:
        physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        physical = 8 << 30
    return physical * 3 // 4


def read_file(path: Path, max_bytes: int) -> bytes:
    """The content of a regular file of at most `max_bytes` bytes; InputError for anything else.

    The file is opened without blocking, so that a pipe is refused instead of waited for. Its kind and size
    are taken from the opened descriptor, so that nobody can exchange it in between.
    """
    try:
        file, info = open_regular(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), str(path))
        with file:
            if info.st_size > max_bytes:
                raise InputError(
                    f"{path} has {info.st_size:,} bytes; at most {max_bytes:,} are allowed. "
                    "Use a machine with more memory, or raise the limit"
                )
            content = file.read(max_bytes + 1)
    except FileNotFoundError:
        raise InputError(f"{path} does not exist; check the path") from None
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read {path}: {_reason(error)}; check the path and its permissions") from None
    if len(content) > max_bytes:
        raise InputError(f"{path} grew beyond {max_bytes:,} bytes while it was read; try again")
    return content


def open_regular(descriptor: int, label: str) -> tuple[BinaryIO, os.stat_result]:
    """Makes a binary file of an open descriptor; closes it with an InputError if it is no regular file."""
    try:
        info = os.fstat(descriptor)
        if not stat.S_ISREG(info.st_mode):
            raise InputError(f"{label} is {_kind(info.st_mode)}, not a file; give the path of a file")
        return os.fdopen(descriptor, "rb"), info
    except BaseException:
        os.close(descriptor)
        raise


@contextmanager
def atomic_file(path: str | Path) -> Iterator[BinaryIO]:
    """A binary file to write into; it takes the place of `path` when the block ends without an exception.

    The bytes go to a temporary file in the same folder and are on the disk before the file appears. After any
    exception, an interruption included, the temporary file is gone and `path` is as it was. The folder must
    exist. An existing symbolic link is replaced, not followed. Raises InputError where writing fails.
    """
    target = Path(path)
    _refuse_special(target)
    temporary = target.with_name(f".onnxopt-{secrets.token_hex(8)}.tmp")
    try:
        try:
            # tempfile would make a file that only its owner can read; the result should follow the umask.
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
            with os.fdopen(descriptor, "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(target)
        except BaseException:
            with suppress(OSError):
                temporary.unlink()
            raise
        _sync_folder(target.parent)
    except OSError as error:
        if not target.parent.is_dir():
            raise InputError(f"cannot write {target}: there is no folder {target.parent}; create it first") from None
        raise InputError(
            f"cannot write {target}: {_reason(error)}; nothing was written. "
            "Free some space or correct the permissions, or choose another place"
        ) from error


def atomic_write(path: str | Path, data: bytes) -> None:
    """Writes `data` to `path` completely or not at all; see `atomic_file`."""
    with atomic_file(path) as file:
        file.write(data)


def _refuse_special(target: Path) -> None:
    """Replacing a device such as /dev/null by a file would harm the machine."""
    try:
        mode = target.stat().st_mode
    except OSError:
        return
    except ValueError as error:
        raise InputError(f"cannot write {str(target)!r}: {error}; give the name of a file") from None
    if not stat.S_ISREG(mode):
        raise InputError(f"cannot write {target}: it is {_kind(mode)}; give the name of a file")


def _sync_folder(folder: Path) -> None:
    """Makes the new name survive a power cut, where the file system lets a folder be synchronised."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _kind(mode: int) -> str:
    if stat.S_ISDIR(mode):
        return "a folder"
    if stat.S_ISLNK(mode):
        return "a symbolic link"
    return "a device, pipe or socket"


def _reason(error: OSError | ValueError) -> str:
    return (error.strerror or str(error)) if isinstance(error, OSError) else str(error)
