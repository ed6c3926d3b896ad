"""Strips: a few query rows with the complete list of the keys that any of them needs.

Keys that a row needs several times are told apart by their occurrence, so that a strip's list is a set and the cover
stays exact: every needed (query, key, occurrence) lies in exactly one strip, once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from onnxopt.discover.attention_site import KeyLists


@dataclass(frozen=True)
class Strip:
    """Query rows and the keys they share the computation of; both are numbers of the site's.

    ``full``: every row needs every key, so nothing is masked.
    """

    rows: np.ndarray
    keys: np.ndarray
    full: bool


@dataclass(frozen=True)
class CodedLists:
    """Key lists as sets of codes ``key * stride + occurrence``, ascending within a list."""

    codes: np.ndarray
    offsets: np.ndarray
    stride: int

    def of(self, index: int) -> np.ndarray:
        """The codes of one list."""
        return self.codes[self.offsets[index] : self.offsets[index + 1]]


def coded(lists: KeyLists) -> CodedLists:
    """Give every key of every list a code that also counts its repetitions within the list."""
    starts = np.zeros(len(lists.keys), bool)
    starts[lists.offsets[:-1][np.diff(lists.offsets) > 0]] = True
    occurrence = _occurrences(lists.keys, starts)
    stride = int(occurrence.max()) + 1 if len(occurrence) else 1
    return CodedLists(lists.keys.astype(np.int64) * stride + occurrence, lists.offsets, stride)


def _occurrences(keys: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """How many equal keys stand directly before each key of its list; ``starts`` marks where lists begin."""
    places = np.arange(len(keys))
    new = starts.copy()
    new[1:] |= keys[1:] != keys[:-1]
    return np.asarray(places - np.maximum.accumulate(np.where(new, places, 0)) if len(places) else places)


def cut_evenly(order: np.ndarray, size: int) -> list[np.ndarray]:
    """Strips of ``size`` rows, the last one shorter."""
    return [order[start : start + size] for start in range(0, len(order), size)]


def cut_at_lists(order: np.ndarray, row_list: np.ndarray, size: int) -> list[np.ndarray]:
    """Strips of at most ``size`` rows that all have one key list; long runs are split into nearly equal strips."""
    change = np.flatnonzero(np.diff(row_list[order])) + 1
    strips: list[np.ndarray] = []
    for run in np.split(order, change):
        strips.extend(np.array_split(run, -(-len(run) // size)))
    return strips


def make_strip(rows: np.ndarray, lists: KeyLists, codes: CodedLists) -> Strip:
    """The strip of some rows: its key list is the union of theirs."""
    own = np.unique(lists.row_list[rows])
    if len(own) == 1:
        return Strip(rows, codes.of(int(own[0])) // codes.stride, True)
    union = np.unique(np.concatenate([codes.of(int(index)) for index in own]))
    full = all(codes.offsets[index + 1] - codes.offsets[index] == len(union) for index in own)
    return Strip(rows, union // codes.stride, full)


def needed_in(strip: Strip, lists: KeyLists, codes: CodedLists) -> np.ndarray:
    """Which places of the strip's key list each of its rows needs, in the order of the row's own list.

    Returns a flat int64 array, row after row; row ``i`` has as many entries as keys. The strip's list may be in any
    order.
    """
    order = np.argsort(strip.keys, kind="stable")
    ordered = strip.keys[order]
    starts = np.zeros(len(ordered), bool)
    union = ordered.astype(np.int64) * codes.stride + _occurrences(ordered, starts)
    own, inverse = np.unique(lists.row_list[strip.rows], return_inverse=True)
    places = [order[np.searchsorted(union, codes.of(int(index)))] for index in own]
    return np.concatenate([places[i] for i in inverse]) if len(inverse) else np.empty(0, np.int64)


def count_needed(lists: Sequence[KeyLists]) -> int:
    """Needed (query, key) pairs over all given heads."""
    return int(sum(int(item.lengths.sum()) for item in lists))
