"""What a job folder holds: one entry for each operator, with its kernels, tables and what was predicted."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from onnxopt.errors import InputError
from onnxopt.measure.job.weights import with_weights

SCHEMA = "onnxopt.job/2"
FILE = "job.json"
_MOST_BYTES = 64 << 20

Array = npt.NDArray[Any]

Kind = Literal["attention", "conv", "algorithm"]
"""Which operators an entry has: SparseAttention and MergeAttention, GroupConv and SumConv, or an algorithm's steps."""


@dataclass(frozen=True)
class Code:
    """One compiled kernel: its files relative to the folder, its launch, and the compiler's report."""

    entry: str
    cubins: Mapping[str, str]
    ptx: str
    block: int
    shared_bytes: int
    registers: int


@dataclass(frozen=True)
class Entry:
    """One operator to run; ``second`` is the kernel that merges or adds up partial results, where there are any.
    ``further`` are the kernels behind the first of an algorithm with several steps.

    ``needed`` and ``computed`` count pairs over all heads of a batch element, or connections of a convolution; times
    are microseconds. ``purpose`` is ``site`` for a site of a model and ``tile`` for strips or parts that are all alike,
    whose time goes into tuning records, as does that of a ``layer``, a whole convolution; ``record`` has the fields of
    such a record that do not come from measuring.
    """

    id: str
    kind: Kind
    purpose: str
    kernel: Mapping[str, Any]
    second_kernel: Mapping[str, Any] | None
    tables: str
    first: Code
    second: Code | None
    batch: int
    resident: int
    needed: int
    computed: int
    predicted_us: float
    bound_us: float
    record: Mapping[str, Any] | None = None
    further: tuple[Code, ...] = ()


@dataclass(frozen=True)
class Job:
    """A job folder's content: which versions made it, and its entries."""

    folder: Path
    versions: Mapping[str, str]
    entries: tuple[Entry, ...]

    def tables(self, entry: Entry) -> dict[str, Array]:
        """An entry's tables by name; weights that the job does not carry are drawn."""
        with np.load(self.folder / entry.tables, allow_pickle=False) as archive:
            return with_weights({name: archive[name] for name in archive.files}, entry.kernel["element"])

    def code(self, code: Code, architecture: str) -> bytes:
        """The machine code for an architecture, else the PTX, which the driver compiles."""
        name = code.cubins.get(architecture, code.ptx)
        return (self.folder / name).read_bytes()


def write_job(job: Job) -> None:
    """Write ``job.json``; the files that entries name must be in the folder already."""
    document = {
        "schema": SCHEMA,
        "versions": dict(job.versions),
        "entries": [asdict(entry) for entry in job.entries],
    }
    (job.folder / FILE).write_text(json.dumps(document, indent=1, sort_keys=True) + "\n")


def read_job(folder: Path) -> Job:
    """Read a job folder; raises InputError where it is none, or another version's."""
    path = folder / FILE
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise InputError(f"{path}: larger than {_MOST_BYTES:,} bytes, which no job is; build the job again")
        document = json.loads(path.read_text())
        if document["schema"] != SCHEMA:
            raise InputError(
                f"{path}: schema {document['schema']!r}; this version reads {SCHEMA!r}; build the job again"
            )
        entries = tuple(_entry(folder, fields) for fields in document["entries"])
        return Job(folder, dict(document["versions"]), entries)
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}; name a folder that `make gpu-job` has written") from None
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path}: damaged ({error}); build the job again") from None


def _entry(folder: Path, fields: Mapping[str, Any]) -> Entry:
    codes = {name: Code(**fields[name]) if fields[name] else None for name in ("first", "second")}
    further = tuple(Code(**code) for code in fields.get("further", ()))
    entry = Entry(**{**fields, **codes, "further": further})
    own = [code for code in (entry.first, entry.second, *further) if code is not None]
    if entry.kind not in get_args(Kind):
        raise ValueError(f"an entry's kind is {entry.kind!r}; known are {', '.join(get_args(Kind))}")
    for name in (entry.tables, *(file for code in own for file in (*code.cubins.values(), code.ptx))):
        if not (folder / name).resolve().is_relative_to(folder.resolve()):
            raise ValueError(f"the file {name!r} lies outside of the folder")
    return entry
