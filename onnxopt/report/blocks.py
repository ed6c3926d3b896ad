"""What is computed together, and the outlines of it: strips of queries with their keys, parts of a convolution."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from onnxopt.discover.conv_site import IntArray
from onnxopt.report.picture import MAX_TILES, PICTURE_WIDTH, TileKind, Tiles, no_tiles
from onnxopt.report.raster import Axis, Classes

# Outlines of smaller boxes than this many pixels cannot be told from one another.
_LEGIBLE_PIXELS = 3
# A block that needs nearly every column says nothing about which columns belong together.
_WIDE = 0.25


@dataclass(frozen=True, eq=False)
class Block:
    """Rows that are computed together, and the columns that any of them needs (repeated where a row repeats one).

    ``height`` x ``width`` pairs are computed, padding included, ``tile`` columns at a time.
    """

    rows: IntArray
    columns: IntArray
    height: int
    width: int
    tile: int
    biased: bool = False


def count_needed(block: Block, classes: Classes) -> IntArray:
    """For each of the block's columns, how many of its rows need it."""
    result = np.zeros(len(block.columns), np.int64)
    for owner, times in zip(*np.unique(classes.row_class[block.rows], return_counts=True), strict=True):
        result[needed_places(block, classes, int(owner))] += times
    return result


def needed_places(block: Block, classes: Classes, owner: int) -> IntArray:
    """Which of the block's columns a row of class ``owner`` needs."""
    order = np.argsort(block.columns, kind="stable")
    ordered = block.columns[order]
    wanted = np.asarray(classes.columns(owner, owner + 1), np.int64)
    repetition = np.arange(len(wanted)) - np.searchsorted(wanted, wanted)
    place = np.searchsorted(ordered, wanted) + repetition
    inside = place < len(ordered)
    place, wanted = place[inside], wanted[inside]
    return np.asarray(order[place[ordered[place] == wanted]])


def tile_kinds(block: Block, classes: Classes, width: int) -> list[TileKind]:
    """The kind of each tile of ``width`` columns of a block."""
    starts = np.arange(0, max(1, len(block.columns)), width)
    if block.biased:
        return [TileKind.BIASED] * len(starts)
    lacking = len(block.rows) - count_needed(block, classes)
    sums = np.add.reduceat(lacking, starts) if len(lacking) else np.ones(1)
    return [TileKind.MASKED if total else TileKind.FULL for total in sums.tolist()]


def first_use(blocks: Sequence[Block], rows: int, columns: int) -> tuple[IntArray, IntArray]:
    """Where each row and each column stands if they are put in the order in which the blocks use them.

    Blocks that need nearly every column have no say in the order of columns; what no block has comes last.
    """
    narrow = [block for block in blocks if len(block.columns) <= _WIDE * columns]
    wide = [block for block in blocks if len(block.columns) > _WIDE * columns]
    return (
        _places([block.rows for block in blocks], rows),
        _places([block.columns for block in (*narrow, *wide)], columns),
    )


def _places(used: Sequence[IntArray], size: int) -> IntArray:
    numbers = np.concatenate([*used, np.arange(size)])
    first = np.unique(numbers, return_index=True)[1]
    result = np.empty(size, np.int64)
    result[np.argsort(first, kind="stable")] = np.arange(size)
    return result


def placed_outlines(
    blocks: Sequence[Block], classes: Classes, places: tuple[IntArray, IntArray], rows: Axis, columns: Axis
) -> Tiles:
    """The outlines of tiles where rows and columns stand at ``places``; of whole blocks, or none, where they are too
    many or too small to be seen.
    """
    if len(blocks) > MAX_TILES or _too_small([len(block.rows) for block in blocks], rows):
        return no_tiles()
    narrow = _too_small([min(block.tile, len(block.columns)) for block in blocks], columns)
    for whole in (True,) if narrow else (False, True):
        found: list[tuple[int, int, int, int, int]] = []
        for block in blocks:
            found += _outlines(block, classes, places, columns, whole)
            if len(found) > MAX_TILES:
                break
        else:
            return np.array(found, np.int32).reshape(-1, 5)
    return no_tiles()


def _outlines(
    block: Block, classes: Classes, places: tuple[IntArray, IntArray], columns: Axis, whole: bool
) -> list[tuple[int, int, int, int, int]]:
    width = max(1, len(block.columns)) if whole else block.tile
    bands = _runs(places[0][block.rows], 1)
    found = []
    for number, kind in enumerate(tile_kinds(block, classes, width)):
        own = places[1][block.columns[number * width : (number + 1) * width]]
        for left, right in _runs(own, columns.step):
            found += [(top, left, bottom, right, int(kind)) for top, bottom in bands]
        if len(found) > MAX_TILES:
            break
    return found


def _runs(numbers: NDArray[np.int64], reach: int) -> list[tuple[int, int]]:
    """Intervals that hold the numbers; gaps of less than ``reach`` are closed, as a picture cannot show them."""
    if not len(numbers):
        return []
    ordered = np.unique(numbers)
    cuts = np.flatnonzero(np.diff(ordered) > reach)
    starts = ordered[np.concatenate([[0], cuts + 1])]
    ends = ordered[np.concatenate([cuts, [len(ordered) - 1]])] + 1
    return list(zip(starts.tolist(), ends.tolist(), strict=True))


def stacked_outlines(blocks: Sequence[Block], classes: Classes, rows: Axis, columns: Axis) -> Tiles:
    """The outlines of tiles where blocks stand one below the other, each with its columns from the left."""
    narrow = _too_small([block.tile for block in blocks], columns)
    found: list[tuple[int, int, int, int, int]] = []
    top = 0
    for block in blocks:
        width = max(1, block.width) if narrow else block.tile
        for number, kind in enumerate(tile_kinds(block, classes, width)):
            right = min((number + 1) * width, block.width)
            found.append((top, number * width, top + block.height, right, int(kind)))
        top += block.height
    legible = len(found) <= MAX_TILES and not _too_small([block.height for block in blocks], rows)
    return np.array(found, np.int32).reshape(-1, 5) if legible else no_tiles()


def _too_small(sizes: Sequence[int], axis: Axis) -> bool:
    """Whether most boxes of these sizes are too small to be seen."""
    pixels = max(1, PICTURE_WIDTH // axis.cells) / axis.step
    return not sizes or float(np.median(sizes)) * pixels < _LEGIBLE_PIXELS
