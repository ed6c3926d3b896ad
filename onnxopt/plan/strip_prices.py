"""What a kernel's cost model tells the search for strips, and the prices of strips of every shape under a setting."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import numpy as np

from onnxopt.plan.schedule import Objective
from onnxopt.plan.strip_orders import Order, Setting
from onnxopt.target import GpuProfile

# Microseconds count this much of a pair where pairs are minimised: they decide between equals.
_TIE = 1e-9


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
class Prices:
    """For each shape under a setting: time of a block, pieces of its keys, blocks, pairs and variant."""

    microseconds: np.ndarray
    pieces: np.ndarray
    blocks: np.ndarray
    pairs: np.ndarray
    variant: np.ndarray

    def at(self, shapes: np.ndarray) -> Prices:
        """Those of some shapes."""
        return Prices(*(own[shapes] for own in self._fields()))

    def and_then(self, others: Prices) -> Prices:
        """Those of more shapes behind these."""
        return Prices(*(np.concatenate(own) for own in zip(self._fields(), others._fields(), strict=True)))

    def _fields(self) -> tuple[np.ndarray, ...]:
        return self.microseconds, self.pieces, self.blocks, self.pairs, self.variant


class PriceTable:
    """The shapes of all orders of one cost and objective, numbered together, and their prices under each setting.

    Orders may be added at any time: the numbers of known shapes stay. Shape 0 stands for no interval.
    """

    def __init__(self, cost: StripCost[Any], objective: Objective) -> None:
        self.cost = cost
        self.objective = objective
        self.variants = cost.variants()
        self.most_blocks = [cost.occupancy([variant]) for variant in self.variants]
        self._rows, self._keys, self._masked = np.zeros(1, np.int64), np.zeros(1, np.int64), np.zeros(1, bool)
        self._known: dict[tuple[int, int, bool], int] = {(0, 0, False): 0}
        # The order is kept with its numbers, so that no other one takes its identity.
        self._numbers: dict[int, tuple[Order, np.ndarray]] = {}
        self._prices: dict[Setting, Prices] = {}

    def numbers(self, order: Order) -> np.ndarray:
        """The numbers of an order's shapes."""
        if id(order) not in self._numbers:
            shapes = list(zip(order.rows.tolist(), order.keys.tolist(), order.masked.tolist(), strict=True))
            shapes[0] = (0, 0, False)
            before = len(self._known)
            numbers = np.array([self._known.setdefault(shape, len(self._known)) for shape in shapes], np.int32)
            new = np.array(list(self._known)[before:], np.int64).reshape(-1, 3)
            self._rows = np.concatenate([self._rows, new[:, 0]])
            self._keys = np.concatenate([self._keys, new[:, 1]])
            self._masked = np.concatenate([self._masked, new[:, 2] > 0])
            self._numbers[id(order)] = order, numbers
        return self._numbers[id(order)][1]

    def rows(self, shapes: np.ndarray) -> np.ndarray:
        """The rows of strips of some shapes."""
        return np.asarray(self._rows[shapes])

    def allowed(self, setting: Setting) -> list[int]:
        """The variants that a launch may contain."""
        return [
            number
            for number, (variant, blocks) in enumerate(zip(self.variants, self.most_blocks, strict=True))
            if blocks >= setting.resident and variant.threads == setting.threads and setting.path in ("", variant.path)
        ]

    def prices(self, setting: Setting) -> Prices:
        """The best allowed variant of each shape, the fastest or that with the fewest pairs; infinite if none is."""
        known = self._prices.get(setting)
        if known is None or len(known.variant) < len(self._rows):
            begin = len(known.variant) if known is not None else 0
            added = self._priced(setting, self._rows[begin:], self._keys[begin:], self._masked[begin:])
            known = self._prices[setting] = added if known is None else known.and_then(added)
        return known

    def _priced(self, setting: Setting, rows: np.ndarray, own_keys: np.ndarray, masks: np.ndarray) -> Prices:
        count = len(rows)
        pieces = np.ones(count, np.int64)
        if setting.split_keys:
            pieces = np.maximum(1, -(-own_keys // setting.split_keys))
        keys = -(-own_keys // pieces)
        blocks = pieces.copy()
        best, times = np.full(count, np.inf), np.full(count, np.inf)
        pairs, variant = np.zeros(count, np.int64), np.zeros(count, np.int64)
        groups = [(masked, np.flatnonzero((rows > 0) & (masks == masked))) for masked in (False, True)]
        for number in self.allowed(setting):
            shape = self.variants[number]
            for masked, members in groups:
                fits = members[rows[members] <= shape.rows]
                if not len(fits):
                    continue
                us = self.cost.strip_us(shape, rows[fits], keys[fits], setting.resident, masked)
                area = padded(rows[fits], shape.row_granule) * padded(keys[fits], shape.key_granule)
                value = us if self.objective == "time" else area + _TIE * us
                better = value < best[fits]
                chosen_shapes = fits[better]
                best[chosen_shapes], times[chosen_shapes] = value[better], us[better]
                pairs[chosen_shapes], variant[chosen_shapes] = area[better] * pieces[chosen_shapes], number
                blocks[chosen_shapes] = pieces[chosen_shapes] * shape.blocks
        return Prices(times, pieces, blocks, pairs, variant)


def padded(value: np.ndarray, granule: int) -> np.ndarray:
    """Rounded up to whole granules."""
    return np.asarray(-(-value // granule) * granule)
