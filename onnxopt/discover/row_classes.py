"""Which softmax rows attend alike, found by hashing and then checked element by element."""

from __future__ import annotations

import numpy as np

from onnxopt.discover.refusal import NotASite

# Rows are handled in blocks of so many elements, which bounds the memory that hashing takes.
_CHUNK_ELEMENTS = 1 << 22


def row_classes(key: np.ndarray, value: np.ndarray, live: np.ndarray, wide: int) -> tuple[np.ndarray, np.ndarray]:
    """The class of each row and a row of each class; rows of a class have equal live elements in equal
    columns.

    Rows are told apart by a 64-bit hash, which is then checked element by element.
    """
    arrays = (key, value, live)
    rows = max(len(array) for array in arrays)
    if rows == 1:
        return np.zeros(1, np.int64), np.zeros(1, np.int64)
    weight = np.random.default_rng(0x5EED).integers(1, 1 << 62, wide, dtype=np.uint64) * np.uint64(2) + np.uint64(1)
    hashes = np.empty(rows, np.uint64)
    step = max(1, _CHUNK_ELEMENTS // wide)
    for start in range(0, rows, step):
        some = np.arange(start, min(start + step, rows))
        hashes[some] = (_mixed(*(wide_rows(array, some, wide) for array in arrays)) * weight).sum(axis=1)
    _, chosen, classes = np.unique(hashes, return_index=True, return_inverse=True)
    # Numbered by first appearance: heads whose rows attend alike then have equal lists.
    order = np.argsort(chosen)
    chosen, classes = chosen[order], np.argsort(order)[classes]
    for start in range(0, rows, step):
        some = np.arange(start, min(start + step, rows))
        twins = chosen[classes[some]]
        alive = wide_rows(live, some, wide)
        if not np.array_equal(alive, wide_rows(live, twins, wide)) or any(
            np.any((wide_rows(array, some, wide) != wide_rows(array, twins, wide)) & alive) for array in (key, value)
        ):
            raise NotASite("two different rows have equal hashes")
    return classes, chosen


def _mixed(key: np.ndarray, value: np.ndarray, live: np.ndarray) -> np.ndarray:
    """A well-mixed 64-bit number for each live (key, value) pair, 0 where masked."""
    mixed = (key + 1).astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    mixed += (value + 2).astype(np.uint64) * np.uint64(0xC2B2AE3D27D4EB4F)
    mixed ^= mixed >> np.uint64(29)
    mixed *= np.uint64(0xBF58476D1CE4E5B9)
    mixed ^= mixed >> np.uint64(32)
    mixed *= live
    return mixed


def wide_rows(array: np.ndarray, rows: np.ndarray, wide: int) -> np.ndarray:
    """Some rows of an array that may have one row, or one column, for all."""
    some = array[rows] if len(array) > 1 else array
    return np.broadcast_to(some, (len(rows), wide))
