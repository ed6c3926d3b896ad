"""Matrices in shared memory as wgmma reads them, written from the canonical layouts of the PTX ISA.

The ISA gives a layout as nested (shape):(stride) in elements, in CuTe's notation, and a permutation Swizzle<B, 4, 3> of
the byte addresses. Both are evaluated here as notation, with no thought of what an address means.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

SWIZZLE_BITS = {"none": 0, "32B": 1, "64B": 2, "128B": 3}
_MODE = {"none": 0, "128B": 1, "64B": 2, "32B": 3}
_ANY = 1 << 20


@dataclass(frozen=True)
class Layout:
    """A matrix of mn x k elements of `size` bytes; offsets are bytes."""

    swizzle: str
    mn_major: bool
    size: int
    start: int
    leading: int
    stride: int

    @property
    def descriptor(self) -> int:
        """The 64-bit matrix descriptor."""

        def encoded(value: int) -> int:
            return (value & 0x3FFFF) >> 4

        return (
            encoded(self.start) | encoded(self.leading) << 16 | encoded(self.stride) << 32 | _MODE[self.swizzle] << 62
        )

    def address(self, mn: int, k: int) -> int:
        """Byte address of an element: the canonical layout, then the swizzle."""
        t, w = 16 // self.size, 1 << SWIZZLE_BITS[self.swizzle]
        lbo, sbo = self.leading // self.size, self.stride // self.size
        if self.mn_major and self.swizzle == "none":
            offset = _modes(mn, (t, 1, _ANY), (1, t, sbo)) + _modes(k, (8, _ANY), (1 * t, lbo))
        elif self.mn_major:
            offset = _modes(mn, (t, w, _ANY), (1, t, lbo)) + _modes(k, (8, _ANY), (w * t, sbo))
        elif self.swizzle == "none":
            offset = _modes(mn, (8, _ANY), (1 * t, sbo)) + _modes(k, (t, _ANY), (1, lbo))
        else:
            offset = _modes(mn, (8, _ANY), (w * t, sbo)) + _modes(k, (t, _ANY), (1, t))
        return swizzled(self.start + offset * self.size, SWIZZLE_BITS[self.swizzle])

    def write(self, shared: bytearray, matrix: npt.NDArray[np.unsignedinteger]) -> None:
        """Puts the bits of an mn x k matrix where wgmma looks for them."""
        size = matrix.dtype.itemsize
        assert size == self.size
        for (mn, k), value in np.ndenumerate(matrix):
            at = self.address(mn, k)
            shared[at : at + size] = value.tobytes()


def swizzled(address: int, bits: int) -> int:
    """Swizzle<bits, 4, 3>: bits 7 and up, as many as `bits`, XOR into bits 4 and up."""
    mask = ((1 << bits) - 1) << (4 + 3)
    return address ^ ((address & mask) >> 3)


def _modes(coordinate: int, shape: tuple[int, ...], stride: tuple[int, ...]) -> int:
    offset = 0
    for extent, step in zip(shape, stride, strict=True):
        offset += coordinate % extent * step
        coordinate //= extent
    return offset


def compact(swizzle: str, mn_major: bool, size: int, mn: int, k: int, start: int = 1024, gap: int = 0) -> Layout:
    """A layout of whole patterns in a row, those along mn first, each followed by `gap` patterns of nothing."""
    w = 1 << SWIZZLE_BITS[swizzle]
    pattern = (1 + gap) * 8 * 16 * w
    if swizzle == "none":
        # One chunk of 16 bytes times eight rows is a pattern; MN-major: eight k times one chunk.
        along_mn = -(-mn // (16 // size if mn_major else 8))
        across = pattern * along_mn
        return Layout(swizzle, mn_major, size, start, leading=across, stride=pattern)
    if mn_major:
        along_mn = -(-mn // (w * 16 // size))
        return Layout(swizzle, mn_major, size, start, leading=pattern, stride=pattern * along_mn)
    # The leading offset is not used: a value that would do harm.
    return Layout(swizzle, mn_major, size, start, leading=16 * 77, stride=pattern)
