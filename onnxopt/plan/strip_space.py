"""The space that an attention launch is searched in: orders, their intervals, variants, and what a launch may mix.

One launch has one footprint: all its blocks have the same threads and path, and a variant may take part where its own
occupancy is at least the number of blocks that are to share a multiprocessor. So for each *setting* (threads, path,
resident blocks, length from which key lists are split) every allowed variant may be mixed freely, each interval takes
its best one, and the least sum over an order is a shortest path.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from copy import copy
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

import numpy as np

from onnxopt.plan.intervals import Intervals, cheapest_cuts, chosen
from onnxopt.plan.makespan import makespan
from onnxopt.plan.schedule import Objective
from onnxopt.target import GpuProfile

# Numbers held at once by one pass over an order.
_PASS_CELLS = 1 << 22
# Microseconds count this much of a pair where pairs are minimised: they decide between equals.
_TIE = 1e-9
# Keys from which a list may be split among several blocks.
_SPLITS = (4096, 2048, 1024, 512)


class Shape(Protocol):
    """A variant as the search sees it: variants of one path may share a launch."""

    @property
    def path(self) -> str: ...

    @property
    def threads(self) -> int: ...

    @property
    def rows(self) -> int: ...

    @property
    def row_granule(self) -> int: ...

    @property
    def key_granule(self) -> int: ...

    @property
    def blocks(self) -> int: ...


AnyShape = TypeVar("AnyShape", bound=Shape)


class StripCost(Protocol[AnyShape]):
    """What a kernel's cost model tells the search; see ``AttentionCost``."""

    @property
    def gpu(self) -> GpuProfile: ...

    @property
    def launch_us(self) -> float: ...

    def variants(self) -> tuple[AnyShape, ...]: ...

    def occupancy(self, variants: Sequence[AnyShape]) -> int: ...

    def strip_us(
        self, variant: AnyShape, rows: np.ndarray, keys: np.ndarray, resident: int, masked: bool
    ) -> np.ndarray: ...

    def merge_us(self, rows: int, pieces: int) -> float: ...


