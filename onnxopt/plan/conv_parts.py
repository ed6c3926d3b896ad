"""The parts of a connectivity: outputs that share inputs, merged and padded into the groups of one convolution."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from onnxopt.discover.conv_site import BoolArray, ChannelPath, IntArray

# More distinct input sets than this do not make a grouped convolution that is worth its padding.
_CLASS_LIMIT = 128


@dataclass(frozen=True, eq=False)
class Layout:
    """Equal groups: row g of ``outputs`` and ``inputs`` names the channels of group g, in order; -1 is padding."""

    outputs: IntArray
    inputs: IntArray

    @property
    def groups(self) -> int:
        """How many groups there are."""
        return int(self.outputs.shape[0])

    @property
    def computed(self) -> int:
        """Connections that are computed, padding and zeros included."""
        return self.groups * int(self.outputs.shape[1]) * int(self.inputs.shape[1])

    def slots(self) -> IntArray:
        """The input channel of every slot; a padded slot repeats a channel of its own group, for zero weights."""
        first = self.inputs.max(axis=1, keepdims=True)
        return np.where(self.inputs < 0, np.maximum(first, 0), self.inputs).reshape(-1)

    def input_index(self, lead: ChannelPath) -> IntArray | None:
        """The source channel of every slot, or None where these are the source's channels as they are."""
        index = lead.origin[self.slots()]
        return None if np.array_equal(index, np.arange(lead.source_channels)) else index

    def output_order(self, tail: ChannelPath) -> IntArray | None:
        """Where each channel of ``tail``'s target is among the written outputs; None where they are in place."""
        written = self.outputs.reshape(-1)
        place = np.full(int(written.max(initial=0)) + 1, -1, np.int64)
        place[written[written >= 0]] = np.flatnonzero(written >= 0)
        order = place if tail.mix is not None else place[tail.origin]
        return None if np.array_equal(order, np.arange(len(written))) else order

    def describe(self) -> str:
        """The layout in words."""
        outputs, inputs = self.outputs.shape[1], self.inputs.shape[1]
        if self.groups == 1:
            return f"one dense convolution of {inputs} inputs and {outputs} outputs"
        return f"{self.groups} groups of {inputs} inputs and {outputs} outputs"


def input_classes(links: BoolArray) -> list[IntArray]:
    """Outputs by equal input sets, in the order of their first output; outputs without inputs are in none."""
    classes: dict[bytes, list[int]] = {}
    for output, key in enumerate(np.packbits(links, axis=1)):
        if links[output].any():
            classes.setdefault(key.tobytes(), []).append(output)
    return [np.array(outputs, np.int64) for outputs in classes.values()]


def layouts(links: BoolArray, origin: IntArray, tail: ChannelPath, limit: int = _CLASS_LIMIT) -> Iterator[Layout]:
    """Layouts that cover all connections: the classes as they are, neighbours merged, and all of them in one.

    ``origin`` says where input channels come from and ``tail`` where outputs go; within a group channels are put in
    these orders, so that as little as possible has to move. More than ``limit`` classes are only put into one group.
    """
    classes = input_classes(links)
    if not classes:
        return
    count = len(classes)
    sizes = [n for n in range(count, 0, -1) if count % n == 0] if count <= limit else [1]
    rank = np.argsort(tail.origin) if tail.is_permutation else np.arange(len(links))
    empty = np.flatnonzero(~links.any(axis=1))
    for groups in sizes:
        run = count // groups
        members = [np.concatenate(classes[g * run : (g + 1) * run]) for g in range(groups)]
        for output in empty.tolist():
            smallest = min(range(groups), key=lambda g: (len(members[g]), g))
            members[smallest] = np.append(members[smallest], output)
        used = [np.flatnonzero(links[outputs].any(axis=0)) for outputs in members]
        order = sorted(range(groups), key=lambda g: (int(rank[members[g]].min()), g))
        outputs = _padded([_sorted(members[g], rank) for g in order])
        yield Layout(outputs, _padded([_sorted(used[g], origin) for g in order]))


def _sorted(channels: IntArray, key: IntArray) -> IntArray:
    return channels[np.argsort(key[channels], kind="stable")]


def _padded(rows: Sequence[IntArray]) -> IntArray:
    width = max(len(row) for row in rows)
    return np.stack([np.pad(row, (0, width - len(row)), constant_values=-1) for row in rows])
