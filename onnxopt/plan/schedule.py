"""Plans for kernels of their own: who computes what, in which shape and order, and how good that provably is."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from onnxopt.discover.conv_site import IntArray
from onnxopt.plan.strips import Strip
from onnxopt.target.variant import AttentionVariant, ConvVariant, Element

Objective = Literal["time", "waste"]


@dataclass(frozen=True)
class Proof:
    """How good a plan is within the space that was searched: its value, and what no plan of the space goes below.

    Values are microseconds or computed pairs, as the objective says. ``bound`` was computed without trusting a solver;
    ``certificate`` says in words by what, and over which space. ``free_bound`` is what nothing goes below, in whatever
    order rows are taken and wherever they are cut; 0 where that is not known.
    """

    value: float
    bound: float
    solver: str
    status: Literal["optimal", "feasible"]
    nodes: int
    certificate: str
    free_bound: float = 0.0

    @property
    def gap(self) -> float:
        """How much better the best plan of the space could be at most, as a share of this one."""
        return max(0.0, (self.value - self.bound) / self.value) if self.value > 0 else 0.0


@dataclass(frozen=True)
class Forecast:
    """Predicted time of a launch in microseconds; ``uncertainty`` is a share of it, ``measured`` if records decided.

    ``bound_us`` is what the needed work alone takes at the processor's peak rates.
    """

    predicted_us: float
    bound_us: float
    uncertainty: float
    measured: bool


@dataclass(frozen=True)
class PatternSchedule:
    """The strips of the heads that share one pattern (``lists`` is its number in the site's).

    Strip ``i`` is computed by variant ``variants[i]`` of the schedule, once for every head. Where a row's key list is
    split, the row is in several strips, each with a part of its keys, and the results are merged.
    """

    heads: tuple[int, ...]
    lists: int
    order: str
    strips: tuple[Strip, ...] = field(repr=False)
    variants: tuple[int, ...] = field(repr=False)


@dataclass(frozen=True)
class AttentionSchedule:
    """One attention site as one launch (two where key lists are split: the second merges).

    Row ``j`` of ``jobs`` is (part, strip, head): what block ``j`` computes, longest first. ``resident`` blocks share a
    multiprocessor. ``needed`` and ``computed`` count (query, key) pairs over all heads, ``computed`` after rounding up
    to the variants' granules. ``split_keys`` is how many keys a strip may have before it is split, 0 where none is.
    """

    site: str
    objective: Objective
    element: Element
    variants: tuple[AttentionVariant, ...]
    resident: int
    parts: tuple[PatternSchedule, ...]
    jobs: np.ndarray = field(repr=False)
    split_keys: int
    needed: int
    computed: int
    forecast: Forecast
    proof: Proof

    @property
    def waste(self) -> float:
        """Computed pairs per needed pair; at least 1."""
        return self.computed / max(1, self.needed)


@dataclass(frozen=True, eq=False)
class ConvPart:
    """Outputs that are computed together, with the inputs that any of them needs; numbers are the convolution's own.

    An output may be in several parts, each with some of its inputs: the results are added up.
    """

    outputs: IntArray
    inputs: IntArray
    variant: int


@dataclass(frozen=True)
class ConvSchedule:
    """One convolution site as one launch of a group-convolution kernel.

    ``needed`` and ``computed`` count (output, input) connections, ``computed`` after rounding up to the variants'
    granules. Row ``j`` of ``jobs`` is (part, pixel tile): what block ``j`` computes, longest first.
    """

    objective: Objective
    element: Element
    variants: tuple[ConvVariant, ...]
    resident: int
    parts: tuple[ConvPart, ...] = field(repr=False)
    jobs: np.ndarray = field(repr=False)
    order: str
    needed: int
    computed: int
    forecast: Forecast
    proof: Proof

    @property
    def waste(self) -> float:
        """Computed connections per needed one; at least 1."""
        return self.computed / max(1, self.needed)
