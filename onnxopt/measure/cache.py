"""The cache folder as a whole, for `onnxopt cache`. Only files that this program writes are touched."""

from __future__ import annotations

import stat
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from onnxopt.deploy.tensorrt_cache import FOLDER as TIMINGS_FOLDER
from onnxopt.deploy.tensorrt_cache import SUFFIX as TIMINGS_SUFFIX
from onnxopt.deploy.tensorrt_cache import timings_fault
from onnxopt.emulate.build import is_intact
from onnxopt.errors import InputError
from onnxopt.kernels.cache import FOLDER as KERNEL_FOLDER
from onnxopt.kernels.cache import DamagedEntryError, cache_files, entry_documents, read_entry
from onnxopt.measure.paths import EMULATED
from onnxopt.measure.records import FILE_NAME, LineProblem, read_records
from onnxopt.plan.plan_cache import FOLDER as PLAN_FOLDER
from onnxopt.plan.plan_cache import SUFFIX as PLAN_SUFFIX
from onnxopt.plan.plan_cache import check_entry
from onnxopt.plan.plan_file import DamagedError
from onnxopt.target.tile_store import FILE_NAME as TILE_RECORDS
from onnxopt.target.tile_store import checked_store

_KINDS = {FILE_NAME: "tuning records of the CPU", TILE_RECORDS: "measured tile times of GPUs"}
# What SQLite leaves beside a file while it writes, or when it is killed then.
_COMPANIONS = ("-journal", "-wal", "-shm")
# The emulator's programs and their parts, and what a writer that was killed has left.
_PROGRAMS = ("*.so", "*.o", ".new-*")


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
    found = [_describe(path, kind) for path, kind in _files(folder)]
    plans, kernels, programs = _plans(folder), entry_documents(folder), _programs(folder)
    timings = _timings(folder)
    found += [_describe_timings(folder, timings)] if timings else []
    found += [_describe_plans(folder, plans)] if plans else []
    found += [_describe_kernels(folder, kernels)] if kernels else []
    return [*found, _describe_programs(folder, programs)] if programs else found


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
    own = [path for path, _ in _files(folder)]
    beside = [path.with_name(path.name + end) for path in own for end in _COMPANIONS if path.name == TILE_RECORDS]
    own += [path for path in beside if path.is_file()]
    for path in [*own, *_plans(folder), *cache_files(folder), *_programs(folder), *_timings(folder)]:
        try:
            path.unlink()
        except OSError as error:
            raise InputError(
                f"cannot delete {path}: {error.strerror or error}; correct the permissions of {folder}"
            ) from error
        removed.append(path)
    for name in (PLAN_FOLDER, KERNEL_FOLDER, EMULATED, TIMINGS_FOLDER):
        with suppress(OSError):
            (folder / name).rmdir()
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


def _plans(folder: Path) -> list[Path]:
    place = folder / PLAN_FOLDER
    if place.is_symlink() or not place.is_dir():
        return []
    return sorted(path for path in place.iterdir() if path.suffix == PLAN_SUFFIX and not path.is_dir())


def _programs(folder: Path) -> list[Path]:
    place = folder / EMULATED
    if place.is_symlink() or not place.is_dir():
        return []
    return sorted(path for pattern in _PROGRAMS for path in place.glob(pattern) if not path.is_dir())


def _timings(folder: Path) -> list[Path]:
    place = folder / TIMINGS_FOLDER
    if place.is_symlink() or not place.is_dir():
        return []
    return sorted(path for path in place.glob(f"*{TIMINGS_SUFFIX}") if not path.is_dir())


def _describe_timings(folder: Path, timings: list[Path]) -> CacheFile:
    """The timing caches of all versions of TensorRT and all GPUs as one entry."""
    faults = {path: timings_fault(path) for path in timings}
    problems = tuple(LineProblem(0, f"{path.name}: {fault}") for path, fault in faults.items() if fault)
    size = sum(path.lstat().st_size for path in timings)
    place = folder / TIMINGS_FOLDER
    return CacheFile(place, "timings of TensorRT", size, len(timings) - len(problems), problems)


def _describe(path: Path, kind: str) -> CacheFile:
    size = path.stat().st_size if path.exists() else 0
    if path.name == FILE_NAME:
        records, problems = read_records(path)
        return CacheFile(path, kind, size, len(records), tuple(problems))
    tiles, damaged = checked_store(path)
    return CacheFile(path, kind, size, len(tiles), tuple(LineProblem(line, reason) for line, reason in damaged))


def _describe_plans(folder: Path, plans: list[Path]) -> CacheFile:
    """All plans as one entry: they are many, and each has a hash for a name."""
    problems = []
    size = 0
    for path in plans:
        try:
            size += path.lstat().st_size
            check_entry(path)
        except (InputError, DamagedError, OSError) as error:
            problems.append(LineProblem(0, f"{path.name}: {error}"))
    return CacheFile(folder / PLAN_FOLDER, "plans of kernels", size, len(plans) - len(problems), tuple(problems))


def _describe_kernels(folder: Path, documents: list[Path]) -> CacheFile:
    """All compiled kernels as one entry, as plans are."""
    problems = []
    for document in documents:
        try:
            read_entry(document)
        except (InputError, DamagedEntryError) as error:
            problems.append(LineProblem(0, f"{document.name}: {error}"))
    size = sum(path.lstat().st_size for path in cache_files(folder))
    place = folder / KERNEL_FOLDER
    return CacheFile(place, "compiled kernels", size, len(documents) - len(problems), tuple(problems))


def _describe_programs(folder: Path, programs: list[Path]) -> CacheFile:
    """Kernels that were compiled for the CPU, and the parts that they share, as one entry."""
    complete = [path for path in programs if path.suffix in (".so", ".o")]
    problems = []
    for path in complete:
        try:
            if not is_intact(path):
                problems.append(LineProblem(0, f"{path.name}: it is not what its checksum says"))
        except OSError as error:
            problems.append(LineProblem(0, f"{path.name}: {error.strerror or error}"))
    size = sum(path.lstat().st_size for path in programs)
    return CacheFile(folder / EMULATED, "kernels for emulation", size, len(complete) - len(problems), tuple(problems))
