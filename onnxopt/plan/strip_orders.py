"""What the search for strips works on: orders of rows with their intervals, settings of launches, and ways to cut."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from onnxopt.plan.intervals import Intervals


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


@dataclass(frozen=True, order=True)
class Setting:
    """What all blocks of a launch share; ``split_keys`` 0 splits no key list, an empty ``path`` stands for any."""

    threads: int
    resident: int
    split_keys: int
    path: str = ""


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


@dataclass(frozen=True)
class Shortest:
    """Least totals, one a column, over all patterns.

    For each pattern ``sums`` has those of every order (orders x columns), ``best`` the number of the best order a
    column, and ``taken`` the steps of every order (cuts x columns).
    """

    totals: np.ndarray
    sums: tuple[np.ndarray, ...]
    best: tuple[np.ndarray, ...]
    taken: tuple[tuple[np.ndarray, ...], ...]

    def steps(self, column: int) -> list[tuple[int, np.ndarray]]:
        """For each pattern the number of its order and the steps taken at its cuts."""
        return [(int(b[column]), t[int(b[column])][:, column]) for b, t in zip(self.best, self.taken, strict=True)]


@dataclass(frozen=True)
class Stack:
    """Orders of about one size, whose shortest paths are found together.

    ``shape`` (cuts x orders x steps) numbers the shapes of their intervals as a space does, the longest step first, and
    0 where there is no interval. ``places`` says which orders they are: pattern and number.
    """

    places: tuple[tuple[int, int], ...]
    counts: tuple[int, ...]
    shape: np.ndarray = field(repr=False)

    @classmethod
    def of(cls, members: Sequence[tuple[int, int, np.ndarray]]) -> Stack:
        """Stack the (pattern, number, shapes) of some orders."""
        counts = tuple(len(shape) for _, _, shape in members)
        steps = max(shape.shape[1] for _, _, shape in members)
        stacked = np.zeros((max(counts), len(members), steps), np.int32)
        for place, (_, _, shape) in enumerate(members):
            stacked[: len(shape), place, steps - shape.shape[1] :] = shape[:, ::-1]
        return cls(tuple((pattern, number) for pattern, number, _ in members), counts, stacked)
