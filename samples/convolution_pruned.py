"""Convolutions whose sparsity was learned: the forms of CondenseNet and CondenseNetV2, and random pruning."""

from __future__ import annotations

import numpy as np

from samples.builder import GraphBuilder, divided
from samples.convolution import (
    batch_norm,
    conv,
    conv_truth,
    group_links,
    hard_swish,
    selection,
    shuffle,
    shuffle_order,
)
from samples.truth import IntArray, Sample


def _condensed_links(rng: np.random.Generator, out_channels: int, in_channels: int, groups: int, kept: int) -> IntArray:
    """Learned groups: the outputs of group g (every `groups`-th one) all use the same `kept` inputs."""
    links = np.zeros((out_channels, in_channels), np.int32)
    for group in range(groups):
        inputs = np.sort(rng.choice(in_channels, kept, replace=False))
        links[np.ix_(np.arange(group, out_channels, groups), inputs)] = 1
    return links


def condensenet_train(
    *,
    channels: int = 32,
    growth: int = 16,
    groups: int = 4,
    size: int = 8,
    layers: int = 2,
    seed: int = 0,
    batch: int | None = 1,
) -> Sample:
    """CondenseNet in its training form: dense 1x1 convolutions whose pruned weights are exact zeros (1 /
    groups is left), then grouped 3x3 convolutions, each layer's output joined to its input."""
    name = "condensenet_train"
    g = GraphBuilder(name, seed=seed, batch=batch)
    spatial, inner = (size, size), 2 * growth
    x = g.input("x", channels, *spatial)
    truths = []
    for _ in range(layers):
        active = g.op("Relu", batch_norm(g, x, channels))
        links = _condensed_links(g.rng, inner, channels, groups, divided(channels, groups, "channels by groups"))
        narrow, narrow_node = conv(g, active, inner, channels, (1, 1), bias=False, live=links)
        moved = shuffle(g, narrow, inner, groups, spatial, "reshape")
        move = selection(shuffle_order(inner, groups), inner)
        truths.append(conv_truth(narrow_node, x, moved, links, (1, 1), 1, "pruned", after=move))
        active = g.op("Relu", batch_norm(g, moved, inner))
        grown, grown_node = conv(g, active, growth, inner, (3, 3), groups=groups, bias=False)
        own = group_links(growth, inner, groups)
        truths.append(conv_truth(grown_node, narrow, grown, own, (3, 3), groups, "grouped", before=move))
        x, channels = g.concat(1, x, grown), channels + growth
    g.output("y", x, channels, *spatial)
    return Sample(name, g.model(), convolutions=tuple(truths), inputs={"x": "randn"})


def condensenet_converted(
    *,
    channels: int = 32,
    growth: int = 16,
    groups: int = 4,
    size: int = 8,
    layers: int = 2,
    seed: int = 0,
    batch: int | None = 1,
) -> Sample:
    """CondenseNet converted for deployment: a Gather that repeats channels and skips others feeds grouped 1x1
    convolutions behind BatchNormalization and Relu."""
    name = "condensenet_converted"
    g = GraphBuilder(name, seed=seed, batch=batch)
    spatial, inner = (size, size), 2 * growth
    x = g.input("x", channels, *spatial)
    truths = []
    for _ in range(layers):
        # A group's inputs differ from one another; across groups they repeat.
        chosen = [
            g.rng.choice(channels, divided(channels, groups, "channels by groups"), replace=False)
            for _ in range(groups)
        ]
        order = np.concatenate(chosen).astype(np.int32)
        gathered = g.op("Gather", x, g.constant(order.astype(np.int64), "kept"), axis=1)
        active = g.op("Relu", batch_norm(g, gathered, channels))
        narrow, narrow_node = conv(g, active, inner, channels, (1, 1), groups=groups, bias=False)
        moved = shuffle(g, narrow, inner, groups, spatial, "reshape")
        move = selection(shuffle_order(inner, groups), inner)
        own = group_links(inner, channels, groups)
        pick = selection(order, channels)
        truths.append(conv_truth(narrow_node, x, moved, own, (1, 1), groups, "gathered", before=pick, after=move))
        active = g.op("Relu", batch_norm(g, moved, inner))
        grown, grown_node = conv(g, active, growth, inner, (3, 3), groups=groups, bias=False)
        own = group_links(growth, inner, groups)
        truths.append(conv_truth(grown_node, narrow, grown, own, (3, 3), groups, "grouped", before=move))
        x, channels = g.concat(1, x, grown), channels + growth
    g.output("y", x, channels, *spatial)
    return Sample(name, g.model(), convolutions=tuple(truths), inputs={"x": "randn"})


