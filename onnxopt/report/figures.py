"""``figures.json``: the pictures of a package's sites as data, written by `optimize` and read by `report`.

A package may come from anyone, so every size is bounded before memory is taken, and every number is checked.
"""

from __future__ import annotations

import base64
import binascii
import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from onnxopt.documents import read_document
from onnxopt.errors import InputError, shown
from onnxopt.report.picture import MAX_TILES, Kind, Picture, Stage, TileKind, Tiles
from onnxopt.report.raster import MAX_CELLS, Axis, Levels

FIGURES = "figures.json"
SCHEMA = "onnxopt.figures/1"
MAX_PICTURES = 2000

_MAX_BYTES = 64 << 20
_MAX_SITES = 100_000
_MAX_NUMBER = 1 << 53
_MAX_TEXT = 200
_TILE_BYTES = 5 * 4
_KINDS: tuple[Kind, ...] = ("attention", "conv")
_STAGES: tuple[Stage, ...] = ("before", "after", "blocks")


@dataclass(frozen=True)
class Figures:
    """Pictures, each kept once, and which of them (by number, in order) every site has."""

    pictures: tuple[Picture, ...]
    sites: Mapping[str, tuple[int, ...]]


def figures_document(entries: Mapping[str, Sequence[Picture]]) -> dict[str, Any]:
    """The document ``onnxopt.figures/1`` of sites by their ids; equal pictures are written once.

    A site whose pictures would exceed ``MAX_PICTURES`` in the document has none.
    """
    numbers: dict[str, int] = {}
    written: list[dict[str, Any]] = []
    sites: dict[str, list[int]] = {}
    for site, pictures in entries.items():
        documents = [_written(picture) for picture in pictures]
        keys = [json.dumps(document, sort_keys=True) for document in documents]
        if len(written) + len(set(keys) - set(numbers)) > MAX_PICTURES:
            sites[site] = []
            continue
        for key, document in zip(keys, documents, strict=True):
            if key not in numbers:
                numbers[key] = len(written)
                written.append(document)
        sites[site] = [numbers[key] for key in keys]
    return {"schema": SCHEMA, "pictures": written, "sites": sites}


def read_figures(path: Path) -> Figures:
    """Read ``figures.json``; raises InputError naming the file and the field for anything else."""
    return read_document(path, _MAX_BYTES, parse_figures)


def parse_figures(document: Any) -> Figures:
    """The pictures of a document; raises InputError naming the field, the value and what is allowed."""
    if not isinstance(document, dict) or document.get("schema") != SCHEMA:
        found = document.get("schema") if isinstance(document, dict) else document
        raise InputError(f"field 'schema' is {shown(found)}; this version reads '{SCHEMA}'")
    pictures, sites = document.get("pictures"), document.get("sites")
    if not isinstance(pictures, list) or len(pictures) > MAX_PICTURES:
        raise InputError(f"field 'pictures' is not a list of up to {MAX_PICTURES:,} pictures")
    if not isinstance(sites, dict) or len(sites) > _MAX_SITES:
        raise InputError(f"field 'sites' is not an object of up to {_MAX_SITES:,} sites")
    parsed = tuple(_parsed(entry, f"pictures[{number}]") for number, entry in enumerate(pictures))
    return Figures(parsed, {site: _references(site, found, len(parsed)) for site, found in sites.items()})


def _references(site: str, found: Any, count: int) -> tuple[int, ...]:
    where = f"sites[{shown(site)}]"
    if not isinstance(found, list) or len(found) > MAX_PICTURES:
        raise InputError(f"field '{where}' is not a list of up to {MAX_PICTURES:,} numbers of pictures")
    return tuple(_checked(number, 0, count - 1, where) for number in found)


def _written(picture: Picture) -> dict[str, Any]:
    computed = picture.computed_levels
    return {
        "kind": picture.kind,
        "stage": picture.stage,
        "pattern": picture.pattern,
        "order": picture.order,
        "rows": [picture.rows.size, picture.rows.step],
        "columns": [picture.columns.size, picture.columns.step],
        "needed": picture.needed,
        "computed": picture.computed,
        "blocks": [picture.blocks, picture.first, picture.shown],
        "needed_levels": _packed(picture.needed_levels.tobytes()),
        "computed_levels": None if computed is None else _packed(computed.tobytes()),
        "tiles": _packed(picture.tiles.astype("<i4").tobytes()),
    }


