"""The methods that ours is compared with: what they compute, checked against brute force and known figures."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from benchmarks.planner_masks import hidden_blocks, longformer, neighbourhood, random_links, site_of
from onnxopt.discover.attention_site import AttentionSite
from onnxopt.plan.attention_cost import AttentionCost
from onnxopt.plan.baselines import Baseline, attention_baselines
from onnxopt.plan.conv_baselines import Parts, conv_baselines
from onnxopt.plan.greedy_blocks import LEAST_DENSITY, greedy_blocks
from onnxopt.plan.group_conv_cost import GroupConvCost
from onnxopt.plan.strips import coded, make_strip
from onnxopt.target import GpuProfile, load_target
from tests.plan.sites import key_lists


@pytest.fixture(scope="module")
def gpu() -> GpuProfile:
    profile = load_target("sm_90").gpu
    assert profile is not None
    return profile


def masked_site(counts: NDArray[np.int64], heads: int = 2) -> AttentionSite:
    return site_of("made", key_lists(counts), len(counts), heads, 32)


def random_mask(tokens: int, density: float, seed: int) -> NDArray[np.int64]:
    mask = np.random.default_rng(seed).random((tokens, tokens)) < density
    mask[:, 0] = True
    return mask.astype(np.int64)


def by_method(site: AttentionSite, gpu: GpuProfile, floor_us: float = 0.0) -> dict[str, Baseline]:
    cost = AttentionCost.of(gpu, 32, 32)
    return {own.method: own for own in attention_baselines(site, cost, floor_us)}


@pytest.mark.parametrize(
    ("site", "large", "small"),
    [(longformer(96, 7), 5.24, 4.96), (neighbourhood(64, 13), 5.30, 4.92)],
    ids=["longformer", "neighbourhood"],
)
def test_padding_of_square_tiles_in_row_order(gpu: GpuProfile, site: AttentionSite, large: float, small: float) -> None:
    found = attention_baselines(site, AttentionCost.of(gpu, 32, 32), 0.0, with_greedy=False)
    waste = {own.method: own.computed / (3 * site.lists[0].lengths.sum()) for own in found}
    assert waste["tiles of 128x128"] == pytest.approx(large, abs=0.006)
    assert waste["tiles of 64x64"] == pytest.approx(small, abs=0.006)


@pytest.mark.parametrize("density", [0.002, 0.05, 1.0])
def test_tiles_against_brute_force(gpu: GpuProfile, density: float) -> None:
    mask = random_mask(200, density, 1)
    found = by_method(masked_site(mask), gpu)
    # Keys that no row needs take no place.
    mask = mask[:, mask.any(axis=0)]
    for size in (64, 128):
        places = range(0, 200, size)
        used = sum(bool(mask[y : y + size, x : x + size].any()) for y in places for x in places)
        assert found[f"tiles of {size}x{size}"].computed == 2 * used * size * size


def test_a_key_that_rows_need_twice_is_computed_twice(gpu: GpuProfile) -> None:
    found = by_method(masked_site(np.full((64, 64), 2)), gpu)
    assert found["tiles of 64x64"].computed == 2 * 64 * 128
    assert found["fixed shape"].computed == 2 * 64 * 128


def test_rows_and_keys_of_a_fixed_shape_against_brute_force(gpu: GpuProfile) -> None:
    mask = random_mask(150, 0.08, 2)
    site = masked_site(mask)
    lists, codes = site.lists[0], coded(site.lists[0])
    areas = []
    for variant in AttentionCost.of(gpu, 32, 32).variants():
        tall, wide = variant.row_granule, variant.key_granule
        strips = [
            make_strip(np.arange(first, min(first + variant.rows, 150)), lists, codes)
            for first in range(0, 150, variant.rows)
        ]
        areas.append(sum(-(-len(s.rows) // tall) * tall * (-(-len(s.keys) // wide) * wide) for s in strips))
    found = by_method(site, gpu)
    assert found["fixed shape"].computed == 2 * min(areas)
    assert found["fixed shape, best order"].computed <= found["fixed shape"].computed
    assert found["fixed shape, best order"].predicted_us <= found["fixed shape"].predicted_us


def test_every_method_computes_what_is_needed_and_none_is_faster_than_the_floor(gpu: GpuProfile) -> None:
    site = masked_site(random_mask(130, 0.1, 3))
    needed = 2 * int(site.lists[0].lengths.sum())
    free, held = by_method(site, gpu), by_method(site, gpu, floor_us=500.0)
    assert list(free) == list(held)
    assert all(own.computed >= needed for own in free.values())
    assert all(2.0 < own.predicted_us < 500.0 for own in free.values())
    assert all(own.predicted_us - own.merging_us == pytest.approx(500.0) for own in held.values())
    assert [name for name, own in held.items() if own.merging_us] == ["greedy blocks"]
    assert all((own.repeated == 0) == (name != "greedy blocks") for name, own in free.items())


def test_one_strip_takes_what_the_cost_model_says(gpu: GpuProfile) -> None:
    site = masked_site(np.ones((8, 16), np.int64), heads=1)
    site = replace(site, key_tokens=np.arange(16), tokens=16)
    cost = AttentionCost.of(gpu, 32, 32)
    strips = [float(cost.strip_us(v, np.array([8]), np.array([16]), 1, False)[0]) for v in cost.variants()]
    assert by_method(site, gpu)["fixed shape"].predicted_us == pytest.approx(cost.launch_us + min(strips))


def test_patterns_of_several_heads_are_added_up(gpu: GpuProfile) -> None:
    one, other = random_mask(96, 0.1, 4), random_mask(96, 0.3, 5)
    both = replace(masked_site(one), lists=(key_lists(one), key_lists(other)), head_lists=np.array([0, 1]))
    alone = [by_method(masked_site(mask, heads=1), gpu) for mask in (one, other)]
    for name, own in by_method(both, gpu).items():
        if name.startswith("tiles") or name == "greedy blocks":
            assert own.computed == sum(found[name].computed for found in alone)
        assert own.computed >= sum(found[name].computed for found in alone)


@pytest.mark.parametrize("seed", range(4))
def test_greedy_blocks_are_dense_and_cover_everything(seed: int) -> None:
    mask = np.random.default_rng(seed).random((40, 30)) < 0.3
    blocks = greedy_blocks(csr_matrix(mask.astype(np.int64)), np.arange(40))
    assert blocks is not None
    # Columns stand in the order of the mean of their rows.
    used = np.flatnonzero(mask.any(axis=0))
    mean = [np.flatnonzero(mask[:, column]).mean() for column in used]
    ordered = mask[:, used[np.argsort(mean, kind="stable")]]
    covered = np.zeros(ordered.shape, int)
    for top, left, tall, wide, needed in zip(
        blocks.top, blocks.left, blocks.rows, blocks.columns, blocks.needed, strict=True
    ):
        assert ordered[top, left]
        assert ordered[top : top + tall, left : left + wide].sum() == needed >= LEAST_DENSITY * tall * wide
        covered[top : top + tall, left : left + wide] += 1
    assert covered[ordered].min() == 1
    assert covered[ordered].sum() == blocks.needed.sum()
    in_blocks = [((blocks.top <= row) & (row < blocks.top + blocks.rows)).sum() for row in range(40)]
    assert blocks.covers().tolist() == in_blocks


def test_greedy_blocks_grow_over_the_end_of_what_is_needed_but_not_where_equal_rows_grow_as_one() -> None:
    mask = csr_matrix(np.eye(3, dtype=np.int64).repeat(7, axis=1))
    apart = greedy_blocks(csr_matrix(np.kron(np.eye(3), np.ones((5, 7))).astype(np.int64)), np.arange(15))
    as_one = greedy_blocks(mask, np.arange(3).repeat(5))
    assert apart is not None
    assert as_one is not None
    # 35 of 8 x 7 entries are 62 %.
    assert apart.rows.tolist() == [8, 8, 5]
    assert as_one.rows.tolist() == [5, 5, 5]
    assert apart.columns.tolist() == as_one.columns.tolist() == [7, 7, 7]
    assert as_one.full.all()


def conv_by_method(links: NDArray[np.bool_], groups: Parts, gpu: GpuProfile) -> dict[str, Baseline]:
    cost = GroupConvCost.of(gpu, 1, 28 * 28)
    return {own.method: own for own in conv_baselines(links, groups, cost, 0.0)}


def test_partitions_of_a_hidden_block_structure(gpu: GpuProfile) -> None:
    links = hidden_blocks(128, 4, 0)
    found = conv_by_method(links, Parts.of([(32, 32)] * 4), gpu)
    assert found["dense"].computed == 128 * 128
    assert found["as written"].computed == found["greedy blocks"].computed == 4 * 32 * 32
    assert found["parts of 64"].computed == sum(
        64 * -(-int(links[first : first + 64].any(axis=0).sum()) // 16) * 16 for first in (0, 64)
    )
    assert all(own.repeated == own.merging_us == 0 for own in found.values())
    assert found["greedy blocks"].predicted_us <= found["dense"].predicted_us


def test_greedy_blocks_of_connections_without_structure_repeat_some(gpu: GpuProfile) -> None:
    links = random_links(96, 160, 0.25, 0)
    found = conv_by_method(links, Parts.of([(96, 160)]), gpu)["greedy blocks"]
    assert found.repeated > 0
    assert found.merging_us > 0
    assert found.computed > links.sum()


def test_outputs_with_one_input_each_are_not_padded(gpu: GpuProfile) -> None:
    found = conv_by_method(np.eye(40, dtype=bool), Parts.of([(1, 1)] * 40), gpu)
    assert found["as written"].computed == 40
    assert found["dense"].computed == 1600


def test_outputs_without_inputs_are_left_out_but_of_the_dense_convolution(gpu: GpuProfile) -> None:
    links = np.zeros((80, 16), bool)
    links[:8] = True
    found = conv_by_method(links, Parts.of([(80, 16)]), gpu)
    assert found["parts of 64"].computed == found["greedy blocks"].computed == 8 * 16
    assert found["dense"].computed == found["as written"].computed == 80 * 16
