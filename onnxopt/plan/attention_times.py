"""What limits a strip of the attention kernel in one shape, part by part, as the kernel computes it.

Queries and keys beyond the last are computed too, in what the compiler knows as one product: see :func:`tile_table`.
"""

from __future__ import annotations

import numpy as np

from onnxopt.plan.attention_resources import QUERY_REGISTERS, AttentionShape
from onnxopt.plan.roofline import (
    BLOCK_START_CYCLES,
    COPY_LANE_OPS,
    LOAD_LATENCY_CYCLES,
    STEP_LANE_OPS,
    TILE_CYCLES,
    WGMMA_TILE_CYCLES,
    Constant,
    Rates,
    TileTable,
)
from onnxopt.target.variant import AttentionVariant

SOFTMAX_LANE_OPS = Constant(5.0, 0.15, "counted: multiply-add, maximum, sum, half a conversion, addressing; assumed")

_MASK_LANE_OPS = 2.0
_COPY_BYTES = 16
# Blocks read their job, its key numbers, then the rows: three accesses that wait for one another.
_DEPENDENT_LOADS = 3
_SECTOR_BYTES = 32
# Queries, or swapped keys, of a warpgroup's product.
_GROUP_ROWS = 64


def tile_table(shape: AttentionShape, rate: Rates, rows: np.ndarray, masked: bool) -> TileTable:
    """The parts of a strip's time for each number of rows.

    With queries on the M side, ``mma`` computes 16 of them by 16 keys at least, ``wgmma`` 64 by half a tile. Swapped,
    ``mma`` computes eight queries at least, by 16 keys a warp, ``wgmma`` all of the shape's, by 64 keys a warpgroup.
    """
    v = shape.variant
    wgmma = v.path == "wgmma"
    flops = 2.0 * (shape.d + shape.dv)
    # The sums of a tile are brought to a new maximum; a swapped warpgroup's tile has 64 keys.
    rescaled = shape.dv / (_GROUP_ROWS if wgmma and v.swapped else v.keys)
    ops = SOFTMAX_LANE_OPS.value + (_MASK_LANE_OPS if masked else 0.0) + rescaled
    products, softmax = flops / rate.matrix, 1 / rate.exponentials + ops / rate.lanes
    copies = COPY_LANE_OPS.value * shape.bytes * (shape.d + shape.dv) / _COPY_BYTES / rate.lanes
    steps = STEP_LANE_OPS.value * 32 * v.warps / v.keys / rate.lanes
    computed = _computed_rows(v, rows)
    busy, chained, readers = _spread(v, computed)
    shared = (1 + readers) * shape.bytes * (shape.d + shape.dv) + _query_reads(shape, computed)
    row_bytes = _sectors(shape.width * shape.bytes) + _sectors(shape.value_width * shape.bytes)
    latency = LOAD_LATENCY_CYCLES.value / rate.cycles
    unit, chain_unit = _key_units(v)
    return TileTable(
        tile=v.keys,
        unit=unit,
        busy=np.maximum.reduce([busy * products, busy * softmax + copies + steps, shared / rate.shared_bytes]),
        # The producer warpgroup of wgmma copies beside the chain; mma's warps copy for themselves.
        chain=chained * (products + softmax) + (0.0 if wgmma else copies * 4 / min(4, v.warps)),
        l2=(row_bytes + 4 + (rows / 8 if masked else 0.0 * rows)) / rate.l2_bytes,
        l2_ends=rows * row_bytes / rate.l2_bytes,
        ends=BLOCK_START_CYCLES.value / rate.cycles
        + _DEPENDENT_LOADS * latency
        + _merged_bytes(shape, computed) / rate.shared_bytes,
        tile_chain=(WGMMA_TILE_CYCLES if wgmma else TILE_CYCLES).value / rate.cycles,
        tile_load=latency / max(1, v.stages - 1),
        exposed_loads=v.stages == 1,
        chain_unit=chain_unit if chain_unit != unit else 0,
    )


def _computed_rows(v: AttentionVariant, rows: np.ndarray) -> np.ndarray:
    if v.swapped and v.path == "wgmma":
        return np.where(rows > 0, v.rows, 0)
    return -(-rows // v.row_granule) * v.row_granule


def _key_units(v: AttentionVariant) -> tuple[int, int]:
    """Keys of a last tile are computed in multiples of these: by the busiest unit, and by the slowest warps' chain."""
    if v.path == "mma":
        unit = 16 * v.warps if v.swapped else v.key_granule
        return unit, unit
    if v.swapped:
        # Without keys for it, a warpgroup has no last tile; the others use all of the matrix unit.
        return _GROUP_ROWS, v.keys
    half = -(-v.keys // 32) * 16
    return half, half


def _spread(v: AttentionVariant, computed: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows that count for the busiest unit, rows of the slowest warp's chain, and how often a key is read.

    A warp has the matrix unit of its quarter of the multiprocessor, given by its number: with fewer row granules
    than warps, quarters stand idle whatever else is resident. A chain runs at a quarter's rate, hence the 4.
    """
    if v.swapped:
        teams = v.warps if v.path == "mma" else v.warps // 4
        return computed, computed * ((4 if v.path == "mma" else 1) / teams), np.ones(computed.shape)
    granules = computed // v.row_granule
    if v.path == "wgmma":
        return computed, np.minimum(computed, _GROUP_ROWS), granules
    quarters = min(4, v.warps)
    busy = -(-granules // quarters) * quarters * 16
    chained = -(-granules // v.warps) * 16 * 4
    return busy, chained, np.minimum(granules, v.warps)


def _query_reads(shape: AttentionShape, computed: np.ndarray) -> np.ndarray:
    """Bytes of queries (and of weights, where they pass through shared memory) read for each key."""
    v = shape.variant
    if shape.query_registers <= QUERY_REGISTERS:
        return 0.0 * computed
    query = shape.d * shape.bytes
    if not v.swapped:
        return np.asarray(computed * (query / v.keys))
    if v.path == "mma":
        return np.asarray(computed * (query / (v.keys // v.warps)))
    # Weights are written once and read for every 64 channels of the values.
    weights = (1 + shape.dv // _GROUP_ROWS) * shape.bytes
    return np.asarray(computed * (query / _GROUP_ROWS + weights))


def _merged_bytes(shape: AttentionShape, computed: np.ndarray) -> np.ndarray:
    """Sums in fp32 that pass through shared memory at the end of a swapped strip, written and read."""
    v = shape.variant
    if not v.swapped:
        return 0.0 * computed
    teams = v.warps if v.path == "mma" else v.warps // 4 - 1
    return np.asarray(8.0 * teams * computed * shape.dv)


def _sectors(size: int) -> int:
    """Bytes that a gathered row takes from L2, which gives 32 at a time."""
    return -(-size // _SECTOR_BYTES) * _SECTOR_BYTES
