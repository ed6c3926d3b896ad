"""Convolutions that are grouped in their own right: ShuffleNet, ResNeXt, depthwise, and parts of a Split."""

from __future__ import annotations

import numpy as np

from samples.builder import GraphBuilder, divided
from samples.convolution import (
    ShuffleSpelling,
    conv,
    conv_truth,
    dense_truth,
    group_links,
    hard_swish,
    selection,
    shuffle,
    shuffle_order,
)
from samples.truth import ConvTruth, Sample


def shufflenet_v1(
    *,
    channels: int = 24,
    groups: int = 3,
    size: int = 8,
    spelling: ShuffleSpelling = "reshape",
    shuffle_last: bool = False,
    seed: int = 0,
    batch: int | None = 1,
) -> Sample:
    """A ShuffleNet unit: grouped 1x1, Relu, shuffle, depthwise 3x3, grouped 1x1.

    `shuffle_last` puts the shuffle behind the depthwise convolution, as one of the two published versions
    does.
    """
    name = "shufflenet_v1"
    g = GraphBuilder(name, seed=seed, batch=batch)
    spatial = (size, size)
    x = g.input("x", channels, *spatial)
    source = g.op("Relu", x)
    move = selection(shuffle_order(channels, groups), channels)
    own = group_links(channels, channels, groups)
    diagonal = group_links(channels, channels, channels)

    first, first_node = conv(g, source, channels, channels, (1, 1), groups=groups)
    active = g.op("Relu", first)
    if shuffle_last:
        depth, depth_node = conv(g, active, channels, channels, (3, 3), groups=channels)
        moved = shuffle(g, depth, channels, groups, spatial, spelling)
        truths = [
            conv_truth(first_node, source, first, own, (1, 1), groups, "grouped"),
            conv_truth(depth_node, first, moved, diagonal, (3, 3), channels, "depthwise", after=move),
        ]
        last, last_node = conv(g, moved, channels, channels, (1, 1), groups=groups)
        truths.append(conv_truth(last_node, depth, last, own, (1, 1), groups, "grouped", before=move))
    else:
        moved = shuffle(g, active, channels, groups, spatial, spelling)
        depth, depth_node = conv(g, moved, channels, channels, (3, 3), groups=channels)
        last, last_node = conv(g, depth, channels, channels, (1, 1), groups=groups)
        truths = [
            conv_truth(first_node, source, first, own, (1, 1), groups, "grouped"),
            conv_truth(depth_node, first, depth, diagonal, (3, 3), channels, "depthwise", before=move),
            conv_truth(last_node, depth, last, own, (1, 1), groups, "grouped"),
        ]
    g.output("y", g.op("Relu", g.op("Add", source, last)), channels, *spatial)
    return Sample(name, g.model(), convolutions=tuple(truths), inputs={"x": "randn"})


def shufflenet_v2(*, channels: int = 16, size: int = 8, seed: int = 0, batch: int | None = 1) -> Sample:
    """A ShuffleNet v2 unit: channels dealt into two halves, one of them convolved, both joined by a
    Concat."""
    name = "shufflenet_v2"
    g = GraphBuilder(name, seed=seed, batch=batch)
    half, spatial = divided(channels, 2, "channels by halves"), (size, size)
    x = g.input("x", channels, *spatial)
    source = g.op("Relu", x)
    pairs = g.reshape(source, g.rows(half), 2, size * size)
    halves = g.reshape(g.transpose(pairs, 1, 0, 2), 2, g.rows(1), half, *spatial)
    kept, worked = g.select(halves, 0), g.select(halves, 1)
    deal = selection(np.arange(1, channels, 2, dtype=np.int32), channels)

    first, first_node = conv(g, worked, half, half, (1, 1))
    depth, depth_node = conv(g, g.op("Relu", first), half, half, (3, 3), groups=half)
    last, last_node = conv(g, depth, half, half, (1, 1))
    joined = g.concat(1, kept, g.op("Relu", last))
    g.output("y", joined, channels, *spatial)
    every = group_links(half, half, 1)
    truths = (
        conv_truth(first_node, source, first, every, (1, 1), 1, "dense", before=deal),
        conv_truth(depth_node, first, depth, group_links(half, half, half), (3, 3), half, "depthwise"),
        conv_truth(last_node, depth, last, every, (1, 1), 1, "dense"),
    )
    return Sample(name, g.model(), convolutions=truths, inputs={"x": "randn"})


