"""Rows of booleans as 64-bit words, and counting their bits."""

from __future__ import annotations

import numpy as np

from onnxopt.discover.conv_site import BoolArray


def words_of(rows: BoolArray) -> np.ndarray:
    """Bits of each row as 64-bit words."""
    width = -(-rows.shape[1] // 64) * 64
    padded = np.zeros((len(rows), width), bool)
    padded[:, : rows.shape[1]] = rows
    return np.asarray(np.packbits(padded, axis=1).view(np.uint64))


def count_bits(words: np.ndarray) -> np.ndarray:
    """Set bits over the last axis."""
    return count_common(words, words)


def count_common(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Bits that both have set, over the last axis; word by word, as sums over a short axis are slow."""
    total: np.ndarray | None = None
    for word in range(first.shape[-1]):
        bits = _bits(first[..., word] & second[..., word])
        total = bits.astype(np.uint16) if total is None else np.add(total, bits, out=total)
    assert total is not None
    return total


def _bits(words: np.ndarray) -> np.ndarray:
    if hasattr(np, "bitwise_count"):
        return np.asarray(np.bitwise_count(words))
    octets = np.ascontiguousarray(words)[..., None].view(np.uint8)
    return np.asarray(_OCTET_BITS[octets].sum(axis=-1, dtype=np.uint8))


_OCTET_BITS = np.array([bin(value).count("1") for value in range(256)], np.uint8)
