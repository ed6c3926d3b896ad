"""Attention in windows of a token grid: Swin and its spellings, and a gathered neighbourhood."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from samples.builder import GraphBuilder, divided, require
from samples.convolution import dense_truth
from samples.truth import AttentionTruth, FloatArray, IntArray, Projection, Sample, Wiring

SHIFT_MASK = -100.0


@dataclass(frozen=True)
class _Grid:
    """A token grid, padded at its lower and right border to whole windows, then rolled by `shift`."""

    height: int
    width: int
    window: int
    shift: int

    @property
    def padded(self) -> tuple[int, int]:
        return (
            -(-self.height // self.window) * self.window,
            -(-self.width // self.window) * self.window,
        )

    @property
    def windows(self) -> int:
        rows, columns = self.padded
        return rows * columns // self.window**2

    def window_rows(self) -> IntArray:
        """Padded-grid positions (row-major) in window order: (windows, window * window)."""
        rows, columns = self.padded
        positions = np.arange(rows * columns, dtype=np.int32).reshape(rows, columns)
        rolled = np.roll(positions, (-self.shift, -self.shift), (0, 1))
        w = self.window
        blocks = rolled.reshape(rows // w, w, columns // w, w).transpose(0, 2, 1, 3)
        return blocks.reshape(-1, w * w)

    def regions(self) -> IntArray:
        """Per window and slot, which side of the roll's seam the token lies on: (windows, window * window).

        Two tokens of one window may meet only if neither axis wrapped around between them.
        """
        rows, columns = self.padded
        rolled_row = np.arange(rows)[:, None] >= rows - self.shift
        rolled_column = np.arange(columns)[None, :] >= columns - self.shift
        side = (2 * rolled_row + rolled_column).astype(np.int32)
        w = self.window
        return side.reshape(rows // w, w, columns // w, w).transpose(0, 2, 1, 3).reshape(-1, w * w)


def _relative_index(window: int) -> IntArray:
    """Row of the relative position table for every pair of slots in a window."""
    r, c = np.divmod(np.arange(window * window, dtype=np.int32), window)
    span = 2 * window - 1
    index: IntArray = (r[:, None] - r[None, :] + window - 1) * span + (c[:, None] - c[None, :] + window - 1)
    return index


def _window_links(grid: _Grid, bias: FloatArray) -> tuple[IntArray, FloatArray]:
    """Links and biases of the real tokens' rows; phantom columns follow the real tokens."""
    rows, columns = grid.padded
    real_column = np.full(rows * columns, -1, np.int64)
    inside = np.zeros((rows, columns), bool)
    inside[: grid.height, : grid.width] = True
    real = np.flatnonzero(inside.ravel())
    phantom = np.flatnonzero(~inside.ravel())
    real_column[real] = np.arange(real.size)
    real_column[phantom] = real.size + np.arange(phantom.size)

    links = np.zeros((rows * columns, rows * columns), np.int32)
    values = np.zeros((bias.shape[0], rows * columns, rows * columns))
    for members, side in zip(real_column[grid.window_rows()], grid.regions(), strict=True):
        links[np.ix_(members, members)] = side[:, None] == side[None, :]
        for head in range(bias.shape[0]):
            values[head][np.ix_(members, members)] = bias[head]
    return links[None, : real.size], values[:, : real.size]


@dataclass(frozen=True)
class _Style:
    """How a published model spells the part between projection and softmax."""

    fused: bool = False
    cosine: bool = False
    traced: bool = False