def _parsed(entry: Any, where: str) -> Picture:
    if not isinstance(entry, dict):
        raise InputError(f"field '{where}' is {shown(entry)}; a picture is an object")
    kind, stage = entry.get("kind"), entry.get("stage")
    if kind not in _KINDS or stage not in _STAGES:
        raise InputError(f"field '{where}' has the kind {shown(kind)} and the stage {shown(stage)}")
    rows, columns = (_axis(entry.get(name), f"{where}.{name}") for name in ("rows", "columns"))
    needed, computed = (_checked(entry.get(n), 0, _MAX_NUMBER, f"{where}.{n}") for n in ("needed", "computed"))
    total, first, blocks = _numbers(entry.get("blocks"), 3, f"{where}.blocks")
    covered = entry.get("computed_levels")
    return Picture(
        kind,
        stage,
        _text(entry.get("pattern"), f"{where}.pattern"),
        _text(entry.get("order"), f"{where}.order"),
        rows,
        columns,
        needed,
        computed,
        _levels(entry.get("needed_levels"), rows, columns, f"{where}.needed_levels"),
        None if covered is None else _levels(covered, rows, columns, f"{where}.computed_levels"),
        _tiles(entry.get("tiles"), rows, columns, f"{where}.tiles"),
        total,
        first,
        blocks,
    )


def _axis(found: Any, where: str) -> Axis:
    size, step = _numbers(found, 2, where)
    axis = Axis(size, step)
    # Outlines are 32-bit numbers.
    if not 1 <= size < 1 << 31 or step < 1 or axis.cells > MAX_CELLS:
        raise InputError(f"field '{where}' is {shown(found)}; allowed: up to {MAX_CELLS} cells of at least one")
    return axis


def _levels(found: Any, rows: Axis, columns: Axis, where: str) -> Levels:
    size = rows.cells * columns.cells
    data = _unpacked(found, size, where)
    if len(data) != size:
        raise InputError(f"field '{where}' holds {len(data)} cells; allowed: {rows.cells} x {columns.cells}")
    return np.frombuffer(data, np.uint8).reshape(rows.cells, columns.cells)


def _tiles(found: Any, rows: Axis, columns: Axis, where: str) -> Tiles:
    data = _unpacked(found, MAX_TILES * _TILE_BYTES, where)
    if len(data) % _TILE_BYTES:
        raise InputError(f"field '{where}' holds {len(data)} bytes; allowed: {_TILE_BYTES} for every tile")
    tiles = np.frombuffer(data, "<i4").reshape(-1, 5).astype(np.int32)
    top, left, bottom, right, kind = tiles.T
    inside = (top >= 0) & (top < bottom) & (bottom <= rows.size) & (left >= 0) & (left < right)
    inside &= (right <= columns.size) & (kind >= 0) & (kind <= max(TileKind))
    if not inside.all():
        wrong = tiles[~inside][0].tolist()
        raise InputError(f"field '{where}' has the tile {wrong}, which is not within {rows.size} x {columns.size}")
    return tiles


def _packed(data: bytes) -> str:
    return base64.b64encode(zlib.compress(data, 9)).decode()


def _unpacked(found: Any, limit: int, where: str) -> bytes:
    """The data of a field, of which no more than ``limit`` bytes are unpacked."""
    if not isinstance(found, str):
        raise InputError(f"field '{where}' is {shown(found)}; allowed: compressed data in base 64")
    try:
        unpacker = zlib.decompressobj()
        data = unpacker.decompress(base64.b64decode(found, validate=True), limit + 1)
    except (binascii.Error, zlib.error, ValueError) as error:
        raise InputError(f"field '{where}' is no compressed data in base 64 ({error})") from None
    if len(data) > limit or not unpacker.eof:
        raise InputError(f"field '{where}' is cut off or holds more than {limit:,} bytes")
    return data


def _numbers(found: Any, count: int, where: str) -> list[int]:
    if not isinstance(found, list) or len(found) != count:
        raise InputError(f"field '{where}' is {shown(found)}; allowed: a list of {count} numbers")
    return [_checked(number, 0, _MAX_NUMBER, where) for number in found]


def _checked(found: Any, low: int, high: int, where: str) -> int:
    if not isinstance(found, int) or isinstance(found, bool) or not low <= found <= high:
        raise InputError(f"field '{where}' has the value {shown(found)}; allowed: {low:,} to {high:,}")
    return found


def _text(found: Any, where: str) -> str:
    if not isinstance(found, str) or len(found) > _MAX_TEXT:
        raise InputError(f"field '{where}' is {shown(found)}; allowed: a text of up to {_MAX_TEXT} characters")
    return found
