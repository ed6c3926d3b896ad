"""Convolution and pooling in NumPy over windows of a padded tensor; for tests and dry runs, in any number of axes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from numpy.lib.stride_tricks import sliding_window_view

Array = npt.NDArray[Any]


def conv_windows(
    x: Array,
    w: Array,
    bias: Array | None,
    *,
    strides: Sequence[int],
    pads: Sequence[int],
    dilations: Sequence[int],
    group: int,
) -> Array:
    """Batch x channels x positions by outputs x (channels / group) x kernel; ``pads`` are all in front, all behind."""
    batch, channels = x.shape[:2]
    windows = _windows(_padded(x, pads, 0.0), w.shape[2:], strides, dilations)
    rank = w.ndim - 2
    positions = windows.shape[2 : 2 + rank]
    grouped = windows.reshape(batch, group, channels // group, *positions, *w.shape[2:])
    rows = np.moveaxis(grouped, 2, 2 + rank).reshape(batch, group, int(np.prod(positions)), -1)
    columns = w.reshape(group, len(w) // group, -1).transpose(0, 2, 1)
    result = (rows @ columns).transpose(0, 1, 3, 2).reshape(batch, len(w), *positions)
    return result if bias is None else result + bias.reshape(-1, *(1,) * rank)


def max_windows(
    x: Array,
    *,
    kernel: Sequence[int],
    strides: Sequence[int],
    pads: Sequence[int],
    dilations: Sequence[int],
    ceil: bool,
) -> Array:
    """The largest value of each window; ``ceil`` rounds the number of windows up."""
    longer = _longer_pads(x.shape[2:], kernel, strides, pads, dilations, ceil)
    windows = _windows(_padded(x, longer, -np.inf), kernel, strides, dilations)
    result: Array = windows.max(axis=tuple(range(x.ndim, windows.ndim)))
    return result


def average_windows(
    x: Array,
    *,
    kernel: Sequence[int],
    strides: Sequence[int],
    pads: Sequence[int],
    dilations: Sequence[int],
    ceil: bool,
    count_padding: bool,
) -> Array:
    """The mean of each window; ``count_padding`` says whether ``pads`` count as values, which are 0."""
    longer = _longer_pads(x.shape[2:], kernel, strides, pads, dilations, ceil)
    counted = np.ones((1, 1, *x.shape[2:]), x.dtype)
    if count_padding:
        counted = _padded(counted, pads, 1.0)
        counted = _padded(counted, [a - b for a, b in zip(longer, pads, strict=True)], 0.0)
    else:
        counted = _padded(counted, longer, 0.0)
    axes = tuple(range(x.ndim, 2 * x.ndim - 2))
    sums = _windows(_padded(x, longer, 0.0), kernel, strides, dilations).sum(axis=axes)
    result: Array = sums / _windows(counted, kernel, strides, dilations).sum(axis=axes)
    return result


def _padded(x: Array, pads: Sequence[int], value: float) -> Array:
    rank = len(pads) // 2
    widths = [(0, 0), (0, 0), *((pads[i], pads[rank + i]) for i in range(rank))]
    return np.pad(x, widths, constant_values=value)


def _windows(x: Array, kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int]) -> Array:
    """Batch x channels x positions x kernel, a view."""
    reach = tuple((k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True))
    windows = sliding_window_view(x, reach, axis=tuple(range(2, x.ndim)))
    steps = [slice(None, None, step) for step in (*strides, *dilations)]
    result: Array = windows[(slice(None), slice(None), *steps)]
    return result


def _longer_pads(
    sizes: Sequence[int],
    kernel: Sequence[int],
    strides: Sequence[int],
    pads: Sequence[int],
    dilations: Sequence[int],
    ceil: bool,
) -> list[int]:
    """Pads that a last, partial window reaches to, where the number of windows is rounded up."""
    rank = len(kernel)
    longer = list(pads)
    for axis in range(rank if ceil else 0):
        reach = (kernel[axis] - 1) * dilations[axis] + 1
        spare = sizes[axis] + pads[axis] + pads[rank + axis] - reach
        last = -(-spare // strides[axis])
        # A window that would begin in what lies behind does not count.
        if last * strides[axis] >= sizes[axis] + pads[axis]:
            last -= 1
        longer[rank + axis] += max(0, last * strides[axis] - spare)
    return longer
