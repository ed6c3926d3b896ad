"""The folder that `optimize` leaves behind: written whole beside its place, then moved there in one step."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from onnxopt.errors import InputError
from onnxopt.model.files import atomic_write

PORTABLE = "model.portable.onnx"
PLAN = "plan.json"
RTX_ENGINE = "model.rtx.engine"
_MANIFEST = "manifest.json"


def default_folder(model: Path) -> Path:
    """Where the package of a model goes: ``swin.onnx`` to ``swin.onnxopt`` beside it."""
    return model.with_suffix(".onnxopt")


@contextmanager
def new_package(folder: Path) -> Iterator[Path]:
    """A folder to write a package in; it takes the place of ``folder`` when the block ends well, else it is removed.

    Raises :class:`InputError` where ``folder`` holds something that is no package, or cannot be written.
    """
    # A folder named "." cannot be renamed; its full path can.
    folder = folder.absolute() if folder.is_symlink() else folder.resolve()
    _refuse_foreign(folder)
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
    except OSError as error:
        raise InputError(
            f"{folder}: cannot be written: {error.strerror}; free some space or choose another folder with -o"
        ) from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def write_json(path: Path, document: dict[str, Any]) -> None:
    """Write a document with a fixed layout, so that equal documents are equal files."""
    atomic_write(path, (json.dumps(document, indent=1, ensure_ascii=True, allow_nan=False) + "\n").encode())


def _refuse_foreign(folder: Path) -> None:
    if not folder.exists() and not folder.is_symlink():
        return
    if folder.is_symlink() or not folder.is_dir():
        raise InputError(f"{folder}: is not a folder; choose another place with -o")
    if any(folder.iterdir()) and not (folder / _MANIFEST).is_file():
        raise InputError(
            f"{folder}: holds files but no {_MANIFEST}, so it is no package of onnxopt and is left alone; "
            "choose another folder with -o, or empty it"
        )


def _move(draft: Path, folder: Path) -> None:
    """Put the draft in the folder's place; what was there goes only when the new one is in place."""
    draft.chmod(0o755)
    if not folder.exists():
        draft.replace(folder)
        return
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
