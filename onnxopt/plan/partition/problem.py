"""What is partitioned, what a part costs, and what comes out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from onnxopt.discover.conv_site import BoolArray, IntArray

FloatArray = NDArray[np.float64]
CostFunction = Callable[[np.ndarray, np.ndarray], np.ndarray]


@dataclass(frozen=True, eq=False)
class CostTable:
    """``values[p, q]``: what a part of p outputs and q inputs costs; nondecreasing in both, and 0 for no outputs."""

    values: FloatArray

    @staticmethod
    def of(cost: CostFunction, max_outputs: int, inputs: int) -> CostTable:
        """The table of a cost that is given as a function of arrays of outputs and inputs.

        Raises ValueError where a cost is not finite, or falls as outputs or inputs are added.
        """
        p, q = np.meshgrid(np.arange(1, max_outputs + 1), np.arange(1, inputs + 1), indexing="ij")
        values = np.zeros((max_outputs + 1, inputs + 1))
        values[1:, 1:] = np.asarray(cost(p, q), np.float64)
        values[1:, 0] = values[1:, min(1, inputs)]
        if not np.isfinite(values).all() or (values < 0).any():
            raise ValueError("the cost of a part is not finite, or negative")
        slack = 1e-9 * float(values.max(initial=0.0))
        if (np.diff(values, axis=0) < -slack).any() or (np.diff(values, axis=1) < -slack).any():
            raise ValueError("the cost of a part falls as outputs or inputs are added")
        # What is left of rounding in the cost must not make bounds wrong.
        return CostTable(np.maximum.accumulate(np.maximum.accumulate(values, axis=0), axis=1))

    @property
    def max_outputs(self) -> int:
        """The most outputs of a part."""
        return len(self.values) - 1

    @property
    def unit(self) -> float:
        """A number of which every cost is a whole multiple, or 0 where none is known."""
        if (self.values != np.rint(self.values)).any() or self.values.max() > 2**53:
            return 0.0
        return float(np.gcd.reduce(self.values.astype(np.int64), axis=None))

    def of_part(self, outputs: int, inputs: int) -> float:
        """The cost of one part."""
        return float(self.values[outputs, inputs])

    def with_unions(self, least: IntArray) -> CostTable:
        """The table of parts of k outputs that have at least ``least[k]`` inputs."""
        width = self.values.shape[1]
        rows = np.arange(len(self.values))[:, None]
        return CostTable(self.values[rows, np.maximum(np.arange(width)[None, :], least[:, None])])


@dataclass(frozen=True, eq=False)
class Part:
    """Outputs that are computed together and the inputs that they read."""

    outputs: IntArray
    inputs: IntArray


@dataclass(frozen=True)
class Partition:
    """Parts, what they cost together, and what no partition goes below.

    ``bound`` holds without trust in a solver; ``certificate`` says by what argument.
    """

    parts: tuple[Part, ...] = field(repr=False, compare=False)
    value: float
    bound: float
    solver: str
    status: Literal["optimal", "feasible"]
    nodes: int
    certificate: str
    note: str = ""

    @property
    def gap(self) -> float:
        """How much better the best partition could be at most, as a share of this one."""
        return max(0.0, (self.value - self.bound) / self.value) if self.value > 0 else 0.0


def union_sizes(links: BoolArray, owner: IntArray, parts: int) -> tuple[IntArray, IntArray]:
    """Outputs and inputs of each part; output o is in part ``owner[o]``."""
    used = np.zeros((parts, links.shape[1]), bool)
    np.logical_or.at(used, owner, links)
    return np.bincount(owner, minlength=parts), used.sum(axis=1)
