"""What a strip of the attention kernel costs on a GPU, for every shape that the kernel is compiled in.

A strip of R query rows and K keys makes R x K scores (2 d operations each), their exponentials, and the same number of
weighted values (2 dv operations each). Its keys and values are gathered from L2 in tiles. What a record has measured
scales the model; where nothing was measured, ``uncertainty`` says how far the model may be off.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np

from onnxopt.errors import InputError
from onnxopt.plan.attention_resources import AttentionShape
from onnxopt.plan.attention_shapes import candidates
from onnxopt.plan.attention_times import SOFTMAX_LANE_OPS, tile_table
from onnxopt.plan.roofline import (
    BLOCK_START_CYCLES,
    COPY_LANE_OPS,
    ELEMENT_BYTES,
    EXPONENTIAL_SHARE,
    LOAD_LATENCY_CYCLES,
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
from onnxopt.target.variant import AttentionVariant, Element, Resources

MAX_WIDTH = 256

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
            self._tables[variant, masked] = self._tabled(variant, np.arange(variant.rows + 1), masked)
        return self._tables[variant, masked]

    def _tabled(self, variant: AttentionVariant, rows: np.ndarray, masked: bool) -> TileTable:
        return tile_table(self._shape(variant), self._path_rates[variant.path], rows, masked)

    def _shape(self, variant: AttentionVariant) -> AttentionShape:
        return AttentionShape(variant, self.width, self.value_width, self.element)

    @cached_property
    def _calibrations(self) -> dict[str, Calibration]:
        groups: dict[str, list[TileRecord]] = {}
        for record in self.records:
            groups.setdefault(record.variant, []).append(record)
        result = {}
        for variant in candidates(self.gpu.architecture, self.element) if groups else ():
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
        table = self._tabled(variant, rows, masked=True)
        places = np.arange(len(rows))
        crowded = pieces * table.times(places, keys, resident) / resident
        alone = -(-pieces // resident) * table.times(places, keys, 1)
        return np.concatenate([crowded, alone])


@lru_cache(maxsize=128)
def _catalogue(key: KeyedGpu, width: int, value_width: int, element: Element) -> tuple[AttentionVariant, ...]:
    cost = AttentionCost(key.gpu, width, value_width, element, ())
    every = candidates(key.gpu.architecture, element)
    return choose_variants(key.gpu, _described(cost), every, cost.resources, cost.probe)


def _described(cost: AttentionCost) -> str:
    return f"attention in {cost.element} with head sizes {cost.width} and {cost.value_width}"
