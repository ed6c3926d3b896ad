"""Some jobs of an operator that together show all that its kernel does, for runs in which every job would take long."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

_VARIANT, _ROW_COUNT, _KEY_COUNT, _TILE_BEGIN, _EXTRA_COUNT = 0, 3, 5, 7, 13
# Tiles of a job beyond this many repeat what the earlier ones showed: stages of the pipeline come round again.
_TELLING_TILES = 5


def sample_jobs(kernel: Mapping[str, Any], tables: Mapping[str, Array], pairs: int) -> Array:
    """Numbers of jobs, ascending: the cheapest of every kind, as many kinds as ``pairs`` scores allow.

    Jobs are of one kind if they have the same variant, granules of rows, number of tiles, kinds of tiles (masked,
    biased), whether the last tile and the last granule are whole, and whether results are repeated or there are no
    keys. Every variant has at least one job, whatever that takes; with few elements, more jobs follow.
    """
    jobs = np.asarray(tables["jobs"])
    kinds = [_kind(kernel, tables, line) for line in jobs.tolist()]
    cost = np.maximum(jobs[:, _ROW_COUNT].astype(np.int64), 1) * np.maximum(jobs[:, _KEY_COUNT], 1)
    cheapest: dict[tuple[int, ...], int] = {}
    for number in np.argsort(cost, kind="stable").tolist():
        cheapest.setdefault(kinds[number], number)
    chosen, seen, spent = [], set(), 0
    for kind, number in cheapest.items():
        if kind[0] not in seen or spent + cost[number] <= pairs:
            chosen.append(number)
            seen.add(kind[0])
            spent += int(cost[number])
    return np.array(sorted(chosen + _more(jobs, cost, chosen, kernel["value_width"], pairs - spent)))


def _more(jobs: Array, cost: Array, chosen: list[int], width: int, pairs: int, least: int = 2000) -> list[int]:
    """Further jobs, cheapest first, until there are ``least`` elements to compare."""
    have, further = int(jobs[chosen, _ROW_COUNT].sum()) * width, []
    taken = set(chosen)
    for number in np.argsort(cost, kind="stable").tolist():
        if have >= least or cost[number] > pairs:
            break
        if number in taken or not jobs[number, _KEY_COUNT]:
            continue
        further.append(number)
        pairs -= int(cost[number])
        have += int(jobs[number, _ROW_COUNT]) * width
    return further


def _kind(kernel: Mapping[str, Any], tables: Mapping[str, Array], line: list[int]) -> tuple[int, ...]:
    variant = kernel["variants"][line[_VARIANT]]
    rows, keys = line[_ROW_COUNT], line[_KEY_COUNT]
    tiles = -(-keys // variant["keys"])
    looks = (0, 0)
    if "tiles" in tables and tiles:
        own = tables["tiles"][line[_TILE_BEGIN] : line[_TILE_BEGIN] + tiles] >= 0
        looks = (_share(own[:, 0]), _share(own[:, 1]))
    return (
        line[_VARIANT],
        -(-rows // variant["row_granule"]),
        min(tiles, _TELLING_TILES),
        *looks,
        int(rows % variant["row_granule"] == 0),
        int(keys % variant["keys"] == 0),
        int(keys % variant["key_granule"] == 0),
        int(line[_EXTRA_COUNT] > 0),
    )


def _share(marks: Array) -> int:
    """0 where none is marked, 2 where all are, 1 between."""
    return 0 if not marks.any() else 2 if marks.all() else 1
