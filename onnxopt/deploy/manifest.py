"""The manifest of a package: what is in the folder, for which target, by which versions, from which model.

An engine file is executable code, and a package may come from anyone: nothing in the folder is used before
its size and its SHA-256 agree with the manifest. The manifest holds no times and no absolute paths, so that
the same package has the same manifest.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Iterable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import BinaryIO

from onnxopt.deploy.manifest_document import FILE_NAME as FILE_NAME
from onnxopt.deploy.manifest_document import BuiltFor as BuiltFor
from onnxopt.deploy.manifest_document import FileEntry as FileEntry
from onnxopt.deploy.manifest_document import Manifest as Manifest
from onnxopt.deploy.manifest_document import Source as Source
from onnxopt.deploy.manifest_document import checked_path, document_of, parsed
from onnxopt.documents import read_document
from onnxopt.errors import InputError
from onnxopt.model.files import atomic_write

_MAX_BYTES = 4 << 20
# What commands put into a package that is there already.
_MADE_LATER = (".engine", ".html")
_ENGINE_PACKAGES = {"rtx": "tensorrt-rtx", "tensorrt": "tensorrt"}


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
    engines: Mapping[str, BuiltFor] | None = None,
) -> Manifest:
    """Hash the files (paths below ``folder``) and write ``manifest.json``, whole or not at all.

    ``engines`` says what each engine among the files was built for. Raises InputError for a path that
    leaves the folder, a link, or a file that cannot be read.
    """
    folder = Path(folder)
    entries = []
    for name in sorted(set(files)):
        checked_path(name, "the list of files")
        with _opened(folder, name) as file:
            size, digest = _hashed(file)
        entries.append(FileEntry(name, size, digest, (engines or {}).get(name)))
    manifest = Manifest(target, dict(sorted(versions.items())), source, tuple(entries))
    _write(folder, manifest)
    return manifest


def add_to_manifest(
    folder: str | Path,
    before: Manifest,
    name: str,
    built: BuiltFor | None = None,
    versions: Mapping[str, str] | None = None,
) -> Manifest:
    """List a file that was made of a package, whose manifest was ``before``, and now lies in it.

    All other files keep the sums that they have, and what was listed meanwhile stays. Raises InputError where the
    package is another one by now; the file, which does not belong to it, is removed then.
    """
    folder = Path(folder)
    now = read_manifest(folder)
    own = [[e for e in m.files if e.path != name and not e.path.endswith(_MADE_LATER)] for m in (before, now)]
    if (before.target, before.source, own[0]) != (now.target, now.source, own[1]):
        if now.entry(name) is None:
            (folder / name).unlink(missing_ok=True)
        raise InputError(f"{folder} was written anew while {name} was made of what it held before; make it again")
    with _opened(folder, name) as file:
        size, digest = _hashed(file)
    others = (entry for entry in now.files if entry.path != name)
    entries = sorted((*others, FileEntry(name, size, digest, built)), key=lambda entry: entry.path)
    known = dict(sorted({**now.versions, **(versions or {})}.items()))
    manifest = Manifest(now.target, known, now.source, tuple(entries))
    _write(folder, manifest)
    return manifest


def _write(folder: Path, manifest: Manifest) -> None:
    atomic_write(folder / FILE_NAME, (json.dumps(document_of(manifest), indent=2, ensure_ascii=True) + "\n").encode())


def read_manifest(folder: str | Path) -> Manifest:
    """Read the manifest of a folder without looking at its files.

    Raises InputError, naming the file and the field, for anything but a manifest of this version.
    """
    return read_document(Path(folder) / FILE_NAME, _MAX_BYTES, parsed)


def check_manifest(folder: str | Path, besides: str = "") -> Manifest:
    """Read the manifest and compare every file that it lists; the manifest of an intact package.

    ``besides`` is a file that is about to be written anew, and so may be anything. Raises InputError naming the first
    file that is missing, a link, or of another size or SHA-256, with what was found and what was expected.
    """
    folder = Path(folder)
    manifest = read_manifest(folder)
    for entry in manifest.files:
        if entry.path != besides:
            _compare(folder, entry)
    return manifest


def copy_files(folder: str | Path, entries: Iterable[FileEntry], place: str | Path) -> None:
    """Copy files of a package below another folder, each compared with the manifest as it is read.

    What is run from there is what was compared, whatever happens to the package meanwhile. Raises InputError as
    :func:`check_manifest` does; a file that does not agree is not left in ``place``.
    """
    for entry in entries:
        target = Path(place) / entry.path
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            with _opened(Path(folder), entry.path) as file, target.open("xb") as copy:
                size, digest = _hashed(file, copy)
            _refuse_other(Path(folder), entry, size, digest)
        except BaseException:
            target.unlink(missing_ok=True)
            raise


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
    _refuse_other(folder, entry, size, digest)


def _refuse_other(folder: Path, entry: FileEntry, size: int, digest: str) -> None:
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


def _hashed(file: BinaryIO, copy: BinaryIO | None = None) -> tuple[int, str]:
    digest = hashlib.sha256()
    size = 0
    while block := file.read(1 << 20):
        digest.update(block)
        size += len(block)
        if copy is not None:
            copy.write(block)
    return size, digest.hexdigest()
