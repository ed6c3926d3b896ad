"""Values of strips, of which the search minimises sums: one array for every shape of a space's table."""

from __future__ import annotations

import numpy as np

from onnxopt.plan.makespan import DUAL_ORDERS, MORE_DUALS, weights
from onnxopt.plan.strip_orders import Setting
from onnxopt.plan.strip_space import Steps, StripSpace

# Dual feasible functions, of which every mixture is one.
DUALS = DUAL_ORDERS + MORE_DUALS
SLACK = 1e-6


def area_of(space: StripSpace, setting: Setting) -> np.ndarray:
    """The time for which a strip occupies slots."""
    prices = space.table.prices(setting)
    return np.asarray(prices.microseconds * prices.blocks)


def pairs_of(space: StripSpace, setting: Setting) -> np.ndarray:
    """The pairs that a strip computes."""
    prices = space.table.prices(setting)
    # Next to nothing for a strip, so that equals are not split, and for time, so that the faster of them wins.
    return np.where(np.isfinite(prices.microseconds), prices.pairs + 1e-3 + 1e-9 * prices.microseconds, np.inf)


def mixed(space: StripSpace, setting: Setting, time: float, mixture: np.ndarray) -> np.ndarray:
    """The weight of a strip under a mixture of dual feasible functions at a makespan of ``time``."""
    prices = space.table.prices(setting)
    ratio = prices.microseconds / time
    fits = np.isfinite(weights(ratio, 0))
    total = np.full(len(ratio), np.inf)
    total[fits] = sum(share * weights(ratio[fits], dual) for share, dual in zip(mixture, DUALS, strict=True) if share)
    return np.asarray(total * prices.blocks)


def weights_of(space: StripSpace, setting: Setting, time: float, steps: Steps) -> np.ndarray:
    """The weight of a cut under every dual feasible function."""
    total = np.zeros(len(DUALS))
    prices = space.table.prices(setting)
    for order, shapes in space.shapes_of(steps):
        used, counts = np.unique(shapes, return_counts=True)
        ratio, blocks = prices.microseconds[used] / time, prices.blocks[used] * counts
        total += [order.heads * float(blocks @ weights(ratio, dual)) for dual in DUALS]
    return total


def in_rounds(space: StripSpace, setting: Setting, time: float, rounds: int) -> np.ndarray:
    """The number of strips that last at most ``time / rounds``; of equals, the time decides."""
    prices = space.table.prices(setting)
    fits = prices.microseconds * rounds <= time
    value = np.full(len(fits), np.inf)
    value[fits] = (prices.blocks * (1.0 + SLACK * prices.microseconds))[fits]
    return value


def alone(space: StripSpace, setting: Setting, time: float) -> np.ndarray:
    """The share of a slot that a strip takes if only strips like it share the slot."""
    prices = space.table.prices(setting)
    with np.errstate(divide="ignore"):
        return np.asarray(prices.blocks / np.floor(time / prices.microseconds * (1 + SLACK)))
