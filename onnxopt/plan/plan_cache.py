"""Schedules kept by content: the same pattern for the same GPU is planned once, whatever model it stands in.

An entry is named by a hash of everything that its planning depends on, the planner's own source included. Entries are
untrusted: a damaged one is a warning, and the site is planned again.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterable
from dataclasses import fields
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from onnxopt.errors import InputError
from onnxopt.model.files import atomic_write, read_file
from onnxopt.plan.plan_file import DamagedError, Kind, Schedule, from_bytes, to_bytes
from onnxopt.target import GpuProfile
from onnxopt.target.tile_records import TileRecord, format_tile_record

FOLDER = "plans"
SUFFIX = ".schedule"
MAX_ENTRY_BYTES = 256 << 20

_log = logging.getLogger(__name__)


class PlanCache:
    """Schedules by key: those of this process, and with ``folder`` those of earlier ones."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder / FOLDER if folder is not None else None
        self._known: dict[str, tuple[Schedule, ...]] = {}

    def get(self, key: str, kind: Kind) -> tuple[Schedule, ...] | None:
        """The schedules of a key, or None where there are none that can be used."""
        if key not in self._known:
            found = self._read(key, kind)
            if found is None:
                return None
            self._known[key] = found
        return self._known[key]

    def put(self, key: str, schedules: tuple[Schedule, ...]) -> None:
        """Keep schedules; a folder that cannot be written is a warning."""
        self._known[key] = schedules
        if self.folder is None:
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            atomic_write(self.folder / f"{key}{SUFFIX}", to_bytes(schedules))  # type: ignore[arg-type]
        except (OSError, InputError) as error:
            _log.warning("%s: plans are not kept: %s", self.folder, error)

    def _read(self, key: str, kind: Kind) -> tuple[Schedule, ...] | None:
        if self.folder is None:
            return None
        path = self.folder / f"{key}{SUFFIX}"
        if not path.is_file():
            return None
        try:
            return from_bytes(read_file(path, MAX_ENTRY_BYTES), kind)
        except (InputError, DamagedError) as error:
            _log.warning("%s: cannot be used (%s); the site is planned again", path, error)
            return None


def check_entry(path: Path) -> None:
    """Read one entry; raises InputError or DamagedError where it cannot be used."""
    from_bytes(read_file(path, MAX_ENTRY_BYTES))


def content_key(kind: Kind, gpu: GpuProfile, records: Iterable[TileRecord], facts: Iterable[Any]) -> str:
    """The name of an entry: a hash of the planner, the GPU, its records and the ``facts`` of a site."""
    digest = hashlib.sha256(planner_digest().encode())
    figures = {f.name: getattr(gpu, f.name) for f in fields(gpu) if f.name != "sources"}
    _add(digest, [kind, json.dumps(figures, sort_keys=True, default=str)])
    _add(digest, [format_tile_record(record) for record in records])
    _add(digest, facts)
    return digest.hexdigest()


def _add(digest: Any, facts: Iterable[Any]) -> None:
    for fact in facts:
        if isinstance(fact, np.ndarray):
            digest.update(f"{fact.dtype}{fact.shape}".encode())
            digest.update(np.ascontiguousarray(fact).data)
        else:
            digest.update(repr(fact).encode())
        digest.update(b"\0")


@lru_cache(maxsize=1)
def planner_digest() -> str:
    """A hash of the planner's source, so that no plan outlives the code that made it."""
    digest = hashlib.sha256()
    folder = Path(__file__).parent
    for path in sorted(folder.rglob("*.py")):
        digest.update(path.relative_to(folder).as_posix().encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()
