"""Attention over all pairs with a constant mask: in the graph, added, per head, and with fully masked
rows."""

from __future__ import annotations

from typing import Literal

import numpy as np

from samples.builder import GraphBuilder, divided, require
from samples.truth import AttentionTruth, BoolArray, EmptyResult, IntArray, Sample, Wiring

MaskKind = Literal["clustered", "banded", "window", "longformer", "random"]

LOWEST = float(np.finfo(np.float32).min)


def mask_of_kind(kind: MaskKind, tokens: int, density: float, rng: np.random.Generator) -> BoolArray:
    """Which (query, key) pairs are needed: at most `density` of them, and every token needs itself.

    'clustered' hides blocks of equal rows behind a random order, 'banded' is a diagonal band, 'window'
    are blocks on the diagonal, 'longformer' adds to a band a few tokens that see and are seen by all,
    'random' has no structure.
    """
    require(0.0 < density <= 1.0, f"density {density} is not in (0, 1]")
    index = np.arange(tokens)
    budget = max(1, int(density * tokens))
    if kind in ("clustered", "window"):
        order = rng.permutation(tokens) if kind == "clustered" else index
        cluster = np.empty(tokens, np.int64)
        cluster[order] = index // budget
        same: BoolArray = cluster[:, None] == cluster[None, :]
        return same
    distance = np.abs(index[:, None] - index[None, :])
    if kind == "banded":
        near: BoolArray = distance <= (budget - 1) // 2
        return near
    if kind == "longformer":
        # A global token costs a row and a column: a quarter of the budget goes to them.
        everywhere = budget // 8
        band = max(0, (budget - 2 * everywhere - 1) // 2)
        mask: BoolArray = distance <= band
        mask[:everywhere] = mask[:, :everywhere] = True
        return mask
    mask = np.eye(tokens, dtype=bool)
    for row in mask:
        row[rng.choice(tokens, budget - 1, replace=False)] = True
    return mask


class _Vit:
    """One pre-norm self-attention with packed qkv; the caller supplies what lies between scores and
    weights."""

    def __init__(self, g: GraphBuilder, x: str, tokens: int, dim: int, heads: int) -> None:
        self.g, self.x, self.tokens, self.dim, self.heads = g, x, tokens, dim, heads
        self.head_dim = divided(dim, heads, "dim by heads")
        self.source = g.layer_norm(x, dim)
        qkv, self.packed = g.linear(self.source, dim, 3 * dim)
        rows = g.transpose(g.reshape(qkv, g.rows(1), tokens, 3, heads, self.head_dim), 2, 0, 3, 1, 4)
        q, k, self.values = g.unbind(rows, 3)
        q = g.scaled(q, self.head_dim**-0.5)
        self.scores = g.op("MatMul", q, g.transpose(k, 0, 1, 3, 2))

    def finish(
        self, weights: str, node: str, links: IntArray, empty: EmptyResult = "none"
    ) -> tuple[str, AttentionTruth]:
        g, tokens, dim = self.g, self.tokens, self.dim
        merged = g.transpose(g.op("MatMul", weights, self.values), 0, 2, 1, 3)
        out, projection = g.linear(g.reshape(merged, g.rows(1), tokens, dim), dim, dim)
        order = np.arange(tokens, dtype=np.int32)
        query, key, value = (self.packed.part(index, 3) for index in range(3))
        wiring = Wiring(self.source, self.source, out, query, key, value, projection, order, order)
        support = np.ones((tokens, tokens), np.int32) if empty in ("uniform", "unmasked") else None
        truth = AttentionTruth(
            node,
            self.heads,
            self.head_dim,
            tokens,
            (self.head_dim**-0.5,) * self.heads,
            links,
            wiring,
            empty_result=empty,
            empty_support=support,
        )
        return g.op("Add", self.x, out), truth


def dense_masked(
    *,
    tokens: int = 1024,
    density: float = 0.1,
    kind: MaskKind = "clustered",
    dim: int = 384,
    heads: int = 6,
    layers: int = 1,
    seed: int = 0,
    batch: int | None = 1,
) -> Sample:
    """Attention written densely with an additive mask of -inf: all pairs are computed, few are needed."""
    name = "dense_masked"
    g = GraphBuilder(name, seed=seed, batch=batch)
    mask = mask_of_kind(kind, tokens, density, g.rng)
    added = g.constant(np.where(mask, np.float32(0.0), np.float32(-np.inf)), "attention_mask")
    x = g.input("x", tokens, dim)
    truths = []
    for _ in range(layers):
        layer = _Vit(g, x, tokens, dim, heads)
        weights = g.op("Softmax", g.op("Add", layer.scores, added), axis=-1)
        x, truth = layer.finish(weights, g.last_node, mask.astype(np.int32)[None])
        truths.append(truth)
    g.output("y", x, tokens, dim)
    return Sample(name, g.model(), tuple(truths), inputs={"x": "randn"})


def masked_vit(
    *,
    tokens: int = 64,
    density: float = 0.4,
    dim: int = 24,
    heads: int = 3,
    seed: int = 0,
    batch: int | None = 1,
) -> Sample:
    """A boolean mask that the graph itself turns into 0 and the lowest float, and a guard against NaN
    behind the softmax, as a fused attention with a mask is decomposed."""
    name = "masked_vit"
    g = GraphBuilder(name, seed=seed, batch=batch)
    mask = mask_of_kind("random", tokens, density, g.rng)
    layer = _Vit(g, g.input("x", tokens, dim), tokens, dim, heads)
    added = g.op("Where", g.constant(mask, "mask"), g.constant(0.0, "zero"), g.constant(LOWEST, "lowest"))
    weights = g.op("Softmax", g.op("Add", layer.scores, added), axis=-1)
    node = g.last_node
    guarded = g.op("Where", g.op("IsNaN", weights), g.constant(0.0, "zero"), weights)
    y, truth = layer.finish(guarded, node, mask.astype(np.int32)[None])
    g.output("y", y, tokens, dim)
    return Sample(name, g.model(), (truth,), inputs={"x": "randn"})


def per_head_masks(
    *,
    tokens: int = 48,
    density: float = 0.25,
    dim: int = 24,
    heads: int = 3,
    seed: int = 0,
    batch: int | None = 1,
) -> Sample:
    """Every head has a mask of its own, with equally many pairs."""
    name = "per_head_masks"
    g = GraphBuilder(name, seed=seed, batch=batch)
    wanted = int(density * tokens * tokens)
    require(tokens <= wanted <= tokens * tokens, f"density {density} is not in [1 / tokens, 1]")
    flat = np.zeros((heads, tokens * tokens), bool)
    for head in flat:
        head[:: tokens + 1] = True
        head[g.rng.choice(np.flatnonzero(~head), wanted - tokens, replace=False)] = True
    mask = flat.reshape(heads, tokens, tokens)
    layer = _Vit(g, g.input("x", tokens, dim), tokens, dim, heads)
    added = g.constant(np.where(mask, 0.0, -10000.0)[None], "attention_mask")
    weights = g.op("Softmax", g.op("Add", layer.scores, added), axis=-1)
    y, truth = layer.finish(weights, g.last_node, mask.astype(np.int32))
    g.output("y", y, tokens, dim)
    return Sample(name, g.model(), (truth,), inputs={"x": "randn"})


def empty_rows(
    *,
    result: EmptyResult = "uniform",
    tokens: int = 32,
    density: float = 0.25,
    dim: int = 16,
    heads: int = 2,
    seed: int = 0,
    batch: int | None = 1,
) -> Sample:
    """Some queries have no key at all. What they give depends on the spelling of the mask: uniform
    weights (the lowest float swallows the score), the unmasked softmax (-100 on a whole row cancels),
    zero (-inf with a guard against NaN) or NaN (-inf without one)."""
    name = f"empty_{result}"
    g = GraphBuilder(name, seed=seed, batch=batch)
    mask = mask_of_kind("random", tokens, density, g.rng)
    mask[g.rng.choice(tokens, 5, replace=False)] = False
    layer = _Vit(g, g.input("x", tokens, dim), tokens, dim, heads)
    number = {"uniform": LOWEST, "unmasked": -100.0}.get(result, -np.inf)
    if result == "uniform":
        hidden = g.op("Equal", g.constant(mask.astype(np.float32), "keep"), g.constant(0.0, "zero"))
        scores = g.op("Where", hidden, g.constant(number, "lowest"), layer.scores)
    else:
        scores = g.op("Add", layer.scores, g.constant(np.where(mask, 0.0, number), "attention_mask"))
    weights = g.op("Softmax", scores, axis=-1)
    node = g.last_node
    if result == "zero":
        weights = g.op("Where", g.op("IsNaN", weights), g.constant(0.0, "zero"), weights)
    y, truth = layer.finish(weights, node, mask.astype(np.int32)[None], result)
    g.output("y", y, tokens, dim)
    return Sample(name, g.model(), (truth,), inputs={"x": "randn"})


def cross(
    *,
    queries: int = 20,
    keys: int = 36,
    density: float = 0.3,
    dim: int = 24,
    context_dim: int = 16,
    heads: int = 3,
    seed: int = 0,
    batch: int | None = 1,
) -> Sample:
    """Rectangular attention: queries from one input, keys and values from another, with a constant mask."""
    name = "cross"
    g = GraphBuilder(name, seed=seed, batch=batch)
    head_dim, lead = divided(dim, heads, "dim by heads"), g.rows(1)
    x, context = g.input("x", queries, dim), g.input("context", keys, context_dim)
    q_source, kv_source = g.layer_norm(x, dim), g.layer_norm(context, context_dim)
    q_rows, query = g.linear(q_source, dim, dim)
    kv_rows, packed = g.linear(kv_source, context_dim, 2 * dim)
    q = g.transpose(g.reshape(q_rows, lead, queries, heads, head_dim), 0, 2, 1, 3)
    halves = g.split_op("Split", kv_rows, outputs=2, axis=-1, num_outputs=2)
    k, v = (g.transpose(g.reshape(half, lead, keys, heads, head_dim), 0, 2, 1, 3) for half in halves)
    mask = g.rng.random((queries, keys)) < density
    mask[np.arange(queries), g.rng.integers(0, keys, queries)] = True
    products = g.scaled(g.op("MatMul", q, g.transpose(k, 0, 1, 3, 2)), head_dim**-0.5)
    weights = g.op("Softmax", g.op("Add", products, g.constant(np.where(mask, 0.0, -np.inf), "mask")), axis=-1)
    node = g.last_node
    merged = g.transpose(g.op("MatMul", weights, v), 0, 2, 1, 3)
    out, projection = g.linear(g.reshape(merged, lead, queries, dim), dim, dim)
    g.output("y", g.op("Add", x, out), queries, dim)
    rows = np.arange(queries, dtype=np.int32)
    wiring = Wiring(q_source, kv_source, out, query, packed.part(0, 2), packed.part(1, 2), projection, rows, rows)
    scale = (head_dim**-0.5,) * heads
    truth = AttentionTruth(node, heads, head_dim, keys, scale, mask.astype(np.int32)[None], wiring)
    return Sample(name, g.model(), (truth,), inputs={"x": "randn", "context": "randn"})


def onnx_attention(
    *,
    tokens: int = 48,
    density: float = 0.25,
    dim: int = 24,
    heads: int = 3,
    seed: int = 0,
    batch: int | None = 1,
) -> Sample:
    """ONNX's own Attention operator (opset 23) with a constant boolean mask."""
    name = "onnx_attention"
    head_dim = divided(dim, heads, "dim by heads")
    g = GraphBuilder(name, seed=seed, batch=batch, opset=23)
    mask = mask_of_kind("clustered", tokens, density, g.rng)
    x = g.input("x", tokens, dim)
    source = g.layer_norm(x, dim)
    rows = [g.linear(source, dim, dim) for _ in range(3)]
    tensors, (query, key, value) = [row[0] for row in rows], (row[1] for row in rows)
    mixed = g.op("Attention", *tensors, g.constant(mask, "mask"), q_num_heads=heads, kv_num_heads=heads)
    node = g.last_node
    out, projection = g.linear(mixed, dim, dim)
    g.output("y", g.op("Add", x, out), tokens, dim)
    order = np.arange(tokens, dtype=np.int32)
    wiring = Wiring(source, source, out, query, key, value, projection, order, order)
    scale = (head_dim**-0.5,) * heads
    truth = AttentionTruth(node, heads, head_dim, tokens, scale, mask.astype(np.int32)[None], wiring)
    return Sample(name, g.model(), (truth,), inputs={"x": "randn"})
