"""The manifest of a package: what is in the folder, for which target, by which versions, from which model.

An engine file is executable code, and a package may come from anyone: nothing in the folder is used before
its size and its SHA-256 agree with the manifest. The manifest holds no times and no absolute paths, so that
the same package has the same manifest.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from itertools import pairwise
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, TypeGuard

from onnxopt.errors import InputError
from onnxopt.model.files import atomic_write, read_file

SCHEMA = "onnxopt.manifest/1"
FILE_NAME = "manifest.json"

_MAX_BYTES = 4 << 20
_MAX_FILES = 10_000
_MAX_FILE_BYTES = 1 << 46
_SHA256 = re.compile(r"[0-9a-f]{64}")
_SCHEMA_FORM = re.compile(r"onnxopt\.manifest/([0-9]{1,9})")
_ENGINE_PACKAGES = {"rtx": "tensorrt-rtx", "tensorrt": "tensorrt"}


@dataclass(frozen=True)
class FileEntry:
    """A file of a package: its path below the folder (with '/'), size in bytes, SHA-256 in hex.

    ``target`` is the architecture that an engine was built for, empty for every other file.
    """

    path: str
    bytes: int
    sha256: str
    target: str = ""


@dataclass(frozen=True)
class Source:
    """The model that a package was made from: SHA-256 of its file, and its opset."""

    sha256: str
    opset: int


@dataclass(frozen=True)
class Manifest:
    """What a package says about itself; ``files`` is sorted by path."""

    target: str
    versions: Mapping[str, str]
    source: Source
    files: tuple[FileEntry, ...]

    def entry(self, path: str) -> FileEntry | None:
        """The entry of a file, or None."""
        return next((e for e in self.files if e.path == path), None)


def package_versions(engine: str | None = None) -> dict[str, str]:
    """Versions of this project, onnx, onnxruntime, and the library of an engine (``rtx``, ``tensorrt``)."""
    names = ["onnxopt", "onnx", "onnxruntime"]
    if engine is not None:
        names.append(_ENGINE_PACKAGES[engine])
    found = {}
    for name in names:
        try:
            found[name.replace("-", "_")] = version(name)
        except PackageNotFoundError:
            continue
    if "onnxopt" not in found:
        from onnxopt import __version__

        found["onnxopt"] = __version__
    return found


def write_manifest(
    folder: str | Path,
    *,
    target: str,
    versions: Mapping[str, str],
    source: Source,
    files: Iterable[str],
    engines: Mapping[str, str] | None = None,
) -> Manifest:
    """Hash the files (paths below ``folder``) and write ``manifest.json``, whole or not at all.

    ``engines`` says for which architecture each engine among the files was built. Raises InputError for a path that
    leaves the folder, a link, or a file that cannot be read.
    """
    folder = Path(folder)
    entries = []
    for name in sorted(set(files)):
        _checked_path(name, "the list of files")
        with _opened(folder, name) as file:
            size, digest = _hashed(file)
        entries.append(FileEntry(name, size, digest, (engines or {}).get(name, "")))
    manifest = Manifest(target, dict(sorted(versions.items())), source, tuple(entries))
    document = {"schema": SCHEMA, **asdict(manifest)}
    document["files"] = [{k: v for k, v in asdict(entry).items() if v != ""} for entry in entries]
    atomic_write(folder / FILE_NAME, (json.dumps(document, indent=2, ensure_ascii=True) + "\n").encode())
    return manifest


def read_manifest(folder: str | Path) -> Manifest:
    """Read the manifest of a folder without looking at its files.

    Raises InputError, naming the file and the field, for anything but a manifest of this version.
    """
    path = Path(folder) / FILE_NAME
    try:
        document = json.loads(read_file(path, _MAX_BYTES))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not valid JSON ({error}); optimize the model again") from None
    try:
        return _parsed(document)
    except InputError as error:
        raise InputError(f"{path}: {error}; optimize the model again, or get the package again") from None


def check_manifest(folder: str | Path) -> Manifest:
    """Read the manifest and compare every file that it lists; the manifest of an intact package.

    Raises InputError naming the first file that is missing, a link, or of another size or SHA-256, with what
    was found and what was expected.
    """
    folder = Path(folder)
    manifest = read_manifest(folder)
    for entry in manifest.files:
        _compare(folder, entry)
    return manifest


def checked_file(folder: str | Path, path: str) -> Path:
    """The path of a file of a package, after comparing it with the manifest.

    Raises InputError where the manifest does not list it (an engine that is not in the manifest is not used),
    or as :func:`check_manifest` does.
    """
    folder = Path(folder)
    entry = read_manifest(folder).entry(path)
    if entry is None:
        raise InputError(f"{folder / path} is not in {folder / FILE_NAME}; it is not used. Build it again")
    _compare(folder, entry)
    return folder / path


def file_sha256(path: str | Path) -> str:
    """SHA-256 of a file in hex; raises InputError where it cannot be read."""
    try:
        with Path(path).open("rb") as file:
            return _hashed(file)[1]
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}; check the path") from None


def _compare(folder: Path, entry: FileEntry) -> None:
    with _opened(folder, entry.path) as file:
        # The size first: it costs nothing, and bounds what is hashed.
        size = os.fstat(file.fileno()).st_size
        digest = _hashed(file)[1] if size == entry.bytes else ""
    if size != entry.bytes:
        found, expected = f"{size:,} bytes", f"{entry.bytes:,}"
    elif digest != entry.sha256:
        found, expected = f"SHA-256 {digest}", entry.sha256
    else:
        return
    raise InputError(
        f"{folder / entry.path} is not the file that the manifest lists: found {found}, expected {expected}. "
        "Build it again, or get the package again"
    )


def _opened(folder: Path, path: str) -> BinaryIO:
    """The file, opened without following a link anywhere below the folder."""
    *parents, name = path.split("/")
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    descriptors: list[int] = []
    try:
        descriptors.append(os.open(folder, os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECTORY))
        for parent in parents:
            descriptors.append(os.open(parent, flags | os.O_DIRECTORY, dir_fd=descriptors[-1]))
        descriptor = os.open(name, flags, dir_fd=descriptors[-1])
    except OSError as error:
        links = [p for p in (folder / path, *(folder / path).parents) if p != folder and p.is_symlink()]
        reason = "it is or passes through a symbolic link" if links else error.strerror or str(error)
        raise InputError(
            f"cannot read {folder / path}, a file of the package: {reason}. Build it again, or get the package again"
        ) from None
    finally:
        for opened in descriptors:
            os.close(opened)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise InputError(f"{folder / path}, a file of the package, is not a regular file; get the package again")
    return os.fdopen(descriptor, "rb")


def _hashed(file: BinaryIO) -> tuple[int, str]:
    digest = hashlib.sha256()
    size = 0
    while block := file.read(1 << 20):
        digest.update(block)
        size += len(block)
    return size, digest.hexdigest()


def _parsed(document: Any) -> Manifest:
    if not isinstance(document, dict):
        raise InputError("a manifest is a JSON object")
    _check_schema(document.get("schema"))
    target = _text(document.get("target"), "target")
    versions = document.get("versions")
    if not isinstance(versions, dict) or len(versions) > 100:
        raise InputError("field 'versions' is not an object of up to 100 versions")
    source = document.get("source")
    opset = source.get("opset") if isinstance(source, dict) else None
    if not isinstance(source, dict) or not _is_size(opset, 1000):
        raise InputError("field 'source' is not an object with 'sha256' and 'opset'")
    files = document.get("files")
    if not isinstance(files, list) or len(files) > _MAX_FILES:
        raise InputError(f"field 'files' is not a list of up to {_MAX_FILES:,} files")
    entries = tuple(sorted((_parsed_file(entry) for entry in files), key=lambda e: e.path))
    for first, second in pairwise(entries):
        if first.path == second.path:
            raise InputError(f"field 'files' lists '{first.path}' twice")
    return Manifest(
        target,
        {_text(k, "versions"): _text(v, f"versions.{k}") for k, v in versions.items()},
        Source(_digest(source.get("sha256"), "source.sha256"), int(opset)),
        entries,
    )


def _check_schema(schema: Any) -> None:
    if schema == SCHEMA:
        return
    form = _SCHEMA_FORM.fullmatch(schema) if isinstance(schema, str) else None
    if form and int(form[1]) > int(SCHEMA.rpartition("/")[2]):
        raise InputError(
            f"the schema is '{schema}' and this version reads '{SCHEMA}': it was written by a newer version "
            "of onnxopt; upgrade with `pip install --upgrade onnxopt`"
        )
    raise InputError(f"field 'schema' is {_shown(schema)}; this version reads '{SCHEMA}'")


def _parsed_file(entry: Any) -> FileEntry:
    if not isinstance(entry, dict):
        raise InputError(f"field 'files' has the entry {_shown(entry)}; a file is an object")
    path = _checked_path(entry.get("path"), "field 'files'")
    size = entry.get("bytes")
    if not _is_size(size, _MAX_FILE_BYTES):
        raise InputError(f"'{path}' has the size {_shown(size)}; allowed: 0 to {_MAX_FILE_BYTES:,} bytes")
    built_for = _text(entry["target"], f"target of '{path}'") if "target" in entry else ""
    return FileEntry(path, size, _digest(entry.get("sha256"), f"files: '{path}'"), built_for)


def _checked_path(path: Any, where: str) -> str:
    """A plain relative path that stays in the folder."""
    plain = (
        isinstance(path, str)
        and 0 < len(path) <= 1000
        and path.isprintable()
        and "\\" not in path
        and ".." not in path.split("/")
        and not path.startswith("/")
        and str(PurePosixPath(path)) == path
        and path not in (".", FILE_NAME)
    )
    if not plain:
        raise InputError(
            f"{where} names {_shown(path)}; allowed: a plain path below the folder, without '..', other than "
            f"{FILE_NAME}"
        )
    return str(path)


def _is_size(value: Any, limit: int) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= limit


def _digest(value: Any, where: str) -> str:
    if not isinstance(value, str) or not _SHA256.fullmatch(value):
        raise InputError(f"{where} has the SHA-256 {_shown(value)}; allowed: 64 lower-case hexadecimal digits")
    return value


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str) or not 0 < len(value) <= 200 or not value.isprintable():
        raise InputError(f"field '{where}' is {_shown(value)}; allowed: a text of 1 to 200 characters")
    return value


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
