"""Convolutions are found and described as the samples' geometry and the corpus's manifest say."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from onnxopt.discover.conv_site import ConvSite, IntArray
from onnxopt.discover.convolution import find_convolutions
from onnxopt.model.graph import symbolic_batch, view
from samples import convolution_grouped as grouped
from samples import convolution_pruned as pruned
from samples.builder import GraphBuilder
from samples.truth import ConvTruth, Sample

SAMPLES = [
    *(
        grouped.shufflenet_v1(spelling=spelling, shuffle_last=last).named(f"shufflenet_v1-{spelling}-{last}")
        for spelling in ("reshape", "gather", "einsum", "matmul")
        for last in (False, True)
    ),
    grouped.shufflenet_v2(),
    grouped.resnext(),
    grouped.dense_cnn(),
    *(grouped.grouped_nd(rank=rank) for rank in (1, 2, 3)),
    grouped.depthwise_multiplier(),
    grouped.split_convolutions(),
    pruned.condensenet_train(),
    pruned.condensenet_converted(),
    pruned.condensenet_v2(),
    pruned.pruned_random(),
    pruned.pruned_random(groups=4, kernel=3).named("pruned_random-grouped"),
    pruned.condensenet_converted(batch=None).named("condensenet_converted-dynamic"),
    grouped.split_convolutions(batch=None).named("split_convolutions-dynamic"),
]

CORPUS_SAMPLE = ["condensenet74_g4_conv.dynamo.op18", "cdnv2a_conv.legacy.op17", "shufflenet1_g2.dynamo.op18"]


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda sample: sample.name)
def test_samples_are_described_as_they_were_made(sample: Sample) -> None:
    sites, refusals = find_convolutions(view(sample.model, batch=2))
    assert refusals == []
    found = {site.nodes: site for site in sites}
    assert set(found) == {truth.nodes for truth in sample.convolutions}
    for truth in sample.convolutions:
        site = found[truth.nodes]
        for name in ("out_channels", "in_channels", "groups", "connections", "kernel", "pattern"):
            assert getattr(site, name) == getattr(truth, name), (truth.nodes, name)
        assert site.density == pytest.approx(truth.density)
        np.testing.assert_array_equal(_connectivity_to(site, truth), truth.connectivity)


def _connectivity_to(site: ConvSite, truth: ConvTruth) -> IntArray:
    """The site's connectivity to the output that the truth speaks of, which may end before a Relu."""
    if truth.output == site.after.target:
        return site.connectivity()
    assert truth.output == site.output
    return site.links().astype(np.int64) @ site.before.matrix()


def test_json_has_the_promised_fields() -> None:
    sites, _ = find_convolutions(view(pruned.pruned_random().model, batch=2))
    entry = sites[0].to_json()
    assert entry["pattern"] == "pruned"
    assert entry["kernel"] == [1, 1]
    assert set(entry) == {
        *("kind", "nodes", "out_channels", "in_channels", "connections", "density", "kernel", "groups"),
        "pattern",
    }


def test_weights_from_an_input_are_refused() -> None:
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4, 5, 5])
    w = helper.make_tensor_value_info("w", TensorProto.FLOAT, [4, 4, 1, 1])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 4, 5, 5])
    graph = helper.make_graph([helper.make_node("Conv", ["x", "w"], ["y"], name="c")], "g", [x, w], [y])
    sites, refusals = find_convolutions(view(helper.make_model(graph)))
    assert sites == []
    assert refusals[0].node == "c"
    assert "'w' are not constant" in refusals[0].reason


def test_transposed_convolution_with_groups_is_refused_and_one_without_is_not() -> None:
    for groups, expected in ((2, ["ConvTranspose"]), (1, [])):
        g = GraphBuilder("g", seed=0)
        x = g.input("x", 4, 5, 5)
        g.output("y", g.op("ConvTranspose", x, g.weight(4, 4 // groups, 1, 1), group=groups), 4, 5, 5)
        sites, refusals = find_convolutions(view(g.model()))
        assert sites == []
        assert [refusal.op for refusal in refusals] == expected


def test_parts_that_share_channels_are_not_one_site() -> None:
    g = GraphBuilder("g", seed=0)
    x = g.input("x", 8, 5, 5)
    first = g.op("Conv", g.slice(x, 1, 0, 5), g.weight(4, 5, 1, 1))
    second = g.op("Conv", g.slice(x, 1, 3, 8), g.weight(4, 5, 1, 1))
    g.output("y", g.concat(1, first, second), 8, 5, 5)
    sites, _ = find_convolutions(view(g.model()))
    assert [site.pattern for site in sites] == ["dense", "dense"]


def test_uneven_parts_of_slices_are_one_site() -> None:
    g = GraphBuilder("g", seed=0)
    x = g.input("x", 8, 5, 5)
    first = g.op("Conv", g.slice(x, 1, 0, 3), g.weight(4, 3, 1, 1))
    second = g.op("Conv", g.slice(x, 1, 3, 8), g.weight(6, 5, 1, 1))
    g.output("y", g.concat(1, first, second), 10, 5, 5)
    (site,), _ = find_convolutions(view(g.model()))
    assert (site.pattern, site.connections, site.out_channels) == ("split", 4 * 3 + 6 * 5, 10)


def _check_against_manifest(model: onnx.ModelProto, entry: dict[str, Any]) -> None:
    sites, refusals = find_convolutions(view(model, batch=2 if symbolic_batch(model) else 1))
    assert refusals == []
    known = entry["conv_sites"]
    assert len(sites) == known["total_convs"]
    kinds = {"dense": "dense", "depthwise": "depthwise", "pruned": "pruned"}
    assert Counter(kinds.get(site.pattern, "group") for site in sites) == known["kinds"]
    found: dict[tuple[Any, ...], list[tuple[Any, ...]]] = defaultdict(list)
    for site in sites:
        kind = kinds.get(site.pattern, "group")
        key = (kind, site.in_channels, site.out_channels, site.groups, site.kernel, round(site.density, 4))
        found[key].append(_composite(site))
    counts: Counter[tuple[Any, ...]] = Counter()
    for want in known["sites"]:
        names = ("kind", "Cin", "Cout", "groups")
        key = (*(want[name] for name in names), tuple(want["k"]), want["density"])
        counts[key] += want["count"]
        if "in_used" in want:
            composite = tuple(want["conn_shape"]), want["conn_density"], want["in_used"], want["in_dup"]
            assert composite in found[key], (key, want["before"], want["after"])
    assert {key: len(entries) for key, entries in found.items() if key[0] in ("group", "pruned")} == counts


def _composite(site: ConvSite) -> tuple[Any, ...]:
    connected = site.connectivity() > 0
    repeated = len(site.before.origin) - len(np.unique(site.before.origin))
    return connected.shape, round(float(connected.mean()), 4), int(connected.any(axis=0).sum()), repeated


@pytest.mark.corpus
@pytest.mark.parametrize("tag", CORPUS_SAMPLE)
def test_corpus_agrees_with_its_manifest(
    tag: str, corpus_model: Callable[[str], Path], corpus_manifest: dict[str, Any]
) -> None:
    _check_against_manifest(onnx.load(corpus_model(tag)), corpus_manifest[tag])


@pytest.mark.corpus_all
def test_whole_corpus_agrees_with_its_manifest(
    corpus_model: Callable[[str], Path], corpus_manifest: dict[str, Any]
) -> None:
    tags = [tag for tag, entry in corpus_manifest.items() if "conv_sites" in entry]
    assert len(tags) > 20
    for tag in tags:
        _check_against_manifest(onnx.load(corpus_model(tag)), corpus_manifest[tag])
