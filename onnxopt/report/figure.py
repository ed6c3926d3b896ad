"""A picture as HTML: the cells as a small inline PNG, outlines and axes around it, and what it says in words."""

from __future__ import annotations

import base64
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from onnxopt.report.markup import count, factor, percent, plural, text
from onnxopt.report.picture import PICTURE_WIDTH, Picture, TileKind, Tiles
from onnxopt.report.png import palette_png
from onnxopt.report.raster import Levels

# Blue on yellow: apart for every kind of colour vision; both light enough for dark lines, in both styles.
NEEDED = (66, 139, 202)
SPARE = (250, 186, 30)

_SHADES = 16
_LARGEST_CELL = 32
_SMALLEST_SIDE = 72
_STRETCH = 8
_KIND_CLASS = {TileKind.FULL: "full", TileKind.MASKED: "masked", TileKind.BIASED: "biased"}
_AXES = {"attention": ("query", "key"), "conv": ("output", "input")}
_MANY = {"query": "queries"}
_BLOCKS = {"attention": "strips", "conv": "parts"}


def figure(picture: Picture) -> str:
    """The picture with its title above and its figures below."""
    title, note = _title(picture), _note(picture)
    across, down = _scales(picture)
    width, height = picture.columns.cells * across, picture.rows.cells * down
    data = base64.b64encode(cells_png(picture)).decode()
    alt = f"{text(title)}. {_plain(note)}"
    y, x = _axis_names(picture)
    return (
        f'<figure><figcaption class="title">{text(title)}</figcaption>\n'
        f'<div class="plot" style="--w:{width}px"><span class="y">{y}</span>'
        f'<div class="frame" style="aspect-ratio:{width}/{height}">'
        f'<img src="data:image/png;base64,{data}" width="{width}" height="{height}" alt="{alt}">'
        f'{_overlay(picture)}</div><span class="x">{x}</span></div>\n'
        f'<figcaption class="note">{note}</figcaption></figure>\n'
    )


def cells_png(picture: Picture) -> bytes:
    """The cells alone: the more is needed the bluer, the more is computed in vain the yellower, else transparent."""
    return palette_png(_shade(picture.needed_levels) * _SHADES + _shade(_spare(picture)), _palette())


def _spare(picture: Picture) -> Levels:
    """What is computed of each cell without being needed."""
    needed, computed = picture.needed_levels, picture.computed_levels
    if computed is None:
        return np.zeros_like(needed)
    return np.where(computed > needed, computed - needed, 0).astype(np.uint8)


def _shade(levels: Levels) -> NDArray[np.uint8]:
    shade = 1 + (levels.astype(np.int64) - 1) * (_SHADES - 1) // 255
    return np.where(levels > 0, shade, 0).astype(np.uint8)


def _palette() -> list[tuple[int, int, int, int]]:
    """Needed over spare, each the more opaque the more there is; the least of either can still be seen."""
    result = []
    for needed in range(_SHADES):
        over = 0.0 if needed == 0 else 0.3 + 0.7 * (needed / (_SHADES - 1)) ** 0.7
        for spare in range(_SHADES):
            under = 0.0 if spare == 0 else 0.2 + 0.65 * spare / (_SHADES - 1)
            opacity = over + under * (1 - over)
            share = over / opacity if opacity else 0.0
            red, green, blue = (round(n * share + s * (1 - share)) for n, s in zip(NEEDED, SPARE, strict=True))
            result.append((red, green, blue, round(255 * opacity)))
    return result


