"""Whether the tables of a convolution say what its work is: every weight at its channels, and every bias."""

from __future__ import annotations

from math import prod

import numpy as np

from onnxopt.plan.tables.conv_types import ConvTables
from onnxopt.plan.tables.work import ConvWork
from onnxopt.validate.failure import PlanError
from onnxopt.validate.launch import Array

# Rounding relative to a weight, and the step between the smallest numbers.
_ROUNDING = {"float16": 2.0**-10, "bfloat16": 2.0**-7, "float32": 2.0**-20}
_STEP = {"float16": 2.0**-24, "bfloat16": 2.0**-100, "float32": 2.0**-100}


def validate_conv_contents(work: ConvWork, tables: ConvTables, name: str = "convolution") -> None:
    """Prove that the jobs' weights, added up at the channels that they read and write, are the work's.

    The tables are expected to have passed :func:`onnxopt.validate.validate_conv_launch`. Raises :class:`PlanError`.
    """
    _check_geometry(work, tables, name)
    columns, wanted_of = _columns(work, tables)
    sums = work.sums.astype(np.float64)
    taps = prod(work.weights.shape[2:])
    given = np.zeros((work.weights.shape[0], columns, taps))
    # Inputs that read one channel may cancel; what is rounded are their weights.
    largest = np.zeros_like(given)
    weights = work.weights.reshape(*work.weights.shape[:2], taps).astype(np.float64)
    for i, column in enumerate(wanted_of["work"].tolist()):
        if column >= 0:
            given[:, column] += weights[:, i]
            largest[:, column] += np.abs(weights[:, i])
    expected = given
    if work.mix is not None:
        expected, largest = (np.tensordot(sums, values, axes=1) for values in (expected, largest))
    found = _found(tables, columns, wanted_of["tables"], taps)
    kind = tables.w.dtype.name
    times = sums.sum(axis=1)[:, None, None]
    within = _ROUNDING[kind] * largest + _STEP[kind] * times
    wrong = np.argwhere(np.abs(found - expected) > within)
    if len(wrong):
        channel, column, tap = wrong[0]
        raise PlanError(
            f"{name}: channel {channel} takes input {column} at tap {tap} times {found[channel, column, tap]}, "
            f"expected {expected[channel, column, tap]}"
        )
    bias = np.zeros(work.weights.shape[0]) if work.bias is None else work.bias
    _check_bias(tables, sums @ bias, name)


def _check_geometry(work: ConvWork, tables: ConvTables, name: str) -> None:
    kernel, rank = tables.kernel, len(work.size)
    settings = {
        "input_size": (kernel.input_size, work.size),
        "output_size": (kernel.output_size, work.output_size),
        "kernel": (kernel.kernel, work.weights.shape[2:]),
        "strides": (kernel.strides, work.strides),
        "dilations": (kernel.dilations, work.dilations),
        "pads": (kernel.pads, work.pads[:rank]),
    }
    for word, (said, wanted) in settings.items():
        if tuple(said[3 - rank :]) != tuple(wanted) or prod(said[: 3 - rank]) not in (0 if word == "pads" else 1, 1):
            raise PlanError(f"{name}: {word} is {list(said)}, expected {list(wanted)}")
    for word in ("layout", "activation", "input_activation", "residual"):
        if getattr(kernel, word) != getattr(work, word):
            raise PlanError(f"{name}: {word} is {getattr(kernel, word)}, expected {getattr(work, word)}")
    if (kernel.input_channels, kernel.output_channels) != (work.channels, len(work.sums)):
        raise PlanError(f"{name}: channels are {kernel.input_channels} and {kernel.output_channels}")


def _columns(work: ConvWork, tables: ConvTables) -> tuple[int, dict[str, Array]]:
    """Number what can be read: a channel with its scale and shift. -1 for zeros, which add nothing."""
    count = len(work.reads)
    scales = np.ones(count) if work.input_scales is None else work.input_scales
    shifts = np.zeros(count) if work.input_shifts is None else work.input_shifts
    read = np.stack([work.reads, scales.astype(np.float32), shifts.astype(np.float32)], axis=1)
    if tables.input_scales is not None and tables.input_shifts is not None:
        stored = np.stack([tables.inputs, tables.input_scales, tables.input_shifts], axis=1)
    else:
        stored = np.stack([tables.inputs, np.ones(len(tables.inputs)), np.zeros(len(tables.inputs))], axis=1)
    every, number = np.unique(np.concatenate([read, stored]).astype(np.float64), axis=0, return_inverse=True)
    number = number.reshape(-1)
    nothing = (every[:, 0] < 0) & (every[:, 2] <= 0 if work.input_activation == "relu" else every[:, 2] == 0)
    number = np.where(nothing[number], -1, number)
    return len(every), {"work": number[:count], "tables": number[count:]}


def _found(tables: ConvTables, columns: int, number: Array, taps: int) -> Array:
    """Channels of y x what is read x taps: the weights of all jobs, each part once."""
    kernel = tables.kernel
    rows = kernel.slots if tables.sum is not None else kernel.output_channels
    result = np.zeros((rows, columns, taps))
    parts = np.unique(tables.jobs[:, [0, 1, 2, 3, 4, 5, 8, 9]], axis=0)
    for variant_number, output_begin, outputs, input_begin, inputs, begin, extra_begin, extras in parts.tolist():
        variant = kernel.variants[variant_number]
        high = -(-outputs // variant.output_granule) * variant.output_granule
        wide = -(-inputs // variant.input_granule) * variant.input_granule
        packed = tables.w[begin : begin + taps * high * wide].reshape(taps, high, wide).astype(np.float64)
        own = packed[:, :outputs, :inputs].transpose(1, 2, 0)
        read = number[input_begin : input_begin + inputs]
        channels = tables.outputs[output_begin : output_begin + outputs]
        stores = [(o, c) for o, c in enumerate(channels.tolist()) if c >= 0]
        if extras and tables.extras is not None:
            stores += [(o, c) for o, c in tables.extras[extra_begin : extra_begin + extras].tolist()]
        for output, channel in stores:
            np.add.at(result[channel], read[read >= 0], own[output][read >= 0])
    if tables.sum is None:
        return result
    begins, order = tables.sum.sum_begin, tables.sum.sum_rows
    added = np.zeros((kernel.output_channels, columns, taps))
    for channel in range(kernel.output_channels):
        for row in order[begins[channel] : begins[channel + 1]].tolist():
            added[channel] += result[row]
    return added


def _check_bias(tables: ConvTables, wanted: Array, name: str) -> None:
    found = np.full(len(wanted), np.nan)
    if tables.sum is not None:
        found = tables.sum.b.astype(np.float64)
    elif tables.b is not None:
        for begin, count, first, extras in np.unique(tables.jobs[:, [1, 2, 8, 9]], axis=0).tolist():
            own = tables.b[begin : begin + count]
            channels = tables.outputs[begin : begin + count]
            found[channels[channels >= 0]] = own[channels >= 0]
            if extras and tables.extras is not None:
                lines = tables.extras[first : first + extras]
                found[lines[:, 1]] = own[lines[:, 0]]
    wrong = np.flatnonzero(~(np.abs(found - wanted) <= 2.0**-20 * (np.abs(wanted) + 1)))
    if wrong.size:
        raise PlanError(f"{name}: the bias of channel {wrong[0]} is {found[wrong[0]]}, expected {wanted[wrong[0]]}")
