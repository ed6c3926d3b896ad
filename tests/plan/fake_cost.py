"""A cost model of a few shapes whose times are small whole numbers, so that every plan can be tried."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from hypothesis import strategies as st

from onnxopt.target import GpuProfile, load_target
from onnxopt.target.variant import AttentionVariant

# Two shapes of 32 threads, one of 64, and two paths of 256 threads that cannot share a launch.
SHORT = AttentionVariant("mma", 16, 16, 1, 1)
TALL = AttentionVariant("mma", 64, 32, 1, 2)
SWAPPED = AttentionVariant("mma", 8, 16, 2, 1, swapped=True)
EIGHT = AttentionVariant("mma", 128, 64, 8, 2)
GROUPED = AttentionVariant("wgmma", 64, 64, 4, 2)


@dataclass(frozen=True)
class FakeCost:
    """Times are ``base + per_row * rows + per_key * keys`` (rounded up), more where masked and in company.

    With ``irregular``, something between 0 and it is added that depends on the strip's shape in no regular way.

    ``figures`` has for each shape (base, per row, per key, blocks that fit a multiprocessor, most rows).
    """

    figures: tuple[tuple[AttentionVariant, int, int, float, int, int], ...]
    multiprocessors: int
    merge: int = 2
    irregular: int = 0
    launch_us: float = 3.0
    measured: bool = False
    uncertainty: float = 0.3

    @cached_property
    def gpu(self) -> GpuProfile:
        return replace(load_target("sm_80").need_gpu_profile(), multiprocessors=self.multiprocessors)

    def variants(self) -> tuple[AttentionVariant, ...]:
        return tuple(sorted(own[0] for own in self.figures))

    def of(self, variant: AttentionVariant) -> tuple[AttentionVariant, int, int, float, int, int]:
        return next(own for own in self.figures if own[0] == variant)

    def occupancy(self, variants: Sequence[AttentionVariant]) -> int:
        if len({(v.path, v.threads) for v in variants}) != 1:
            return 0
        return min(self.of(v)[4] for v in variants)

    def strip_us(
        self, variant: AttentionVariant, rows: np.ndarray, keys: np.ndarray, resident: int, masked: bool
    ) -> np.ndarray:
        _, base, per_row, per_key, _, most = self.of(variant)
        time = base + per_row * rows + np.ceil(per_key * keys) + (1 if masked else 0)
        time = time + (rows * 7919 + keys * 104_729 + variant.rows * 31) % 1009 % (self.irregular + 1)
        # A strip of more rows than this is left to the other shapes.
        return np.where(rows <= most, np.ceil(time * (1 + (resident - 1) / 2)), np.inf)

    def merge_us(self, rows: int, pieces: int) -> float:
        return float(self.launch_us + self.merge * rows * pieces) if rows > 0 and pieces > 1 else 0.0

    def bound_us(self, pairs: float, moved_bytes: float) -> float:
        return 1.0

    def bytes_floor_us(self, moved_bytes: float) -> float:
        return 0.0


@st.composite
def fake_costs(draw: st.DrawFn, per_key: float = 1.0, most_resident: int = 2) -> FakeCost:
    """One to three shapes of at most two launches, with 1 to 4 multiprocessors."""
    shapes = draw(
        st.sampled_from([(SHORT,), (SHORT, TALL), (SHORT, SWAPPED), (EIGHT, GROUPED), (SHORT, TALL, SWAPPED)])
    )
    figures = tuple(
        (
            shape,
            draw(st.integers(0, 6)),
            draw(st.integers(0, 3)),
            draw(st.sampled_from([0.0, 0.5, 1.0, 2.0])) * per_key,
            draw(st.integers(1, most_resident)),
            # The first shape takes any strip, so that there is a plan.
            128 if number == 0 else draw(st.sampled_from([1, 2, 4, 128])),
        )
        for number, shape in enumerate(shapes)
    )
    return FakeCost(figures, draw(st.integers(1, 4)))
