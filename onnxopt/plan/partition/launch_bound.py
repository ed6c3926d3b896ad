"""What no launch takes less than, whatever parts its blocks compute."""

from __future__ import annotations

import numpy as np

from onnxopt.plan.makespan import DUAL_ORDERS, weights
from onnxopt.plan.partition.knapsack import least_cover
from onnxopt.plan.partition.problem import FloatArray

# Beyond so many outputs the number of parts matters little.
_COVERED_OUTPUTS = 1024
_BISECTIONS = 14


def launch_bound(times: FloatArray, tiles: np.ndarray, amounts: np.ndarray, slots: int, ceiling: float) -> float:
    """A time before which the blocks of no parts can all end on ``slots`` slots; ``ceiling`` is a time that suffices.

    ``times[v, p - 1, d]`` is how long a block of shape v takes for a part of p outputs with as many inputs as the
    outputs of kind d have; ``amounts[d]`` counts these, in the order of their inputs, and ``tiles[v]`` the blocks of a
    part. Suppose that all end within T. Under every dual feasible function the weights of the durations relative to T
    add up to no more than there are slots; but each output has at least its share of the weight of a part with as many
    inputs as it has itself.
    """
    sizes = np.arange(1, times.shape[1] + 1)
    outputs = int(amounts.sum())

    def excluded(span: float) -> bool:
        for order in DUAL_ORDERS:
            loads = (weights(times / span, order) * tiles[:, None, None]).min(axis=0)
            if float((loads / sizes[:, None]).min(axis=0) @ amounts) > slots * (1 + 1e-9):
                return True
            if outputs <= _COVERED_OUTPUTS:
                # Every output has as many inputs as the least of them; then only their number counts.
                costs = np.minimum.accumulate(np.concatenate([[0.0], loads[:, 0]])[::-1])[::-1]
                if float(least_cover(costs, outputs)[-1]) > slots * (1 + 1e-9):
                    return True
        return False

    low, high = 0.0, ceiling
    if excluded(high * (1 - 1e-6)):
        return high * (1 - 1e-6)
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        low, high = (middle, high) if excluded(middle) else (low, middle)
    return low
