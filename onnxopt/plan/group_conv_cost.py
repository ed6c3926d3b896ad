"""What a part of a group convolution costs on a GPU, for every shape that the kernel is compiled in.

A block computes some outputs of one part at some positions: it walks the part's inputs in steps, every tap of each, and
adds up products of (positions x inputs) with (inputs x outputs). Inputs are gathered channel by channel from L2.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np

from onnxopt.errors import InputError
from onnxopt.plan.roofline import (
    BLOCK_START_CYCLES,
    COPY_LANE_OPS,
    ELEMENT_BYTES,
    LOAD_LATENCY_CYCLES,
    REGISTER_ESTIMATE,
    STEP_LANE_OPS,
    TILE_CYCLES,
    WGMMA_TILE_CYCLES,
    Calibration,
    Constant,
    KeyedGpu,
    Rates,
    TileTable,
    calibration,
    check_element,
    choose_variants,
    combined_doubt,
    launch_blocks,
    nothing_fits,
    peak_flops,
    rates,
    same_gpu,
    share_path,
)
from onnxopt.target.figures import GpuProfile
from onnxopt.target.tile_records import TileRecord
from onnxopt.target.variant import ConvVariant, Element, Resources

_MOST_TAPS = 4096
_MOST_POSITIONS = 1 << 31

_ALIGNED_COPY_BYTES = 16
# The path without the matrix unit reads through L1, which serves the taps that read a position again.
_LANES_REREAD = Constant(1.5, 0.20, "assumed: rows at the rim of a tile of positions are read twice")
_LANES_LOAD_OPS = Constant(5.0, 0.20, "counted: a load issues at a quarter of the lanes' rate, and is converted")
_LANES_STEP_CYCLES = 40.0
_DEPENDENT_LOADS = 2

# A tile's inputs over all taps are brought once, as the run of positions that holds them; here by that of each pixel.
_RUN_ROWS = Constant(2.0, 0.20, "counted: a tile and a row on either side; 1.5 to 3 for 3 x 3 kernels of stride 1")
_TURNED_COPY_BYTES = Constant(6.0, 0.20, "counted: 8 loads, 8 permutations and 2 stores of 32 bytes, with addresses")
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

_PROBE_OUTPUTS = np.array([1, 4, 8, 16, 32, 60, 128, 240])
_PROBE_INPUTS = np.array([1, 4, 16, 20, 60, 120, 240])


@dataclass(frozen=True)
class GroupConvCost:
    """Predicted times of one convolution's parts: ``taps`` per connection, ``positions`` that are computed together.

    A launch computes ``groups`` such groups of positions, which share no tile.

    fp32 is three tf32 products where the matrix units take tf32, else multiply-adds in the ordinary lanes; the path
    ``lanes`` computes in fp32 whatever the operands' type. Make it with :meth:`of`.
    """

    gpu: GpuProfile
    taps: int
    positions: int
    element: Element
    records: tuple[TileRecord, ...]
    groups: int = 1

    @classmethod
    def of(
        cls,
        gpu: GpuProfile,
        taps: int,
        positions: int,
        element: Element = "fp16",
        records: Sequence[TileRecord] = (),
        groups: int = 1,
    ) -> GroupConvCost:
        """The costs on a GPU; ``records`` may hold other GPUs, taps and types, which do not count.

        Raises InputError for numbers out of range and for a type that the GPU's matrix units lack.
        """
        for name, value, most in (
            ("taps", taps, _MOST_TAPS),
            ("positions", positions * groups, _MOST_POSITIONS),
        ):
            if not 1 <= value <= most:
                raise InputError(f"the convolution has {value:,} {name}; allowed: 1 to {most:,}; it stays as it is")
        check_element(gpu, element)
        own = (r for r in records if r.kind == "conv" and r.widths == (taps,))
        return cls(
            gpu,
            taps,
            positions,
            element,
            tuple(r for r in own if r.element == element and same_gpu(gpu, r.gpu)),
            groups,
        )

    @property
    def launch_us(self) -> float:
        """The fixed time of one launch."""
        return self.gpu.launch_seconds * 1e6

    @property
    def uncertainty(self) -> float:
        """How far predictions may be off, as a share, over all of ``variants()``."""
        return self.uncertainty_of(self.variants())

    @property
    def measured(self) -> bool:
        """Whether records decide the time of at least one of ``variants()``."""
        return any(variant.describe() in self._calibrations for variant in self.variants())

    def uncertainty_of(self, variants: Sequence[ConvVariant]) -> float:
        """How far predictions for some variants may be off, as a share: the worst of them."""
        return max(self._doubt(variant) for variant in variants)

    def variants(self) -> tuple[ConvVariant, ...]:
        """The shapes that are worth compiling here, sorted; one at least fits 48 KB of shared memory.

        The model chooses them, not the records, so that measuring changes no choice of what is measured; a shape whose
        compiled kernel turned out not to fit is left out. Raises InputError naming the limit where the GPU holds none.
        """
        chosen = _catalogue(KeyedGpu.of(self.gpu), self.taps, self.positions, self.element, self.groups)
        fitting = tuple(variant for variant in chosen if self.occupancy([variant]))
        if not fitting:
            raise nothing_fits(self.gpu, _described(self), [self.resources(variant) for variant in chosen])
        return fitting

    def resources(self, variant: ConvVariant) -> Resources:
        """What one block takes: as the compiler reported where a record says so, else estimated."""
        known = self._calibrations.get(variant.describe())
        return known.resources if known else _estimate(variant, self.taps, self.element)

    def occupancy(self, variants: Sequence[ConvVariant]) -> int:
        """Blocks per multiprocessor of a launch that holds all the variants, each block with the worst footprint.

        0 where it does not fit, and where they cannot be one launch: paths or thread counts differ.
        """
        return launch_blocks(self.gpu, map(self.resources, variants)) if share_path(variants) else 0

    def tiles(self, variant: ConvVariant) -> int:
        """How many tiles the positions of a group are cut into; the last one costs as much as the others."""
        return -(-self.positions // variant.pixels)

    def blocks(self, variant: ConvVariant) -> int:
        """How many blocks of a launch compute a part: its tiles in all groups."""
        return self.groups * self.tiles(variant)

    def part_us(self, variant: ConvVariant, outputs: np.ndarray, inputs: np.ndarray, resident: int) -> np.ndarray:
        """How long one tile of positions of each part keeps its places, ``resident`` blocks on every multiprocessor.

        A part with more outputs than the variant takes as many full blocks as it can, and one more for the rest; their
        times are added up. Nondecreasing in outputs, inputs and resident.
        """
        outputs, inputs = np.asarray(outputs, np.int64), np.asarray(inputs, np.int64)
        if outputs.size and (outputs.min() < 0 or inputs.min() < 0):
            raise ValueError("a part has 0 or more outputs and inputs")
        times = self._model(variant, outputs, inputs, resident)
        known = self._calibrations.get(variant.describe())
        if known is None:
            return times
        # No record makes a part faster than the processor's units at their peak rate.
        covered = self.positions / self.tiles(variant)
        peak = resident * self.gpu.multiprocessors * self._peak_us_per_product * self.taps * covered
        return np.asarray(np.maximum(known.scale * times, outputs * peak * inputs))

    def bound_us(self, connections: float, moved_bytes: float) -> float:
        """What ``connections`` live pairs of channels and the bytes that must move once take at least.

        The longest of products and device memory at the datasheet's rates, and one launch.
        """
        products = connections * self.taps * self.positions * self.groups * self._peak_us_per_product
        return max(products, self.bytes_floor_us(moved_bytes), self.launch_us)

    def bytes_floor_us(self, moved_bytes: float) -> float:
        """The time that device memory takes for some bytes at its peak rate."""
        return moved_bytes / self.gpu.memory_bytes_per_second * 1e6

    @property
    def _peak_us_per_product(self) -> float:
        return 2e6 / max(peak_flops(self.gpu, self.element), self.gpu.fp32_flops)

    def _model(self, variant: ConvVariant, outputs: np.ndarray, inputs: np.ndarray, resident: int) -> np.ndarray:
        table = self._table(variant)
        full, rest = outputs // variant.outputs, outputs % variant.outputs
        last = np.where(rest > 0, table.times(rest, inputs, resident), 0.0)
        if not full.any():
            return last
        return np.asarray(full * table.times(np.full_like(rest, variant.outputs), inputs, resident) + last)

    def _doubt(self, variant: ConvVariant) -> float:
        known = self._calibrations.get(variant.describe())
        if known:
            return known.doubt
        own = [REGISTER_ESTIMATE.doubt]
        if variant.path == "lanes":
            own += [_LANES_LOAD_OPS.doubt, _LANES_REREAD.doubt]
        else:
            step = WGMMA_TILE_CYCLES if variant.path == "wgmma" else TILE_CYCLES
            own += [
                step.doubt,
                COPY_LANE_OPS.doubt,
                STEP_LANE_OPS.doubt,
                combined_doubt((_RUN_ROWS.doubt, _TURNED_COPY_BYTES.doubt)) if self.taps > 1 else 0.0,
            ]
        return combined_doubt((*self._path_rates[variant.path].doubts, *own))

    @cached_property
    def _path_rates(self) -> dict[str, Rates]:
        return {path: rates(self.gpu, path, self.element) for path in ("mma", "wgmma", "lanes")}

    @cached_property
    def _tables(self) -> dict[ConvVariant, TileTable]:
        return {}

    def _table(self, variant: ConvVariant) -> TileTable:
        if variant not in self._tables:
            make = _lanes_table if variant.path == "lanes" else _matrix_table
            self._tables[variant] = make(variant, self._path_rates[variant.path], self.taps, self.element)
        return self._tables[variant]

    @cached_property
    def _calibrations(self) -> dict[str, Calibration]:
        groups: dict[str, list[TileRecord]] = {}
        for record in self.records:
            groups.setdefault(record.variant, []).append(record)
        result = {}
        for variant in _candidates(self.gpu.architecture, self.element) if groups else ():
            group = groups.get(variant.describe(), [])
            known = calibration(group, self._predictions(variant, group)) if group else None
            if known:
                result[variant.describe()] = known
        return result

    def _predictions(self, variant: ConvVariant, group: Sequence[TileRecord]) -> np.ndarray:
        extents = ((np.array(r.extent[0]), np.array(r.extent[1]), r.resident) for r in group)
        return np.array([self._model(variant, *extent) for extent in extents])

    def probe(self, variant: ConvVariant, resident: int) -> np.ndarray:
        """Modelled time of typical parts: each among many of its kind, and on the whole GPU with nothing beside it."""
        outputs = np.repeat(_PROBE_OUTPUTS, len(_PROBE_INPUTS))
        inputs = np.tile(_PROBE_INPUTS, len(_PROBE_OUTPUTS))
        tiles = self.blocks(variant)
        crowded = tiles * self._model(variant, outputs, inputs, resident) / resident
        blocks = tiles * -(-outputs // variant.outputs)
        rounds = -(-blocks // (resident * self.gpu.multiprocessors))
        alone = rounds * self._model(variant, np.minimum(outputs, variant.outputs), inputs, 1)
        return np.concatenate([crowded, alone])


@lru_cache(maxsize=256)
def _catalogue(key: KeyedGpu, taps: int, positions: int, element: Element, groups: int) -> tuple[ConvVariant, ...]:
    cost = GroupConvCost(key.gpu, taps, positions, element, (), groups)
    every = _candidates(key.gpu.architecture, element)
    return choose_variants(key.gpu, _described(cost), every, cost.resources, cost.probe)


def _described(cost: GroupConvCost) -> str:
    return f"a convolution of {cost.taps} taps in {cost.element}"


def _matrix_table(v: ConvVariant, rate: Rates, taps: int, element: Element) -> TileTable:
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
    batches = -(-taps // _batch_taps(v, taps, size))
    if taps > 1:
        return _Moved(_RUN_ROWS.value * v.pixels, _TURNED_COPY_BYTES.value, batches, True)
    return _Moved(v.pixels, _ALIGNED_COPY_BYTES, batches, False)


def _multiplied(v: ConvVariant, computed: np.ndarray) -> np.ndarray:
    """Outputs that are multiplied: widths of wgmma are known to the compiler, quarters or halves of the shape's."""
    if v.path == "mma":
        return computed
    step = v.outputs // 4 if v.outputs % 64 == 0 else v.outputs // 2
    return -(-computed // step) * step


def _batch_taps(v: ConvVariant, taps: int, size: int) -> int:
    """Taps whose weights come together."""
    fitting = min(taps, max(1, _BATCH_BYTES // (v.outputs * v.inputs * size)))
    return -(-taps // -(-taps // fitting))


def _lanes_table(v: ConvVariant, rate: Rates, taps: int, element: Element) -> TileTable:
    """The parts of a block's time in the ordinary lanes, for each number of outputs."""
    size = ELEMENT_BYTES[element]
    outputs = np.arange(v.outputs + 1)
    products = 2.0 * v.pixels * outputs * taps / rate.matrix
    loads = taps * v.pixels * _LANES_LOAD_OPS.value / rate.lanes
    latency = LOAD_LATENCY_CYCLES.value / rate.cycles
    reread = 1.0 if taps == 1 else _LANES_REREAD.value
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


def _estimate(v: ConvVariant, taps: int, element: Element) -> Resources:
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
    weights = _batch_taps(v, taps, size) * outputs
    tiles = v.inputs * size * (v.stages * (rows + weights) + _ZERO_ROWS)
    return max(tiles, 4 * _STAGED_OUTPUTS * v.pixels)


@lru_cache(maxsize=32)
def _candidates(architecture: str, element: Element) -> tuple[ConvVariant, ...]:
    """Every shape that the kernel's source could be compiled in; which are worth it depends on the convolution."""
    result = [*_lanes_candidates(), *_mma_candidates(2 if architecture == "sm_75" else 3)]
    if architecture == "sm_90" and element in ("fp16", "bf16"):
        result += _wgmma_candidates()
    return tuple(result)


def _lanes_candidates() -> Iterator[ConvVariant]:
    for warps in (2, 4, 8):
        for each in (1, 2, 4):
            for outputs in (1, 4, 8):
                for inputs in (1, 4, 8):
                    yield ConvVariant("lanes", outputs, inputs, 32 * warps * each, warps, 1)


def _mma_candidates(most_stages: int) -> Iterator[ConvVariant]:
    for warps in (2, 4, 8):
        for each in (16, 32):
            for outputs in (8, 16, 32, 64, 128):
                for inputs in (16, 32, 64):
                    for stages in range(1, most_stages + 1):
                        yield ConvVariant("mma", outputs, inputs, each * warps, warps, stages)


def _wgmma_candidates() -> Iterator[ConvVariant]:
    for groups in (1, 2):
        for outputs in (16, 32, 64, 128, 256):
            for inputs in (32, 64):
                for stages in (2, 3):
                    yield ConvVariant("wgmma", outputs, inputs, 64 * groups, 4 * groups, stages)


def _up(registers: float) -> int:
    return int(-(-registers // _REGISTER_UNIT)) * _REGISTER_UNIT
