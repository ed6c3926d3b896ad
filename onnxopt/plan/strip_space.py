"""The space that an attention launch is searched in: orders, their intervals, variants, and what a launch may mix.

One launch has one footprint: all its blocks have the same threads and path, and a variant may take part where its own
occupancy is at least the number of blocks that are to share a multiprocessor. So for each *setting* (threads, path,
resident blocks, length from which key lists are split) every allowed variant may be mixed freely, each interval takes
its best one, and the least sum over an order is a shortest path.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from copy import copy
from typing import Any

import numpy as np

from onnxopt.plan.intervals import chosen, shortest_paths
from onnxopt.plan.makespan import makespan
from onnxopt.plan.schedule import Objective
from onnxopt.plan.strip_orders import Cut, Order, Setting, Shortest, Stack
from onnxopt.plan.strip_prices import Prices, PriceTable, StripCost

# Numbers held at once by one pass over some orders.
_PASS_CELLS = 1 << 22
# Keys from which a list may be split among several blocks.
_SPLITS = (4096, 2048, 1024, 512)
# Numbers of blocks that may share a multiprocessor: all small ones, then in steps that still make a difference.
SPREAD = (1, 2, 3, 4, 5, 6, 8, 12, 16, 24, 32)
# For each pattern the number of its order, and the steps taken at its cuts.
Steps = Sequence[tuple[int, np.ndarray]]


class StripSpace:
    """All ways to compute ``patterns`` (for each its orders) with the variants of a cost model."""

    def __init__(
        self,
        patterns: Sequence[Sequence[Order]],
        cost: StripCost[Any],
        objective: Objective,
        floor_us: float,
        table: PriceTable | None = None,
        *,
        splits: bool = True,
    ) -> None:
        """``table`` shares prices among spaces of one cost and objective; ``splits`` allows key lists to be split."""
        self._splits = _SPLITS if splits and objective == "time" else ()
        self.patterns: Sequence[Sequence[Order]] = patterns
        self.cost = cost
        self.objective = objective
        self.table = table or PriceTable(cost, objective)
        self.variants = self.table.variants
        # Whatever the strips, the launch and the bytes of the device's memory take this long.
        self.floor_us = floor_us
        self._passes = [0, 0]
        self._numbers = [[self.table.numbers(order) for order in orders] for orders in patterns]
        self._stacks: list[Stack] | None = None

    @property
    def passes(self) -> int:
        """Shortest paths that were computed."""
        return self._passes[0]

    @property
    def steps(self) -> int:
        """Cuts that were decided on by these paths, however many orders and values at once."""
        return self._passes[1]

    def settings(self) -> list[Setting]:
        """Every setting in which some variant can run; lists are split where that may shorten the longest strip."""
        longest = max((int(orders[0].intervals.keys[:, 0].max(initial=0)) for orders in self.patterns), default=0)
        splits = [keys for keys in self._splits if longest >= 2 * keys]
        result = []
        for threads, path in sorted({(v.threads, v.path) for v in self.variants}):
            most = max(
                blocks
                for v, blocks in zip(self.variants, self.table.most_blocks, strict=True)
                if (v.threads, v.path) == (threads, path)
            )
            result += [Setting(threads, r, 0, path) for r in range(1, most + 1)]
            result += [Setting(threads, r, keys, path) for r in SPREAD if r <= most for keys in splits]
        return result

    def allowed(self, setting: Setting) -> list[int]:
        """The variants that a launch may contain."""
        return self.table.allowed(setting)

    def slots(self, setting: Setting) -> int:
        """Blocks that run at the same time."""
        return setting.resident * self.cost.gpu.multiprocessors

    def overhead(self, setting: Setting) -> float:
        """What a launch takes besides its makespan, whatever its strips: a second launch where lists must be split."""
        if not setting.split_keys:
            return self.cost.launch_us
        rows, pieces = self._must_split(setting.split_keys)
        return self.cost.launch_us + (self.cost.merge_us(rows, pieces) if rows else 0.0)

    def _must_split(self, split_keys: int) -> tuple[int, int]:
        """Rows over all heads whose own lists are longer than that, and into how many pieces the longest one goes."""
        rows, longest = 0, 0
        for orders in self.patterns:
            # Between two neighbouring cuts of an order lies what none of its strips can be shorter than.
            atoms = [(order.intervals.rows[:, 0], order.intervals.keys[:, 0]) for order in orders]
            rows += orders[0].heads * min(int(own[keys > split_keys].sum()) for own, keys in atoms)
            longest = max(longest, min(int(keys.max(initial=0)) for _, keys in atoms))
        return rows, -(-longest // split_keys)

    def prices(self, order: Order, setting: Setting) -> Prices:
        """The best allowed variant of each shape, the fastest or that with the fewest pairs; infinite if none is."""
        return self.table.prices(setting).at(self.table.numbers(order))

    def shortest(self, columns: Sequence[np.ndarray]) -> Shortest:
        """The least totals of several values at once, each pattern in its best order, every strip once a head.

        Each of ``columns`` has a value for every shape of the table.
        """
        values = np.stack(columns)
        self._passes[0] += len(columns)
        sums = [np.full((len(orders), len(columns)), np.inf) for orders in self.patterns]
        taken = [[np.empty(0)] * len(orders) for orders in self.patterns]
        for stack in self._stacked():
            self._passes[1] += len(stack.shape)
            totals, steps = _stack_paths(stack, values)
            for place, ((pattern, number), count) in enumerate(zip(stack.places, stack.counts, strict=True)):
                sums[pattern][number] = totals[:, place, count - 1] * self.patterns[pattern][number].heads
                taken[pattern][number] = steps[:count, :, place]
        best = tuple(np.argmin(own, axis=0) for own in sums)
        least = np.sum([own.min(axis=0) for own in sums], axis=0)
        return Shortest(least, tuple(sums), best, tuple(tuple(own) for own in taken))

    def _stacked(self) -> list[Stack]:
        """All orders, those of about one size together."""
        if self._stacks is None:
            groups: dict[tuple[int, int], list[tuple[int, int, np.ndarray]]] = {}
            for pattern, orders in enumerate(self.patterns):
                for number, order in enumerate(orders):
                    cuts, steps = order.shape.shape
                    shape = self._numbers[pattern][number][order.shape]
                    groups.setdefault((cuts.bit_length(), steps.bit_length()), []).append((pattern, number, shape))
            self._stacks = [Stack.of(members) for members in groups.values()]
        return self._stacks

    def narrowed(self, found: Shortest, column: int, limit: float) -> StripSpace:
        """The same space without the orders with which a column's total would exceed ``limit``."""
        result = copy(self)
        kept = []
        for sums in found.sums:
            rest = found.totals[column] - sums[:, column].min()
            own = [int(number) for number in np.flatnonzero(rest + sums[:, column] <= limit)]
            kept.append(own or [int(sums[:, column].argmin())])
        if any(len(own) < len(orders) for own, orders in zip(kept, self.patterns, strict=True)):
            result.patterns = [[orders[n] for n in own] for own, orders in zip(kept, self.patterns, strict=True)]
            result._numbers = [[numbers[n] for n in own] for own, numbers in zip(kept, self._numbers, strict=True)]
            result._stacks = None
        return result

    def shapes_of(self, steps: Steps) -> Iterator[tuple[Order, np.ndarray]]:
        """Each pattern's order with the numbers of the shapes of the strips that the steps lead to."""
        for own, numbers, (number, taken) in zip(self.patterns, self._numbers, steps, strict=True):
            order = own[number]
            yield order, numbers[number][order.shapes_at(chosen(order.intervals, taken))]

    def launched(self, setting: Setting, steps: Steps, below: float = float("inf")) -> Cut:
        """Simulate the launch of one way to cut every pattern; it is not packed well where that cannot get it below."""
        orders = tuple(own[number] for own, (number, _) in zip(self.patterns, steps, strict=True))
        picked = [chosen(order.intervals, taken) for order, (_, taken) in zip(orders, steps, strict=True)]
        return self.launched_strips(setting, orders, picked, below)

    def launched_strips(
        self,
        setting: Setting,
        orders: tuple[Order, ...],
        picked: Sequence[Sequence[tuple[int, int]]],
        below: float = float("inf"),
    ) -> Cut:
        """The same for an order of every pattern, which may be none of the space's, with its intervals (end, step)."""
        durations, counts, split_rows, most, pairs = [], [], 0, 1, 0
        prices = self.table.prices(setting)
        for order, intervals in zip(orders, picked, strict=True):
            shapes = self.table.numbers(order)[order.shapes_at(intervals)]
            durations.append(prices.microseconds[shapes])
            counts.append(prices.blocks[shapes] * order.heads)
            pairs += int(prices.pairs[shapes].sum()) * order.heads
            pieces = prices.pieces[shapes]
            split_rows += int(self.table.rows(shapes)[pieces > 1].sum()) * order.heads
            most = max(most, int(pieces.max(initial=1)))
        total = self.cost.launch_us
        total += makespan(np.concatenate(durations), np.concatenate(counts), self.slots(setting), below - total)
        if split_rows:
            total += self.cost.merge_us(split_rows, most)
        return Cut(setting, orders, tuple(tuple(own) for own in picked), max(self.floor_us, total), pairs)


def _stack_paths(stack: Stack, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Least totals of ``values`` (columns x shapes) up to every cut of stacked orders, and the steps taken.

    They are (columns x orders x cuts) and (cuts x columns x orders).
    """
    per_pass = max(1, _PASS_CELLS // max(1, stack.shape.size))
    passes = [
        shortest_paths(np.take(values[begin : begin + per_pass], stack.shape, axis=1))
        for begin in range(0, len(values), per_pass)
    ]
    return np.concatenate([totals for totals, _ in passes]), np.concatenate([steps for _, steps in passes], axis=1)
