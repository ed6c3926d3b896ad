"""What a manifest holds, and how it stands in JSON; the document may be anyone's, so every field is checked."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from itertools import pairwise
from pathlib import PurePosixPath
from typing import Any, TypeGuard

from onnxopt.documents import NewerError
from onnxopt.errors import InputError, shown

SCHEMA = "onnxopt.manifest/1"
FILE_NAME = "manifest.json"

_MAX_FILES = 10_000
_MAX_FILE_BYTES = 1 << 46
_SHA256 = re.compile(r"[0-9a-f]{64}")
_SCHEMA_FORM = re.compile(r"onnxopt\.manifest/([0-9]{1,9})")


@dataclass(frozen=True)
class BuiltFor:
    """What an engine was built for, and with what.

    ``target`` is an architecture; ``gpu`` and ``driver`` are those of the machine that built it, ``library`` what did
    and its version (``tensorrt 10.13.3``), ``way`` how operators of our own are in it, and ``tf32`` says ``allowed``
    where float32 products may be rounded. Empty is what does not matter.
    """

    target: str
    gpu: str = ""
    driver: str = ""
    library: str = ""
    way: str = ""
    tf32: str = ""


@dataclass(frozen=True)
class FileEntry:
    """A file of a package: its path below the folder (with '/'), size in bytes, SHA-256 in hex.

    ``built`` says what an engine was built for; it is None for every other file.
    """

    path: str
    bytes: int
    sha256: str
    built: BuiltFor | None = None

    @property
    def target(self) -> str:
        """The architecture that an engine was built for, empty for every other file."""
        return "" if self.built is None else self.built.target


@dataclass(frozen=True)
class Source:
    """The model that a package was made from: SHA-256 of its file, and its opset.

    ``dtype`` is the type that the model was converted to as a whole, empty where it keeps its own.
    """

    sha256: str
    opset: int
    dtype: str = ""


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

    @property
    def engines(self) -> dict[str, BuiltFor]:
        """The engines among the files, and what each was built for."""
        return {entry.path: entry.built for entry in self.files if entry.built is not None}


def document_of(manifest: Manifest) -> dict[str, Any]:
    """The manifest as JSON values."""
    source = {name: value for name, value in asdict(manifest.source).items() if value != ""}
    files = [_written(entry) for entry in manifest.files]
    return {"schema": SCHEMA, **asdict(manifest), "source": source, "files": files}


def _written(entry: FileEntry) -> dict[str, Any]:
    """An entry as the manifest has it: what an engine was built for stands beside its sum."""
    built = {} if entry.built is None else {name: text for name, text in asdict(entry.built).items() if text}
    return {"path": entry.path, "bytes": entry.bytes, "sha256": entry.sha256, **built}


def parsed(document: Any) -> Manifest:
    """The manifest that JSON values say; raises InputError, naming the field, where they say none."""
    if not isinstance(document, dict):
        raise InputError("a manifest is a JSON object")
    _check_schema(document.get("schema"))
    target = _text(document.get("target"), "target")
    versions = document.get("versions")
    if not isinstance(versions, dict) or len(versions) > 100:
        raise InputError("field 'versions' is not an object of up to 100 versions")
    _check_writer(versions.get("onnxopt"))
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
        Source(
            _digest(source.get("sha256"), "source.sha256"),
            int(opset),
            _text(source["dtype"], "source.dtype") if "dtype" in source else "",
        ),
        entries,
    )


def _check_schema(schema: Any) -> None:
    if schema == SCHEMA:
        return
    form = _SCHEMA_FORM.fullmatch(schema) if isinstance(schema, str) else None
    if form and int(form[1]) > int(SCHEMA.rpartition("/")[2]):
        raise NewerError(
            f"the schema is '{schema}' and this version reads '{SCHEMA}': it was written by a newer version "
            "of onnxopt; upgrade with `pip install --upgrade onnxopt`"
        )
    raise InputError(f"field 'schema' is {shown(schema)}; this version reads '{SCHEMA}'")


def _check_writer(written_by: Any) -> None:
    """Refuse what a newer version wrote: it may mean something that this one does not know."""
    from onnxopt import __version__

    found = _numbers(written_by) if isinstance(written_by, str) else ()
    if found > _numbers(__version__):
        raise NewerError(
            f"it was written by onnxopt {shown(written_by)} and this is {__version__}; upgrade with "
            "`pip install --upgrade onnxopt`"
        )


def _numbers(text: str) -> tuple[int, ...]:
    """The numbers that a version begins with, without zeros at its end: (1, 2) of '1.2.0.dev3'."""
    form = re.match(r"[0-9]{1,9}(?:\.[0-9]{1,9}){0,5}", text)
    numbers = [int(part) for part in form[0].split(".")] if form else []
    while numbers and numbers[-1] == 0:
        numbers.pop()
    return tuple(numbers)


def _parsed_file(entry: Any) -> FileEntry:
    if not isinstance(entry, dict):
        raise InputError(f"field 'files' has the entry {shown(entry)}; a file is an object")
    path = checked_path(entry.get("path"), "field 'files'")
    size = entry.get("bytes")
    if not _is_size(size, _MAX_FILE_BYTES):
        raise InputError(f"'{path}' has the size {shown(size)}; allowed: 0 to {_MAX_FILE_BYTES:,} bytes")
    return FileEntry(path, size, _digest(entry.get("sha256"), f"files: '{path}'"), _parsed_built(path, entry))


def _parsed_built(path: str, entry: Mapping[str, Any]) -> BuiltFor | None:
    if "target" not in entry:
        return None
    stated = [field.name for field in fields(BuiltFor) if field.name in entry]
    return BuiltFor(**{name: _text(entry[name], f"{name} of '{path}'") for name in stated})


def checked_path(path: Any, where: str) -> str:
    """A plain relative path that stays in the folder; raises InputError for anything else."""
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
            f"{where} names {shown(path)}; allowed: a plain path below the folder, without '..', other than {FILE_NAME}"
        )
    return str(path)


def _is_size(value: Any, limit: int) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= limit


def _digest(value: Any, where: str) -> str:
    if not isinstance(value, str) or not _SHA256.fullmatch(value):
        raise InputError(f"{where} has the SHA-256 {shown(value)}; allowed: 64 lower-case hexadecimal digits")
    return value


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str) or not 0 < len(value) <= 200 or not value.isprintable():
        raise InputError(f"field '{where}' is {shown(value)}; allowed: a text of 1 to 200 characters")
    return value