@dataclass(frozen=True)
class Order:
    """One order of one pattern. ``shape`` (cuts x steps) numbers the distinct (rows, keys, full) of its intervals.

    Shape 0 stands for no interval. ``heads`` is how often every strip is computed.
    """

    name: str
    heads: int
    intervals: Intervals = field(repr=False)
    shape: np.ndarray = field(repr=False)
    rows: np.ndarray = field(repr=False)
    keys: np.ndarray = field(repr=False)
    masked: np.ndarray = field(repr=False)

    @classmethod
    def of(cls, name: str, heads: int, intervals: Intervals, biased: bool) -> Order:
        """Number the distinct shapes of an order's intervals; with ``biased`` none counts as full."""
        masked = ~intervals.full if not biased else np.ones(intervals.rows.shape, bool)
        wide = int(intervals.rows.max(initial=0)) + 1
        codes = np.where(intervals.rows > 0, (intervals.keys.astype(np.int64) * wide + intervals.rows) * 2 + masked, -1)
        # Codes are small numbers, so the distinct ones are marked in a table instead of sorted.
        present = np.zeros(int(codes.max(initial=0)) + 2, bool)
        present[codes + 1] = True
        present[0] = True
        known = np.flatnonzero(present) - 1
        shape = (np.cumsum(present) - 1)[codes + 1]
        known[0] = 0
        return cls(
            name,
            heads,
            intervals,
            shape.astype(np.int32),
            known // 2 % wide,
            known // 2 // wide,
            known % 2 == 1,
        )

    def shapes_at(self, intervals: Sequence[tuple[int, int]]) -> np.ndarray:
        """The shapes of intervals (end, step)."""
        ends, steps = np.array(intervals, np.int64).reshape(-1, 2).T
        return np.asarray(self.shape[ends, steps])

    def cut(self, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Least totals of ``values`` (shapes x columns) over all ways to cut, and the steps taken (cuts x columns)."""
        per_pass = max(1, _PASS_CELLS // max(1, self.shape.size))
        totals, taken = [], []
        for begin in range(0, values.shape[1], per_pass):
            total, steps = cheapest_cuts(self.intervals, values[:, begin : begin + per_pass][self.shape])
            totals.append(total)
            taken.append(steps)
        return np.concatenate(totals), np.concatenate(taken, axis=1)


@dataclass(frozen=True, order=True)
class Setting:
    """What all blocks of a launch share; ``split_keys`` 0 splits no key list, an empty ``path`` stands for any."""

    threads: int
    resident: int
    split_keys: int
    path: str = ""


@dataclass(frozen=True)
class Prices:
    """For each shape of an order under a setting: time of a block, pieces of its keys, blocks, pairs and variant."""

    microseconds: np.ndarray
    pieces: np.ndarray
    blocks: np.ndarray
    pairs: np.ndarray
    variant: np.ndarray


@dataclass(frozen=True)
class Cut:
    """One way to compute all patterns: for each its order and its intervals (end, step); ``microseconds`` all told."""

    setting: Setting
    orders: tuple[Order, ...]
    intervals: tuple[tuple[tuple[int, int], ...], ...] = field(repr=False)
    microseconds: float
    pairs: int

    @property
    def signature(self) -> tuple[object, ...]:
        """Plans of equal signatures differ in nothing that is worth measuring."""
        return (self.setting, tuple(order.name for order in self.orders))


# Prices by order and setting; the order is kept with them, so that no other one takes its identity.
PricesKnown = dict[tuple[int, Setting], tuple[Order, Prices]]
# Values of an order's shapes that are to be summed up.
Column = Callable[[Order], np.ndarray]


@dataclass(frozen=True)
class Shortest:
    """Least totals, one a column, over all patterns.

    For each pattern ``sums`` has those of every order (orders x columns), ``best`` the number of the best order a
    column, and ``taken`` the steps of every order.
    """

    totals: np.ndarray
    sums: tuple[np.ndarray, ...]
    best: tuple[np.ndarray, ...]
    taken: tuple[tuple[np.ndarray, ...], ...]

    def steps(self, column: int) -> list[tuple[int, np.ndarray]]:
        """For each pattern the number of its order and the steps taken at its cuts."""
        return [(int(b[column]), t[int(b[column])][:, column]) for b, t in zip(self.best, self.taken, strict=True)]


class StripSpace:
    """All ways to compute ``patterns`` (for each its orders) with the variants of a cost model."""

    def __init__(
        self,
        patterns: Sequence[Sequence[Order]],
        cost: StripCost[Any],
        objective: Objective,
        floor_us: float,
        known: PricesKnown | None = None,
    ) -> None:
        """``known`` shares prices among spaces of one cost and objective."""
        self.patterns: Sequence[Sequence[Order]] = patterns
        self.cost = cost
        self.objective = objective
        self.variants = cost.variants()
        self._alone = [cost.occupancy([variant]) for variant in self.variants]
        # Whatever the strips, the launch and the bytes of the device's memory take this long.
        self.floor_us = floor_us
        self._passes = [0, 0]
        self._known: PricesKnown = {} if known is None else known

    @property
    def passes(self) -> int:
        """Shortest paths that were computed."""
        return self._passes[0]

    @property
    def steps(self) -> int:
        """Cuts that were decided on by these paths, every order's counted, however many values at once."""
        return self._passes[1]

    def settings(self) -> list[Setting]:
        """Every setting in which some variant can run; lists are split where that may shorten the longest strip."""
        longest = max((int(orders[0].intervals.keys[:, 0].max(initial=0)) for orders in self.patterns), default=0)
        splits = [0]
        if self.objective == "time":
            splits += [keys for keys in _SPLITS if longest >= 2 * keys]
        result = []
        for threads, path in sorted({(v.threads, v.path) for v in self.variants}):
            most = max(
                blocks
                for v, blocks in zip(self.variants, self._alone, strict=True)
                if (v.threads, v.path) == (threads, path)
            )
            result += [Setting(threads, r, s, path) for r in _residents(most) for s in splits]
        return result

    def allowed(self, setting: Setting) -> list[int]:
        """The variants that a launch may contain."""
        return [
            number
            for number, (variant, blocks) in enumerate(zip(self.variants, self._alone, strict=True))
            if blocks >= setting.resident and variant.threads == setting.threads and setting.path in ("", variant.path)
        ]

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
        key = (id(order), setting)
        if key not in self._known:
            self._known[key] = order, self._prices(order, setting)
        return self._known[key][1]

    def _prices(self, order: Order, setting: Setting) -> Prices:
        count = len(order.rows)
        pieces = np.ones(count, np.int64)
        if setting.split_keys:
            pieces = np.maximum(1, -(-order.keys // setting.split_keys))
        keys = -(-order.keys // pieces)
        blocks = pieces.copy()
        best, times = np.full(count, np.inf), np.full(count, np.inf)
        pairs, variant = np.zeros(count, np.int64), np.zeros(count, np.int64)
        groups = [(masked, np.flatnonzero((order.rows > 0) & (order.masked == masked))) for masked in (False, True)]
        for number in self.allowed(setting):
            shape = self.variants[number]
            for masked, members in groups:
                fits = members[order.rows[members] <= shape.rows]
                if not len(fits):
                    continue
                us = self.cost.strip_us(shape, order.rows[fits], keys[fits], setting.resident, masked)
                area = padded(order.rows[fits], shape.row_granule) * padded(keys[fits], shape.key_granule)
                value = us if self.objective == "time" else area + _TIE * us
                better = value < best[fits]
                chosen_shapes = fits[better]
                best[chosen_shapes], times[chosen_shapes] = value[better], us[better]
                pairs[chosen_shapes], variant[chosen_shapes] = area[better] * pieces[chosen_shapes], number
                blocks[chosen_shapes] = pieces[chosen_shapes] * shape.blocks
        return Prices(times, pieces, blocks, pairs, variant)

    def shortest(self, columns: Sequence[Column]) -> Shortest:
        """The least totals of several values at once, each pattern in its best order, every strip once a head."""
        self._passes[0] += len(columns)
        self._passes[1] += sum(len(order.intervals.cuts) for orders in self.patterns for order in orders)
        sums, taken = [], []
        for orders in self.patterns:
            own = [order.cut(np.stack([column(order) for column in columns], axis=1)) for order in orders]
            sums.append(np.stack([total * order.heads for order, (total, _) in zip(orders, own, strict=True)]))
            taken.append(tuple(steps for _, steps in own))
        best = tuple(np.argmin(own, axis=0) for own in sums)
        totals = np.sum([own.min(axis=0) for own in sums], axis=0)
        return Shortest(totals, tuple(sums), best, tuple(taken))

    def narrowed(self, found: Shortest, column: int, limit: float) -> StripSpace:
        """The same space without the orders with which a column's total would exceed ``limit``."""
        patterns = []
        for orders, sums in zip(self.patterns, found.sums, strict=True):
            rest = found.totals[column] - sums[:, column].min()
            kept = [order for order, own in zip(orders, sums[:, column], strict=True) if rest + own <= limit]
            patterns.append(kept or [orders[int(sums[:, column].argmin())]])
        result = copy(self)
        result.patterns = patterns
        return result

    def shapes_of(self, steps: Sequence[tuple[int, np.ndarray]]) -> Iterator[tuple[Order, np.ndarray]]:
        """Each pattern's order with the shapes of the strips that the steps lead to."""
        for own, (number, taken) in zip(self.patterns, steps, strict=True):
            order = own[number]
            yield order, order.shapes_at(chosen(order.intervals, taken))

    def launched(self, setting: Setting, steps: Sequence[tuple[int, np.ndarray]], below: float = float("inf")) -> Cut:
        """Simulate the launch of one way to cut every pattern; it is not packed well where that cannot get it below."""
        durations, counts, split_rows, most, pairs = [], [], 0, 1, 0
        orders, intervals = [], []
        for own, (number, taken) in zip(self.patterns, steps, strict=True):
            order = own[number]
            picked = chosen(order.intervals, taken)
            shapes = order.shapes_at(picked)
            prices = self.prices(order, setting)
            durations.append(prices.microseconds[shapes])
            counts.append(prices.blocks[shapes] * order.heads)
            pairs += int(prices.pairs[shapes].sum()) * order.heads
            split_rows += int(order.rows[shapes][prices.pieces[shapes] > 1].sum()) * order.heads
            most = max(most, int(prices.pieces[shapes].max(initial=1)))
            orders.append(order)
            intervals.append(tuple(picked))
        total = self.cost.launch_us
        total += makespan(np.concatenate(durations), np.concatenate(counts), self.slots(setting), below - total)
        if split_rows:
            total += self.cost.merge_us(split_rows, most)
        return Cut(setting, tuple(orders), tuple(intervals), max(self.floor_us, total), pairs)


def padded(value: np.ndarray, granule: int) -> np.ndarray:
    """Rounded up to whole granules."""
    return np.asarray(-(-value // granule) * granule)


def _residents(most: int) -> Iterator[int]:
    """How many blocks may share a multiprocessor: all small numbers, then in steps that still make a difference."""
    yield from (r for r in (1, 2, 3, 4, 5, 6, 8, 12, 16, 24, 32) if r <= most)
