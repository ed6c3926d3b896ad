"""What convolution samples share: a Conv with known connections, channel movement, and their matrices."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from samples.builder import GraphBuilder, divided
from samples.truth import ConvPattern, ConvTruth, IntArray

ShuffleSpelling = Literal["reshape", "gather", "einsum", "matmul"]


def group_links(out_channels: int, in_channels: int, groups: int) -> IntArray:
    """Connections (outputs, inputs) of a convolution with equal groups."""
    outputs = divided(out_channels, groups, "output channels by groups")
    inputs = divided(in_channels, groups, "input channels by groups")
    block = np.ones((outputs, inputs), np.int32)
    return np.kron(np.eye(groups, dtype=np.int32), block)


def shuffle_order(channels: int, groups: int) -> IntArray:
    """Source channel of every channel behind a shuffle of `groups` groups."""
    per_group = divided(channels, groups, "channels by groups")
    return np.arange(channels, dtype=np.int32).reshape(groups, per_group).T.ravel()


def conv(
    g: GraphBuilder,
    x: str,
    out_channels: int,
    in_channels: int,
    kernel: Sequence[int],
    *,
    groups: int = 1,
    bias: bool = True,
    live: IntArray | None = None,
) -> tuple[str, str]:
    """A Conv of stride 1 that keeps the size; returns (output, node name).

    Weights keep away from zero, so that only what `live` (outputs, inputs per group) leaves out counts as
    pruned.
    """
    inputs = divided(in_channels, groups, "input channels by groups")
    shape = (out_channels, inputs, *kernel)
    spread = (inputs * int(np.prod(kernel))) ** -0.5
    sign = np.where(g.rng.random(shape) < 0.5, -1.0, 1.0)
    array = sign * g.rng.uniform(0.3, 1.7, shape) * spread
    if live is not None:
        array = array * live.reshape(*live.shape, *[1] * len(kernel))
    operands = [x, g.constant(array)]
    if bias:
        operands.append(g.weight(out_channels, stem="bias", scale=0.2))
    half = [size // 2 for size in kernel]
    result = g.op("Conv", *operands, group=groups, kernel_shape=list(kernel), pads=[*half, *half])
    return result, g.last_node


def conv_truth(
    node: str,
    source: str,
    output: str,
    links: IntArray,
    kernel: Sequence[int],
    groups: int,
    pattern: ConvPattern,
    *,
    before: IntArray | None = None,
    after: IntArray | None = None,
) -> ConvTruth:
    """The truth of one Conv with connections `links` (outputs, inputs).

    `before` (conv inputs, source channels) and `after` (output channels, conv outputs) are the movement
    matrices on the two sides; None stands for no movement.
    """
    through = links if before is None else links @ before
    through = through if after is None else after @ through
    return ConvTruth(
        (node,),
        links.shape[0],
        links.shape[1],
        groups,
        int(np.count_nonzero(links)),
        tuple(kernel),
        pattern,
        source,
        output,
        through.astype(np.int32),
    )


def dense_truth(
    node: str, source: str, output: str, out_channels: int, in_channels: int, kernel: Sequence[int]
) -> ConvTruth:
    return conv_truth(node, source, output, group_links(out_channels, in_channels, 1), kernel, 1, "dense")


def batch_norm(g: GraphBuilder, x: str, channels: int) -> str:
    gain = g.constant(g.rng.uniform(0.8, 1.2, channels), "gain")
    shift = g.weight(channels, stem="bias", scale=0.1)
    mean = g.weight(channels, stem="mean", scale=0.1)
    variance = g.constant(g.rng.uniform(0.8, 1.2, channels), "variance")
    return g.op("BatchNormalization", x, gain, shift, mean, variance)


def selection(sources: IntArray, channels: int) -> IntArray:
    """The 0/1 matrix (len(sources), channels) of a channel Gather."""
    return np.eye(channels, dtype=np.int32)[sources]


def shuffle(
    g: GraphBuilder, x: str, channels: int, groups: int, spatial: Sequence[int], spelling: ShuffleSpelling
) -> str:
    """A channel shuffle of `groups` groups in one of the spellings that exporters and users produce."""
    order = shuffle_order(channels, groups)
    per_group = divided(channels, groups, "channels by groups")
    lead = g.rows(1)
    if spelling == "gather":
        return g.op("Gather", x, g.constant(order.astype(np.int64), "order"), axis=1)
    if spelling == "einsum":
        grouped = g.reshape(x, lead, groups, per_group, *spatial)
        turned = g.op("Einsum", grouped, equation="bgchw->bcghw")
        return g.reshape(turned, lead, channels, *spatial)
    if spelling == "matmul":
        pixels = int(np.prod(spatial))
        rows = g.transpose(g.reshape(x, lead, channels, pixels), 0, 2, 1)
        matrix = g.constant(selection(order, channels).T.astype(np.float32), "permutation")
        moved = g.transpose(g.op("MatMul", rows, matrix), 0, 2, 1)
        return g.reshape(moved, lead, channels, *spatial)
    axes = [0, 2, 1, *range(3, 3 + len(spatial))]
    turned = g.transpose(g.reshape(x, lead, groups, per_group, *spatial), *axes)
    return g.reshape(turned, lead, channels, *spatial)


def hard_swish(g: GraphBuilder, x: str) -> str:
    """x * clip(x + 3, 0, 6) / 6 in four nodes, as it is exported below opset 14."""
    shifted = g.op("Add", x, g.constant(3.0, "three"))
    gate = g.op("Clip", shifted, g.constant(0.0, "zero"), g.constant(6.0, "six"))
    return g.op("Div", g.op("Mul", x, gate), g.constant(6.0, "six"))
