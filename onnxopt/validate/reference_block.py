"""The operator of a block of convolutions in NumPy, from its inputs and tables alone, as ``docs/tables.md`` says.

Slow and plain: every job is computed by itself, output row by output row. Nothing here comes from what makes tables.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxopt.validate.failure import PlanError
from onnxopt.validate.reference_conv import ConvOutput, activated, dtype_of

Array = npt.NDArray[Any]
Rounding = Callable[[Array], Array]


def conv_block(
    kernel: Mapping[str, Any],
    tables: Mapping[str, Array],
    x: Array,
    residual: Array | None = None,
    dtype: npt.DTypeLike = np.float64,
) -> Array:
    """``y``, batch x channels x positions; ``tables`` are all inputs behind ``x``.

    Computed in ``dtype``, in which results between stages stay as they are. Raises :class:`PlanError` where an output
    is not written exactly once.
    """
    output = conv_block_output(kernel, tables, x, residual, dtype)
    wrong = np.argwhere(output.written != 1)
    if len(wrong):
        image, channel, position = (int(place) for place in wrong[0])
        times = output.written[image, channel, position]
        raise PlanError(f"position {position} of channel {channel} is written {times} times, expected once")
    return output.values


def conv_block_output(
    kernel: Mapping[str, Any],
    tables: Mapping[str, Array],
    x: Array,
    residual: Array | None = None,
    dtype: npt.DTypeLike = np.float64,
    rounded: Rounding = lambda values: values,
) -> ConvOutput:
    """What the lines of ``jobs`` write, which may be some of an operator's only; otherwise as :func:`conv_block`.

    ``rounded`` is what happens to inputs behind the prologue and to the results that stay between stages.
    """
    stages, count = kernel["stages"], kernel["output_channels"]
    height, width = stages[-1]["output_size"]
    data = x.reshape(len(x), kernel["input_channels"], *stages[0]["input_size"]).astype(dtype)
    added = None if residual is None else residual.reshape(len(x), count, height, width).astype(dtype)
    y = np.full((len(data), count, height, width), np.nan, dtype)
    written = np.zeros(y.shape, np.int64)
    for job in tables["jobs"].tolist():
        own, begin = [], job[2]
        for number in range(len(stages)):
            own.append(tables["parts"][begin : begin + job[3 + number]].tolist())
            begin += job[3 + number]
        rows = _rows(stages, job[0], job[1])
        for image in range(len(data)):
            left: Array = np.empty(0)
            for number in range(len(stages) - 1):
                # A border of zeros, wherever the next stage reads beyond the image.
                made = np.zeros((stages[number]["slots"], *stages[number]["output_size"]), dtype)
                for part in own[number]:
                    places = tables["outputs"][part[0] : part[0] + part[1]]
                    values = _stage(kernel, tables, number, part, data[image] if number == 0 else left, rows, rounded)
                    values = activated(stages[number]["activation"], values)
                    first, end = rows[number]
                    for place, value in zip(places.tolist(), values, strict=True):
                        if place >= 0:
                            made[place, first:end] = rounded(value)
                left = made
            for part in own[-1]:
                values = _stage(kernel, tables, len(stages) - 1, part, left, rows, rounded)
                first, end = rows[-1]
                for place, value in zip(tables["outputs"][part[0] : part[0] + part[1]].tolist(), values, strict=True):
                    if place < 0:
                        continue
                    if added is not None:
                        value = value + added[image, place, first:end]
                    y[image, place, first:end] = activated(stages[-1]["activation"], value)
                    written[image, place, first:end] += 1
    shape = (len(data), count, height * width)
    return ConvOutput(y.reshape(shape), written.reshape(shape))


def unpacked(part: list[int], w: Array, taps: int) -> Array:
    """The weights of a part of ``products``: taps x outputs x inputs, both rounded up."""
    high, wide = -(-part[1] // 8) * 8, -(-part[3] // 16) * 16
    own = w[part[4] : part[4] + taps * high * wide].reshape(taps, wide // 16, high // 8, 8, 4, 2, 2)
    return np.asarray(own.transpose(0, 2, 3, 1, 5, 4, 6).reshape(taps, high, wide))


def _rows(stages: list[Mapping[str, Any]], begin: int, count: int) -> list[tuple[int, int]]:
    """For every stage the first row within the image that a job needs, and the one behind the last."""
    result, end = [], begin + count
    for stage in reversed(stages):
        height = stage["output_size"][0]
        result.append((max(begin, 0), max(min(end, height), max(begin, 0))))
        begin = begin * stage["strides"][0] - stage["pads"][0]
        end = (end - 1) * stage["strides"][0] - stage["pads"][0] + (stage["kernel"][0] - 1) * stage["dilations"][0] + 1
    return result[::-1]


def _stage(
    kernel: Mapping[str, Any],
    tables: Mapping[str, Array],
    number: int,
    part: list[int],
    before: Array,
    rows: list[tuple[int, int]],
    rounded: Rounding,
) -> Array:
    """Sums and bias of a part's outputs over a job's rows: outputs x rows x columns."""
    stage, outputs, inputs = kernel["stages"][number], part[1], part[3]
    taps, dtype = prod(stage["kernel"]), before.dtype
    first, end = rows[number]
    result = np.zeros((outputs, end - first, stage["output_size"][1]), dtype)
    result += dtype_of(tables["b"][part[0] : part[0] + outputs], dtype)[:, None, None]
    channelwise = stage["path"] == "channelwise"
    if number == 0:
        source = _gathered(kernel, tables, part, before, rounded)
    else:
        source = before[part[2] : part[2] + (outputs if channelwise else inputs)]
    if channelwise:
        pitch = -(-outputs // 8) * 8
        weights = tables["w"][part[4] : part[4] + taps * pitch].reshape(taps, pitch)[:, :outputs].astype(dtype)
    else:
        weights = unpacked(part, tables["w"], taps)[:, :outputs, :inputs].astype(dtype)
    for tap in range(taps):
        values = _shifted(stage, source, divmod(tap, stage["kernel"][1]), first, end)
        if channelwise:
            result += weights[tap][:, None, None] * values
        else:
            result += np.tensordot(weights[tap], values, axes=1)
    return result


def _gathered(
    kernel: Mapping[str, Any], tables: Mapping[str, Array], part: list[int], x: Array, rounded: Rounding
) -> Array:
    """The inputs of a part of the first stage, behind the prologue."""
    own = np.s_[part[2] : part[2] + part[3]]
    channels = tables["inputs"][own]
    values = x[np.maximum(channels, 0)]
    if kernel["prologue"]:
        scales, shifts = (dtype_of(tables[name][own], x.dtype) for name in ("input_scales", "input_shifts"))
        values = activated(kernel["input_activation"], values * scales[:, None, None] + shifts[:, None, None])
    return np.asarray(np.where(channels[:, None, None] >= 0, rounded(values), 0))


def _shifted(stage: Mapping[str, Any], source: Array, tap: tuple[int, int], first: int, end: int) -> Array:
    """What one tap of every position of some rows reads; zeros outside of the image."""
    ranges = ((first, end), (0, stage["output_size"][1]))
    places, inside = [], []
    for axis, (begin, last) in enumerate(ranges):
        at = (
            np.arange(begin, last) * stage["strides"][axis] - stage["pads"][axis] + tap[axis] * stage["dilations"][axis]
        )
        inside.append((at >= 0) & (at < source.shape[1 + axis]))
        places.append(np.clip(at, 0, source.shape[1 + axis] - 1))
    values = source[:, places[0][:, None], places[1][None, :]]
    return np.asarray(np.where(inside[0][:, None] & inside[1][None, :], values, 0))
