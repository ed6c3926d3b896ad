"""Cuts into strips of one size, as fixed shapes of a kernel make them: candidates that a plan is never to lose to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from onnxopt.plan.intervals import chosen
from onnxopt.plan.strip_orders import Cut, Order, Setting
from onnxopt.plan.strip_space import StripSpace

_SIZES = (8, 16, 32, 48, 64, 96, 128)


@dataclass(frozen=True)
class _Strips:
    """A cut of one order into strips of one ``size``: its intervals, their shapes in the table, and how often."""

    size: str
    order: Order
    intervals: tuple[tuple[int, int], ...] = field(repr=False)
    shapes: np.ndarray = field(repr=False)
    counts: np.ndarray = field(repr=False)


class EvenCuts:
    """The even cuts of the orders of every pattern, ``others`` included: those that are not searched.

    An order that can be cut in one way only is a cut by itself, whose name says of what size.
    """

    def __init__(self, space: StripSpace, others: Sequence[Sequence[Order]] = ()) -> None:
        self.space = space
        sizes = sorted({*_SIZES, *(variant.rows for variant in space.variants)})
        rest = others or [()] * len(space.patterns)
        self.patterns = [
            [cut for order in (*orders, *more) for cut in _even(space, order, sizes)]
            for orders, more in zip(space.patterns, rest, strict=True)
        ]
        known = [dict.fromkeys(cut.size for cut in own) for own in self.patterns]
        self.sizes = [size for size in known[0] if all(size in own for own in known)] if known else []
        self._joined = [
            (
                np.concatenate([cut.shapes for cut in own]),
                np.concatenate([cut.counts for cut in own]),
                np.cumsum([0, *(len(cut.shapes) for cut in own[:-1])]),
                np.array([cut.size for cut in own]),
            )
            for own in (self.patterns if self.sizes else [])
        ]

    def add(self, setting: Setting, cuts: list[Cut]) -> None:
        """Launch the even cuts that may win under a setting: for each size every pattern in the order of least work."""
        space = self.space
        prices = space.table.prices(setting)
        work = prices.microseconds * prices.blocks
        least = []
        for shapes, counts, starts, sizes in self._joined:
            areas = np.add.reduceat(work[shapes] * counts, starts)
            lasting = np.maximum.reduceat(prices.microseconds[shapes], starts)
            least.append((areas, lasting, sizes))
        best = min(cut.microseconds for cut in cuts)
        for size in self.sizes:
            area, longest, picked = 0.0, 0.0, []
            for own, (areas, lasting, sizes) in zip(self.patterns, least, strict=True):
                number = int(np.where(sizes == size, areas, np.inf).argmin())
                area, longest = area + float(areas[number]), max(longest, float(lasting[number]))
                picked.append(own[number])
            span = max(area / space.slots(setting), longest)
            if max(space.floor_us, space.overhead(setting) + span) < best:
                strips = [cut.intervals for cut in picked]
                cuts.append(space.launched_strips(setting, tuple(cut.order for cut in picked), strips, best))
                best = min(best, cuts[-1].microseconds)


def _even(space: StripSpace, order: Order, sizes: Sequence[int]) -> list[_Strips]:
    count, steps = order.shape.shape
    ways = {order.name: np.zeros(count, np.int64)} if steps == 1 and count > 2 else {}
    if not ways:
        tried = {str(size): _even_steps(order, size) for size in sizes}
        ways = {size: taken for size, taken in tried.items() if taken is not None}
    result = []
    for size, taken in ways.items():
        intervals = chosen(order.intervals, taken)
        numbers = space.table.numbers(order)[order.shapes_at(intervals)]
        shapes, counts = np.unique(numbers, return_counts=True)
        result.append(_Strips(size, order, tuple(intervals), shapes, counts * order.heads))
    return result


def _even_steps(order: Order, size: int) -> np.ndarray | None:
    """The steps that cut an order every ``size`` rows, or None where it cannot be cut so."""
    cuts = order.intervals.cuts
    wanted = np.append(np.arange(0, cuts[-1], size), cuts[-1])
    places = np.searchsorted(cuts, wanted)
    if not np.array_equal(cuts[places], wanted):
        return None
    steps = np.zeros(len(cuts), np.int64)
    steps[places[1:]] = np.diff(places) - 1
    # A strip of more rows than any interval has cannot be said in steps.
    fits = bool((np.diff(wanted) <= int(order.intervals.rows.max(initial=0))).all())
    return steps if fits and int(steps.max()) < order.shape.shape[1] else None
