"""What a strip of the attention kernel costs on a GPU, for every shape that the kernel is compiled in.

A strip of R query rows and K keys makes R x K scores (2 d operations each), their exponentials, and the same number of
weighted values (2 dv operations each). Its keys and values are gathered from L2 in tiles. What a record has measured
scales the model; where nothing was measured, ``uncertainty`` says how far the model may be off.
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
    EXPONENTIAL_SHARE,
    LOAD_LATENCY_CYCLES,
    REGISTER_ESTIMATE,
    SMALL_SHARED_BYTES,
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
from onnxopt.target.variant import AttentionVariant, Element, Resources

MAX_WIDTH = 256

SOFTMAX_LANE_OPS = Constant(5.0, 0.15, "counted: multiply-add, maximum, sum, half a conversion, addressing; assumed")
_MASK_LANE_OPS = 2.0
_COPY_BYTES = 16
# Blocks read their job, its key numbers, then the rows: three accesses that wait for one another.
_DEPENDENT_LOADS = 3
_SECTOR_BYTES = 32

# Registers of a thread beside its fragments: addresses, row maxima and sums, loop counters.
_BASE_REGISTERS = 44
# With queries on the M side of mma there are also the bit rows and biases of the tile.
_TILE_REGISTERS = 4
_SPLIT_REGISTERS = 16
# Queries stay in registers up to this many of a thread, else they are read from shared memory for every tile.
_QUERY_REGISTERS = 32
_PRODUCER_REGISTERS = 32
_REGISTER_UNIT = 8

_PROBE_ROWS = np.array([8, 16, 32, 49, 64, 128, 256])
_PROBE_KEYS = np.array([16, 49, 64, 144, 640, 4096])


@dataclass(frozen=True)
class AttentionCost:
    """Predicted times of one site's strips; widths are those of a head's keys and values, in channels.

    Products pad widths to 16. fp32 is three tf32 products where the matrix units take tf32, else multiply-adds in the
    ordinary lanes. All exponentials go to the special-function units. Make it with :meth:`of`.
    """

    gpu: GpuProfile
    width: int
    value_width: int
    element: Element
    records: tuple[TileRecord, ...]

    @classmethod
    def of(
        cls,
        gpu: GpuProfile,
        width: int,
        value_width: int,
        element: Element = "fp16",
        records: Sequence[TileRecord] = (),
    ) -> AttentionCost:
        """The costs on a GPU; ``records`` may hold other GPUs, widths and types, which do not count.

        Raises InputError for a width outside 1 to 256 and for a type that the GPU's matrix units lack.
        """
        for name, value in (("head size", width), ("head size of the values", value_width)):
            if not 1 <= value <= MAX_WIDTH:
                raise InputError(
                    f"the {name} is {value}; the attention kernel takes 1 to {MAX_WIDTH}; the site stays as it is"
                )
        check_element(gpu, element)
        widths = (width, value_width)
        own = [r for r in records if (r.kind, r.widths, r.element) == ("attention", widths, element)]
        return cls(gpu, width, value_width, element, tuple(r for r in own if same_gpu(gpu, r.gpu)))

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

    def uncertainty_of(self, variants: Sequence[AttentionVariant]) -> float:
        """How far predictions for some variants may be off, as a share: the worst of them."""
        return max(self._doubt(variant) for variant in variants)

    def variants(self) -> tuple[AttentionVariant, ...]:
        """The shapes that are worth compiling here, sorted; one at least fits 48 KB of shared memory.

        The model chooses them, not the records, so that measuring changes no choice of what is measured; a shape whose
        compiled kernel turned out not to fit is left out. Raises InputError naming the limit where the GPU holds none.
        """
        chosen = _catalogue(KeyedGpu.of(self.gpu), self.width, self.value_width, self.element)
        fitting = tuple(variant for variant in chosen if self.occupancy([variant]))
        if not fitting:
            raise nothing_fits(self.gpu, _described(self), [self.resources(variant) for variant in chosen])
        return fitting

    def resources(self, variant: AttentionVariant) -> Resources:
        """What one block takes: as the compiler reported where a record says so, else estimated."""
        known = self._calibrations.get(variant.describe())
        return known.resources if known else self._shape(variant).resources()

    def occupancy(self, variants: Sequence[AttentionVariant]) -> int:
        """Blocks per multiprocessor of a launch that holds all the variants, each block with the worst footprint.

        0 where it does not fit, and where they cannot be one launch: paths or thread counts differ.
        """
        return launch_blocks(self.gpu, map(self.resources, variants)) if share_path(variants) else 0

    def strip_us(
        self, variant: AttentionVariant, rows: np.ndarray, keys: np.ndarray, resident: int, masked: bool
    ) -> np.ndarray:
        """How long a block of each strip keeps its place while ``resident`` blocks share every multiprocessor.

        ``rows`` are at most the variant's; ``keys`` is any length and is walked in tiles. Both are rounded up to what
        the kernel computes. Nondecreasing in all three. Raises ValueError for more rows than the variant has.
        """
        rows, keys = np.asarray(rows, np.int64), np.asarray(keys, np.int64)
        if rows.size and (rows.min() < 0 or rows.max() > variant.rows or keys.min() < 0):
            raise ValueError(f"{variant.describe()} takes strips of 0 to {variant.rows} rows and 0 or more keys")
        times = self._table(variant, masked).times(rows, keys, resident)
        known = self._calibrations.get(variant.describe())
        if known is None:
            return times
        # No record makes a strip faster than the processor's units at their peak rates.
        peak = resident * self._peak_us_per_pair * self.gpu.multiprocessors
        return np.asarray(np.maximum(known.scale * times, rows * peak * keys))

    def merge_us(self, rows: int, pieces: int) -> float:
        """The second launch, where key lists are split: ``rows`` rows, each from ``pieces`` partial results.

        Counts the partial results (fp32, with the logarithm of their sum) as they are written and as they are read.
        """
        if rows <= 0 or pieces <= 1:
            return 0.0
        rate = self._path_rates["mma"]
        partial = 2.0 * rows * pieces * (4 * self.value_width + 8)
        moved = partial + rows * self.value_width * ELEMENT_BYTES[self.element]
        waits = (BLOCK_START_CYCLES.value + 2 * LOAD_LATENCY_CYCLES.value) / rate.cycles
        return self.launch_us + waits + moved / (rate.l2_bytes * self.gpu.multiprocessors)

    def bound_us(self, pairs: float, moved_bytes: float) -> float:
        """What ``pairs`` needed pairs and the bytes that must move once take at least, at the datasheet's rates.

        The longest of products, exponentials, device memory and one launch.
        """
        return max(pairs * self._peak_us_per_pair, self.bytes_floor_us(moved_bytes), self.launch_us)

    def bytes_floor_us(self, moved_bytes: float) -> float:
        """The time that device memory takes for some bytes at its peak rate."""
        return moved_bytes / self.gpu.memory_bytes_per_second * 1e6

    @property
    def _peak_us_per_pair(self) -> float:
        flops = 2.0 * (self.width + self.value_width)
        return 1e6 * max(flops / peak_flops(self.gpu, self.element), 1.0 / self.gpu.exponentials_per_second)

    def _doubt(self, variant: AttentionVariant) -> float:
        known = self._calibrations.get(variant.describe())
        if known:
            return known.doubt
        tile = WGMMA_TILE_CYCLES if variant.path == "wgmma" else TILE_CYCLES
        own = (EXPONENTIAL_SHARE, SOFTMAX_LANE_OPS, COPY_LANE_OPS, STEP_LANE_OPS, tile, REGISTER_ESTIMATE)
        return combined_doubt((*self._path_rates[variant.path].doubts, *(constant.doubt for constant in own)))

    @cached_property
    def _path_rates(self) -> dict[str, Rates]:
        return {path: rates(self.gpu, path, self.element) for path in ("mma", "wgmma")}

    @cached_property
    def _tables(self) -> dict[tuple[AttentionVariant, bool], TileTable]:
        return {}

    def _table(self, variant: AttentionVariant, masked: bool) -> TileTable:
        if (variant, masked) not in self._tables:
            table = self._shape(variant).table(self._path_rates[variant.path], np.arange(variant.rows + 1), masked)
            self._tables[variant, masked] = table
        return self._tables[variant, masked]

    def _shape(self, variant: AttentionVariant) -> _Shape:
        return _Shape(variant, self.width, self.value_width, self.element)

    @cached_property
    def _calibrations(self) -> dict[str, Calibration]:
        groups: dict[str, list[TileRecord]] = {}
        for record in self.records:
            groups.setdefault(record.variant, []).append(record)
        result = {}
        for variant in _candidates(self.gpu.architecture, self.element) if groups else ():
            group = [r for r in groups.get(variant.describe(), ()) if r.extent[0] <= variant.rows]
            known = calibration(group, self._predictions(variant, group)) if group else None
            if known:
                result[variant.describe()] = known
        return result

    def _predictions(self, variant: AttentionVariant, group: Sequence[TileRecord]) -> np.ndarray:
        return np.array(
            [
                self._table(variant, r.masked).times(np.array(r.extent[0]), np.array(r.extent[1]), r.resident)
                for r in group
            ]
        )

    def probe(self, variant: AttentionVariant, resident: int) -> np.ndarray:
        """Modelled time of typical strips on one multiprocessor: each among many of its kind, and alone."""
        pieces = -(-_PROBE_ROWS // variant.rows)
        rows = np.repeat(-(-_PROBE_ROWS // pieces), len(_PROBE_KEYS))
        keys, pieces = np.tile(_PROBE_KEYS, len(_PROBE_ROWS)), np.repeat(pieces, len(_PROBE_KEYS))
        table = self._shape(variant).table(self._path_rates[variant.path], rows, masked=True)
        places = np.arange(len(rows))
        crowded = pieces * table.times(places, keys, resident) / resident
        alone = -(-pieces // resident) * table.times(places, keys, 1)
        return np.concatenate([crowded, alone])


@lru_cache(maxsize=128)
def _catalogue(key: KeyedGpu, width: int, value_width: int, element: Element) -> tuple[AttentionVariant, ...]:
    cost = AttentionCost(key.gpu, width, value_width, element, ())
    every = _candidates(key.gpu.architecture, element)
    return choose_variants(key.gpu, _described(cost), every, cost.resources, cost.probe)


def _described(cost: AttentionCost) -> str:
    return f"attention in {cost.element} with head sizes {cost.width} and {cost.value_width}"


@dataclass(frozen=True)
class _Shape:
    """One variant at given head sizes: what it takes, and what limits it."""

    variant: AttentionVariant
    width: int
    value_width: int
    element: Element

    @property
    def bytes(self) -> int:
        return ELEMENT_BYTES[self.element]

    @property
    def d(self) -> int:
        return -(-self.width // 16) * 16

    @property
    def dv(self) -> int:
        """Padded width of the values; the M side of a swapped wgmma takes 64 of them."""
        unit = 64 if self.variant.swapped and self.variant.path == "wgmma" else 16
        return -(-self.value_width // unit) * unit

    @property
    def query_registers(self) -> float:
        """Registers for a thread's part of the queries, if they stay there."""
        v = self.variant
        if v.path == "wgmma":
            return np.inf
        words = self.bytes / 4
        return v.rows * self.d / 32 * words if v.swapped else v.rows / v.warps * self.d / 32 * words

    def resources(self) -> Resources:
        v = self.variant
        row_block = max(v.rows * self.d, v.rows * self.dv)
        tiles = v.stages * v.keys * (self.d + self.dv)
        smallest = (v.path, v.rows, v.keys, v.stages, v.swapped) == ("mma", 16, 16, 1, False)
        if smallest and self.bytes * (row_block + tiles) + self._list_bytes() > SMALL_SHARED_BYTES:
            # Its values take the place of the keys, so that it fits a block's small share.
            tiles = v.keys * max(self.d, self.dv)
        weights = v.rows * v.keys if v.swapped and v.path == "wgmma" else 0
        return Resources(self._registers(), self.bytes * (row_block + tiles + weights) + self._list_bytes(), v.threads)

    def _list_bytes(self) -> int:
        """Bit rows of the tiles in flight, and the lists that run ahead of them, as if the site had all of them."""
        v = self.variant
        if v.swapped or v.path == "wgmma":
            return v.stages * (v.rows * v.keys // 8 + 4 * v.keys)
        masks = 4 * v.rows * -(-v.keys // 32)
        # Keys, values and columns of run-time weights; then each key's column again, with its weight.
        return v.stages * (masks + 8 * v.keys) + max(v.stages, 2) * 3 * 4 * v.keys

    def _registers(self) -> int:
        v = self.variant
        extra = _BASE_REGISTERS + (_SPLIT_REGISTERS if self.element == "fp32" else 0)
        words = self.bytes / 4
        if v.path == "wgmma":
            groups = v.warps // 4
            scores = v.rows / 2 if v.swapped else v.keys / 2
            sums = self.dv * v.rows / 128 if v.swapped else self.dv / 2
            consumer = _up(sums + scores * (1 if v.swapped else 1 + words) + extra)
            # setmaxnreg shares the pool out anew: what counts is that consumers and producer fit it together.
            limit = 240 if groups < 3 else 160
            return _up((groups * consumer + _PRODUCER_REGISTERS) / (groups + 1)) if consumer <= limit else 256
        queries = self.query_registers if self.query_registers <= _QUERY_REGISTERS else 8
        lane_rows = v.rows / 32 if v.swapped else v.rows / v.warps / 32
        scores = v.keys / v.warps * v.rows / 32 if v.swapped else lane_rows * v.keys
        tile = 0 if v.swapped else _TILE_REGISTERS
        return _up(lane_rows * self.dv + scores * (1 + words) + queries + extra + tile)

    def table(self, rate: Rates, rows: np.ndarray, masked: bool) -> TileTable:
        """The parts of a strip's time for each number of rows."""
        v = self.variant
        flops = 2.0 * (self.d + self.dv)
        ops = SOFTMAX_LANE_OPS.value + (_MASK_LANE_OPS if masked else 0.0) + self.dv / v.keys
        products, softmax = flops / rate.matrix, 1 / rate.exponentials + ops / rate.lanes
        copies = COPY_LANE_OPS.value * self.bytes * (self.d + self.dv) / _COPY_BYTES / rate.lanes
        steps = STEP_LANE_OPS.value * 32 * v.warps / v.keys / rate.lanes
        computed = -(-rows // v.row_granule) * v.row_granule
        busy, chained, readers = self._spread(computed)
        shared = (1 + readers) * self.bytes * (self.d + self.dv) + self._query_reads(computed)
        key_bytes = _sectors(self.width * self.bytes) + _sectors(self.value_width * self.bytes) + 4
        row_bytes = _sectors(self.width * self.bytes) + _sectors(self.value_width * self.bytes)
        merged = 8.0 * v.warps * computed * self.dv if v.swapped else 0.0 * computed
        latency = LOAD_LATENCY_CYCLES.value / rate.cycles
        tile = (WGMMA_TILE_CYCLES if v.path == "wgmma" else TILE_CYCLES).value / rate.cycles
        return TileTable(
            tile=v.keys,
            unit=(16 if v.path == "mma" else 64) * (v.warps if v.path == "mma" else v.warps // 4)
            if v.swapped
            else v.key_granule,
            busy=np.maximum.reduce([busy * products, busy * softmax + copies + steps, shared / rate.shared_bytes]),
            # The producer warpgroup of wgmma copies beside the chain; mma's warps copy for themselves.
            chain=chained * (products + softmax) + (copies * 4 / min(4, v.warps) if v.path == "mma" else 0.0),
            l2=(key_bytes + (rows / 8 if masked else 0.0 * rows)) / rate.l2_bytes,
            l2_ends=rows * row_bytes / rate.l2_bytes,
            ends=BLOCK_START_CYCLES.value / rate.cycles + _DEPENDENT_LOADS * latency + merged / rate.shared_bytes,
            tile_chain=tile,
            tile_load=latency / max(1, v.stages - 1),
            exposed_loads=v.stages == 1,
        )

    def _spread(self, computed: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Rows that count for the busiest unit, rows of the slowest warp's chain, and how often a key is read.

        A warp has the matrix unit of its quarter of the multiprocessor, given by its number: with fewer row granules
        than warps, quarters stand idle whatever else is resident. A chain runs at a quarter's rate, hence the 4.
        """
        v = self.variant
        if v.swapped:
            teams = v.warps if v.path == "mma" else v.warps // 4
            return computed, computed * ((4 if v.path == "mma" else 1) / teams), np.ones(computed.shape)
        granules = computed // v.row_granule
        if v.path == "wgmma":
            return computed, np.minimum(computed, 64), granules
        quarters = min(4, v.warps)
        busy = -(-granules // quarters) * quarters * 16
        chained = -(-granules // v.warps) * 16 * 4
        return busy, chained, np.minimum(granules, v.warps)

    def _query_reads(self, computed: np.ndarray) -> np.ndarray:
        """Bytes of queries (and of weights, where they pass through shared memory) read for each key."""
        v = self.variant
        if self.query_registers <= _QUERY_REGISTERS:
            return 0.0 * computed
        if not v.swapped:
            return computed * (self.d * self.bytes / v.keys)
        keys = 64 if v.path == "wgmma" else v.keys // v.warps
        weights = 2 * self.bytes if v.path == "wgmma" else 0
        return computed * (self.d * self.bytes / keys + weights)


@lru_cache(maxsize=32)
def _candidates(architecture: str, element: Element) -> tuple[AttentionVariant, ...]:
    """Every shape that the kernel's source could be compiled in; which are worth it depends on the head size."""
    # Swapped, the weights are turned over by an instruction for 16-bit numbers.
    halves = element in ("fp16", "bf16")
    result = [v for v in _mma_candidates(2 if architecture == "sm_75" else 3) if halves or not v.swapped]
    # wgmma reads 32-bit operands in one layout only, which the values do not have.
    if architecture == "sm_90" and halves:
        result += _wgmma_candidates()
    return tuple(result)


def _mma_candidates(most_stages: int) -> Iterator[AttentionVariant]:
    for warps in (1, 2, 4, 8):
        for stages in range(1, most_stages + 1):
            for m in (1, 2):
                for keys in (16, 32, 64, 96, 128):
                    yield AttentionVariant("mma", 16 * warps * m, keys, warps, stages)
                for rows in (8, 16, 24, 32, 48, 64):
                    yield AttentionVariant("mma", rows, 16 * warps * m, warps, stages, swapped=True)


def _wgmma_candidates() -> Iterator[AttentionVariant]:
    for groups in (1, 2, 3):
        for stages in (2, 3):
            for keys in (64, 80, 96, 112, 128, 144, 160, 176):
                yield AttentionVariant("wgmma", 64 * groups, keys, 4 * groups, stages)
            for rows in (8, 16, 32, 48, 64, 96, 128):
                yield AttentionVariant("wgmma", rows, 64 * groups, 4 * groups, stages, swapped=True)


def _sectors(size: int) -> int:
    """Bytes that a gathered row takes from L2, which gives 32 at a time."""
    return -(-size // _SECTOR_BYTES) * _SECTOR_BYTES


def _up(registers: float) -> int:
    return int(-(-registers // _REGISTER_UNIT)) * _REGISTER_UNIT