def resnext(*, channels: int = 32, groups: int = 8, size: int = 8, seed: int = 0, batch: int | None = 1) -> Sample:
    """A ResNeXt bottleneck: dense 1x1, grouped 3x3, dense 1x1, with the residual connection."""
    name = "resnext"
    g = GraphBuilder(name, seed=seed, batch=batch)
    inner, spatial = channels // 2, (size, size)
    source = g.op("Relu", g.input("x", channels, *spatial))
    first, first_node = conv(g, source, inner, channels, (1, 1))
    middle, middle_node = conv(g, g.op("Relu", first), inner, inner, (3, 3), groups=groups)
    last, last_node = conv(g, g.op("Relu", middle), channels, inner, (1, 1))
    g.output("y", g.op("Relu", g.op("Add", last, source)), channels, *spatial)
    truths = (
        dense_truth(first_node, source, first, inner, channels, (1, 1)),
        conv_truth(middle_node, first, middle, group_links(inner, inner, groups), (3, 3), groups, "grouped"),
        dense_truth(last_node, middle, last, channels, inner, (1, 1)),
    )
    return Sample(name, g.model(), convolutions=truths, inputs={"x": "randn"})


def dense_cnn(*, channels: int = 16, size: int = 8, seed: int = 0, batch: int | None = 1) -> Sample:
    """Ordinary convolutions of the kernels that VGG, ResNet and Inception use."""
    name = "dense_cnn"
    g = GraphBuilder(name, seed=seed, batch=batch)
    x = g.input("x", 3, size, size)
    width, truths = 3, []
    for kernel in ((3, 3), (1, 1), (1, 7), (5, 5)):
        result, node = conv(g, x, channels, width, kernel)
        truths.append(dense_truth(node, x, result, channels, width, kernel))
        x, width = g.op("Relu", result), channels
    g.output("y", x, channels, size, size)
    return Sample(name, g.model(), convolutions=tuple(truths), inputs={"x": "randn"})


def grouped_nd(
    *, rank: int = 1, channels: int = 16, groups: int = 4, size: int = 6, seed: int = 0, batch: int | None = 1
) -> Sample:
    """A shuffle between two grouped convolutions over `rank` (1 to 3) spatial dimensions."""
    name = f"grouped_conv{rank}d"
    g = GraphBuilder(name, seed=seed, batch=batch)
    spatial, kernel = (size,) * rank, (3,) * rank
    source = g.op("Relu", g.input("x", channels, *spatial))
    links = group_links(channels, channels, groups)
    first, first_node = conv(g, source, channels, channels, kernel, groups=groups)
    moved = shuffle(g, g.op("Relu", first), channels, groups, spatial, "reshape")
    last, last_node = conv(g, moved, channels, channels, kernel, groups=groups)
    g.output("y", last, channels, *spatial)
    move = selection(shuffle_order(channels, groups), channels)
    truths = (
        conv_truth(first_node, source, first, links, kernel, groups, "grouped"),
        conv_truth(last_node, first, last, links, kernel, groups, "grouped", before=move),
    )
    return Sample(name, g.model(), convolutions=truths, inputs={"x": "randn"})


def depthwise_multiplier(
    *, channels: int = 8, multiplier: int = 3, size: int = 8, seed: int = 0, batch: int | None = 1
) -> Sample:
    """A depthwise 3x3 with several outputs per channel, then a dense 1x1, with HardSwish written out
    between."""
    name = "depthwise_multiplier"
    g = GraphBuilder(name, seed=seed, batch=batch)
    wide, spatial = channels * multiplier, (size, size)
    source = g.op("Relu", g.input("x", channels, *spatial))
    depth, depth_node = conv(g, source, wide, channels, (3, 3), groups=channels)
    last, last_node = conv(g, hard_swish(g, depth), channels, wide, (1, 1))
    g.output("y", last, channels, *spatial)
    truths = (
        conv_truth(depth_node, source, depth, group_links(wide, channels, channels), (3, 3), channels, "depthwise"),
        dense_truth(last_node, depth, last, channels, wide, (1, 1)),
    )
    return Sample(name, g.model(), convolutions=truths, inputs={"x": "randn"})


def split_convolutions(
    *, channels: int = 24, parts: int = 3, size: int = 8, seed: int = 0, batch: int | None = 1
) -> Sample:
    """One grouped convolution spelled as dense ones on the parts of a Split, joined by a Concat."""
    name = "split_convolutions"
    g = GraphBuilder(name, seed=seed, batch=batch)
    spatial, part = (size, size), divided(channels, parts, "channels by parts")
    source = g.op("Relu", g.input("x", channels, *spatial))
    pieces = g.split_op("Split", source, outputs=parts, axis=1, num_outputs=parts)
    results, nodes = zip(*(conv(g, piece, part, part, (3, 3)) for piece in pieces), strict=True)
    joined = g.concat(1, *results)
    g.output("y", g.op("Relu", joined), channels, *spatial)
    links = group_links(channels, channels, parts)
    truth = ConvTruth(tuple(nodes), channels, channels, parts, int(links.sum()), (3, 3), "split", source, joined, links)
    return Sample(name, g.model(), convolutions=(truth,), inputs={"x": "randn"})
