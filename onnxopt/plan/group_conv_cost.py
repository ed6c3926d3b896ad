"""What a part of a group convolution costs on a GPU, for every shape that the kernel is compiled in.

A block computes some outputs of one part at some positions: it walks the part's inputs in steps, every tap of each, and
adds up products of (positions x inputs) with (inputs x outputs). Inputs are gathered channel by channel from L2.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np

from onnxopt.errors import InputError
from onnxopt.plan.group_conv_resources import conv_resources
from onnxopt.plan.group_conv_shapes import conv_shapes
from onnxopt.plan.group_conv_times import (
    LANES_LOAD_OPS,
    LANES_REREAD,
    RUN_ROWS,
    TURNED_COPY_BYTES,
    lanes_table,
    matrix_table,
)
from onnxopt.plan.roofline import (
    COPY_LANE_OPS,
    REGISTER_ESTIMATE,
    STEP_LANE_OPS,
    TILE_CYCLES,
    WGMMA_TILE_CYCLES,
    Calibration,
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
        return known.resources if known else conv_resources(variant, self.taps, self.element)

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
            own += [LANES_LOAD_OPS.doubt, LANES_REREAD.doubt]
        else:
            step = WGMMA_TILE_CYCLES if variant.path == "wgmma" else TILE_CYCLES
            own += [
                step.doubt,
                COPY_LANE_OPS.doubt,
                STEP_LANE_OPS.doubt,
                combined_doubt((RUN_ROWS.doubt, TURNED_COPY_BYTES.doubt)) if self.taps > 1 else 0.0,
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
            make = lanes_table if variant.path == "lanes" else matrix_table
            self._tables[variant] = make(variant, self._path_rates[variant.path], self.taps, self.element)
        return self._tables[variant]

    @cached_property
    def _calibrations(self) -> dict[str, Calibration]:
        groups: dict[str, list[TileRecord]] = {}
        for record in self.records:
            groups.setdefault(record.variant, []).append(record)
        result = {}
        for variant in conv_shapes(self.gpu.architecture, self.element) if groups else ():
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
    every = conv_shapes(key.gpu.architecture, element)
    return choose_variants(key.gpu, _described(cost), every, cost.resources, cost.probe)


def _described(cost: GroupConvCost) -> str:
    return f"a convolution of {cost.taps} taps in {cost.element}"
