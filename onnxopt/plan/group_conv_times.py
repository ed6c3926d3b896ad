"""The parts of a block's time in the group-convolution kernel: arithmetic, copies, loads, barriers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from onnxopt.plan.group_conv_resources import batch_taps
from onnxopt.plan.roofline import (
    BLOCK_START_CYCLES,
    COPY_LANE_OPS,
    ELEMENT_BYTES,
    LOAD_LATENCY_CYCLES,
    STEP_LANE_OPS,
    TILE_CYCLES,
    WGMMA_TILE_CYCLES,
    Constant,
    Rates,
    TileTable,
)
from onnxopt.target.variant import ConvVariant, Element

_ALIGNED_COPY_BYTES = 16
# The path without the matrix unit reads through L1, which serves the taps that read a position again.
LANES_REREAD = Constant(1.5, 0.20, "assumed: rows at the rim of a tile of positions are read twice")
LANES_LOAD_OPS = Constant(5.0, 0.20, "counted: a load issues at a quarter of the lanes' rate, and is converted")
_LANES_STEP_CYCLES = 40.0
_DEPENDENT_LOADS = 2

# A tile's inputs over all taps are brought once, as the run of positions that holds them; here by that of each pixel.
RUN_ROWS = Constant(2.0, 0.20, "counted: a tile and a row on either side; 1.5 to 3 for 3 x 3 kernels of stride 1")
TURNED_COPY_BYTES = Constant(6.0, 0.20, "counted: 8 loads, 8 permutations and 2 stores of 32 bytes, with addresses")


def matrix_table(v: ConvVariant, rate: Rates, taps: int, element: Element) -> TileTable:
    """The parts of a block's time on the matrix units, for each number of outputs."""
    size = ELEMENT_BYTES[element]
    outputs = np.arange(v.outputs + 1)
    computed = -(-outputs // v.output_granule) * v.output_granule
    moved = _moved(v, taps, size)
    products = 2.0 * v.pixels * _multiplied(v, computed) * taps / rate.matrix
    copied = moved.rows / moved.copy_bytes + taps * computed / _ALIGNED_COPY_BYTES
    copies = size * copied * COPY_LANE_OPS.value / rate.lanes
    steps = moved.batches * STEP_LANE_OPS.value * 32 * v.warps / v.inputs / rate.lanes
    readers = v.warps if v.path == "mma" else v.warps // 4
    shared = size * (moved.rows + taps * (v.pixels + (1 + readers) * computed)) / rate.shared_bytes
    quarters = min(4, v.warps)
    latency = LOAD_LATENCY_CYCLES.value / rate.cycles
    # Who brings inputs through registers waits for them: all warps, or the producer.
    waited = latency if moved.waits else 0.0
    step = (WGMMA_TILE_CYCLES if v.path == "wgmma" else TILE_CYCLES).value / rate.cycles
    own_copies = copies if v.path == "mma" else 0.0 * copies
    return TileTable(
        tile=v.inputs,
        unit=v.input_granule,
        busy=np.maximum.reduce([products, copies + steps, shared]),
        chain=(products + own_copies) * (4 / quarters),
        l2=size * (moved.rows + taps * outputs) / rate.l2_bytes,
        l2_ends=size * v.pixels * outputs / rate.l2_bytes,
        ends=np.full(len(outputs), BLOCK_START_CYCLES.value / rate.cycles + _DEPENDENT_LOADS * latency),
        tile_chain=moved.batches * step + (waited if v.path == "mma" else 0.0),
        tile_load=moved.batches * latency / max(1, v.stages - 1) + (waited if v.path == "wgmma" else 0.0),
        exposed_loads=v.stages == 1,
    )


@dataclass(frozen=True)
class _Moved:
    """What a step brings: rows of inputs, by copies of so many bytes, and everything in so many batches.

    ``waits`` where inputs pass through registers.
    """

    rows: float
    copy_bytes: float
    batches: int
    waits: bool


def _moved(v: ConvVariant, taps: int, size: int) -> _Moved:
    batches = -(-taps // batch_taps(v, taps, size))
    if taps > 1:
        return _Moved(RUN_ROWS.value * v.pixels, TURNED_COPY_BYTES.value, batches, True)
    return _Moved(v.pixels, _ALIGNED_COPY_BYTES, batches, False)


def _multiplied(v: ConvVariant, computed: np.ndarray) -> np.ndarray:
    """Outputs that are multiplied: widths of wgmma are known to the compiler, quarters or halves of the shape's."""
    if v.path == "mma":
        return computed
    step = v.outputs // 4 if v.outputs % 64 == 0 else v.outputs // 2
    return -(-computed // step) * step


def lanes_table(v: ConvVariant, rate: Rates, taps: int, element: Element) -> TileTable:
    """The parts of a block's time in the ordinary lanes, for each number of outputs."""
    size = ELEMENT_BYTES[element]
    outputs = np.arange(v.outputs + 1)
    products = 2.0 * v.pixels * outputs * taps / rate.matrix
    loads = taps * v.pixels * LANES_LOAD_OPS.value / rate.lanes
    latency = LOAD_LATENCY_CYCLES.value / rate.cycles
    reread = 1.0 if taps == 1 else LANES_REREAD.value
    return TileTable(
        tile=v.inputs,
        unit=v.input_granule,
        busy=products + loads,
        chain=(products + loads) * (4 / min(4, v.warps)),
        l2=size * (reread * v.pixels + taps * outputs) / rate.l2_bytes,
        l2_ends=size * v.pixels * outputs / rate.l2_bytes,
        ends=np.full(len(outputs), BLOCK_START_CYCLES.value / rate.cycles + _DEPENDENT_LOADS * latency),
        tile_chain=taps * _LANES_STEP_CYCLES / rate.cycles,
        tile_load=latency,
        exposed_loads=True,
    )