def _scatter_matrix(rng: np.random.Generator, channels: int) -> IntArray:
    """A 0/1 matrix (conv outputs, channels): every row one 1, columns with 0, 1, 2 and 3 of them."""
    counts = np.ones(channels, np.int64)
    changed = rng.permutation(channels)[:5]
    counts[changed] = [3, 0, 0, 2, 0]
    target = rng.permutation(np.repeat(np.arange(channels), counts))
    matrix = np.zeros((channels, channels), np.int32)
    matrix[np.arange(channels), target] = 1
    return matrix


def condensenet_v2(
    *,
    channels: int = 32,
    growth: int = 16,
    groups: int = 4,
    size: int = 8,
    seed: int = 0,
    batch: int | None = 1,
) -> Sample:
    """CondenseNetV2's sparse feature reactivation: new features go through a shuffle and a grouped 1x1, and a
    product with a 0/1 matrix adds the results onto old channels, to each of them none to three."""
    name = "condensenet_v2"
    g = GraphBuilder(name, seed=seed, batch=batch)
    spatial, pixels, lead = (size, size), size * size, g.rows(1)
    x = g.input("x", channels, *spatial)
    grown, grown_node = conv(g, hard_swish(g, x), growth, channels, (3, 3), groups=groups, bias=False)
    own = group_links(growth, channels, groups)
    truths = [conv_truth(grown_node, x, grown, own, (3, 3), groups, "grouped")]

    active = hard_swish(g, batch_norm(g, grown, growth))
    moved = shuffle(g, active, growth, divided(growth, groups, "growth by groups"), spatial, "reshape")
    again, again_node = conv(g, moved, channels, growth, (1, 1), groups=groups, bias=False)
    matrix = _scatter_matrix(g.rng, channels)
    rows = g.transpose(g.reshape(again, lead, channels, pixels), 0, 2, 1)
    product = g.op("MatMul", rows, g.constant(matrix.astype(np.float32), "reactivation"))
    scattered = g.reshape(g.transpose(product, 0, 2, 1), lead, channels, *spatial)
    move = selection(shuffle_order(growth, divided(growth, groups, "growth by groups")), growth)
    own = group_links(channels, growth, groups)
    truths.append(conv_truth(again_node, grown, scattered, own, (1, 1), groups, "grouped", before=move, after=matrix.T))
    joined = g.concat(1, g.op("Add", x, scattered), grown)
    g.output("y", joined, channels + growth, *spatial)
    return Sample(name, g.model(), convolutions=tuple(truths), inputs={"x": "randn"})


def pruned_random(
    *,
    out_channels: int = 24,
    in_channels: int = 32,
    density: float = 0.25,
    kernel: int = 1,
    groups: int = 1,
    size: int = 8,
    seed: int = 0,
    batch: int | None = 1,
) -> Sample:
    """A convolution pruned by random (output, input) slices, with one output and one input left without
    any."""
    name = "pruned_random"
    g = GraphBuilder(name, seed=seed, batch=batch)
    per_group = divided(in_channels, groups, "input channels by groups")
    live = (g.rng.random((out_channels, per_group)) < density).astype(np.int32)
    live[0] = 0
    live[:, 1] = 0
    source = g.op("Relu", g.input("x", in_channels, size, size))
    result, node = conv(g, source, out_channels, in_channels, (kernel, kernel), groups=groups, live=live)
    g.output("y", g.op("Relu", result), out_channels, size, size)
    links = np.zeros((out_channels, in_channels), np.int32)
    for output in range(out_channels):
        begin = output // (divided(out_channels, groups, "output channels by groups")) * per_group
        links[output, begin : begin + per_group] = live[output]
    truth = conv_truth(node, source, result, links, (kernel, kernel), groups, "pruned")
    return Sample(name, g.model(), convolutions=(truth,), inputs={"x": "randn"})
