"""Compiled kernels kept by content, as files that NVIDIA's own tools read.

An entry is three files named by a hash of all that decides it: the CUBIN, the PTX, and last a JSON document with the
report and the checksums of both, without which the others do not count. Entries are untrusted: one that does not agree
with its checksums is a warning, and the kernel is compiled again.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from onnxopt.errors import InputError
from onnxopt.kernels.compilation import ARCHITECTURES, Compilation, CompiledKernel
from onnxopt.kernels.report import ResourceReport
from onnxopt.kernels.source import KernelSource
from onnxopt.model.files import atomic_write, read_file

FOLDER = "kernels"
SCHEMA = "onnxopt.kernel/1"
SUFFIXES = (".cubin", ".ptx", ".json")

_LARGEST_CODE = 64 << 20
_LARGEST_DOCUMENT = 1 << 20
# What a writer that was killed has left; a younger file may still be written.
_LEFTOVERS = ".onnxopt-*.tmp"
_LEFTOVER_SECONDS = 3600.0

_log = logging.getLogger(__name__)


class DamagedEntryError(ValueError):
    """An entry that does not hold what it should."""


class KernelCache:
    """The compiled kernels of a cache folder; without one, nothing is kept. Any number of processes may share it."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder / FOLDER if folder is not None else None
        self._usable = True

    def get(self, compilation: Compilation) -> CompiledKernel | None:
        """The kernel of a compilation, or None where there is none that can be used."""
        if self.folder is None:
            return None
        document = self.folder / f"{content_key(compilation)}.json"
        if not document.is_file():
            return None
        try:
            kernel = read_entry(document)
        except (InputError, DamagedEntryError) as error:
            _log.warning("%s: cannot be used (%s); the kernel is compiled again", document, error)
            return None
        if (kernel.source, kernel.architecture) != (compilation.source, compilation.architecture):
            _log.warning("%s: is about another kernel; it is compiled again", document)
            return None
        return kernel

    def put(self, compilation: Compilation, kernel: CompiledKernel) -> None:
        """Keep a kernel. The first failure, such as a full disk, is a warning, and the last attempt."""
        if self.folder is None or not self._usable:
            return
        key = content_key(compilation)
        paths = [self.folder / f"{key}{suffix}" for suffix in SUFFIXES]
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._remove_leftovers()
            for path, content in zip(paths, _contents(kernel), strict=True):
                atomic_write(path, content)
        except (OSError, InputError) as error:
            self._usable = False
            _log.warning("%s: compiled kernels are not kept: %s", self.folder, error)
            if not paths[-1].is_file():
                _remove(paths)

    def _remove_leftovers(self) -> None:
        assert self.folder is not None
        now = time.time()
        with suppress(OSError):
            _remove([path for path in self.folder.glob(_LEFTOVERS) if now - path.lstat().st_mtime > _LEFTOVER_SECONDS])


def content_key(compilation: Compilation) -> str:
    """The name of an entry: a hash of sources, headers, options, architecture and compiler."""
    facts = {"schema": SCHEMA, **compilation.facts()}
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def read_entry(document: Path) -> CompiledKernel:
    """The kernel of an entry by its JSON document; raises InputError or :class:`DamagedEntryError`."""
    about = _document(read_file(document, _LARGEST_DOCUMENT))
    content = {}
    for suffix in SUFFIXES[:2]:
        data = read_file(document.with_suffix(suffix), _LARGEST_CODE)
        if hashlib.sha256(data).hexdigest() != about.get("sha256", {}).get(suffix[1:]):
            raise DamagedEntryError(f"{document.stem[:16]}{suffix} is not what its checksum says")
        content[suffix] = data
    try:
        source = KernelSource.from_json(about["source"])
        report = ResourceReport(**{field.name: _count(about["report"][field.name]) for field in fields(ResourceReport)})
        architecture, compiler = about["architecture"], about["compiler"]
        if architecture not in ARCHITECTURES or not isinstance(compiler, str):
            raise ValueError("its architecture or compiler is unknown")
        return CompiledKernel(source, architecture, content[".cubin"], content[".ptx"].decode(), report, compiler)
    except (KeyError, TypeError, ValueError) as error:
        raise DamagedEntryError(f"its document is not complete: {error!r}") from None


def entry_documents(cache: Path) -> list[Path]:
    """The documents of all entries below a cache folder, by name."""
    return sorted(path for path in _files(cache) if path.suffix == ".json")


def cache_files(cache: Path) -> list[Path]:
    """Every file of the kernels' cache, with what killed writers have left."""
    return sorted(_files(cache))


def _files(cache: Path) -> Iterator[Path]:
    folder = cache / FOLDER
    if folder.is_symlink() or not folder.is_dir():
        return
    for path in folder.iterdir():
        if (path.suffix in SUFFIXES or path.match(_LEFTOVERS)) and not path.is_dir():
            yield path


def _contents(kernel: CompiledKernel) -> tuple[bytes, bytes, bytes]:
    """What the files of an entry hold, in the order of their suffixes."""
    ptx = kernel.ptx.encode()
    about = {
        "schema": SCHEMA,
        "source": kernel.source.to_json(),
        "architecture": kernel.architecture,
        "compiler": kernel.compiler,
        "report": asdict(kernel.report),
        "sha256": {"cubin": hashlib.sha256(kernel.cubin).hexdigest(), "ptx": hashlib.sha256(ptx).hexdigest()},
    }
    return kernel.cubin, ptx, json.dumps(about, indent=1).encode() + b"\n"


def _document(data: bytes) -> dict[str, Any]:
    try:
        about = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise DamagedEntryError(f"its document is not JSON: {error}") from None
    if not isinstance(about, dict) or about.get("schema") != SCHEMA or not isinstance(about.get("sha256"), dict):
        raise DamagedEntryError(f"its document is not one of the schema {SCHEMA!r}")
    return about


def _count(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(f"{value!r:.40} is not a count")
    return value


def _remove(paths: list[Path]) -> None:
    for path in paths:
        with suppress(OSError):
            path.unlink()
