"""How long the steps of a convolution algorithm take on a GPU, by the model: arithmetic, memory, launches and waves.

A step takes the longest of its arithmetic at the rate of the units that it runs on, its bytes from device memory, its
loads from L2, and the chain of one block times the rounds in which the blocks run; and a launch. The figures rank
algorithms until measured times take their place.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil, prod
from typing import Any

from onnxopt.plan.algorithms.geometry import LayerGeometry
from onnxopt.plan.algorithms.steps import AlgorithmStep
from onnxopt.plan.algorithms.tiles import DEPTH_BYTES
from onnxopt.plan.roofline import (
    BLOCK_START_CYCLES,
    ELEMENT_BYTES,
    LANES_SHARE,
    LOAD_LATENCY_CYCLES,
    TILE_CYCLES,
    Constant,
    rates,
)
from onnxopt.target.figures import GpuProfile
from onnxopt.target.variant import Element

_BLOCKS = Constant(4.0, 0.30, "assumed: blocks of these kernels that share a multiprocessor")
_PLANE_LOADS = Constant(5.0, 0.20, "counted: a load and its conversion beside each multiply-add, none reused")
_ELEMENT_OPS = Constant(12.0, 0.30, "assumed: index arithmetic of an element that is moved by itself")
_TRANSFORM_OPS: Mapping[int, float] = {2: 4.0, 4: 10.0}
"""Additions for each value that a Winograd transform gives, along both axes."""


@dataclass(frozen=True)
class _Load:
    """What a step does: multiply-adds, ordinary operations, bytes of device memory and of L2, blocks, a block's chain.

    ``products`` run on the matrix unit if ``matrix``, else in the ordinary lanes; ``cycles`` is the chain.
    """

    products: float
    operations: float
    moved: float
    gathered: float
    blocks: float
    cycles: float
    matrix: bool = False


def algorithm_us(
    steps: tuple[AlgorithmStep, ...], geometry: LayerGeometry, gpu: GpuProfile, element: Element, batch: int
) -> float:
    """Predicted microseconds of all steps of a layer, one launch after another."""
    return sum(step_us(step, geometry, gpu, element, batch) for step in steps)


def step_us(step: AlgorithmStep, geometry: LayerGeometry, gpu: GpuProfile, element: Element, batch: int) -> float:
    """Predicted microseconds of one step, its launch included."""
    load = _load_of(step, geometry, element)
    rate = rates(gpu, "mma" if load.matrix else "lanes", element)
    whole = gpu.multiprocessors
    lanes = rate.lanes * whole
    products = 2.0 * load.products / (rate.matrix * whole) if load.products else 0.0
    busy = batch * max(products + load.operations / lanes, load.gathered / (rate.l2_bytes * whole))
    moved = batch * load.moved / gpu.memory_bytes_per_second * 1e6
    # Blocks without a chain come and go so fast that others hide their ends.
    rounds = ceil(batch * load.blocks / (whole * _BLOCKS.value)) if load.cycles else 1
    chain = rounds * (load.cycles + BLOCK_START_CYCLES.value + LOAD_LATENCY_CYCLES.value) / rate.cycles
    return max(busy, moved, chain) + gpu.launch_seconds * 1e6


def _load_of(step: AlgorithmStep, geometry: LayerGeometry, element: Element) -> _Load:
    size = ELEMENT_BYTES[element]
    x = size * geometry.input_channels * geometry.input_positions
    y = size * geometry.output_channels * geometry.positions
    pairs = geometry.output_channels * geometry.input_channels // geometry.groups
    weights = size * pairs * geometry.taps
    made = prod(step.output_shape)
    written = made * (4 if step.output_type == "float32" else size)
    kernel = step.kernel
    if step.operator == "ConvProduct":
        return _product(kernel, written, size)
    if step.operator == "ConvScalar":
        products = pairs * geometry.taps * geometry.positions
        blocks = geometry.output_channels * ceil(geometry.positions / (kernel["threads"] * kernel["own_positions"]))
        chain = geometry.input_channels * geometry.taps * _PLANE_LOADS.value * 4
        return _Load(products, _PLANE_LOADS.value * products, x + y + weights, size * products, blocks, chain)
    if step.operator in ("ConvDirect", "ConvSlices"):
        return _patches(step, geometry, x, written, weights, size)
    read = {
        "ConvUnfold": size * min(made, geometry.taps * geometry.input_channels * geometry.positions),
        "ConvShiftAdd": 4 * geometry.taps * geometry.output_channels * geometry.positions,
        "SumConv": 4 * kernel.get("slots", 0) * geometry.positions,
        "WinogradInput": x,
        "WinogradOutput": 4 * prod(step.output_shape) * _entries(kernel) / max(1, kernel.get("tile", 1) ** 2),
    }[step.operator]
    each = _TRANSFORM_OPS.get(kernel.get("tile", 0), 1.0) + _ELEMENT_OPS.value
    if step.operator == "SumConv":
        each *= kernel["slots"] / geometry.output_channels
    fetched = x if step.operator == "ConvUnfold" else read
    return _Load(0.0, each * made, fetched + written, read + written, 0.0, 0.0)


def _entries(kernel: Mapping[str, Any]) -> int:
    return int((kernel.get("tile", 0) + 2) ** 2)


def _product(kernel: Mapping[str, Any], written: int, size: int) -> _Load:
    """Tiles of a matrix product on the matrix unit, computed whole."""
    rows, positions, depth = kernel["block_rows"], kernel["block_positions"], kernel["depth"]
    across, along = ceil(kernel["rows"] / rows), ceil(kernel["positions"] / positions)
    blocks = kernel["matrices"] * across * along
    step = DEPTH_BYTES // size
    walked = ceil(depth / step)
    products = blocks * rows * positions * walked * step
    own = size * kernel["matrices"] * depth * (kernel["rows"] + kernel["positions"])
    gathered = size * blocks * depth * (rows + positions)
    cycles = walked * TILE_CYCLES.value
    return _Load(products, 0.0, own + written, gathered + written, blocks, cycles, matrix=True)


def _patches(
    step: AlgorithmStep, geometry: LayerGeometry, x: float, written: float, weights: float, size: int
) -> _Load:
    """Rectangles of positions with patches of inputs in shared memory, in the ordinary lanes."""
    kernel = step.kernel
    high, wide, outputs = kernel["tile_height"], kernel["tile_width"], kernel["block_outputs"]
    _, rows, columns = geometry.output_size
    tiles = geometry.output_size[0] * ceil(rows / high) * ceil(columns / wide)
    multipliers = geometry.output_channels // geometry.groups
    across = ceil((multipliers if step.operator == "ConvSlices" else geometry.output_channels) / outputs)
    slices = kernel.get("slices", 1)
    inputs = geometry.input_channels / slices if step.operator == "ConvSlices" else geometry.input_channels
    reach = prod(
        (n - 1) * s + (k - 1) * d + 1
        for n, s, k, d in zip(
            (high, wide), geometry.strides[1:], geometry.kernel[1:], geometry.dilations[1:], strict=True
        )
    )
    blocks = tiles * across * slices
    lanes = 32 * kernel["position_warps"] * kernel["own_positions"]
    products = blocks * inputs * geometry.taps * outputs * lanes
    # Each value of the patch is copied once, and read from shared memory once for each tap and warp.
    copied = blocks * inputs * (geometry.kernel[0] * reach + geometry.taps * outputs) * _ELEMENT_OPS.value
    reads = products * (1 / kernel["own_outputs"] + 1 / kernel["own_positions"]) / 2
    chain = inputs * geometry.taps * kernel["own_outputs"] * kernel["own_positions"] / LANES_SHARE.value
    gathered = size * blocks * inputs * (geometry.kernel[0] * reach + geometry.taps * outputs)
    return _Load(products, copied + reads, x + written + weights, gathered + written, blocks, chain)
