"""Whether the steps of a convolution algorithm fit together, and their tables say what the layer is.

``docs/algorithms.md`` says what the tables hold; nothing here comes from the code that packs them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from math import prod
from typing import Any

import numpy as np

from onnxopt.plan.tables.work import ConvWork
from onnxopt.validate.failure import PlanError
from onnxopt.validate.launch import Array, check_present
from onnxopt.validate.reference_algorithms import WINOGRAD_FILTER

Step = tuple[str, Mapping[str, Any], Mapping[str, Array]]
"""A step's operator without the hash, its configuration's ``kernel``, its tables."""

_PLAIN = ("ConvUnfold", "ConvShiftAdd", "WinogradInput", "WinogradOutput")
_WEIGHT_ROW_BYTES = 64
_SIZES = ("input_size", "output_size", "kernel", "strides", "dilations", "pads")
# Rounding relative to a weight, and the step between the smallest numbers.
_ROUNDING = {"float16": 2.0**-10, "bfloat16": 2.0**-7, "float32": 2.0**-20}
_STEP = {"float16": 2.0**-23, "bfloat16": 2.0**-100, "float32": 2.0**-100}


def validate_algorithm_launch(steps: Sequence[Step]) -> None:
    """Prove that every step has its tables, each of its size, and reads as much as the step before it made.

    Raises :class:`PlanError`.
    """
    for operator, kernel, tables in steps:
        last = "b" in tables
        if operator == "SumConv":
            _check_sum(kernel, tables)
            continue
        weights = operator not in _PLAIN
        check_present(operator, tables, {"w": (weights, "float"), "b": (last, "float32")})
        wanted = {"w": _weight_count(operator, kernel) if weights else 0, "b": _rows(operator, kernel)}
        for name, table in tables.items():
            if table.size != wanted[name]:
                raise PlanError(f"{operator}: {name!r} has {table.size:,} entries, expected {wanted[name]:,}")
        if last == bool(kernel.get("raw", operator in ("ConvUnfold", "WinogradInput"))):
            raise PlanError(f"{operator}: {'a bias' if last else 'no bias'} in a step that is {'not ' * last}the last")
    for (one, before, _), (other, after, _) in pairwise(steps):
        made, read = _made(one, before), _read(other, after)
        if made != read:
            raise PlanError(f"{one} makes {made:,} elements a batch element, {other} reads {read:,}")


def validate_algorithm_contents(work: ConvWork, steps: Sequence[Step], name: str = "convolution") -> None:
    """Prove that the steps are about the work's layer, and that their weights and bias are the work's.

    The steps are expected to have passed :func:`validate_algorithm_launch`. Raises :class:`PlanError`.
    """
    for operator, kernel, tables in steps:
        if operator != "SumConv" and operator != "ConvProduct":
            _check_geometry(work, operator, kernel, name)
        if "b" in tables:
            _check_finish(work, kernel, tables["b"], name)
        if "w" in tables:
            found, expected, largest = _weights(work, steps, operator, kernel, tables["w"])
            within = _ROUNDING[tables["w"].dtype.name] * largest + _STEP[tables["w"].dtype.name]
            wrong = np.argwhere(~(np.abs(found - expected) <= within))
            if found.shape != expected.shape or len(wrong):
                place = tuple(int(i) for i in wrong[0]) if len(wrong) else "all"
                raise PlanError(f"{name}, {operator}: its weights differ from the layer's, first at {place}")


def _check_sum(kernel: Mapping[str, Any], tables: Mapping[str, Array]) -> None:
    """Every channel is the sum of its rows, each partial row of one channel."""
    name = "SumConv"
    check_present(name, tables, {"b": (True, "float32"), "sum_begin": (True, "int32"), "sum_rows": (True, "int32")})
    begins, rows, channels = tables["sum_begin"], tables["sum_rows"], kernel["output_channels"]
    slices = kernel["slots"] // channels
    wanted = np.arange(kernel["slots"]).reshape(slices, channels).T.reshape(-1)
    even = np.array_equal(begins, np.arange(channels + 1) * slices)
    if len(tables["b"]) != channels or not even or not np.array_equal(rows, wanted):
        raise PlanError(f"{name}: its tables do not add up {slices} slices of {channels} channels")


def _check_geometry(work: ConvWork, operator: str, kernel: Mapping[str, Any], name: str) -> None:
    rank = len(work.size)
    wanted = (work.size, work.output_size, work.weights.shape[2:], work.strides, work.dilations, work.pads[:rank])
    for word, values in zip(_SIZES, wanted, strict=True):
        fill = 0 if word == "pads" else 1
        if list(kernel[word]) != [fill] * (3 - rank) + list(values):
            raise PlanError(f"{name}, {operator}: {word} is {list(kernel[word])}, expected {list(values)}")
    channels = (kernel["input_channels"], kernel["output_channels"])
    if channels != (work.channels, len(work.weights)):
        raise PlanError(f"{name}, {operator}: channels are {channels[0]} and {channels[1]}")


def _check_finish(work: ConvWork, kernel: Mapping[str, Any], b: Array, name: str) -> None:
    if (kernel["activation"], kernel["residual"]) != (work.activation, work.residual):
        raise PlanError(f"{name}: activation {kernel['activation']!r}, residual {kernel['residual']}")
    bias = np.zeros(len(work.weights)) if work.bias is None else work.bias
    wrong = np.flatnonzero(~(np.abs(b - bias) <= 2.0**-20 * np.abs(bias) + 2.0**-100))
    if wrong.size:
        raise PlanError(f"{name}: the bias of channel {wrong[0]} is {b[wrong[0]]}, expected {bias[wrong[0]]}")


def _weights(
    work: ConvWork, steps: Sequence[Step], operator: str, kernel: Mapping[str, Any], w: Array
) -> tuple[Array, Array, Array]:
    """The weights of a table and those of the layer in the same order, and the magnitudes that are rounded."""
    outputs, inputs = work.weights.shape[:2]
    taps = prod(work.weights.shape[2:])
    dense = work.weights.reshape(outputs, inputs, taps).astype(np.float64)
    if operator == "ConvScalar":
        return _as(w, outputs, taps, inputs), dense.transpose(0, 2, 1), np.abs(dense.transpose(0, 2, 1))
    if operator in ("ConvDirect", "ConvSlices"):
        multipliers = outputs // kernel["groups"]
        wide = -(-multipliers // kernel["block_outputs"]) * kernel["block_outputs"]
        own = dense.reshape(kernel["groups"], multipliers, inputs, taps).transpose(0, 2, 3, 1)
        return _compared(_as(w, kernel["input_channels"], taps, wide), own.reshape(-1, taps, multipliers))
    depth = kernel["depth"]
    wide = w.size // (kernel["matrices"] * kernel["rows"])
    found = _as(w, kernel["matrices"], kernel["rows"], wide)
    before = {name for name, _, _ in steps}
    if "WinogradInput" in before:
        filters = WINOGRAD_FILTER[next(k["tile"] for name, k, _ in steps if name == "WinogradInput")]
        nine = dense.reshape(outputs, inputs, 3, 3)
        u, most = (
            np.einsum("ak,oikl,bl->aboi", f, n, f, optimize=True).reshape(-1, outputs, inputs)
            for f, n in ((filters, nine), (np.abs(filters), np.abs(nine)))
        )
        # What cancels in a transform is off by a rounding of float64 at most.
        return *_compared(found, u)[:2], np.pad(np.abs(u) + 2.0**-40 * most, [(0, 0)] * 2 + [(0, wide - depth)])
    rows = dense.transpose(2, 0, 1).reshape(1, -1, inputs) if kernel["raw"] else dense.reshape(1, outputs, -1)
    return _compared(found, rows)


def _as(w: Array, *shape: int) -> Array:
    return w.astype(np.float64).reshape(shape)


def _compared(found: Array, expected: Array) -> tuple[Array, Array, Array]:
    """``expected`` padded with zeros along its last axis to what was found."""
    padded = np.pad(expected, [(0, 0)] * (expected.ndim - 1) + [(0, found.shape[-1] - expected.shape[-1])])
    return found, padded, np.abs(padded)


def _rows(operator: str, kernel: Mapping[str, Any]) -> int:
    return int(kernel["rows"] if operator == "ConvProduct" else kernel["output_channels"])


def _weight_count(operator: str, kernel: Mapping[str, Any]) -> int:
    if operator == "ConvProduct":
        step = _WEIGHT_ROW_BYTES // (2 if kernel["element"] in ("fp16", "bf16") else 4)
        return int(kernel["matrices"] * kernel["rows"] * -(-kernel["depth"] // step) * step)
    inputs, outputs, taps = kernel["input_channels"], kernel["output_channels"], prod(kernel["kernel"])
    if operator == "ConvScalar":
        return int(inputs * outputs * taps)
    block = kernel["block_outputs"]
    return int(inputs * taps * -(-(outputs // kernel["groups"]) // block) * block)


def _made(operator: str, kernel: Mapping[str, Any]) -> int:
    """Elements that a step makes for one batch element, where others follow."""
    if operator == "ConvProduct":
        return int(kernel["matrices"] * kernel["rows"] * kernel["positions"])
    if operator == "ConvUnfold":
        return int(kernel["input_channels"] * prod(kernel["kernel"]) * kernel["pitch"])
    if operator == "WinogradInput":
        return int((kernel["tile"] + 2) ** 2 * kernel["input_channels"] * kernel["pitch"])
    return int(kernel.get("slices", 1) * kernel["output_channels"] * prod(kernel["output_size"]))


def _read(operator: str, kernel: Mapping[str, Any]) -> int:
    """Elements of one batch element that a step reads, where others are before it."""
    if operator == "ConvProduct":
        return int(kernel["matrices"] * kernel["depth"] * kernel["pitch"])
    if operator == "ConvShiftAdd":
        return int(prod(kernel["kernel"]) * kernel["output_channels"] * prod(kernel["input_size"]))
    if operator == "WinogradOutput":
        tiles = prod(-(-n // kernel["tile"]) for n in kernel["output_size"][1:])
        return int((kernel["tile"] + 2) ** 2 * kernel["output_channels"] * tiles)
    return int(kernel["slots"] * prod(kernel["output_size"]))
