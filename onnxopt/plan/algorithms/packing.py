"""Weights of a layer as the steps of an algorithm read them, made once, when a model is optimised."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from onnxopt.errors import InputError
from onnxopt.plan.algorithms.geometry import LayerGeometry
from onnxopt.plan.algorithms.steps import WINOGRAD_TILES, AlgorithmStep
from onnxopt.plan.algorithms.tiles import DEPTH_BYTES
from onnxopt.plan.roofline import ELEMENT_BYTES
from onnxopt.plan.tables.compute_type import compute_type, in_type
from onnxopt.target.variant import Element

Array = npt.NDArray[np.generic]
Floats = npt.NDArray[np.float64]

# Lavin and Gray, 2016: from three taps to tile + 2 products along one axis.
_FILTER = {
    2: np.array([[1, 0, 0], [1 / 2, 1 / 2, 1 / 2], [1 / 2, -1 / 2, 1 / 2], [0, 0, 1]]),
    4: np.array(
        [
            [1 / 4, 0, 0],
            [-1 / 6, -1 / 6, -1 / 6],
            [-1 / 6, 1 / 6, -1 / 6],
            [1 / 24, 1 / 12, 1 / 6],
            [1 / 24, -1 / 12, 1 / 6],
            [0, 0, 1],
        ]
    ),
}


def packed_weights(
    name: str,
    geometry: LayerGeometry,
    element: Element,
    steps: Sequence[AlgorithmStep],
    weights: npt.NDArray[np.floating],
) -> dict[str, Array]:
    """The constants of an algorithm's ``steps`` but for the bias: ``w`` in the compute type, and tables of SumConv.

    ``weights`` are outputs x inputs of a group x taps, or with the taps' axes. Transforms are computed in float64 and
    rounded once. Raises InputError where their number is not the layer's.
    """
    outputs, group_inputs, taps = geometry.output_channels, geometry.input_channels // geometry.groups, geometry.taps
    if weights.size != outputs * group_inputs * taps:
        raise InputError(
            f"weights of {weights.size:,} elements; allowed: {outputs} x {group_inputs} x {taps} as in the layer"
        )
    dense = np.asarray(weights, np.float64).reshape(outputs, group_inputs, taps)
    kernels = {step.operator: step.kernel for step in steps}
    if name == "scalar_matrix":
        packed = dense.transpose(0, 2, 1)
    elif name == "direct":
        packed = _outputs_last(dense, kernels["ConvDirect"]["block_outputs"])
    elif name == "depthwise":
        # Each channel of a depthwise layer has multipliers of its own.
        own = (
            dense.reshape(geometry.groups, -1, group_inputs, taps)
            .swapaxes(1, 2)
            .reshape(-1, outputs // geometry.groups, taps)
        )
        packed = _padded(own.transpose(0, 2, 1), 2, kernels["ConvSlices"]["block_outputs"])
    elif name in WINOGRAD_TILES:
        packed = _deep(_transformed(dense, WINOGRAD_TILES[name]), element)
    elif name == "kn2row":
        packed = _deep(dense.transpose(2, 0, 1), element)
    else:
        packed = _deep(dense.reshape(outputs, -1), element)
    arrays: dict[str, Array] = {"w": np.ascontiguousarray(in_type(packed, compute_type(element)))}
    if "SumConv" in kernels:
        arrays |= _sums(outputs, kernels["SumConv"]["slots"])
    return arrays


def constant_bytes(name: str, geometry: LayerGeometry, element: Element, steps: Sequence[AlgorithmStep]) -> int:
    """The bytes of :func:`packed_weights`, without making them."""
    outputs, taps, size = geometry.output_channels, geometry.taps, ELEMENT_BYTES[element]
    kernels = {step.operator: step.kernel for step in steps}
    tables = 0
    if name == "scalar_matrix":
        elements = outputs * taps * geometry.input_channels
    elif name in ("direct", "depthwise"):
        block = kernels["ConvDirect" if name == "direct" else "ConvSlices"]["block_outputs"]
        elements = geometry.input_channels * taps * _up(outputs // geometry.groups, block)
        if "SumConv" in kernels:
            tables = 4 * (outputs + 1 + kernels["SumConv"]["slots"])
    else:
        product = kernels["ConvProduct"]
        elements = product["matrices"] * product["rows"] * _up(product["depth"], DEPTH_BYTES // size)
    return elements * size + tables


def _outputs_last(dense: Floats, block: int) -> Floats:
    """Inputs x taps x outputs in whole blocks."""
    return _padded(dense.transpose(1, 2, 0), 2, block)


def _deep(packed: Floats, element: Element) -> Floats:
    """Rows are padded to whole steps of the matrix product."""
    return _padded(packed, packed.ndim - 1, DEPTH_BYTES // ELEMENT_BYTES[element])


def _padded(values: Floats, axis: int, multiple: int) -> Floats:
    widths = [(0, 0)] * values.ndim
    widths[axis] = (0, -values.shape[axis] % multiple)
    return np.pad(values, widths)


def _up(count: int, multiple: int) -> int:
    return -(-count // multiple) * multiple


def _transformed(dense: Floats, tile: int) -> Floats:
    """Entries x outputs x inputs."""
    g = _FILTER[tile]
    filters = dense.reshape(*dense.shape[:2], 3, 3)
    return np.asarray(np.einsum("ak,oikl,bl->aboi", g, filters, g).reshape(-1, *dense.shape[:2]))


def _sums(outputs: int, slots: int) -> dict[str, Array]:
    """Every channel is the sum of its row of each slice, first slices first."""
    slices = slots // outputs
    rows = np.arange(slots).reshape(slices, outputs).T
    return {
        "sum_begin": (np.arange(outputs + 1) * slices).astype(np.int32),
        "sum_rows": np.ascontiguousarray(rows.reshape(-1), np.int32),
    }
