"""The cache folder as a whole, for `onnxopt cache`. Only files that this program writes are touched."""

from __future__ import annotations

import stat
from dataclasses import dataclass
from pathlib import Path

from onnxopt.errors import InputError
from onnxopt.measure.records import FILE_NAME, LineProblem, read_records

_KINDS = {FILE_NAME: "tuning records of the CPU"}


@dataclass(frozen=True)
class CacheFile:
    """A file of the cache: how many usable ``entries`` it holds, and in ``problems`` what cannot be used."""

    path: Path
    kind: str
    size_bytes: int
    entries: int
    problems: tuple[LineProblem, ...]


def list_cache(folder: Path) -> list[CacheFile]:
    """The files of the cache, by name; none where the folder does not exist.

    Raises InputError where ``folder`` is something else than a folder or cannot be read.
    """
    return [_describe(path, kind) for path, kind in _files(folder)]


def verify_cache(folder: Path) -> list[CacheFile]:
    """The files of the cache that hold something unusable. What is unusable is skipped when the cache is
    read.

    Raises InputError as ``list_cache`` does.
    """
    return [file for file in list_cache(folder) if file.problems]


def clear_cache(folder: Path) -> list[Path]:
    """Deletes the files of the cache and returns their paths; other files and the folder itself stay.

    Raises InputError where a file cannot be deleted.
    """
    removed = []
    for path, _ in _files(folder):
        try:
            path.unlink()
        except OSError as error:
            raise InputError(
                f"cannot delete {path}: {error.strerror or error}; correct the permissions of {folder}"
            ) from error
        removed.append(path)
    return removed


def _files(folder: Path) -> list[tuple[Path, str]]:
    try:
        mode = folder.stat().st_mode
    except FileNotFoundError:
        return []
    except OSError as error:
        raise InputError(f"cannot read the cache folder {folder}: {error.strerror or error}") from error
    if not stat.S_ISDIR(mode):
        raise InputError(f"the cache folder {folder} is not a folder; name another one")
    places = [(folder / name, kind) for name, kind in sorted(_KINDS.items())]
    return [(path, kind) for path, kind in places if path.is_file() or path.is_symlink()]


def _describe(path: Path, kind: str) -> CacheFile:
    records, problems = read_records(path)
    size = path.stat().st_size if path.exists() else 0
    return CacheFile(path, kind, size, len(records), tuple(problems))
