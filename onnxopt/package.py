"""The folder that `optimize` leaves behind: written whole beside its place, then moved there in one step."""

from __future__ import annotations

import errno
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from onnxopt.deploy.manifest import FILE_NAME, checked_file, read_manifest
from onnxopt.errors import InputError, OnnxOptError
from onnxopt.model.files import atomic_write

PORTABLE = "model.portable.onnx"
PLUGIN = "model.onnx"
PLAN = "plan.json"
RTX_ENGINE = "model.rtx.engine"


def default_folder(model: Path) -> Path:
    """Where the package of a model goes: ``swin.onnx`` to ``swin.onnxopt`` beside it.

    Raises InputError for what can only be a folder.
    """
    if not model.name:
        raise InputError(f"'{model}' is a folder, not a file; give the path of a model")
    return model.with_suffix(".onnxopt")


def package_models(folder: Path) -> tuple[Path, ...]:
    """The models of a package, the one with operators of our own first, after comparing them with the manifest.

    Raises InputError for a folder that is no intact package, and for one without a model.
    """
    listed = {entry.path for entry in read_manifest(folder).files}
    found = tuple(checked_file(folder, name) for name in (PLUGIN, PORTABLE) if name in listed)
    if not found:
        raise InputError(f"{folder}: lists neither {PLUGIN} nor {PORTABLE}, so it holds no model; optimize it again")
    return found


def package_files(folder: Path) -> list[str]:
    """The files below a package's folder but for its manifest, as the manifest names them, sorted."""
    found = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return sorted(name for name in found if name != FILE_NAME)


def portable_model(folder: Path, purpose: str) -> Path:
    """The portable model of a package, after comparing it with the manifest.

    Raises InputError where there is none; ``purpose`` says what it was needed for.
    """
    if read_manifest(folder).entry(PORTABLE) is None and read_manifest(folder).entry(PLUGIN) is not None:
        raise InputError(
            f"{folder}: has only {PLUGIN}, the plugin form; {purpose} needs {PORTABLE}: optimize the original model "
            "with --form both"
        )
    return checked_file(folder, PORTABLE)


def check_place(folder: Path, model: Path) -> None:
    """Refuse at once a place that could not be written after all the work, or that holds anything but a package.

    Raises :class:`InputError`; ``model`` is the file that is optimised, which must not lie in the folder.
    """
    place = _full_path(folder)
    if place.is_symlink():
        raise InputError(f"{folder}: is a symbolic link; name the folder that it leads to, or another one, with -o")
    if place.exists() and not place.is_dir():
        raise InputError(f"{folder}: is a file; choose another place with -o")
    if place in (Path.cwd(), *Path.cwd().parents):
        raise InputError(f"{folder}: is the current folder or one above it; name a folder of its own with -o")
    if place in model.resolve().parents:
        raise InputError(f"{folder}: holds the model itself; choose another folder with -o")
    if place.is_dir():
        _refuse_foreign(place, folder)
    parent = next(p for p in place.parents if p.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        raise InputError(f"{parent}: cannot write there; choose another folder with -o")


@contextmanager
def new_package(folder: Path) -> Iterator[Path]:
    """A folder to write a package in; it takes the place of ``folder`` when the block ends well, else it is removed.

    Call :func:`check_place` first. Raises :class:`InputError` where the folder cannot be written.
    """
    folder = _full_path(folder)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    except OSError as error:
        raise InputError(
            f"{folder.parent}: cannot write there: {error.strerror}; choose another folder with -o"
        ) from error
    try:
        yield draft
        _move(draft, folder)
    except OnnxOptError as error:
        # The draft is gone when this is read, and nobody has asked for it.
        error.args = tuple(a.replace(str(draft), str(folder)) if isinstance(a, str) else a for a in error.args)
        raise
    except OSError as error:
        step = "free some space" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "check its permissions"
        raise InputError(
            f"{folder}: cannot be written: {error.strerror}; {step} or choose another folder with -o"
        ) from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _full_path(folder: Path) -> Path:
    """The path without ``.`` and links above it, for renaming; a link in its own place stays one."""
    return folder.parent.resolve() / folder.name if folder.name not in ("", "..") else folder.resolve()


def write_json(path: Path, document: dict[str, Any]) -> None:
    """Write a document with a fixed layout, so that equal documents are equal files."""
    atomic_write(path, (json.dumps(document, indent=1, ensure_ascii=True, allow_nan=False) + "\n").encode())


def _refuse_foreign(place: Path, shown: Path) -> None:
    """Only what a manifest of ours lists may be replaced."""
    found = {str(path.relative_to(place)) for path in place.rglob("*") if not path.is_dir() or path.is_symlink()}
    # Whoever imports the package's plugin module leaves its byte code there.
    found -= {name for name in found if name.startswith("__pycache__/") and name.endswith(".pyc")}
    if not found:
        return
    advice = "choose another folder with -o, or empty it"
    if FILE_NAME not in found:
        raise InputError(f"{shown}: holds files but no {FILE_NAME}, so it is no package and is left alone; {advice}")
    try:
        listed = {entry.path for entry in read_manifest(place).files} | {FILE_NAME}
    except InputError as error:
        raise InputError(
            f"{shown}: is no package that this version wrote ({error}), and is left alone; {advice}"
        ) from None
    if found - listed:
        raise InputError(
            f"{shown}: holds '{min(found - listed)}', which is no part of its package; move it away, or {advice}"
        )


def _move(draft: Path, folder: Path) -> None:
    """Put the draft in the folder's place; what was there goes only when the new one is in place."""
    draft.chmod(0o755)
    if not folder.exists():
        draft.replace(folder)
        return
    # Whatever was put there during the work is somebody's.
    _refuse_foreign(folder, folder)
    old = Path(tempfile.mkdtemp(prefix=f".{folder.name}.old.", dir=folder.parent))
    try:
        folder.replace(old / "package")
        draft.replace(folder)
    except BaseException:
        # An interrupt between the two renames must not lose the package that was there.
        if (old / "package").exists() and not folder.exists():
            (old / "package").replace(folder)
        raise
    finally:
        shutil.rmtree(old, ignore_errors=True)
