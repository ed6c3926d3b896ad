"""What a picture of a site holds: two small grids, and the outlines of what is computed together."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from onnxopt.report.raster import Axis, Levels

Kind = Literal["attention", "conv"]
# As the model has it; in the plan's order; some of its blocks one below the other, each with its gathered columns.
Stage = Literal["before", "after", "blocks"]

# More outlines than this are no longer told apart, and would make the page heavy.
MAX_TILES = 1500
# Pixels across or down that a picture takes at most on a page.
PICTURE_WIDTH = 512


class TileKind(IntEnum):
    """Whether all of a tile is needed, a part of it, or needed with a bias of its own."""

    FULL = 0
    MASKED = 1
    BIASED = 2


Tiles = NDArray[np.int32]
"""Outlines: rows of (top, left, bottom, right, kind) in rows and columns of the matrix, not in cells."""


def no_tiles() -> Tiles:
    """An empty list of outlines."""
    return np.empty((0, 5), np.int32)


@dataclass(frozen=True, eq=False)
class Picture:
    """One matrix of a site: queries x keys of the heads in ``pattern``, or outputs x inputs of a convolution.

    ``needed_levels`` holds for each cell the share of its pairs that is needed, ``computed_levels`` the share that is
    computed (None before a plan): 0 for none, 255 for all. ``needed`` and ``computed`` count pairs of one head; the
    stage ``blocks`` shows and counts ``shown`` of ``blocks`` blocks, from number ``first`` on. ``order`` names the
    plan's order of rows.
    """

    kind: Kind
    stage: Stage
    pattern: str
    order: str
    rows: Axis
    columns: Axis
    needed: int
    computed: int
    needed_levels: Levels = field(repr=False)
    computed_levels: Levels | None = field(repr=False)
    tiles: Tiles = field(repr=False)
    blocks: int = 0
    first: int = 0
    shown: int = 0
