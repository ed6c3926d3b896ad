"""Which pairs of a strip are needed, and what is added to their scores."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field

import numpy as np

from onnxopt.discover.attention_site import AttentionSite, EmptyRow
from onnxopt.plan.schedule import PatternSchedule
from onnxopt.plan.strips import coded

_KEPT_COUNTS = 64


@dataclass(frozen=True)
class Needed:
    """Needed pairs of a strip: row (place in its rows), place in its keys, and where the bias of the pair stands."""

    row: np.ndarray
    place: np.ndarray
    source: np.ndarray


@dataclass
class PartMarks:
    """Finds the needed pairs of the strips of one part.

    Where a row is in several strips, a key that it needs several times is taken from the first strips that have it.
    """

    site: AttentionSite
    part: PatternSchedule
    _counts: dict[tuple[int, ...], np.ndarray] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.lists = self.site.lists[self.part.lists]
        self.codes = coded(self.lists)
        self.starts = self.lists.row_offsets()
        self.keys = self.site.key_vectors.shape[1]
        self._place = np.full(self.keys * self.codes.stride, -1, np.int64)
        self.earlier = _earlier_strips(self.part)

    def needed(self, number: int) -> Needed:
        """The needed pairs of strip ``number``."""
        strip = self.part.strips[number]
        groups: dict[tuple[int, ...], list[int]] = defaultdict(list)
        for index, row in enumerate(strip.rows.tolist()):
            groups[self.earlier.get((number, row), ())].append(index)
        order = np.argsort(strip.keys, kind="stable")
        ordered = strip.keys[order].astype(np.int64)
        occurrence = np.arange(len(ordered)) - np.searchsorted(ordered, ordered)
        known = occurrence < self.codes.stride
        held = (ordered * self.codes.stride + occurrence)[known]
        self._place[held] = order[known]
        found = [self._group(strip.rows, np.array(rows), before) for before, rows in groups.items()]
        self._place[held] = -1
        return Needed(*(np.concatenate(column) for column in zip(*found, strict=True)))

    def _group(
        self, rows: np.ndarray, chosen: np.ndarray, before: tuple[int, ...]
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The pairs of rows that have the same strips before this one."""
        lists, offsets = self.lists, self.codes.offsets
        own, inverse = np.unique(lists.row_list[rows[chosen]], return_inverse=True)
        lengths = offsets[own + 1] - offsets[own]
        codes = self.codes.codes[_ranges(offsets[own], lengths)]
        if before:
            key, occurrence = np.divmod(codes, self.codes.stride)
            left = occurrence - self._count(before)[key]
            place = np.where(left >= 0, self._place[key * self.codes.stride + np.maximum(left, 0)], -1)
        else:
            place = self._place[codes]
        begins = np.cumsum(lengths) - lengths
        index = _ranges(begins[inverse], lengths[inverse])
        row = np.repeat(chosen, lengths[inverse])
        source = _ranges(self.starts[rows[chosen]], lengths[inverse])
        places = place[index]
        here = places >= 0
        return row[here], places[here], source[here]

    def _count(self, strips: tuple[int, ...]) -> np.ndarray:
        """How often each key is in these strips together."""
        known = next((n for n in range(len(strips), 0, -1) if strips[:n] in self._counts), 0)
        total = self._counts[strips[:known]] if known else np.zeros(self.keys, np.int64)
        for number in strips[known:]:
            total = total + np.bincount(self.part.strips[number].keys, minlength=self.keys)
        if len(self._counts) >= _KEPT_COUNTS:
            self._counts.clear()
        self._counts[strips] = total
        return total


def _earlier_strips(part: PatternSchedule) -> dict[tuple[int, int], tuple[int, ...]]:
    """For (strip, row) of rows that are in several strips: the strips before it; empty where no row is."""
    total = sum(len(strip.rows) for strip in part.strips)
    every = np.concatenate([strip.rows for strip in part.strips]) if part.strips else np.empty(0, np.int64)
    if len(np.unique(every)) == total:
        return {}
    seen: dict[int, tuple[int, ...]] = {}
    result: dict[tuple[int, int], tuple[int, ...]] = {}
    for number, strip in enumerate(part.strips):
        for row in strip.rows.tolist():
            before = seen.get(row, ())
            if before:
                result[number, row] = before
            seen[row] = (*before, number)
    return result


def _ranges(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """``start``, ``start + 1`` ... of every range, one after the other."""
    before = np.cumsum(lengths) - lengths
    return np.asarray(np.repeat(starts - before, lengths) + np.arange(int(lengths.sum())))


def head_biases(site: AttentionSite, head: int) -> np.ndarray | None:
    """What is added to the scores of one head, row after row, for a kernel whose constants are small; or None.

    Rows without keys lose the constant that all their scores have: uniform rows keep nothing, others what remains
    beside their largest bias.
    """
    bias = site.bias_of(head)
    if bias is None or not np.any(bias):
        return None
    empty = np.flatnonzero(site.head_empty[head])
    if not len(empty):
        return bias
    starts = site.lists_of(head).row_offsets()
    result = bias.astype(np.float32)
    for row in empty.tolist():
        own = slice(starts[row], starts[row + 1])
        if site.empty_kind is EmptyRow.UNMASKED and starts[row + 1] > starts[row]:
            result[own] -= result[own].max()
        else:
            result[own] = 0.0
    return result if np.any(result) else None
