"""RegionViT: region tokens attend to one another, then each region attends within itself and its local
tokens."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from samples.builder import GraphBuilder, divided
from samples.truth import AttentionTruth, FloatArray, IntArray, Projection, Sample, Wiring

LOWEST = float(np.finfo(np.float32).min)


def _dense(
    g: GraphBuilder, x: str, tokens: int, dim: int, heads: int, lead: int, packed: Projection
) -> tuple[str, str, str]:
    """Layer norm, packed qkv and scores (lead, heads, tokens, tokens); returns (source, scores, values)."""
    head_dim = divided(dim, heads, "dim by heads")
    source = g.layer_norm(x, dim)
    qkv = g.apply(source, packed)
    rows = g.transpose(g.reshape(qkv, lead, tokens, 3, heads, head_dim), 2, 0, 3, 1, 4)
    q, k, v = (g.select(rows, index) for index in range(3))
    products = g.op("MatMul", q, g.transpose(k, 0, 1, 3, 2))
    return source, g.scaled(products, head_dim**-0.5), v


def _mixed(g: GraphBuilder, weights: str, values: str, tokens: int, dim: int, lead: int, projection: Projection) -> str:
    merged = g.transpose(g.op("MatMul", weights, values), 0, 2, 1, 3)
    return g.apply(g.reshape(merged, lead, tokens, dim), projection)


def _add_to_local(g: GraphBuilder, scores: str, bias: str, local: int) -> str:
    """`scores[:, :, 1:, 1:] += bias` as a tracer writes it: two ScatterNDs between Transposes."""
    rows = g.slice(scores, 2, 1)
    added = g.op("Add", g.slice(rows, 3, 1), bias)
    index = g.constant(np.arange(1, local + 1, dtype=np.int64)[:, None], "rows")
    inner = g.op("ScatterND", g.transpose(rows, 3, 1, 2, 0), index, g.transpose(added, 3, 1, 2, 0))
    update = g.transpose(inner, 2, 1, 3, 0)
    outer = g.op("ScatterND", g.transpose(scores, 2, 1, 0, 3), index, update)
    return g.transpose(outer, 2, 1, 0, 3)


def _valid(size: int, window: int) -> IntArray:
    """1 for the region token and every local token inside the image: (regions, 1 + window * window)."""
    across = -(-size // window)
    inside = np.arange(across * window) < size
    grid = (inside[:, None] & inside[None, :]).reshape(across, window, across, window)
    local = grid.transpose(0, 2, 1, 3).reshape(across * across, window * window)
    return np.concatenate([np.ones((across * across, 1)), local], axis=1).astype(np.int32)


def _links(valid: IntArray, bias: FloatArray) -> tuple[IntArray, FloatArray, IntArray]:
    """Links, biases and what an empty row ranges over; region r owns rows r * (1 + local) and following."""
    regions, slots = valid.shape
    count = regions * slots
    links = np.zeros((1, count, count), np.int32)
    values = np.zeros((bias.shape[0], count, count))
    support = np.zeros((count, count), np.int32)
    for region in range(regions):
        own = slice(region * slots, (region + 1) * slots)
        links[0, own, own] = np.outer(valid[region], valid[region])
        values[:, own, own][:, 1:, 1:] = bias
        support[own, own] = 1
    return links, values, support


def regionvit(
    *,
    size: int = 12,
    window: int = 3,
    dim: int = 16,
    heads: int = 2,
    seed: int = 0,
    batch: int | None = 1,
) -> Sample:
    """One RegionViT block: dense attention over the region tokens and, with the same weights, attention
    of each region over itself and its window, with a relative bias scattered into the local part.

    A `size` that is no multiple of `window` pads the image; the padded tokens are masked as keys, and as
    queries their rows are fully masked, which gives uniform weights.
    """
    name = "regionvit"
    g = GraphBuilder(name, seed=seed, batch=batch)
    across, local, head_dim = -(-size // window), window * window, divided(dim, heads, "dim by heads")
    regions, slots, full = across * across, 1 + window * window, across * window
    one, many = g.rows(1), g.rows(across * across)
    image, region = g.input("x", dim, size, size), g.input("regions", regions, dim)
    packed, projection = g.linear_weights(dim, 3 * dim), g.linear_weights(dim, dim)
    if full != size:
        image = g.pad(image, [0, 0, 0, 0], [0, 0, full - size, full - size])
    parted = g.transpose(g.reshape(image, one, dim, across, window, across, window), 0, 2, 4, 3, 5, 1)
    inner = g.reshape(parted, many, local, dim)

    source, scores, values = _dense(g, region, regions, dim, heads, one, packed)
    weights = g.op("Softmax", scores, axis=-1)
    node = g.last_node
    mixed = _mixed(g, weights, values, regions, dim, one, projection)
    order = np.arange(regions, dtype=np.int32)
    query, key, value = (packed.part(index, 3) for index in range(3))
    scale = (head_dim**-0.5,) * heads
    wiring = Wiring(source, source, mixed, query, key, value, projection, order, order)
    dense = AttentionTruth(node, heads, head_dim, regions, scale, np.ones((1, regions, regions), np.int32), wiring)

    updated = g.op("Add", region, mixed)
    tokens = g.concat(1, g.reshape(updated, -1, 1, dim), inner)
    # A shared weight may reach its second use through an Identity.
    shared = replace(packed, weight=g.op("Identity", packed.weight))
    source, scores, values = _dense(g, tokens, slots, dim, heads, many, shared)
    bias = (0.7 * g.rng.standard_normal((heads, local, local))).astype(np.float32)
    scores = _add_to_local(g, scores, g.constant(bias, "relative_bias"), local)
    valid = _valid(size, window)
    if full != size:
        keep = (valid[:, :, None] * valid[:, None, :]).astype(np.float32)
        split = g.reshape(scores, one, regions, heads, slots, slots)
        hidden = g.op("Equal", g.unsqueeze(g.constant(keep, "keep"), 1), g.constant(0.0, "zero"))
        split = g.op("Where", hidden, g.constant(LOWEST, "lowest"), split)
        scores = g.reshape(split, many, heads, slots, slots)
    weights = g.op("Softmax", scores, axis=-1)
    node = g.last_node
    mixed = _mixed(g, weights, values, slots, dim, many, projection)
    order = np.arange(regions * slots, dtype=np.int32)
    wiring = Wiring(source, source, mixed, query, key, value, projection, order, order)
    links, biases, support = _links(valid, bias.astype(np.float64))
    windows = AttentionTruth(
        node,
        heads,
        head_dim,
        regions * slots,
        scale,
        links,
        wiring,
        bias=biases,
        empty_result="uniform" if full != size else "none",
        empty_support=support if full != size else None,
    )

    joined = g.op("Add", tokens, mixed)
    g.output("regions_out", g.reshape(g.slice(joined, 1, 0, 1), one, regions, dim), regions, dim)
    columns = g.reshape(g.transpose(g.slice(joined, 1, 1), 0, 2, 1), one, regions, dim * local)
    # A fold without overlap, which is pure data movement.
    folded = g.op(
        "Col2Im",
        g.transpose(columns, 0, 2, 1),
        g.constant(np.array([full, full], np.int64), "image_shape"),
        g.constant(np.array([window, window], np.int64), "block_shape"),
        strides=[window, window],
    )
    if full != size:
        folded = g.slice(g.slice(folded, 2, 0, size - full), 3, 0, size - full)
    g.output("y", folded, dim, size, size)
    return Sample(name, g.model(), (dense, windows), inputs={"x": "randn", "regions": "randn"})
