"""Part sizes by dynamic programming: how many outputs to put together where it does not matter which."""

from __future__ import annotations

import numpy as np

from onnxopt.plan.partition.problem import FloatArray


def least_cover(costs: FloatArray, outputs: int) -> FloatArray:
    """``result[m]``: the least total of ``costs[s]`` over sizes s >= 1 that add up to m or more, for m <= ``outputs``.

    ``costs[0]`` is not read; further axes are computed side by side. Exact.
    """
    result = np.zeros((outputs + 1, *costs.shape[1:]))
    sizes = len(costs) - 1
    for m in range(1, outputs + 1):
        # Of the sizes that reach m alone the smallest is the cheapest, as costs do not fall.
        top = min(m, sizes)
        result[m] = np.min(costs[1 : top + 1] + result[m - top : m][::-1], axis=0)
    return result


def split_sizes(costs: FloatArray, outputs: int) -> list[int]:
    """Sizes that add up to ``outputs`` at the least cost; among equal costs the fewest parts, the largest first."""
    least = least_cover(costs, outputs)
    # Parts count only between equal costs.
    tiny = 1e-9 * max(1.0, float(least[outputs])) / max(1, outputs)
    counted = least_cover(costs + tiny, outputs)
    sizes, left = [], outputs
    while left:
        top = min(left, len(costs) - 1)
        totals = costs[1 : top + 1] + tiny + counted[left - top : left][::-1]
        best = int(np.flatnonzero(totals <= totals.min() + 0.1 * tiny)[-1]) + 1
        sizes.append(best)
        left -= best
    return sorted(sizes, reverse=True)
