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
# Enough elements that the largest error is no matter of luck.
_LEAST_ELEMENTS = 2000
# Of merges: those with the fewest, the next fewest and the most slots.
_SURE_KINDS = 3


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


def sample_merges(
    merges: Array, width: int, pieces: int, *, multiple_of: int = 1, least: int = _LEAST_ELEMENTS
) -> Array:
    """Numbers of lines of a merge, ascending: the first and the last line of every number of slots.

    The lines with the fewest slots (0 where there are any), the next fewest and the most are always there; of the
    others as many as ``pieces`` slots allow. With few elements more lines follow. Where lines are left, there is a
    multiple of ``multiple_of``.
    """
    counts = np.asarray(merges)[:, 1].astype(np.int64)
    distinct, first = np.unique(counts, return_index=True)
    last = len(counts) - 1 - np.unique(counts[::-1], return_index=True)[1]
    kinds = dict.fromkeys([0, min(1, len(distinct) - 1), len(distinct) - 1, *range(len(distinct))])
    chosen: dict[int, None] = {}
    spent = 0
    for place, kind in enumerate(kinds):
        own = dict.fromkeys([int(first[kind]), int(last[kind])])
        cost = len(own) * int(distinct[kind])
        if place < _SURE_KINDS or spent + cost <= pieces:
            chosen.update(own)
            spent += cost
    for number in np.argsort(counts, kind="stable").tolist():
        if len(chosen) * width >= least and len(chosen) % multiple_of == 0:
            break
        if counts[number] or len(chosen) % multiple_of:
            chosen.setdefault(number)
    return np.array(sorted(chosen))


def _more(
    jobs: Array, cost: Array, chosen: list[int], width: int, pairs: int, least: int = _LEAST_ELEMENTS
) -> list[int]:
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
