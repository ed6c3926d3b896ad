"""The convolution operators in NumPy, from their inputs and tables alone, as ``docs/tables.md`` describes them.

Slow and plain: every job is computed by itself. Nothing here comes from the code that makes tables.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxopt.validate.failure import PlanError

Array = npt.NDArray[Any]


def activated(kind: str, values: Array) -> Array:
    """One of the fused activations."""
    if kind == "relu":
        return np.maximum(values, 0)
    if kind == "hardswish":
        return np.asarray(values * np.clip(values / 6 + 0.5, 0, 1))
    if kind == "silu":
        return np.asarray(values / (1 + np.exp(-values)))
    return values


@dataclass(frozen=True)
class ConvOutput:
    """``y`` or ``partial``, and how often each of its elements was written, both batch x rows x positions or rows last.

    Elements that no job wrote are NaN.
    """

    values: Array
    written: Array


def group_conv(
    kernel: Mapping[str, Any],
    tables: Mapping[str, Array],
    x: Array,
    residual: Array | None = None,
    dtype: npt.DTypeLike = np.float64,
) -> Array:
    """``y``, or ``partial`` where the configuration's ``kernel`` says ``split``: batch x channels (or slots) x
    positions, or channels last.

    ``tables`` are all inputs behind ``x``, weights and bias included. Computed in ``dtype``. Raises
    :class:`PlanError` where an output is not written exactly once.
    """
    output = group_conv_output(kernel, tables, x, residual, dtype)
    last = kernel["layout"] == "last"
    wrong = np.argwhere((output.written.transpose(0, 2, 1) if last else output.written) != 1)
    if len(wrong):
        image, channel, position = (int(place) for place in wrong[0])
        times = output.written[(image, position, channel) if last else (image, channel, position)]
        pixel = image % kernel["images"] * prod(kernel["output_size"]) + position
        raise PlanError(f"pixel {pixel} of channel {channel} is written {times} times, expected once")
    return output.values


def group_conv_output(
    kernel: Mapping[str, Any],
    tables: Mapping[str, Array],
    x: Array,
    residual: Array | None = None,
    dtype: npt.DTypeLike = np.float64,
    rounded: Callable[[Array], Array] = lambda operands: operands,
) -> ConvOutput:
    """What the lines of ``jobs`` write, which may be some of an operator's only; otherwise as :func:`group_conv`.

    ``rounded`` is what happens to the inputs behind the prologue and to the weights, in an implementation whose
    products take narrower numbers than its sums.
    """
    positions = prod(kernel["output_size"])
    split, images = kernel["split"], kernel["images"]
    rows = kernel["slots"] if split else kernel["output_channels"]
    data = _channels_first(kernel, x, kernel["input_channels"]).astype(dtype)
    added = None if residual is None else _channels_first(kernel, residual, rows).astype(dtype)
    batch = len(data)
    y = np.full((batch, rows, positions), np.nan, dtype)
    written = np.zeros(y.shape, np.int64)
    for job in tables["jobs"].tolist():
        outputs = tables["outputs"][job[1] : job[1] + job[2]]
        extras = tables["extras"][job[8] : job[8] + job[9]] if job[9] else np.empty((0, 2), np.int64)
        stores = [(o, int(channel)) for o, channel in enumerate(outputs) if channel >= 0]
        stores += [(int(o), int(channel)) for o, channel in extras]
        pixels = job[6] + np.arange(job[7])
        for group in range(-(-batch // images)):
            image = group * images + pixels // positions
            image, position = image[image < batch], (pixels % positions)[image < batch]
            result = _computed(kernel, tables, job, data, image, position, rounded)
            for o, channel in stores:
                values = result[:, o]
                if not split:
                    values = values + dtype_of(tables["b"][job[1] + o], dtype)
                    if added is not None:
                        values = values + added[image, channel, position]
                    values = activated(kernel["activation"], values)
                y[image, channel, position] = values
                written[image, channel, position] += 1
    if kernel["layout"] == "last":
        return ConvOutput(y.transpose(0, 2, 1), written.transpose(0, 2, 1))
    return ConvOutput(y, written)


def dtype_of(value: Array, dtype: npt.DTypeLike) -> Array:
    """A value in the type that is computed in."""
    return np.asarray(value).astype(dtype)


def _channels_first(kernel: Mapping[str, Any], tensor: Array, channels: int) -> Array:
    """Batch x channels x positions."""
    if kernel["layout"] == "first":
        return tensor.reshape(len(tensor), channels, -1)
    return tensor.reshape(len(tensor), -1, channels).transpose(0, 2, 1)


def _computed(
    kernel: Mapping[str, Any],
    tables: Mapping[str, Array],
    job: list[int],
    data: Array,
    image: Array,
    position: Array,
    rounded: Callable[[Array], Array],
) -> Array:
    """Pixels x outputs of a job, before bias."""
    variant = kernel["variants"][job[0]]
    outputs, inputs = job[2], job[4]
    if not inputs:
        return np.zeros((len(image), outputs), data.dtype)
    high = -(-outputs // variant["output_granule"]) * variant["output_granule"]
    wide = -(-inputs // variant["input_granule"]) * variant["input_granule"]
    taps = prod(kernel["kernel"])
    packed = tables["w"][job[5] : job[5] + taps * high * wide].reshape(taps, high, wide)
    weights = rounded(packed.astype(data.dtype))
    channels = tables["inputs"][job[3] : job[3] + inputs]
    size = kernel["input_size"]
    where = np.stack(np.unravel_index(position, kernel["output_size"]))
    result = np.zeros((len(image), outputs), data.dtype)
    for tap, steps in enumerate(np.ndindex(*kernel["kernel"])):
        at = [
            where[axis] * kernel["strides"][axis] - kernel["pads"][axis] + steps[axis] * kernel["dilations"][axis]
            for axis in range(3)
        ]
        inside = np.all([(a >= 0) & (a < n) for a, n in zip(at, size, strict=True)], axis=0)
        flat = (np.where(inside, at[0], 0) * size[1] + np.where(inside, at[1], 0)) * size[2] + np.where(
            inside, at[2], 0
        )
        values = np.where(channels >= 0, data[image[:, None], channels, flat[:, None]], 0)
        if kernel["prologue"]:
            scales, shifts = (
                tables[name][job[3] : job[3] + inputs].astype(data.dtype) for name in ("input_scales", "input_shifts")
            )
            values = activated(kernel["input_activation"], values * scales + shifts)
        values = np.where(inside[:, None], rounded(values), 0)
        result += values @ weights[tap, :outputs, :inputs].T
    return result


def sum_conv(
    kernel: Mapping[str, Any],
    tables: Mapping[str, Array],
    partial: Array,
    residual: Array | None = None,
    dtype: npt.DTypeLike = np.float64,
) -> Array:
    """``y`` from the partial rows that :func:`group_conv` gives."""
    rows = _channels_first(kernel, partial, kernel["slots"]).astype(dtype)
    begins = tables["sum_begin"]
    y = np.zeros((len(rows), kernel["output_channels"], rows.shape[2]), dtype)
    for channel in range(kernel["output_channels"]):
        for row in tables["sum_rows"][begins[channel] : begins[channel + 1]]:
            y[:, channel] += rows[:, row]
        y[:, channel] += dtype_of(tables["b"][channel], dtype)
    if residual is not None:
        y += _channels_first(kernel, residual, kernel["output_channels"]).astype(dtype)
    y = activated(kernel["activation"], y)
    return y if kernel["layout"] == "first" else y.transpose(0, 2, 1)
