"""Local search over partitions: greedy beginnings, then swaps and moves of outputs with a memory of recent ones.

All swaps are rated at once by matrix products. The search minimises the cost plus a small price on every input, so
that unions shrink towards the next step of the cost even where the cost itself does not change yet.
"""

from __future__ import annotations

import numpy as np

from onnxopt.discover.conv_site import BoolArray, IntArray
from onnxopt.plan.partition.bits import count_common, words_of
from onnxopt.plan.partition.problem import CostTable, FloatArray, union_sizes

# Entries of the matrix of swaps that a search may rate in all.
WORK_LIMIT = 40_000_000
_MOST_OUTPUTS = 2048
# Products that all greedy beginnings together may compute.
_GREEDY_LIMIT = 300_000_000
_STEER = 0.3
_PATIENCE = 3000


def total_cost(links: BoolArray, owner: IntArray, table: CostTable) -> float:
    """The cost of the partition in which output o is in part ``owner[o]``."""
    outputs, inputs = union_sizes(links, owner, int(owner.max()) + 1)
    return float(table.values[outputs, inputs].sum())


def greedy_partition(links: BoolArray, size: int) -> IntArray:
    """Parts of ``size`` outputs: from the output with most inputs on, always the one that adds the fewest."""
    owner = np.full(len(links), -1, np.int64)
    degrees = links.sum(axis=1)
    dense = links.astype(np.float32)
    for part in range(-(-len(links) // size)):
        left = np.flatnonzero(owner < 0)
        chosen = int(left[np.argmax(degrees[left])])
        owner[chosen] = part
        union = links[chosen].copy()
        for _ in range(min(size, len(left)) - 1):
            left = np.flatnonzero(owner < 0)
            added = dense[left] @ (~union).astype(np.float32)
            # Of those that add equally few, the one with most inputs makes best use of the part.
            chosen = int(left[np.lexsort((-degrees[left], added))[0]])
            owner[chosen] = part
            union |= links[chosen]
    return owner


def beginnings(links: BoolArray, table: CostTable) -> list[IntArray]:
    """Greedy partitions into parts of the sizes at which the cost steps, cheapest first."""
    sizes = np.flatnonzero((np.diff(table.values, axis=0) > 0).any(axis=1))
    sizes = np.unique([*sizes[sizes >= 1].tolist(), table.max_outputs])
    most = int(np.clip(_GREEDY_LIMIT // (len(links) ** 2 * links.shape[1]), 1, 8))
    rates = table.values[sizes, -1] / sizes
    sizes = sizes[np.argsort(rates, kind="stable")[:most]]
    found = [greedy_partition(links, int(size)) for size in sizes]
    found.sort(key=lambda owner: total_cost(links, owner, table))
    return found


def improve(
    links: BoolArray, owner: IntArray, table: CostTable, seed: int, target: float, work: int = WORK_LIMIT
) -> IntArray:
    """A partition that costs no more than ``owner``; the search ends early at the cost ``target``."""
    if len(links) < 2 or len(links) > _MOST_OUTPUTS:
        return owner
    state = _State(links, owner, table, seed)
    best, cost = owner.copy(), state.cost()
    stale = 0
    words = -(-links.shape[1] // 64)
    for _ in range(max(1, work // (len(links) * (len(links) + 16 * words) + 200 * links.shape[1] + 10_000))):
        if cost <= target * (1 + 1e-9) or stale > _PATIENCE or not state.step():
            break
        stale += 1
        now = state.cost()
        if now < cost * (1 - 1e-12):
            best, cost, stale = state.owner.copy(), now, 0
    return best


class _State:
    """A partition, and what every swap of two outputs and every move of one would change."""

    def __init__(self, links: BoolArray, owner: IntArray, table: CostTable, seed: int) -> None:
        self.links, self.words = links, words_of(links)
        self.count, width = links.shape
        self.owner = np.unique(owner, return_inverse=True)[1].astype(np.int64)
        self.parts = int(self.owner.max()) + 2
        self.rng = np.random.default_rng(seed)
        self.table = table
        slope = table.values[:, width] / width
        self.rated = table.values + _STEER * slope[:, None] * np.arange(width + 1)[None, :] / 2
        self.used = np.zeros((self.parts, width), np.int32)
        np.add.at(self.used, self.owner, links)
        self.outputs = np.bincount(self.owner, minlength=self.parts)
        self.inputs = (self.used > 0).sum(axis=1)
        self.leaves: FloatArray = np.zeros(self.count)
        self.swap: FloatArray = np.zeros((self.count, self.count))
        self.joins: FloatArray = np.zeros((self.count, self.parts))
        self.banned = np.zeros(self.count, np.int64)
        self.clock = 0
        self._refresh(np.arange(self.parts))

    def cost(self) -> float:
        """The cost itself, without the price on inputs."""
        return float(self.table.values[self.outputs, self.inputs].sum())

    def _refresh(self, parts: IntArray) -> None:
        """Rate anew what concerns some parts."""
        rows = np.flatnonzero(np.isin(self.owner, parts))
        owner = self.owner[rows]
        before = self.rated[self.outputs[owner], self.inputs[owner]]
        free = (self.used[owner] - self.links[rows]) == 0
        without = free.shape[1] - free.sum(axis=1)
        added = count_common(words_of(free)[:, None], self.words[None, :])
        self.swap[rows] = self.rated[self.outputs[owner][:, None], without[:, None] + added] - before[:, None]
        self.leaves[rows] = self.rated[self.outputs[owner] - 1, without] - before
        empty = words_of(self.used[parts] == 0)
        grown = self.inputs[parts] + count_common(self.words[:, None], empty[None, :])
        more = np.minimum(self.outputs[parts] + 1, self.table.max_outputs)
        change = self.rated[more[None, :], grown] - self.rated[self.outputs[parts], self.inputs[parts]][None, :]
        self.joins[:, parts] = np.where(self.outputs[parts] < self.table.max_outputs, change, np.inf)

    def step(self) -> bool:
        """Make the best swap or move that is not banned; False where there is none."""
        self.clock += 1
        barred = self.banned > self.clock
        swap = self.swap + self.swap.T
        swap[self.owner[:, None] == self.owner[None, :]] = np.inf
        swap[barred] = np.inf
        swap[:, barred] = np.inf
        move = self.leaves[:, None] + self.joins
        move[np.arange(self.count), self.owner] = np.inf
        move[barred] = np.inf
        first, second = divmod(int(np.argmin(swap)), self.count)
        output, part = divmod(int(np.argmin(move)), self.parts)
        if not np.isfinite(min(swap[first, second], move[output, part])):
            return False
        if swap[first, second] <= move[output, part]:
            a, b = int(self.owner[first]), int(self.owner[second])
            self._transfer(first, a, b)
            self._transfer(second, b, a)
            changed = [first, second]
        else:
            a, b = int(self.owner[output]), part
            self._transfer(output, a, b)
            changed = [output]
        self.banned[changed] = self.clock + self.rng.integers(4, 4 + max(4, self.count // 6), len(changed))
        self._refresh(np.array([a, b]))
        return True

    def _transfer(self, output: int, source: int, target: int) -> None:
        self.owner[output] = target
        self.used[source] -= self.links[output]
        self.used[target] += self.links[output]
        self.outputs[source] -= 1
        self.outputs[target] += 1
        self.inputs[[source, target]] = (self.used[[source, target]] > 0).sum(axis=1)
