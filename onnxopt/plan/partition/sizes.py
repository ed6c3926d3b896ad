"""Sizes of parts that matter, and functions of sizes from which bounds are made."""

from __future__ import annotations

import numpy as np

from onnxopt.plan.partition.knapsack import least_cover
from onnxopt.plan.partition.problem import CostTable, FloatArray


def size_functions(table: CostTable, degrees: np.ndarray) -> FloatArray:
    """Functions of the size, none larger than the sum of its values at two sizes that add up to it.

    They are the size itself, and what sizes cost at few and at many inputs.
    """
    sizes = np.arange(len(table.values), dtype=np.float64)
    result = [sizes]
    for q in np.unique([int(degrees.max()), int(np.median(degrees)), int(degrees.min())]).tolist():
        least = least_cover(table.values[:, q], len(sizes) - 1)
        steps = least / least[-1] * (len(sizes) - 1)
        if not any(np.allclose(steps, other, rtol=1e-12, atol=0) for other in result):
            result.append(steps)
    return np.stack(result)


def rounding(length: int, step: int, rest: int) -> FloatArray:
    """The mixed-integer rounding function: whole steps, and of a further one as much as ``rest`` outputs fill."""
    sizes = np.arange(length)
    if rest == 0:
        return sizes.astype(np.float64)
    return np.asarray(step * (sizes // step + np.minimum(1.0, sizes % step / rest)))


def cheapest_size(table: CostTable) -> int:
    """The smallest size that costs least for each output at most inputs."""
    rates = table.values[1:, -1] / np.arange(1, len(table.values))
    return int(np.flatnonzero(rates <= rates.min() * (1 + 1e-9))[0]) + 1


def useful_sizes(table: CostTable, widths: np.ndarray, outputs: int) -> np.ndarray:
    """Sizes of parts that others cannot replace: of equal costs the largest, and none that two smaller ones undercut.

    What holds for prices that do not fall and are at most additive holds for all sizes if it holds for these.
    """
    values = table.values[:, np.unique(widths)]
    least = least_cover(values, table.max_outputs)
    result = []
    for s in range(1, table.max_outputs + 1):
        last = s == table.max_outputs or bool((values[s + 1] > values[s]).any())
        splits = (least[a] + least[s - a] for a in range(1, s // 2 + 1))
        if last and not any(bool((split <= values[s]).all()) for split in splits):
            result.append(s)
        if s >= outputs and last:
            break
    return np.array(result, np.int64)
