"""Every sample is valid, runs, is deterministic, and does what its ground truth says."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import pytest

from samples import SAMPLES, Sample, build
from samples.attention_masked import mask_of_kind
from samples.reference import attention_error, initializers, measured_connectivity, run

SMALL = {"dense_masked": {"tokens": 128, "dim": 32, "heads": 2}}
ATTENTION = [name for name in SAMPLES if build(name, **SMALL.get(name, {})).attention]
CONVOLUTION = [name for name in SAMPLES if build(name, **SMALL.get(name, {})).convolutions]


def small(name: str, **options: object) -> Sample:
    return build(name, **SMALL.get(name, {}), **options)


@pytest.mark.parametrize("batch", [1, 2, None])
@pytest.mark.parametrize("name", SAMPLES)
def test_sample_is_valid_and_gives_finite_outputs_of_order_one(name: str, batch: int | None) -> None:
    sample = small(name, batch=batch)
    onnx.checker.check_model(sample.model, full_check=True)
    feeds = sample.draw(seed=1, batch=3)
    assert set(feeds) == set(sample.inputs)
    names = [value.name for value in sample.model.graph.output]
    for output in run(sample.model, feeds, names):
        assert output.shape[0] == (3 if batch is None else batch)
        assert np.isfinite(output).all() == (name != "empty_nan")
        assert 0.05 < np.nanstd(output) < 5.0


@pytest.mark.parametrize("name", SAMPLES)
def test_equal_arguments_give_equal_bytes_and_other_seeds_do_not(name: str) -> None:
    assert small(name).to_bytes() == small(name).to_bytes()
    assert small(name).to_bytes() != small(name, seed=1).to_bytes()
    assert small(name).name == small(name).model.graph.name == name


@pytest.mark.parametrize("name", SAMPLES)
def test_node_names_are_unique_and_the_truth_names_existing_ones(name: str) -> None:
    sample = small(name)
    names = [node.name for node in sample.model.graph.node]
    assert len(names) == len(set(names)) and all(names)
    wanted = {truth.node for truth in sample.attention}
    wanted.update(node for truth in sample.convolutions for node in truth.nodes)
    assert wanted <= set(names)


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("name", ATTENTION)
def test_attention_over_the_true_links_equals_the_models_own_tensor(name: str, seed: int) -> None:
    sample = small(name, batch=None, seed=seed)
    for truth in sample.attention:
        assert attention_error(sample, truth, seed=seed) < 1e-5


@pytest.mark.parametrize("name", ATTENTION)
def test_one_wrong_link_does_not_go_unnoticed(name: str) -> None:
    sample = small(name, batch=None)
    for truth in sample.attention:
        if truth.runtime == "policy":
            continue
        links = truth.links.copy()
        row = int(np.flatnonzero(truth.live)[0])
        column = int(np.flatnonzero(links[0, row])[-1])
        links[0, row, column] += 1
        assert attention_error(sample, replace(truth, links=links)) > 1e-4


@pytest.mark.parametrize("name", [name for name in ATTENTION if "swin" in name or "region" in name])
def test_a_wrong_scale_or_bias_does_not_go_unnoticed(name: str) -> None:
    sample = small(name, batch=None)
    truth = sample.attention[-1]
    assert truth.bias is not None
    assert attention_error(sample, replace(truth, bias=truth.bias[:, ::-1])) > 1e-3
    assert attention_error(sample, replace(truth, scale=tuple(1.02 * value for value in truth.scale))) > 1e-4


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("name", CONVOLUTION)
def test_connectivity_counts_the_paths_in_the_model(name: str, seed: int) -> None:
    sample = small(name, batch=None, seed=seed)
    for truth in sample.convolutions:
        assert np.array_equal(measured_connectivity(sample, truth), truth.connectivity)


@pytest.mark.parametrize("name", CONVOLUTION)
def test_conv_truth_agrees_with_the_nodes_and_their_weights(name: str) -> None:
    sample = small(name)
    arrays = initializers(sample.model)
    nodes = {node.name: node for node in sample.model.graph.node}
    for truth in sample.convolutions:
        weights = [arrays[nodes[node].input[1]] for node in truth.nodes]
        assert sum(weight.shape[0] for weight in weights) == truth.out_channels
        assert weights[0].shape[1] * truth.groups == truth.in_channels
        assert weights[0].shape[2:] == truth.kernel
        live = sum(int(weight.any(axis=tuple(range(2, weight.ndim))).sum()) for weight in weights)
        assert live == truth.connections


def test_counts_follow_from_the_geometry() -> None:
    plain, shifted = build("swin").attention
    assert (plain.pairs, plain.pairs_total, plain.density) == (64 * 16, 3 * 64 * 16, 0.25)
    # Shifting by half a window cuts the border windows in two and the corner window in four.
    assert shifted.pairs == (4**2 + 2 * 2**2) ** 2
    padded, _ = build("swin_padded").attention
    assert padded.pairs == (4**2 + 4**2 + 2**2) ** 2
    assert padded.pairs + padded.phantom_pairs == 100 * 16
    assert build("neighbourhood").attention[0].pairs == 64 * 9
    local, summary = build("longformer2d").attention
    # Chunks have 2, 3, 3 and 2 neighbours along each axis, themselves counted.
    assert local.pairs == 256 + 16 * 16 * (2 + 3 + 3 + 2) ** 2
    assert (summary.queries, summary.keys, summary.pairs) == (1, 257, 257)
    assert build("longformer2d_exact").attention[0].pairs == 256 + (16 * 9 - 2 * (1 + 2 + 3 + 4)) ** 2
    regions, local = build("regionvit").attention
    assert (regions.pairs, local.pairs) == (16**2, 16 * 10**2)
    assert build("dynamicvit").attention[1].pairs == 46**2


def test_windows_of_the_published_sizes_have_the_published_counts() -> None:
    plain, shifted = build("swin", size=56, window=7, dim=8, heads=1).attention
    assert (plain.pairs, shifted.pairs) == (153_664, 135_424)
    padded = build("swin_padded", size=64, window=7, dim=8, heads=1).attention[0]
    assert (padded.pairs, padded.phantom_pairs) == (195_364, 5_340)
    assert build("neighbourhood", size=56, kernel=7, dim=2, heads=1).attention[0].pairs == 153_664
    local, summary = build("longformer2d", size=56, chunk=7, dim=8, heads=1).attention
    assert (local.pairs, local.queries, summary.pairs) == (1_165_220, 3_136, 3_137)


def test_regionvit_masks_padded_tokens_and_keeps_their_rows_uniform() -> None:
    truth = build("regionvit_masked").attention[1]
    assert truth.empty_rows == 12 * 12 - 11 * 11
    assert truth.queries == 16 + 11 * 11
    assert truth.empty_result == "uniform"


def test_bigbird_repeats_keys_and_masks_at_run_time() -> None:
    parts = build("bigbird").attention
    assert len(parts) == 5
    assert max(int(truth.links.max()) for truth in parts) > 1
    assert all(truth.runtime_mask for truth in parts)
    # Every middle query has a first, a last, three neighbouring and two random blocks of four keys.
    assert parts[2].pairs == 24 * 7 * 4


def test_heads_may_differ() -> None:
    truth = build("per_head_masks").attention[0]
    assert (truth.distinct_masks, truth.links.shape[0]) == (3, 3)
    assert truth.pairs * 3 == truth.pairs_total == int(truth.links.sum())


@pytest.mark.parametrize("result", ["uniform", "unmasked", "zero", "nan"])
def test_empty_rows_are_counted_and_named(result: str) -> None:
    truth = build(f"empty_{result}").attention[0]
    assert (truth.queries, truth.empty_rows, truth.empty_result) == (27, 5, result)


@pytest.mark.parametrize("kind", ["clustered", "banded", "window", "longformer", "random"])
@pytest.mark.parametrize("density", [0.05, 0.1])
def test_dense_masks_stay_within_their_density(kind: str, density: float) -> None:
    sample = build("dense_masked", kind=kind, density=density, dim=12, heads=2)
    truth = sample.attention[0]
    assert 0.5 * density < truth.density <= density
    assert truth.adjacency[0].diagonal().all() and truth.empty_rows == 0


def test_mask_kinds_have_their_shape() -> None:
    rng = np.random.default_rng(0)
    band = mask_of_kind("banded", 64, 0.1, rng)
    assert not band[0, 6:].any()
    assert mask_of_kind("longformer", 256, 0.1, rng)[0].all()
    clustered = mask_of_kind("clustered", 64, 0.1, rng)
    assert len({row.tobytes() for row in clustered}) == -(-64 // 6)


def test_the_ways_to_spell_a_shuffle_compute_the_same() -> None:
    outputs = []
    for name in ("shufflenet_v1", "shuffle_gather", "shuffle_einsum", "shuffle_matmul"):
        sample = build(name)
        outputs.append(run(sample.model, sample.draw(3), ["y"])[0])
    for other in outputs[1:]:
        assert np.abs(other - outputs[0]).max() < 1e-6


def test_patterns_have_their_defining_property() -> None:
    converted = build("condensenet_converted").convolutions[0]
    used = converted.connectivity.any(axis=0)
    assert not used.all()
    assert (converted.connectivity.sum(axis=0) > converted.out_channels // 4).any()
    trained = build("condensenet_train").convolutions[0]
    assert (trained.density, trained.groups, trained.pattern) == (0.25, 1, "pruned")
    matrix = next(v for k, v in initializers(build("condensenet_v2").model).items() if "reactivation" in k)
    assert set(matrix.sum(axis=0)) == {0, 1, 2, 3}
    wide = build("depthwise_multiplier").convolutions[0]
    assert (wide.groups, wide.out_channels) == (wide.in_channels, 3 * wide.in_channels)
    assert len(build("split_convolutions").convolutions[0].nodes) == 3
    pruned = build("pruned_random").convolutions[0].connectivity
    assert not pruned[0].any() and not pruned[:, 1].any()


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("swin", {"heads": 5}, "24 does not divide by 5"),
        ("shufflenet_v1", {"groups": 5}, "24 does not divide by 5"),
        ("split_convolutions", {"parts": 5}, "24 does not divide by 5"),
        ("neighbourhood", {"kernel": 9}, "kernel 9 does not fit"),
        ("dense_masked", {"density": 1.5}, "density 1.5"),
        ("per_head_masks", {"density": 0.001}, "density 0.001"),
        ("dynamicvit", {"kept": 65}, "kept 65"),
        ("bigbird", {"blocks": 5}, "blocks 5"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(name: str, options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(name, **options)
