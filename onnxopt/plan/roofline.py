"""What one multiprocessor sustains and holds: the ground that the costs of our own kernels stand on.

Rates are for one multiprocessor and a microsecond. What no profile gives is a ``Constant`` here, with where it comes
from and how far it may be off; the doubts add up to the uncertainty of a prediction.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import TypeVar

import numpy as np

from onnxopt.errors import InputError
from onnxopt.target.architecture import plain_name
from onnxopt.target.figures import GpuProfile
from onnxopt.target.tile_records import TileRecord
from onnxopt.target.variant import AttentionVariant, ConvVariant, Element, Resources

Variant = TypeVar("Variant", AttentionVariant, ConvVariant)

ELEMENT_BYTES: Mapping[Element, int] = {"fp16": 2, "bf16": 2, "tf32": 4, "fp32": 4}

# Each architecture's shared memory that the driver keeps for itself in every block, and the unit of allocation
# (CUDA C++ Programming Guide, technical specifications; CUDA's occupancy calculator).
_RESERVED_SHARED_BYTES = 1024
_SHARED_GRANULE_BYTES = 128
_TURING_SHARED_GRANULE_BYTES = 256
_REGISTERS_PER_WARP_GRANULE = 256
_SUBPARTITIONS = 4

# Without an attribute of the kernel a block gets this much shared memory (CUDA C++ Programming Guide); a host that
# cannot set the attribute needs a shape within it.
SMALL_SHARED_BYTES = 48 << 10
# Compiling takes a fraction of a second a shape. A shape earns its place by lowering the mean time of the probes by
# 0.4 % within its block size, where a block size that is slower than the best by half is as good as none.
_MOST_VARIANTS = 24
_NEAR = 1.5
_LEAST_GAIN = 0.004

_ABSURD_RATIO = 20.0
# A repeated measurement of one tile differs by about this; a scale from one record says less about other extents.
_MEASURED_DOUBT = 0.05
_FEW_RECORDS_DOUBT = 0.15

# 32 banks of 4 bytes (CUDA C++ Programming Guide, shared memory).
_SHARED_BYTES_PER_CYCLE = 128.0


@dataclass(frozen=True)
class Constant:
    """A figure that no profile gives: its value, by which share it may be off, and its source."""

    value: float
    doubt: float
    source: str


MMA_SHARE = Constant(0.70, 0.15, "assumed: FlashAttention-2 publishes 0.72 of an A100's peak at head size 128")
WGMMA_SHARE = Constant(0.70, 0.10, "cuDNN's attention publishes 0.71 of an H200's peak at head size 128")
HOPPER_MMA = Constant(0.62, 0.05, "published microbenchmarks: mma.sync reaches 0.62 of what wgmma does on an H100")
BLACKWELL_MMA = Constant(0.31, 0.30, "assumed: mma.sync does on sm_100 per cycle what it does on sm_90")
LANES_SHARE = Constant(0.60, 0.20, "assumed: fp32 multiply-adds fed from shared memory")
EXPONENTIAL_SHARE = Constant(0.90, 0.10, "assumed")
LOAD_LATENCY_CYCLES = Constant(450.0, 0.15, "assumed: 270 cycles of an idle L2, as microbenchmarks give, under load")
BLOCK_START_CYCLES = Constant(700.0, 0.10, "assumed: a block's launch on its multiprocessor and its retirement")
TILE_CYCLES = Constant(250.0, 0.10, "assumed: a step's barrier and the latency of its first products and reductions")
WGMMA_TILE_CYCLES = Constant(350.0, 0.10, "assumed, as for mma, with the hand-over from the producer warpgroup")
COPY_LANE_OPS = Constant(6.0, 0.10, "counted: number of the row, address, predicate and issue of one copy; assumed")
STEP_LANE_OPS = Constant(60.0, 0.10, "assumed: each thread's loop, barrier, row maxima and shuffles of one step")
REGISTER_ESTIMATE = Constant(1.0, 0.15, "assumed: registers are counted from fragments until a compiler reports them")

# Bytes a cycle that each multiprocessor gets from L2 while all of them read.
_L2_LARGE = Constant(28.0, 0.20, "assumed; the A100's whitepaper gives 5,120 bytes a cycle for 108 multiprocessors")
_L2_SMALL = Constant(16.0, 0.25, "assumed, for the parts with a memory bus of GDDR or LPDDR")
_LARGE_L2 = ("sm_80", "sm_90", "sm_100")


@dataclass(frozen=True)
class Rates:
    """What one multiprocessor does in a microsecond on one path: ``*_peak`` by the datasheet, the others sustained.

    ``matrix`` counts operations (a multiply-add is two) of the path's products, ``lanes`` instructions of the ordinary
    lanes; ``doubts`` are those of the constants that went in.
    """

    cycles: float
    matrix: float
    exponentials: float
    lanes: float
    shared_bytes: float
    l2_bytes: float
    doubts: tuple[float, ...]


def rates(gpu: GpuProfile, path: str, element: Element) -> Rates:
    """The sustained rates of a path (``mma``, ``wgmma`` or ``lanes``) with operands of a type.

    fp32 runs as three tf32 products of split operands where the matrix units take tf32, else in the ordinary lanes.
    """
    cycles = gpu.clock_hz / 1e6
    l2 = _L2_LARGE if gpu.architecture in _LARGE_L2 else _L2_SMALL
    matrix, doubts = _matrix(gpu, path, element)
    return Rates(
        cycles=cycles,
        matrix=matrix,
        exponentials=gpu.exponentials_per_cycle * EXPONENTIAL_SHARE.value * cycles,
        lanes=_per_multiprocessor(gpu, gpu.fp32_flops) / 2,
        shared_bytes=_SHARED_BYTES_PER_CYCLE * cycles,
        l2_bytes=l2.value * cycles,
        doubts=(*doubts, l2.doubt, LOAD_LATENCY_CYCLES.doubt, BLOCK_START_CYCLES.doubt),
    )


def peak_flops(gpu: GpuProfile, element: Element) -> float:
    """The highest rate of the whole GPU at which any path computes products of a type, in operations a second."""
    if element == "fp32":
        return max(gpu.fp32_flops, gpu.tf32_flops / 3)
    return {"fp16": gpu.fp16_flops, "bf16": gpu.bf16_flops, "tf32": gpu.tf32_flops}[element]


def _matrix(gpu: GpuProfile, path: str, element: Element) -> tuple[float, tuple[float, ...]]:
    if path == "lanes" or (element == "fp32" and "tf32" in gpu.lacking_types):
        return _per_multiprocessor(gpu, gpu.fp32_flops) * LANES_SHARE.value, (LANES_SHARE.doubt,)
    peak = gpu.tf32_flops / 3 if element == "fp32" else peak_flops(gpu, element)
    used = [WGMMA_SHARE] if path == "wgmma" else [MMA_SHARE]
    if path == "mma" and gpu.architecture in ("sm_90", "sm_100"):
        used.append(HOPPER_MMA if gpu.architecture == "sm_90" else BLACKWELL_MMA)
    share = float(np.prod([c.value for c in used]))
    return _per_multiprocessor(gpu, peak) * share, tuple(c.doubt for c in used)


def _per_multiprocessor(gpu: GpuProfile, per_second: float) -> float:
    return per_second / gpu.multiprocessors / 1e6


@dataclass(frozen=True)
class KeyedGpu:
    """A profile as a key of caches: two are equal where their figures are, wherever those come from."""

    figures: tuple[object, ...]
    gpu: GpuProfile = field(compare=False, repr=False)

    @classmethod
    def of(cls, gpu: GpuProfile) -> KeyedGpu:
        """The key of a profile."""
        return cls(tuple(getattr(gpu, f.name) for f in fields(gpu) if f.name not in ("aliases", "sources")), gpu)


def check_element(gpu: GpuProfile, element: Element) -> None:
    """InputError where the GPU has no products of the type."""
    if element not in ELEMENT_BYTES or element in gpu.lacking_types:
        allowed = [name for name in ELEMENT_BYTES if name not in gpu.lacking_types]
        raise InputError(
            f"the matrix units of {gpu.name} ({gpu.architecture}) do not take {element!r}; "
            f"allowed there: {', '.join(allowed)}"
        )


def resident_blocks(gpu: GpuProfile, resources: Resources) -> int:
    """How many blocks of a kernel one multiprocessor holds; 0 where not even one fits.

    Registers are given to warps, in units of 256 and each quarter of the multiprocessor from its own; shared memory in
    units of 128 bytes (256 on sm_75), with 1,024 bytes a block for the driver from sm_80 on.
    """
    turing = gpu.architecture == "sm_75"
    warps = -(-resources.threads // 32)
    granule = _TURING_SHARED_GRANULE_BYTES if turing else _SHARED_GRANULE_BYTES
    shared = _up(resources.shared_memory_bytes + (0 if turing else _RESERVED_SHARED_BYTES), granule)
    over = (
        resources.registers_per_thread > gpu.registers_per_thread
        or resources.threads > gpu.threads_per_block
        or resources.shared_memory_bytes > gpu.shared_memory_per_block_bytes
    )
    if over:
        return 0
    registers = _up(max(1, resources.registers_per_thread) * 32, _REGISTERS_PER_WARP_GRANULE)
    quarter = gpu.registers_per_multiprocessor // _SUBPARTITIONS
    return min(
        quarter // registers * _SUBPARTITIONS // warps,
        gpu.shared_memory_per_multiprocessor_bytes // shared if shared else gpu.blocks_per_multiprocessor,
        gpu.threads_per_multiprocessor // (32 * warps),
        gpu.blocks_per_multiprocessor,
    )


def launch_blocks(gpu: GpuProfile, footprints: Iterable[Resources]) -> int:
    """Blocks per multiprocessor of one launch whose blocks run any of several shapes: the worst of each resource.

    0 where that does not fit, where there is no shape, and where shapes differ in their threads: one launch has one
    block size.
    """
    shapes = list(footprints)
    if len({shape.threads for shape in shapes}) != 1:
        return 0
    worst = Resources(
        registers_per_thread=max(shape.registers_per_thread for shape in shapes),
        shared_memory_bytes=max(shape.shared_memory_bytes for shape in shapes),
        threads=shapes[0].threads,
        estimated=any(shape.estimated for shape in shapes),
    )
    return resident_blocks(gpu, worst)


def combined_doubt(doubts: Sequence[float]) -> float:
    """The uncertainty of a prediction, as a share of it: independent doubts add up as squares."""
    return float(np.sqrt(np.square(np.asarray(doubts)).sum()))


def same_gpu(gpu: GpuProfile, name: str) -> bool:
    """Whether a measurement on the GPU of that name holds for a profile."""
    return plain_name(name) in map(plain_name, (gpu.name, *gpu.aliases))


@dataclass(frozen=True)
class TileTable:
    """What a block's time is made of, in microseconds; arrays are indexed by the extent of the block's one side.

    The other side (keys, or inputs) is walked in steps of ``tile``. What the last step has is rounded up to ``unit``,
    for the chain to ``chain_unit`` where that is given, and at most to the tile. For each of it the busiest unit needs
    ``busy``, the slowest warp in turn ``chain``, and L2 ``l2``. A step costs ``tile_chain`` beside its products and
    ``tile_load`` waiting for loads, which are hidden by products unless ``exposed_loads``. ``l2_ends`` are bytes read
    and written once, ``ends`` the time before the first step and after the last.
    """

    tile: int
    unit: int
    busy: np.ndarray
    chain: np.ndarray
    l2: np.ndarray
    l2_ends: np.ndarray
    ends: np.ndarray
    tile_chain: float
    tile_load: float
    exposed_loads: bool
    chain_unit: int = 0

    def times(self, side: np.ndarray, walked: np.ndarray, resident: int) -> np.ndarray:
        """How long a block keeps its place on a multiprocessor that ``resident`` such blocks share.

        Alone, it takes the longer of its chain and its work on the busiest unit, and its ends. In company the units
        are shared, and its ends are hidden by the others in proportion to their number. Nondecreasing in ``walked``
        and ``resident``, and in ``side`` where the arrays are.
        """
        tiles = -(-walked // self.tile)
        padded = self._padded(walked, self.unit)
        chained = self._padded(walked, self.chain_unit) if self.chain_unit else padded
        gathered = walked * self.l2[side]
        loads = tiles * self.tile_load + gathered
        chain = tiles * self.tile_chain + chained * self.chain[side]
        chain = chain + loads if self.exposed_loads else np.maximum(chain, loads)
        work = np.maximum(padded * self.busy[side], gathered + self.l2_ends[side])
        ends = self.ends[side]
        return np.asarray(np.maximum(np.maximum(chain, work) + ends, resident * work + ends / resident))

    def _padded(self, walked: np.ndarray, unit: int) -> np.ndarray:
        whole, last = np.divmod(walked, self.tile)
        return np.asarray(whole * self.tile + np.minimum(-(-last // unit) * unit, self.tile))


def choose_variants(
    gpu: GpuProfile,
    what: str,
    candidates: Sequence[Variant],
    resources: Callable[[Variant], Resources],
    probe: Callable[[Variant, int], np.ndarray],
) -> tuple[Variant, ...]:
    """The shapes worth compiling, sorted: few, and close to the best of all on every probe.

    ``probe`` gives the times of some pieces of work with a variant of which so many blocks share a multiprocessor.
    Shapes of one thread count can share a launch, so each count gets shapes of its own as far as they come near the
    best. One shape at least fits 48 KB of shared memory if any candidate does. Raises InputError, which names ``what``
    and the limit, where no candidate fits the GPU.
    """
    needs = [resources(variant) for variant in candidates]
    resident = [launch_blocks(gpu, [need]) for need in needs]
    fitting = [i for i, blocks in enumerate(resident) if blocks]
    if not fitting:
        raise nothing_fits(gpu, what, needs)
    times = np.array([probe(candidates[i], resident[i]) for i in fitting])
    small = [j for j, i in enumerate(fitting) if needs[i].shared_memory_bytes <= SMALL_SHARED_BYTES]
    keep = [min(small, key=lambda j: float(np.log(times[j]).mean().round(9)))] if small else []
    threads = np.array([candidates[i].threads for i in fitting])
    return tuple(sorted(candidates[fitting[j]] for j in _cover(threads, times, keep)))


def _cover(threads: np.ndarray, times: np.ndarray, chosen: list[int]) -> list[int]:
    """Rows of ``times`` (candidates by probes): each next one lowers the mean over the probes the most."""
    worst = float(np.log(_NEAR))
    scores = np.minimum(np.log(times / times.min(axis=0)), worst)
    sizes, group = np.unique(threads, return_inverse=True)
    best = np.full((len(sizes), times.shape[1]), worst)
    for index in chosen:
        best[group[index]] = scores[index]
    while len(chosen) < _MOST_VARIANTS:
        gains = np.maximum(best[group] - scores, 0.0).mean(axis=1)
        # Rounding keeps the choice the same where the last bits of a logarithm differ between machines.
        index = int(np.argmax(np.round(gains, 9)))
        if gains[index] < _LEAST_GAIN:
            break
        best[group[index]] = np.minimum(best[group[index]], scores[index])
        chosen = [*chosen, index]
    return chosen


def nothing_fits(gpu: GpuProfile, what: str, needs: Sequence[Resources]) -> InputError:
    """The error for work that no shape can do on a GPU; names the limit that the smallest shape exceeds."""
    least = min(needs, key=lambda r: (r.shared_memory_bytes, r.registers_per_thread))
    if least.shared_memory_bytes > gpu.shared_memory_per_block_bytes:
        limit, seen = "shared_memory_per_block_bytes", least.shared_memory_bytes
    elif least.registers_per_thread > gpu.registers_per_thread:
        limit, seen = "registers_per_thread", least.registers_per_thread
    else:
        limit, seen = "registers_per_multiprocessor", least.registers_per_thread * least.threads
    return InputError(
        f"{what} does not fit {gpu.name}: its smallest kernel shape needs {seen:,} of '{limit}', "
        f"and {getattr(gpu, limit):,} are allowed; choose another type or target"
    )


def share_path(variants: Sequence[Variant]) -> bool:
    """Whether shapes can be one launch: there is one at least, and all are of one path and one thread count."""
    return len({(variant.path, variant.threads) for variant in variants}) == 1


def _up(value: int, granule: int) -> int:
    return -(-value // granule) * granule


@dataclass(frozen=True)
class Calibration:
    """What measured records say about one shape: its time is ``scale`` times the model's, give or take ``doubt``."""

    scale: float
    doubt: float
    resources: Resources


def calibration(records: Sequence[TileRecord], predicted: np.ndarray) -> Calibration | None:
    """What the records of one shape say, against what the model predicts for each of them in microseconds.

    A record further from the model than a factor of 20 is a mistake of the measurement and does not count; of
    the others the median ratio decides. None where no record counts.
    """
    ratios = np.array([record.microseconds for record in records]) / predicted
    usable = (ratios > 1 / _ABSURD_RATIO) & (ratios < _ABSURD_RATIO)
    if not usable.any():
        return None
    logs = np.log(ratios[usable])
    spread = float(np.median(np.abs(logs - np.median(logs))))
    doubt = combined_doubt((_MEASURED_DOUBT, _FEW_RECORDS_DOUBT / len(logs) ** 0.5, spread))
    last = [record for record, good in zip(records, usable, strict=True) if good][-1]
    return Calibration(float(np.exp(np.median(logs))), doubt, last.resources)
