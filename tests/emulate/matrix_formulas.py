"""Fragment layouts of the matrix instructions, element by element as the PTX ISA gives them, and number formats.

Written from the text of the sections "Matrix Fragments for mma.m16n8k4" to "... mma.m16n8k32", "ldmatrix" and "Register
Fragments" (wgmma), each formula in the ISA's own terms, and from nothing else: in particular not from the emulator.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Words = npt.NDArray[np.uint32]
Places = list[list[tuple[int, int]]]
"""For each lane, (row, column) of its elements, low to high."""


def _places(elements: int, row: Callable[[int, int, int], int], column: Callable[[int, int, int], int]) -> Places:
    result = []
    for laneid in range(32):
        group_id, thread_id_in_group = laneid >> 2, laneid % 4
        result.append(
            [(row(group_id, thread_id_in_group, i), column(group_id, thread_id_in_group, i)) for i in range(elements)]
        )
    return result


A: dict[tuple[str, str], Places] = {
    ("m16n8k4", "tf32"): _places(2, lambda g, t, i: g if i == 0 else g + 8, lambda g, t, i: t),
    ("m16n8k8", "tf32"): _places(
        4, lambda g, t, i: g if i in (0, 2) else g + 8, lambda g, t, i: t if i in (0, 1) else t + 4
    ),
    ("m16n8k8", "f16"): _places(4, lambda g, t, i: g if i in (0, 1) else g + 8, lambda g, t, i: t * 2 + (i & 1)),
    ("m16n8k16", "f16"): _places(
        8,
        lambda g, t, i: g if 0 <= i < 2 or 4 <= i < 6 else g + 8,
        lambda g, t, i: t * 2 + (i & 1) if i < 4 else t * 2 + (i & 1) + 8,
    ),
    ("m16n8k16", "s8"): _places(8, lambda g, t, i: g if i < 4 else g + 8, lambda g, t, i: t * 4 + (i & 3)),
    ("m16n8k32", "s8"): _places(
        16,
        lambda g, t, i: g if 0 <= i < 4 or 8 <= i < 12 else g + 8,
        lambda g, t, i: t * 4 + (i & 3) if i < 8 else t * 4 + (i & 3) + 16,
    ),
}

B: dict[tuple[str, str], Places] = {
    ("m16n8k4", "tf32"): _places(1, lambda g, t, i: t, lambda g, t, i: g),
    ("m16n8k8", "tf32"): _places(2, lambda g, t, i: t if i == 0 else t + 4, lambda g, t, i: g),
    ("m16n8k8", "f16"): _places(2, lambda g, t, i: t * 2 + i, lambda g, t, i: g),
    ("m16n8k16", "f16"): _places(
        4, lambda g, t, i: t * 2 + (i & 1) if i < 2 else t * 2 + (i & 1) + 8, lambda g, t, i: g
    ),
    ("m16n8k16", "s8"): _places(4, lambda g, t, i: t * 4 + i, lambda g, t, i: g),
    ("m16n8k32", "s8"): _places(
        8, lambda g, t, i: t * 4 + (i & 3) if i < 4 else t * 4 + (i & 3) + 16, lambda g, t, i: g
    ),
}

C = _places(4, lambda g, t, i: g if i < 2 else g + 8, lambda g, t, i: t * 2 + (i & 1))
"""The accumulators of every 16 x 8 product."""

MATRIX_8X8 = _places(2, lambda g, t, i: g, lambda g, t, i: t * 2 + i)
"""ldmatrix, stmatrix: "a group of four threads holds a row", two 16-bit elements each."""

_SAME_LAYOUT = {"bf16": "f16", "u8": "s8"}


def places(table: dict[tuple[str, str], Places], shape: str, kind: str) -> Places:
    """The layout of a matrix; bf16 has that of f16, u8 that of s8."""
    return table[shape, _SAME_LAYOUT.get(kind, kind)]


def distribute(matrix: npt.NDArray[np.generic], layout: Places) -> npt.NDArray[np.generic]:
    """Matrices (..., rows, columns) to what each lane holds, (..., 32, elements)."""
    rows, columns = np.array(layout).transpose(2, 0, 1)
    return matrix[..., rows, columns]


def collect(lanes: npt.NDArray[np.generic], layout: Places, rows: int, columns: int) -> npt.NDArray[np.generic]:
    """The inverse of `distribute`; every element must be held exactly once."""
    at = np.array(layout).reshape(-1, 2)
    assert sorted(map(tuple, at.tolist())) == [(i, j) for i in range(rows) for j in range(columns)]
    result = np.empty((*lanes.shape[:-2], rows, columns), lanes.dtype)
    result[..., at[:, 0], at[:, 1]] = lanes.reshape(*lanes.shape[:-2], -1)
    return result


def encode(values: Floats, kind: str) -> npt.NDArray[np.unsignedinteger]:
    """Values to the bits of a type that can hold them (nearest, where it cannot), one array element each."""
    if kind == "f16":
        return values.astype(np.float16).view(np.uint16)
    if kind == "bf16":
        bits = values.astype(np.float32).view(np.uint32)
        return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)
    if kind == "tf32":
        return (values.astype(np.float32).view(np.uint32) + np.uint32(0x1000)) & np.uint32(0xFFFFE000)
    if kind == "f32":
        return values.astype(np.float32).view(np.uint32)
    if kind == "s32":
        return values.astype(np.int64).astype(np.uint32)
    return values.astype(np.int64).astype(np.uint8)


def decode(bits: npt.NDArray[np.unsignedinteger], kind: str) -> Floats:
    """What the bits of a type stand for."""
    if kind == "f16":
        return bits.astype(np.uint16).view(np.float16).astype(np.float64)
    if kind == "bf16":
        return (bits.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    if kind in ("tf32", "f32"):
        return bits.astype(np.uint32).view(np.float32).astype(np.float64)
    if kind == "s8":
        return bits.astype(np.uint8).view(np.int8).astype(np.float64)
    if kind == "s32":
        return bits.astype(np.uint32).view(np.int32).astype(np.float64)
    return bits.astype(np.float64)


def to_words(elements: npt.NDArray[np.unsignedinteger]) -> Words:
    """Elements of a lane, low to high, packed into its 32-bit registers."""
    return np.ascontiguousarray(elements).view(np.uint32)


def from_words(words: Words, kind: str) -> npt.NDArray[np.unsignedinteger]:
    """The inverse of `to_words`."""
    size = {"f16": np.uint16, "bf16": np.uint16, "s8": np.uint8, "u8": np.uint8}.get(kind, np.uint32)
    return np.ascontiguousarray(words).view(size)
