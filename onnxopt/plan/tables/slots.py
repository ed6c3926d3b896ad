"""Partial results of split key lists, and how they are merged."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from onnxopt.plan.schedule import PatternSchedule
from onnxopt.plan.tables.addresses import Destinations
from onnxopt.plan.tables.types import AttentionKernel, MergeTables


@dataclass
class Slots:
    """Numbers of partial results: those of one result are neighbours."""

    first: np.ndarray
    count: np.ndarray
    total: int = 0

    def number(self, part: PatternSchedule) -> tuple[list[np.ndarray], np.ndarray]:
        """For each strip its rows' numbers within a head, and the first number of each head."""
        pieces = np.zeros(self.first.shape[1], np.int64)
        places = []
        for strip in part.strips:
            places.append(pieces[strip.rows])
            pieces[strip.rows] += 1
        begin = np.cumsum(pieces) - pieces
        bases = self.total + np.arange(len(part.heads)) * int(pieces.sum())
        for head, base in zip(part.heads, bases.tolist(), strict=True):
            self.first[head] = np.where(pieces > 0, base + begin, -1)
            self.count[head] = pieces
        self.total += len(part.heads) * int(pieces.sum())
        return [begin[s.rows] + place for s, place in zip(part.strips, places, strict=True)], bases

    def merge(self, to: Destinations, kernel: AttentionKernel) -> MergeTables:
        """One line for each block of the output: its partial results and its place."""
        result, offset = to.order.T
        known = np.maximum(result, 0)
        first = np.where(result >= 0, self.first.reshape(-1)[known], 0)
        count = np.where(result >= 0, self.count.reshape(-1)[known], 0)
        lines = np.stack([first, count, offset, np.zeros_like(offset)], axis=1).astype(np.int32)
        settings = {
            "element": kernel.element,
            "value_width": kernel.value_width,
            "slots": kernel.slots,
            "y": kernel.y.to_json(),
        }
        return MergeTables(settings, lines)