def _scales(picture: Picture) -> tuple[int, int]:
    """Pixels of a cell across and down: whole numbers, so that all cells of a picture are equal."""
    across = min(_LARGEST_CELL, max(1, PICTURE_WIDTH // picture.columns.cells))
    down = min(_LARGEST_CELL, max(1, PICTURE_WIDTH // picture.rows.cells))
    if picture.stage == "blocks":
        across = min(across, _STRETCH * down)
        down = min(down, across)
    else:
        across = down = min(across, down)
    return (
        max(across, -(-_SMALLEST_SIDE // picture.columns.cells)),
        max(down, -(-_SMALLEST_SIDE // picture.rows.cells)),
    )


def _overlay(picture: Picture) -> str:
    paths = []
    for kind, name in _KIND_CLASS.items():
        line = _edges(picture.tiles[picture.tiles[:, 4] == kind, :4])
        if line:
            paths.append(f'<path class="{name}" d="{line}"/>')
    if not paths:
        return ""
    rows, columns = picture.rows, picture.columns
    box = f"0 0 {columns.cells * columns.step} {rows.cells * rows.step}"
    return f'<svg viewBox="{box}" preserveAspectRatio="none" aria-hidden="true">{"".join(paths)}</svg>'


def _edges(boxes: Tiles) -> str:
    """The edges of boxes as SVG path data; one that several share is drawn once, else dashes would fill each other."""
    top, left, bottom, right = boxes.T
    across = _joined(np.concatenate([top, bottom]), np.tile(left, 2), np.tile(right, 2))
    down = _joined(np.concatenate([left, right]), np.tile(top, 2), np.tile(bottom, 2))
    lines = [f"M{begin} {y}H{end}" for y, begin, end in across] + [f"M{x} {begin}V{end}" for x, begin, end in down]
    return "".join(lines)


def _joined(lines: Tiles, begins: Tiles, ends: Tiles) -> list[tuple[int, int, int]]:
    """Segments on parallel lines as (line, begin, end); those that touch or overlap are one."""
    result: list[tuple[int, int, int]] = []
    for line, begin, end in sorted(zip(lines.tolist(), begins.tolist(), ends.tolist(), strict=True)):
        if result and result[-1][0] == line and begin <= result[-1][2]:
            result[-1] = (line, result[-1][1], max(end, result[-1][2]))
        else:
            result.append((line, begin, end))
    return result


def _axis_names(picture: Picture) -> tuple[str, str]:
    y, x = _AXES[picture.kind]
    if picture.stage == "blocks":
        return plural(picture.rows.size, "row"), f"up to {plural(picture.columns.size, f'gathered {x}')}"
    return plural(picture.rows.size, y, _MANY.get(y, "")), plural(picture.columns.size, x)


def _title(picture: Picture) -> str:
    if picture.stage == "before":
        return "As the model has it"
    if picture.stage == "after":
        return f"In the plan’s order ({picture.order})" if picture.order else "In the plan’s order"
    name = _BLOCKS[picture.kind]
    if picture.shown == picture.blocks:
        return (
            f"All {picture.blocks:,} {name}, as computed" if picture.blocks > 1 else f"The one {name[:-1]}, as computed"
        )
    last = picture.first + picture.shown
    if picture.shown == 1:
        return f"{name[:-1].capitalize()} {last:,} of {picture.blocks:,}, as computed"
    return f"{name.capitalize()} {picture.first + 1:,} to {last:,} of {picture.blocks:,}, as computed"


def _note(picture: Picture) -> str:
    y, x = _AXES[picture.kind]
    pairs = f"{y}–{x} pairs"
    of_all = percent(picture.needed / max(1, picture.rows.size * picture.columns.size))
    if picture.stage == "before":
        rows = "Rows and keys by token. " if picture.kind == "attention" else ""
        parts = [f"{rows}{count(picture.needed)} {pairs} needed, {of_all} of all"]
    else:
        waste = factor(picture.computed / max(1, picture.needed))
        parts = [f"{count(picture.needed)} {pairs} needed, {count(picture.computed)} computed, waste {waste}"]
        if not len(picture.tiles):
            parts.append("its tiles are too many or too small to be outlined")
    if picture.rows.step > 1 or picture.columns.step > 1:
        parts.append(f"a cell stands for {count(picture.rows.step)} × {count(picture.columns.step)} pairs")
    return "; ".join(parts) + "."


def _plain(markup: str) -> str:
    return markup.replace("<i>", "").replace("</i>", "")


def legend(pictures: Sequence[Picture]) -> str:
    """What colours and lines mean, as far as they occur."""
    kinds = {int(kind) for picture in pictures for kind in np.unique(picture.tiles[:, 4])}
    entries = [('<i class="cell needed"></i>', "needed (paler: a part of the cell)")]
    if any(_spare(picture).any() for picture in pictures):
        entries.append(('<i class="cell spare"></i>', "computed but not needed: masked out, or padding"))
    names = {
        TileKind.FULL: "tile of which everything is needed",
        TileKind.MASKED: "masked tile",
        TileKind.BIASED: "tile with a bias (and mask)",
    }
    for kind, name in names.items():
        if kind in kinds:
            line = '<svg viewBox="0 0 26 14" aria-hidden="true"><path class="{}" d="M2 2H24V12H2Z"/></svg>'
            entries.append((line.format(_KIND_CLASS[kind]), name))
    items = "".join(f"<li>{mark}{name}</li>" for mark, name in entries)
    return f'<ul class="legend" aria-label="Legend">{items}</ul>\n'
