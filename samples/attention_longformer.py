"""Vision Longformer's attention: chunks of a token grid, their neighbours, and one global token."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from samples.builder import GraphBuilder, divided
from samples.truth import AttentionTruth, BoolArray, FloatArray, IntArray, Projection, Sample, Wiring

Mode = Literal["chunk", "exact", "cyclic", "self"]

NEIGHBOURS = tuple((row, column) for row in (-1, 0, 1) for column in (-1, 0, 1))


@dataclass(frozen=True)
class _Chunks:
    """A square token grid in square chunks of `width` x `width`; the last ones may reach beyond the grid."""

    size: int
    width: int
    mode: Mode

    @property
    def across(self) -> int:
        return -(-self.size // self.width)

    @property
    def offsets(self) -> tuple[tuple[int, int], ...]:
        return ((0, 0),) if self.mode == "self" else NEIGHBOURS

    def relative(self) -> IntArray:
        """Distances (slots, offsets * slots, 2) of every key slot of every neighbour from every query
        slot."""
        slots = np.stack(np.divmod(np.arange(self.width**2), self.width), -1)
        keys = np.concatenate([slots + self.width * np.array(offset) for offset in self.offsets])
        distance: IntArray = (keys[None] - slots[:, None]).astype(np.int32)
        return distance

    def table_rows(self) -> IntArray:
        """Row of the relative position table for every (query slot, neighbour key slot)."""
        distance = self.relative() + 2 * self.width - 1
        index: IntArray = distance[..., 0] * (4 * self.width - 1) + distance[..., 1]
        return index

    def key_tokens(self) -> IntArray:
        """Grid token of every (chunk, neighbour key slot), -1 where there is none."""
        w, across = self.width, self.across
        slots = np.stack(np.divmod(np.arange(w * w), w), -1)
        result = np.full((across * across, len(self.offsets) * w * w), -1, np.int32)
        for chunk, corner in enumerate(np.ndindex(across, across)):
            for number, offset in enumerate(self.offsets):
                place = np.array(corner) + offset
                if self.mode == "cyclic":
                    place %= across
                token = place * w + slots
                inside = ((place >= 0) & (place < across)).all() & (token < self.size).all(-1)
                flat = np.where(inside, token[:, 0] * self.size + token[:, 1], -1)
                result[chunk, number * w * w : (number + 1) * w * w] = flat
        return result

    def masked(self) -> BoolArray:
        """Which (chunk, query slot, neighbour key slot) may not meet; one row per chunk unless exact."""
        away = (self.key_tokens() < 0)[:, None, :]
        if self.mode == "exact":
            far = np.asarray((np.abs(self.relative()) > self.width).any(-1))
            return away | far[None]
        return away

    def query_tokens(self) -> IntArray:
        """Grid token of every (chunk, slot), -1 in the padding."""
        middle = self.offsets.index((0, 0)) * self.width**2
        return self.key_tokens()[:, middle : middle + self.width**2]


def _links(chunks: _Chunks, table: FloatArray, global_bias: FloatArray) -> tuple[IntArray, FloatArray]:
    """Links and biases (heads, grid tokens, 1 + grid tokens); column 0 is the global token."""
    count, heads = chunks.size**2, table.shape[1]
    links = np.zeros((1, count, count + 1), np.int32)
    bias = np.zeros((heads, count, count + 1))
    links[:, :, 0] = 1
    bias[:, :, 0] = global_bias[:, None]
    keys, queries, rows = chunks.key_tokens(), chunks.query_tokens(), chunks.table_rows()
    masked = np.broadcast_to(chunks.masked(), (keys.shape[0], *rows.shape))
    for chunk, slot in np.ndindex(*queries.shape):
        query = queries[chunk, slot]
        if query < 0:
            continue
        seen = ~masked[chunk, slot]
        columns = 1 + keys[chunk, seen]
        np.add.at(links[0, query], columns, 1)
        bias[:, query, columns] = table[rows[slot, seen]].T
    return links, bias


class _Layer:
    """Builds one longformer layer; the methods follow the order of the published forward pass."""

    def __init__(self, g: GraphBuilder, chunks: _Chunks, dim: int, heads: int) -> None:
        self.g, self.chunks, self.dim, self.heads = g, chunks, dim, heads
        self.head_dim = divided(dim, heads, "dim by heads")
        self.lead = g.rows(heads)

    def chunked(self, x: str) -> str:
        """(batch, heads, tokens, d) to (batch * heads, d, chunk rows, chunk columns, slots)."""
        g, size, w, across = self.g, self.chunks.size, self.chunks.width, self.chunks.across
        grid = g.transpose(g.reshape(x, g.rows(1), self.heads, size, size, self.head_dim), 0, 1, 4, 2, 3)
        image = g.reshape(grid, self.lead, self.head_dim, size, size)
        rest = across * w - size
        if rest:
            image = g.pad(image, [0, 0, 0, 0], [0, 0, rest, rest])
        parted = g.transpose(g.reshape(image, self.lead, self.head_dim, across, w, across, w), 0, 1, 2, 4, 3, 5)
        return g.reshape(parted, self.lead, self.head_dim, across, across, w * w)

    def neighbour(self, x: str, offset: tuple[int, int]) -> str:
        for axis, step in zip((2, 3), offset, strict=True):
            if step:
                x = self.g.roll(x, axis, -step, self.chunks.across)
        return x

    def scores(self, q: str, k: str, k_global: str, table: str, global_bias: str) -> str:
        g, chunks = self.g, self.chunks
        slots, across = chunks.width**2, chunks.across
        to_global = g.op("Einsum", q, k_global, equation="b c m n l, b t c -> b m n l t")
        local = [
            g.op("Einsum", q, self.neighbour(k, offset), equation="b c m n l, b c m n t -> b m n l t")
            for offset in chunks.offsets
        ]
        joined = g.concat(-1, *local) if len(local) > 1 else local[0]
        keys = len(local) * slots
        spread = g.expand_batch(g.reshape(global_bias, 1, self.heads, 1, 1), "x", 4)
        to_global = g.op("Add", to_global, g.unsqueeze(g.reshape(spread, self.lead, 1, 1), 1, 2))
        rows = g.reshape(g.constant(chunks.table_rows().astype(np.int64), "positions"), -1)
        looked_up = g.op("GatherND", table, g.unsqueeze(rows, -1), batch_dims=0)
        bias = g.transpose(g.reshape(looked_up, 1, slots, keys, -1), 0, 3, 1, 2)
        bias = g.reshape(g.expand_batch(bias, "x", 4), self.lead, slots, keys)
        joined = g.op("Add", joined, g.unsqueeze(bias, 1, 2))
        masked = chunks.masked()
        hidden = g.reshape(g.constant(masked, "outside"), 1, across, across, masked.shape[1], -1)
        hidden = g.op("Expand", hidden, g.constant(np.array([1, across, across, slots, keys], np.int64), "shape"))
        joined = g.op("Where", hidden, g.constant(np.float32(-np.inf), "minus_infinity"), joined)
        return g.concat(-1, to_global, joined)

    def values(self, weights: str, v: str, v_global: str) -> str:
        """Weighted values (batch * heads, d, chunk rows, chunk columns, slots)."""
        g, offsets = self.g, self.chunks.offsets
        keys = len(offsets) * self.chunks.width**2
        first, others = g.slice(weights, 4, 0, 1), g.slice(weights, 4, 1, 1 + keys)
        parts: tuple[str, ...] = (others,)
        if len(offsets) > 1:
            parts = g.split_op("Split", others, outputs=len(offsets), axis=4, num_outputs=len(offsets))
        # The chunk itself comes first in the published sum, then its neighbours, then the global token.
        order = sorted(range(len(offsets)), key=lambda number: offsets[number] != (0, 0))
        total = ""
        for number in order:
            moved = self.neighbour(v, offsets[number])
            term = g.op("Einsum", parts[number], moved, equation="b m n l t, b c m n t -> b c m n l")
            total = g.op("Add", total, term) if total else term
        term = g.op("Einsum", first, v_global, equation="b m n l t, b t c -> b c m n l")
        return g.op("Add", total, term)

    def unchunked(self, x: str) -> str:
        """Back to (batch, tokens, heads * d), without the padding."""
        g, size, w, across = self.g, self.chunks.size, self.chunks.width, self.chunks.across
        parted = g.reshape(x, self.lead, self.head_dim, across, across, w, w)
        image = g.transpose(parted, 0, 2, 4, 3, 5, 1)
        image = g.reshape(image, self.lead, across * w, across * w, self.head_dim)
        if across * w != size:
            image = g.slice(g.slice(image, 1, 0, size), 2, 0, size)
        tokens = g.reshape(image, g.rows(1), self.heads, size * size, self.head_dim)
        return g.reshape(g.transpose(tokens, 0, 2, 1, 3), g.rows(1), size * size, self.dim)


def longformer2d(
    *,
    size: int = 16,
    chunk: int = 4,
    dim: int = 16,
    heads: int = 2,
    mode: Mode = "chunk",
    seed: int = 0,
    batch: int | None = 1,
) -> Sample:
    """One Vision Longformer layer with one global token.

    The local softmax joins ten products (the global token and nine chunks); the global query has a
    softmax of its own. `mode` is 'chunk' (all tokens of the neighbouring chunks), 'exact' (a window
    around each query), 'cyclic' (the grid wraps around) or 'self' (the own chunk only). A `size` that is
    no multiple of `chunk` pads and crops.
    """
    name = "longformer2d"
    g = GraphBuilder(name, seed=seed, batch=batch)
    chunks = _Chunks(size, chunk, mode)
    count, head_dim, lead, one = size * size, divided(dim, heads, "dim by heads"), g.rows(heads), g.rows(1)
    layer = _Layer(g, chunks, dim, heads)
    x = g.input("x", 1 + count, dim)
    source = g.layer_norm(x, dim)
    scale = head_dim**-0.5
    query, packed = g.linear_weights(dim, dim), g.linear_weights(dim, 2 * dim)
    projection = g.linear_weights(dim, dim)

    def keys_and_values(layer: Projection) -> tuple[str, str]:
        rows = g.reshape(g.apply(source, layer), one, 1 + count, 2, heads, head_dim)
        both = g.transpose(rows, 2, 0, 3, 1, 4)
        return g.select(both, 0), g.select(both, 1)

    q = g.transpose(g.reshape(g.apply(g.slice(source, 1, 1), query), one, count, heads, head_dim), 0, 2, 1, 3)
    k, v = keys_and_values(packed)
    k_global, v_global = (g.reshape(g.slice(part, 2, 0, 1), lead, 1, head_dim) for part in (k, v))
    table = g.weight((4 * chunk - 1) ** 2, heads, stem="position_table", scale=0.7)
    to_global = g.weight(heads, stem="to_global", scale=0.7)
    q_chunks = layer.chunked(g.scaled(q, scale))
    k_chunks, v_chunks = (layer.chunked(g.slice(part, 2, 1)) for part in (k, v))
    weights = g.stable_softmax(layer.scores(q_chunks, k_chunks, k_global, table, to_global))
    local_node = g.last_node
    local = g.apply(layer.unchunked(layer.values(weights, v_chunks, v_global)), projection)

    first = g.reshape(g.apply(g.slice(source, 1, 0, 1), query), one, 1, heads, head_dim)
    # Exporters often repeat a shared weight as a second initializer.
    again = replace(packed, weight=g.constant(g.arrays[packed.weight], "weight"))
    q_one = g.reshape(g.scaled(g.transpose(first, 0, 2, 1, 3), scale), lead, 1, head_dim)
    k_all, v_all = (g.reshape(part, lead, 1 + count, head_dim) for part in keys_and_values(again))
    from_global = g.rng.standard_normal((heads, 1 + count)) * 0.7
    spread = g.expand_batch(g.constant(from_global[None, :, None], "from_global"), "x", 4)
    products = g.op("MatMul", q_one, g.transpose(k_all, 0, 2, 1))
    weights = g.stable_softmax(g.op("Add", products, g.reshape(spread, lead, 1, 1 + count)))
    global_node = g.last_node
    mixed = g.reshape(g.op("MatMul", weights, v_all), one, heads, 1, head_dim)
    summary = g.apply(g.reshape(g.transpose(mixed, 0, 2, 1, 3), one, 1, dim), projection)
    joined = g.concat(1, summary, local)
    g.output("y", g.op("Add", x, joined), 1 + count, dim)

    links, bias = _links(chunks, g.arrays[table].astype(np.float64), g.arrays[to_global].astype(np.float64))
    tokens = np.arange(1 + count, dtype=np.int32)
    key, value = packed.part(0, 2), packed.part(1, 2)

    def wiring(rows: IntArray) -> Wiring:
        return Wiring(source, source, joined, query, key, value, projection, rows, rows)

    ones = np.ones((1, 1, 1 + count), np.int32)
    own_bias = from_global.astype(np.float32).astype(np.float64)[:, None]
    scales = (scale,) * heads
    truths = (
        AttentionTruth(
            local_node,
            heads,
            head_dim,
            1 + count,
            scales,
            links,
            wiring(tokens[1:]),
            bias=bias,
            mixture="layer",
        ),
        AttentionTruth(
            global_node,
            heads,
            head_dim,
            1 + count,
            scales,
            ones,
            wiring(tokens[:1]),
            bias=own_bias,
            mixture="layer",
        ),
    )
    return Sample(name, g.model(), truths, inputs={"x": "randn"})
