"""What one block of the group-convolution kernel takes, estimated until a compiler reports it."""

from __future__ import annotations

from onnxopt.plan.roofline import ELEMENT_BYTES
from onnxopt.target.variant import ConvVariant, Element, Resources

# So many bytes of weights, or those of one tap, come between two barriers (``InputPlan`` of the kernel).
_BATCH_BYTES = 8 << 10
_SUM_GRANULE = 16
_ZERO_ROWS = 8
# Rows of a run for each pixel at most, and beyond that for what rounds it up.
_MOST_RUN_ROWS = 2
_RUN_MARGIN = 16
_STAGED_OUTPUTS = 24

# What compiled kernels of mma take at most, by the size of an element, beside their sums and for each of them: 32-bit
# operands are rounded or split in registers.
_MMA_REGISTERS = {2: 64, 4: 64}
_MMA_SUM_REGISTERS = {2: 1.75, 4: 2.0}
_MOST_REGISTERS = 255
# What compiled kernels of the ordinary lanes take beside their sums: addresses, rows of taps, and the next inputs.
_LANES_ALONE_REGISTERS = 52
_LANES_REGISTERS = 60
_LANES_STEP_REGISTERS = 10
# What compiled kernels of wgmma take beside their sums, where no warpgroup gives registers to others, and what the
# producer keeps where it does.
_WGMMA_REGISTERS = 56
_PRODUCER_REGISTERS = 96
_WARPGROUP_WARPS = 4
# Each stage of wgmma has two barriers of 8 bytes.
_STAGE_BARRIER_BYTES = 16
_REGISTER_UNIT = 8


def conv_resources(v: ConvVariant, taps: int, element: Element) -> Resources:
    """Registers from what a thread holds of the sums and operands, shared memory from the tiles."""
    size = ELEMENT_BYTES[element]
    if v.path == "lanes":
        sums = v.outputs * v.pixels / (32 * v.warps)
        if v.outputs == v.inputs == 1:
            # Weights stay in registers.
            return Resources(_up(sums + _LANES_ALONE_REGISTERS), 0, v.threads)
        # Weights stand in shared memory in rows of whole vectors of four.
        steps = _LANES_STEP_REGISTERS + sums / 2 if v.inputs > 1 else 0
        registers = _up(sums + steps + _LANES_REGISTERS)
        return Resources(registers, 4 * max(v.outputs, 4) * v.inputs * taps, v.threads)
    sums = v.pixels * v.outputs / (32 * v.warps)
    if v.path == "mma":
        registers = min(_MOST_REGISTERS, _up(_MMA_REGISTERS[size] + _MMA_SUM_REGISTERS[size] * sums))
        return Resources(registers, _matrix_shared(v, taps, size), v.threads)
    own, groups = sums + _WGMMA_REGISTERS, v.warps // _WARPGROUP_WARPS
    # The producer gives consumers of many sums what it does not need.
    mean = own if own <= _PRODUCER_REGISTERS else (groups * own + _PRODUCER_REGISTERS) / (groups + 1)
    return Resources(_up(mean), _matrix_shared(v, taps, size) + v.stages * _STAGE_BARRIER_BYTES, v.threads)


def _matrix_shared(v: ConvVariant, taps: int, size: int) -> int:
    """At most so much: how far apart inputs lie, and so how many rows are brought, the geometry decides."""
    rows = (1 if taps == 1 else _MOST_RUN_ROWS) * v.pixels + _RUN_MARGIN
    outputs = v.outputs if v.outputs <= v.output_granule else -(-v.outputs // _SUM_GRANULE) * _SUM_GRANULE
    weights = batch_taps(v, taps, size) * outputs
    tiles = v.inputs * size * (v.stages * (rows + weights) + _ZERO_ROWS)
    return max(tiles, 4 * _STAGED_OUTPUTS * v.pixels)


def batch_taps(v: ConvVariant, taps: int, size: int) -> int:
    """Taps whose weights come together."""
    fitting = min(taps, max(1, _BATCH_BYTES // (v.outputs * v.inputs * size)))
    return -(-taps // -(-taps // fitting))


def _up(registers: float) -> int:
    return int(-(-registers // _REGISTER_UNIT)) * _REGISTER_UNIT
