"""BigBird's block-sparse attention: five softmaxes a layer, random blocks, and a padding mask from an
input."""

from __future__ import annotations

import numpy as np
from onnx import TensorProto

from samples.builder import GraphBuilder, divided, require
from samples.truth import ID_LIMIT, AttentionTruth, IntArray, Sample, Wiring

PENALTY = -10000.0


class _Blocks:
    """Blocks of keys, values and mask columns; products of any list of key blocks with a block of queries."""

    def __init__(self, g: GraphBuilder, q: str, k: str, v: str, mask: str, shape: tuple[int, int, int, int]) -> None:
        self.g = g
        self.heads, self.count, self.block, self.head_dim = shape
        lead = g.rows(1)
        self.q, self.k, self.v = (
            g.reshape(x, lead, self.heads, self.count, self.block, self.head_dim) for x in (q, k, v)
        )
        self.flat_k, self.flat_v = k, v
        self.mask = g.reshape(mask, lead, self.count, self.block)
        self.flat_mask = mask

    def penalty(self, keep: str) -> str:
        g = self.g
        return g.op("Mul", g.op("Sub", g.constant(1.0, "one"), keep), g.constant(PENALTY, "penalty"))

    def gathered(self, blocks: str, plan: IntArray) -> str:
        """Blocks (batch, heads, count, block, d) to (batch, heads, queries, picks * block, d) along a
        plan."""
        g = self.g
        index = g.constant(plan.ravel().astype(np.int64), "random_blocks")
        width = plan.shape[1] * self.block
        return g.reshape(g.op("Gather", blocks, index, axis=2), g.rows(1), self.heads, len(plan), width, self.head_dim)

    def gathered_mask(self, plan: IntArray) -> str:
        g = self.g
        index = g.constant(plan.ravel().astype(np.int64), "random_blocks")
        width = plan.shape[1] * self.block
        return g.reshape(g.op("Gather", self.mask, index, axis=1), g.rows(1), 1, len(plan), 1, width)

    def one_row(self, row: int, keys: str, values: str, keep: str) -> tuple[str, str]:
        """One block of queries over (batch, heads, keys, d); returns (mixed values, softmax node)."""
        g = self.g
        query = g.select(self.q, row, axis=2)
        scores = g.scaled(g.op("MatMul", query, g.transpose(keys, 0, 1, 3, 2)), self.head_dim**-0.5)
        weights = g.op("Softmax", g.op("Add", scores, self.penalty(keep)), axis=-1)
        node = g.last_node
        return g.op("MatMul", weights, values), node

    def everything(self, row: int) -> tuple[str, str]:
        keep = self.g.unsqueeze(self.flat_mask, 1, 2)
        return self.one_row(row, self.flat_k, self.flat_v, keep)

    def listed(self, row: int, fixed: list[int], plan: IntArray) -> tuple[str, str]:
        """A block of queries over some fixed blocks and its random blocks."""
        g = self.g
        parts = []
        for blocks in (self.k, self.v):
            picked = g.squeeze(self.gathered(blocks, plan), 2)
            parts.append(g.concat(2, *(g.select(blocks, index, axis=2) for index in fixed), picked))
        columns = [g.select(self.mask, index, axis=1) for index in fixed]
        random = g.squeeze(self.gathered_mask(plan), 1, 2, 3)
        keep = g.unsqueeze(g.concat(1, *columns, random), 1, 2)
        return self.one_row(row, parts[0], parts[1], keep)

    def middle(self, plan: IntArray) -> tuple[str, str]:
        """All other blocks at once: six products (first, three neighbours, random, last) and one softmax."""
        g, count = self.g, self.count
        query = g.slice(self.q, 2, 2, count - 2)
        spans = [(0, 1), (1, count - 3), (2, count - 2), (3, count - 1), None, (count - 1, count)]
        scores, values, keeps = [], [], []
        for span in spans:
            if span is None:
                keys, value, keep = (
                    self.gathered(self.k, plan),
                    self.gathered(self.v, plan),
                    self.gathered_mask(plan),
                )
            else:
                keys, value = (g.slice(blocks, 2, *span) for blocks in (self.k, self.v))
                keep = g.unsqueeze(g.slice(self.mask, 1, *span), 1, 3)
            if span in ((0, 1), (count - 1, count)):
                keys, value = g.squeeze(keys, 2), g.squeeze(value, 2)
                product = g.op("Einsum", query, keys, equation="bhlqd,bhkd->bhlqk")
            else:
                product = g.op("Einsum", query, keys, equation="bhlqd,bhlkd->bhlqk")
            scores.append(g.op("Add", g.scaled(product, self.head_dim**-0.5), self.penalty(keep)))
            values.append(value)
            keeps.append(keep)
        weights = g.op("Softmax", g.concat(-1, *scores), axis=-1)
        node = g.last_node
        total, begin = "", 0
        for number, value in enumerate(values):
            width = self.block * (plan.shape[1] if number == 4 else 1)
            part = g.slice(weights, 4, begin, begin + width)
            pattern = "bhlqk,bhkd->bhlqd" if number in (0, 5) else "bhlqk,bhlkd->bhlqd"
            term = g.op("Einsum", part, value, equation=pattern)
            total = g.op("Add", total, term) if total else term
            begin += width
        shape = (g.rows(1), self.heads, (count - 4) * self.block, self.head_dim)
        return g.reshape(total, *shape), node


