"""The timing cache of TensorRT as a file: what the library gave, behind a line with its sum.

A damaged file is a warning and costs the time to measure again; the library never sees it.
"""

from __future__ import annotations

import hashlib
import logging
import re
from pathlib import Path

from onnxopt.errors import InputError
from onnxopt.model.files import atomic_file, read_file

_LOG = logging.getLogger(__name__)

FOLDER = "tensorrt"
SUFFIX = ".timings"

_MAX_BYTES = 4 << 30
_HEAD = re.compile(rb"onnxopt timing cache 1 ([0-9a-f]{64})\n")
_HEAD_BYTES = len("onnxopt timing cache 1 ") + 64 + 1


def default_timing_cache(cache: Path, version: str, gpu: str) -> Path:
    """Where the timings of a TensorRT version on a GPU are kept, below the folder ``cache``."""
    names = (re.sub(r"[^A-Za-z0-9.]+", "-", text).strip("-.") or "unknown" for text in (version, gpu))
    return cache / FOLDER / f"{'_'.join(names)}{SUFFIX}"


def read_timings(path: Path) -> bytes | None:
    """The timings in a file; None, with a warning, where it cannot be used, and without one where it is not there."""
    if not path.exists():
        return None
    timings = _read(path)
    if isinstance(timings, str):
        _LOG.warning("the timing cache %s is not used, and written anew: %s", path, timings)
        return None
    return timings


def timings_fault(path: Path) -> str:
    """What is wrong with a file of timings, or nothing."""
    timings = _read(path)
    return timings if isinstance(timings, str) else ""


def _read(path: Path) -> bytes | str:
    """The timings, or what is wrong with the file."""
    try:
        content = read_file(path, _MAX_BYTES)
    except InputError as error:
        return str(error)
    head = _HEAD.match(content)
    if head is None:
        return "it is not one that onnxopt wrote"
    timings = content[_HEAD_BYTES:]
    intact = hashlib.sha256(timings).hexdigest().encode() == head[1]
    return timings if intact else "it is damaged"


def write_timings(path: Path, timings: bytes) -> None:
    """Keep timings, whole or not at all; where that fails it is a warning, for the engine is built already."""
    digest = hashlib.sha256(timings).hexdigest()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(path) as file:
            file.write(f"onnxopt timing cache 1 {digest}\n".encode())
            file.write(timings)
    except (InputError, OSError) as error:
        _LOG.warning("the timing cache is not kept: %s", error)