def _scores(g: GraphBuilder, qkv: str, grid: _Grid, dim: int, style: _Style, scale: list[float]) -> tuple[str, str]:
    """From packed rows (windows, slots, 3 * dim) to (scores, values); `scale` has one entry per head."""
    heads = len(scale)
    slots, head_dim = grid.window**2, divided(dim, heads, "dim by heads")
    lead = g.rows(grid.windows)
    packed = g.transpose(g.reshape(qkv, lead, slots, 3, heads, head_dim), 2, 0, 3, 1, 4)
    q, k, v = g.unbind(packed, 3)
    if style.cosine:
        q, k = (_normalised(g, x, [lead, heads, slots, head_dim]) for x in (q, k))
        products = g.op("MatMul", q, g.transpose(k, 0, 1, 3, 2))
        factors = g.constant(np.array(scale).reshape(heads, 1, 1), "logit_scale")
        return g.op("Mul", products, factors), v
    if style.fused:
        # The fused operator's decomposition scales both operands and transposes k as a 3-D tensor.
        flat = g.transpose(g.reshape(k, -1, slots, head_dim), 0, 2, 1)
        k = g.scaled(g.reshape(flat, lead, heads, head_dim, slots), head_dim**-0.25)
        return g.op("MatMul", g.scaled(q, head_dim**-0.25), k), v
    return g.op("MatMul", g.scaled(q, head_dim**-0.5), g.transpose(k, 0, 1, 3, 2)), v


def _normalised(g: GraphBuilder, x: str, shape: list[int]) -> str:
    """x / max(|x|, 1e-12) along the channels, with the norm expanded to x's shape."""
    axis = g.constant(np.array([-1], np.int64), "axes")
    norm = g.op("ReduceL2", x, axis, keepdims=1)
    floor = g.op("Clip", norm, g.constant(np.float32(1e-12), "floor"))
    target = g.op("Shape", x) if g.batch is None else g.constant(np.array(shape, np.int64), "shape")
    return g.op("Div", x, g.op("Expand", floor, target))


