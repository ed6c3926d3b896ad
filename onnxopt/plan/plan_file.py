"""Schedules as bytes and back: a checked line of JSON, and arrays behind it. What is read is untrusted.

Layout: the magic word, the SHA-256 of the rest, the length of the header (8 bytes, little-endian), the header, the
arrays one after the other as little-endian int32 or uint8.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, Literal, cast

import numpy as np

from onnxopt.plan.schedule import (
    AttentionSchedule,
    ConvPart,
    ConvSchedule,
    Forecast,
    PatternSchedule,
    Proof,
)
from onnxopt.plan.strips import Strip
from onnxopt.target.variant import AttentionVariant, ConvVariant

_MAGIC = b"onnxopt.schedule/1\n"
_TYPES: dict[str, np.dtype[Any]] = {"int32": np.dtype("<i4"), "uint8": np.dtype("u1")}
Kind = Literal["attention", "conv"]
Schedule = AttentionSchedule | ConvSchedule


class DamagedError(ValueError):
    """Bytes that are no schedule of this version."""


def to_bytes(schedules: tuple[AttentionSchedule, ...] | tuple[ConvSchedule, ...]) -> bytes:
    """Schedules of one kind, in order, as bytes that are the same for the same schedules."""
    arrays: dict[str, np.ndarray] = {}
    entries = []
    for number, schedule in enumerate(schedules):
        write = _attention_entry if isinstance(schedule, AttentionSchedule) else _conv_entry
        entries.append(write(schedule, arrays, f"{number}/"))  # type: ignore[arg-type]
    kind: Kind = "attention" if isinstance(schedules[0], AttentionSchedule) else "conv"
    listed = [[name, str(a.dtype), list(a.shape)] for name, a in arrays.items()]
    header = json.dumps({"kind": kind, "schedules": entries, "arrays": listed}, sort_keys=True).encode()
    parts = [len(header).to_bytes(8, "little"), header]
    parts += [np.ascontiguousarray(a, _TYPES[str(a.dtype)]).tobytes() for a in arrays.values()]
    body = b"".join(parts)
    return _MAGIC + hashlib.sha256(body).digest() + body


def from_bytes(data: bytes, kind: Kind | None = None) -> tuple[Schedule, ...]:
    """What :func:`to_bytes` wrote, of ``kind`` if that is given; raises :class:`DamagedError` for anything else."""
    start = len(_MAGIC) + 32
    if not data.startswith(_MAGIC) or len(data) < start + 8:
        raise DamagedError("no schedule of this version")
    body = memoryview(data)[start:]
    if hashlib.sha256(body).digest() != data[len(_MAGIC) : start]:
        raise DamagedError("its contents do not agree with their checksum")
    try:
        length = int.from_bytes(body[:8], "little")
        header = json.loads(bytes(body[8 : 8 + length]))
        if header["kind"] not in ("attention", "conv") or kind not in (None, header["kind"]):
            raise DamagedError(f"holds a schedule of kind {header['kind']!r}")
        arrays = _arrays(header["arrays"], body[8 + length :])
        read = _attention if header["kind"] == "attention" else _conv
        return tuple(read(entry, arrays, f"{number}/") for number, entry in enumerate(header["schedules"]))
    except (KeyError, TypeError, ValueError, IndexError, RecursionError) as error:
        raise DamagedError(str(error)) from error


def _arrays(listed: list[tuple[str, str, list[int]]], data: memoryview) -> dict[str, np.ndarray]:
    result = {}
    place = 0
    for name, kind, shape in listed:
        dtype = _TYPES[kind]
        size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        if any(not isinstance(n, int) or n < 0 for n in shape) or place + size > len(data):
            raise DamagedError(f"array {name!r} does not fit into the file")
        result[name] = np.frombuffer(data[place : place + size], dtype).reshape(shape)
        place += size
    if place != len(data):
        raise DamagedError("bytes are left over")
    return result


def _attention_entry(schedule: AttentionSchedule, arrays: dict[str, np.ndarray], at: str) -> dict[str, Any]:
    strips = [strip for part in schedule.parts for strip in part.strips]
    arrays[at + "rows"], arrays[at + "row_ends"] = _joined([strip.rows for strip in strips])
    arrays[at + "keys"], arrays[at + "key_ends"] = _joined([strip.keys for strip in strips])
    arrays[at + "full"] = np.array([strip.full for strip in strips], np.uint8)
    arrays[at + "variants"] = np.array([v for part in schedule.parts for v in part.variants], np.int32)
    arrays[at + "jobs"] = schedule.jobs.astype(np.int32)
    parts = [{"heads": p.heads, "lists": p.lists, "order": p.order, "strips": len(p.strips)} for p in schedule.parts]
    return _common(schedule) | {"site": schedule.site, "split_keys": schedule.split_keys, "parts": parts}


def _conv_entry(schedule: ConvSchedule, arrays: dict[str, np.ndarray], at: str) -> dict[str, Any]:
    arrays[at + "outputs"], arrays[at + "output_ends"] = _joined([part.outputs for part in schedule.parts])
    arrays[at + "inputs"], arrays[at + "input_ends"] = _joined([part.inputs for part in schedule.parts])
    arrays[at + "variants"] = np.array([part.variant for part in schedule.parts], np.int32)
    arrays[at + "jobs"] = schedule.jobs.astype(np.int32)
    return _common(schedule) | {"order": schedule.order}


def _common(schedule: Schedule) -> dict[str, Any]:
    return {
        "objective": schedule.objective,
        "element": schedule.element,
        "variant": [asdict(variant) for variant in schedule.variants],
        "resident": schedule.resident,
        "needed": schedule.needed,
        "computed": schedule.computed,
        "forecast": asdict(schedule.forecast),
        "proof": asdict(schedule.proof),
    }


def _joined(pieces: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    whole = np.concatenate(pieces) if pieces else np.empty(0)
    return whole.astype(np.int32), np.cumsum([len(piece) for piece in pieces]).astype(np.int32)


def _pieces(whole: np.ndarray, ends: np.ndarray) -> list[np.ndarray]:
    if len(ends) == 0 or ends[-1] != len(whole) or np.any(np.diff(ends, prepend=0) < 0):
        raise DamagedError("lists do not end where their numbers end")
    return np.split(whole.astype(np.int64), ends[:-1])


def _attention(entry: Mapping[str, Any], arrays: Mapping[str, np.ndarray], at: str) -> AttentionSchedule:
    rows = _pieces(arrays[at + "rows"], arrays[at + "row_ends"])
    keys = _pieces(arrays[at + "keys"], arrays[at + "key_ends"])
    full = arrays[at + "full"].astype(bool).tolist()
    strips = [Strip(*item) for item in zip(rows, keys, full, strict=True)]
    numbers = arrays[at + "variants"].tolist()
    parts = []
    for part in entry["parts"]:
        count = part["strips"]
        own, strips = strips[:count], strips[count:]
        used, numbers = numbers[:count], numbers[count:]
        parts.append(PatternSchedule(tuple(part["heads"]), part["lists"], part["order"], tuple(own), tuple(used)))
    variants = tuple(AttentionVariant(**fields) for fields in entry["variant"])
    return AttentionSchedule(
        entry["site"],
        entry["objective"],
        entry["element"],
        variants,
        entry["resident"],
        tuple(parts),
        arrays[at + "jobs"],
        entry["split_keys"],
        entry["needed"],
        entry["computed"],
        Forecast(**entry["forecast"]),
        Proof(**entry["proof"]),
    )


def _conv(entry: Mapping[str, Any], arrays: Mapping[str, np.ndarray], at: str) -> ConvSchedule:
    outputs = _pieces(arrays[at + "outputs"], arrays[at + "output_ends"])
    inputs = _pieces(arrays[at + "inputs"], arrays[at + "input_ends"])
    numbers = cast(list[int], arrays[at + "variants"].tolist())
    parts = tuple(ConvPart(*item) for item in zip(outputs, inputs, numbers, strict=True))
    return ConvSchedule(
        entry["objective"],
        entry["element"],
        tuple(ConvVariant(**fields) for fields in entry["variant"]),
        entry["resident"],
        parts,
        arrays[at + "jobs"],
        entry["order"],
        entry["needed"],
        entry["computed"],
        Forecast(**entry["forecast"]),
        Proof(**entry["proof"]),
    )
