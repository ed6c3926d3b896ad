"""Two-dimensional layouts of tokens, recovered from who attends to whom, and curves and blocks that keep them close."""

from __future__ import annotations

import numpy as np

# Key lists that are looked at for the width of the layout.
_SAMPLE = 64
_BITS = 16


def recovered_width(tokens: np.ndarray, offsets: np.ndarray) -> int | None:
    """Tokens in a row of the layout that key lists suggest, or None where they suggest none.

    List ``i`` is ``tokens[offsets[i]:offsets[i + 1]]``, token numbers of which -1 is none. A window over an image is a
    run of neighbours, repeated one image row further on: the commonest distance between the beginnings of successive
    runs is the width, if most distances agree.
    """
    lists = len(offsets) - 1
    distances = []
    for index in np.unique(np.linspace(0, lists - 1, _SAMPLE).astype(np.int64)) if lists > 0 else ():
        own = np.unique(tokens[offsets[index] : offsets[index + 1]])
        own = own[own >= 0]
        begins = own[np.concatenate([[True], np.diff(own) > 1])] if len(own) else own
        distances.append(np.diff(begins))
    found = np.concatenate(distances) if distances else np.empty(0, np.int64)
    if not len(found):
        return None
    values, counts = np.unique(found, return_counts=True)
    width = int(values[counts.argmax()])
    total = int(tokens.max()) + 1
    agreed = counts.max() * 2 > len(found) and 1 < width < total
    return width if agreed else None


def coordinates(tokens: np.ndarray, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Image row and column of each token; tokens in front of the image (a class token) share its first place."""
    extra = (int(tokens.max(initial=0)) + 1) % width
    place = np.maximum(tokens - extra, 0)
    return place // width, place % width


def morton(row: np.ndarray, column: np.ndarray) -> np.ndarray:
    """Places on the Z-order curve: the bits of both coordinates interleaved."""
    result = np.zeros(len(row), np.int64)
    for bit in range(_BITS):
        result |= ((column >> bit) & 1) << (2 * bit)
        result |= ((row >> bit) & 1) << (2 * bit + 1)
    return result


def hilbert(row: np.ndarray, column: np.ndarray) -> np.ndarray:
    """Places on the Hilbert curve, on which neighbours in the curve are neighbours in the image.

    Each level of the square adds the number of a quadrant and turns the coordinates as that quadrant is turned.
    """
    y, x = row.astype(np.int64), column.astype(np.int64)
    result = np.zeros(len(row), np.int64)
    for bit in range(_BITS - 1, -1, -1):
        size = 1 << bit
        right, low = (x & size) > 0, (y & size) > 0
        result += size * size * ((3 * right.astype(np.int64)) ^ low)
        flip = ~low & right
        x, y = (
            np.where(flip, size - 1 - (x & (size - 1)), x & (size - 1)),
            np.where(flip, size - 1 - (y & (size - 1)), y & (size - 1)),
        )
        x, y = np.where(low, x, y), np.where(low, y, x)
    return result


def blocks(row: np.ndarray, column: np.ndarray, tall: int, wide: int) -> np.ndarray:
    """Places in which blocks of ``tall`` x ``wide`` tokens follow one another, each row after row."""
    across = int(column.max(initial=0)) // wide + 1
    block = row // tall * across + column // wide
    return np.asarray((block * tall + row % tall) * wide + column % wide)