def _block(g: GraphBuilder, x: str, grid: _Grid, heads: int, dim: int, style: _Style) -> tuple[str, AttentionTruth]:
    """One window attention with its residual connection, on tokens (height, width, dim)."""
    rows, columns = grid.padded
    w, slots, head_dim = grid.window, grid.window**2, divided(dim, heads, "dim by heads")
    source = g.layer_norm(x, dim)
    moved = g.pad(source, [0, 0, 0, 0], [0, rows - grid.height, columns - grid.width, 0])
    if grid.shift:
        moved = g.roll(g.roll(moved, 1, -grid.shift, rows), 2, -grid.shift, columns)
    parted = g.reshape_keeping_last(moved, g.rows(1), rows // w, w, columns // w, w, dim)
    windows = g.reshape_keeping_last(g.transpose(parted, 0, 1, 3, 2, 4, 5), g.rows(grid.windows), slots, dim)
    qkv, packed = g.linear(windows, dim, 3 * dim)
    scale = [head_dim**-0.5] * heads
    if style.cosine:
        scale = [float(value) for value in np.exp(g.rng.uniform(0.5, 2.0, heads)).astype(np.float32)]
    scores, values = _scores(g, qkv, grid, dim, style, scale)

    table = g.rng.standard_normal(((2 * w - 1) ** 2, heads)).astype(np.float32)
    bias = table[_relative_index(w)].transpose(2, 0, 1)
    scores = g.op("Add", scores, g.constant(bias[None], "relative_bias"))
    if grid.shift:
        side = grid.regions()
        mask = np.where(side[:, :, None] == side[:, None, :], 0.0, SHIFT_MASK)
        split = g.reshape(scores, g.rows(1), grid.windows, heads, slots, slots)
        masked = g.op("Add", split, g.unsqueeze(g.constant(mask, "shift_mask"), 0, 2))
        scores = g.reshape(masked, g.rows(grid.windows), heads, slots, slots)
    weights = g.op("Softmax", scores, axis=-1)
    node = g.last_node
    merged = g.transpose(g.op("MatMul", weights, values), 0, 2, 1, 3)
    joined, projection = g.linear(g.reshape(merged, g.rows(grid.windows), slots, dim), dim, dim)
    back = g.transpose(g.reshape(joined, g.rows(1), rows // w, columns // w, w, w, dim), 0, 1, 3, 2, 4, 5)
    tokens = g.reshape_keeping_last(back, g.rows(1), rows, columns, dim)
    if grid.shift:
        tokens = g.roll(g.roll(tokens, 1, grid.shift, rows), 2, grid.shift, columns)
    if grid.padded != (grid.height, grid.width):
        tokens = g.slice(g.slice(tokens, 1, 0, grid.height), 2, 0, grid.width)

    count = grid.height * grid.width
    links, biases = _window_links(grid, bias.astype(np.float64))
    order = np.arange(count, dtype=np.int32)
    query, key, value = (packed.part(index, 3) for index in range(3))
    wiring = Wiring(source, source, tokens, query, key, value, projection, order, order)
    truth = AttentionTruth(node, heads, head_dim, count, tuple(scale), links, wiring, bias=biases, cosine=style.cosine)
    return g.op("Add", x, tokens), truth


def _swin(name: str, grids: list[_Grid], dim: int, heads: int, seed: int, batch: int | None, style: _Style) -> Sample:
    opset = 17 if style.traced else 18
    g = GraphBuilder(name, seed=seed, batch=batch, opset=opset, traced=style.traced)
    height, width = grids[0].height, grids[0].width
    x = g.input("x", height, width, dim)
    truths = []
    for grid in grids:
        x, truth = _block(g, x, grid, heads, dim, style)
        truths.append(truth)
    g.output("y", x, height, width, dim)
    return Sample(name, g.model(), tuple(truths), inputs={"x": "randn"})


def swin(
    *, size: int = 8, window: int = 4, dim: int = 24, heads: int = 3, seed: int = 0, batch: int | None = 1
) -> Sample:
    """A plain and a shifted window attention: packed qkv, q * scale, relative bias, shift mask of -100."""
    grids = [_Grid(size, size, window, shift) for shift in (0, window // 2)]
    return _swin("swin", grids, dim, heads, seed, batch, _Style())


def swin_traced(
    *, size: int = 8, window: int = 4, dim: int = 24, heads: int = 3, seed: int = 0, batch: int | None = 1
) -> Sample:
    """`swin` at opset 17 as the tracing exporter writes it, with shapes computed in the graph."""
    grids = [_Grid(size, size, window, shift) for shift in (0, window // 2)]
    return _swin("swin_traced", grids, dim, heads, seed, batch, _Style(traced=True))


def swin_fused(
    *, size: int = 8, window: int = 4, dim: int = 24, heads: int = 3, seed: int = 0, batch: int | None = 1
) -> Sample:
    """`swin` as the fused operator is decomposed: the root of the scale on q and on k."""
    grids = [_Grid(size, size, window, shift) for shift in (0, window // 2)]
    return _swin("swin_fused", grids, dim, heads, seed, batch, _Style(fused=True))


def swin_v2(
    *, size: int = 8, window: int = 4, dim: int = 24, heads: int = 3, seed: int = 0, batch: int | None = 1
) -> Sample:
    """Cosine attention: q and k divided by their norms, then a scale of its own for every head."""
    return _swin("swin_v2", [_Grid(size, size, window, window // 2)], dim, heads, seed, batch, _Style(cosine=True))


def swin_padded(
    *, size: int = 10, window: int = 4, dim: int = 24, heads: int = 3, seed: int = 0, batch: int | None = 1
) -> Sample:
    """`swin` at a size that is no multiple of the window: zero rows enter the projection and become keys."""
    grids = [_Grid(size, size, window, shift) for shift in (0, window // 2)]
    return _swin("swin_padded", grids, dim, heads, seed, batch, _Style())


def _nearest_start(length: int, kernel: int) -> IntArray:
    """First of the `kernel` nearest positions for every position of an axis."""
    return np.clip(np.arange(length, dtype=np.int32) - kernel // 2, 0, length - kernel)


def neighbourhood(
    *, size: int = 8, kernel: int = 3, dim: int = 16, heads: int = 2, seed: int = 0, batch: int | None = 1
) -> Sample:
    """Every token sees the `kernel` x `kernel` tokens nearest to it; K and V are gathered per query."""
    require(kernel <= size, f"kernel {kernel} does not fit into size {size}")
    g = GraphBuilder("neighbourhood", seed=seed, batch=batch)
    count, head_dim, near = size * size, divided(dim, heads, "dim by heads"), kernel * kernel
    x = g.input("x", dim, size, size)
    conv_in = g.op("Relu", x)
    weight = g.weight(3 * dim, dim, 1, 1, scale=dim**-0.5)
    bias = g.weight(3 * dim, stem="bias", scale=0.2)
    qkv = g.op("Conv", conv_in, weight, bias, kernel_shape=[1, 1])
    convolutions = [dense_truth(g.last_node, conv_in, qkv, 3 * dim, dim, (1, 1))]
    packed = g.transpose(g.reshape(qkv, g.rows(1), 3, heads, head_dim, count), 1, 0, 2, 4, 3)
    q, k, v = (g.select(packed, index) for index in range(3))

    row, column = np.divmod(np.arange(count), size)
    offset_r, offset_c = np.divmod(np.arange(near), kernel)
    start = _nearest_start(size, kernel)
    key_r = start[row][:, None] + offset_r
    key_c = start[column][:, None] + offset_c
    keys = key_r * size + key_c
    span = 2 * kernel - 1
    relative = (key_r - row[:, None] + kernel - 1) * span + (key_c - column[:, None] + kernel - 1)

    index = g.unsqueeze(g.constant(keys.astype(np.int64), "neighbours"), -1)
    near_k = g.transpose(g.op("GatherND", g.transpose(k, 2, 0, 1, 3), index, batch_dims=0), 2, 3, 0, 4, 1)
    near_v = g.transpose(g.op("GatherND", g.transpose(v, 2, 0, 1, 3), index, batch_dims=0), 2, 3, 0, 1, 4)
    scores = g.op("MatMul", g.unsqueeze(g.scaled(q, head_dim**-0.5), 3), near_k)
    table = g.weight(span * span, heads, stem="position_table", scale=0.7)
    position = g.unsqueeze(g.constant(relative.astype(np.int64), "positions"), -1)
    looked_up = g.transpose(g.op("GatherND", table, position, batch_dims=0), 2, 0, 1)
    weights = g.op("Softmax", g.op("Add", scores, g.unsqueeze(looked_up, 2)), axis=-1)
    node = g.last_node
    mixed = g.squeeze(g.op("MatMul", weights, near_v), 3)
    image = g.reshape(g.transpose(mixed, 0, 1, 3, 2), g.rows(1), dim, size, size)
    out_weight = g.weight(dim, dim, 1, 1, scale=dim**-0.5)
    out_bias = g.weight(dim, stem="bias", scale=0.2)
    projected = g.op("Conv", image, out_weight, out_bias, kernel_shape=[1, 1])
    convolutions.append(dense_truth(g.last_node, image, projected, dim, dim, (1, 1)))
    g.output("y", g.op("Add", x, projected), dim, size, size)

    links = np.zeros((1, count, count), np.int32)
    biases = np.zeros((heads, count, count))
    np.put_along_axis(links[0], keys, 1, 1)
    for head in range(heads):
        np.put_along_axis(biases[head], keys, g.arrays[table].astype(np.float64)[relative, head], 1)
    order = np.arange(count, dtype=np.int32)
    whole = Projection(weight, bias, 0, 3 * dim)
    query, key, value = (whole.part(index, 3) for index in range(3))
    projection = Projection(out_weight, out_bias, 0, dim)
    wiring = Wiring(conv_in, conv_in, projected, query, key, value, projection, order, order, channels_first=True)
    truth = AttentionTruth(node, heads, head_dim, count, (head_dim**-0.5,) * heads, links, wiring, bias=biases)
    return Sample("neighbourhood", g.model(), (truth,), tuple(convolutions), {"x": "randn"})