def _key_blocks(row: int, count: int, plan: IntArray) -> list[int]:
    """Key blocks of one block of queries, with repeats, in no particular order."""
    if row in (0, count - 1):
        return list(range(count))
    near = {1: [0, 1, 2, count - 1], count - 2: [0, count - 3, count - 2, count - 1]}
    fixed = near.get(row, [0, row - 1, row, row + 1, count - 1])
    return fixed + [int(block) for block in plan[row - 1]]


def bigbird(
    *,
    blocks: int = 10,
    block: int = 4,
    random_blocks: int = 2,
    dim: int = 16,
    heads: int = 2,
    seed: int = 0,
    batch: int | None = 1,
) -> Sample:
    """One BigBird layer on token ids. Random blocks may coincide with fixed ones, so keys repeat; the
    padding mask is an input and adds (1 - mask) * -10000 to the scores."""
    require(blocks >= 6, f"blocks {blocks}: the middle part needs 6 or more")
    name = "bigbird"
    g = GraphBuilder(name, seed=seed, batch=batch)
    tokens, lead, head_dim = blocks * block, g.rows(1), divided(dim, heads, "dim by heads")
    ids = g.input("ids", tokens, kind=TensorProto.INT64)
    mask = g.input("mask", tokens)
    words = g.op("Gather", g.weight(ID_LIMIT, dim, stem="words"), ids, axis=0)
    x = g.op("Add", words, g.weight(1, tokens, dim, stem="positions"))
    source = g.layer_norm(x, dim)
    rows = [g.linear(source, dim, dim) for _ in range(3)]
    query, key, value = (row[1] for row in rows)
    q, k, v = (g.transpose(g.reshape(row[0], lead, tokens, heads, head_dim), 0, 2, 1, 3) for row in rows)
    plan = np.stack([g.rng.choice(blocks, random_blocks, replace=False) for _ in range(blocks - 2)]).astype(np.int32)
    # Every sample of this kind must repeat keys: a random block that is also the first, fixed one.
    plan[2, 0] = 0

    parts = _Blocks(g, q, k, v, mask, (heads, blocks, block, head_dim))
    last = blocks - 1
    mixed = [
        parts.everything(0),
        parts.listed(1, [0, 1, 2, last], plan[:1]),
        parts.middle(plan[1:-1]),
        parts.listed(last - 1, [0, last - 2, last - 1, last], plan[-1:]),
        parts.everything(last),
    ]
    joined = g.transpose(g.concat(2, *(part[0] for part in mixed)), 0, 2, 1, 3)
    out, projection = g.linear(g.reshape(joined, lead, tokens, dim), dim, dim)
    g.output("y", g.op("Add", x, out), tokens, dim)

    truths = []
    spans = [(0, 1), (1, 2), (2, last - 1), (last - 1, last), (last, blocks)]
    for (begin, end), (_, node) in zip(spans, mixed, strict=True):
        order = np.arange(begin * block, end * block, dtype=np.int32)
        links = np.zeros((1, order.size, tokens), np.int32)
        for row in range(begin, end):
            for column in _key_blocks(row, blocks, plan):
                at = (row - begin) * block
                links[0, at : at + block, column * block : (column + 1) * block] += 1
        wiring = Wiring(source, source, out, query, key, value, projection, order, order)
        truths.append(
            AttentionTruth(
                node,
                heads,
                head_dim,
                tokens,
                (head_dim**-0.5,) * heads,
                links,
                wiring,
                runtime="penalty",
                runtime_input="mask",
                mixture="layer",
            )
        )
    return Sample(name, g.model(), tuple(truths), inputs={"ids": "ids", "mask": "mask"})
