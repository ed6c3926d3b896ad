"""Latencies of many inferences in few numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from onnxopt.errors import InputError

PERCENTILES = (50, 90, 99)


@dataclass(frozen=True)
class Latency:
    """Milliseconds of one inference on the GPU, without the copies of inputs and outputs.

    ``percentiles`` has for each of :data:`PERCENTILES` the smallest time that so many of a hundred do not exceed.
    ``per_second`` counts inferences, and ``images`` the batch of each.
    """

    iterations: int
    smallest: float
    mean: float
    percentiles: Mapping[int, float]
    per_second: float
    images: int

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "iterations": self.iterations,
            "min_ms": self.smallest,
            "mean_ms": self.mean,
            **{f"p{rank}_ms": value for rank, value in self.percentiles.items()},
            "inferences_per_second": self.per_second,
            "batch": self.images,
        }


def summarise(times: Sequence[float], total: float, images: int) -> Latency:
    """The numbers of ``times`` (milliseconds of each inference), of which all together took ``total`` milliseconds.

    Raises InputError where there is no time, or one that is no number above 0.
    """
    if not times or not all(math.isfinite(time) and time > 0 for time in (*times, total)):
        raise InputError("the GPU's clock gave no times; run it again with more --iterations")
    ordered = sorted(times)
    return Latency(
        iterations=len(ordered),
        smallest=ordered[0],
        mean=math.fsum(ordered) / len(ordered),
        percentiles={rank: percentile(ordered, rank) for rank in PERCENTILES},
        per_second=1000.0 * len(ordered) / total,
        images=images,
    )


def percentile(ordered: Sequence[float], rank: int) -> float:
    """The smallest of some ascending numbers that ``rank`` percent of them do not exceed."""
    return ordered[max(0, math.ceil(rank * len(ordered) / 100) - 1)]
