"""Pictures of sites: what the cells count, where outlines are, and that size does not matter."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxopt.discover.attention_site import AttentionSite, KeyLists
from onnxopt.discover.conv_site import ConvSite
from onnxopt.plan.attention import plan_attention
from onnxopt.plan.convolution import plan_convolutions
from onnxopt.plan.rates import CpuRates
from onnxopt.plan.schedule import ConvPart, ConvSchedule, Forecast, Proof
from onnxopt.plan.strips import Strip
from onnxopt.report.blocks import Block, needed_places, tile_kinds
from onnxopt.report.picture import MAX_TILES, Picture, TileKind
from onnxopt.report.pictures import (
    attention_pictures,
    conv_pictures,
    describe_heads,
    layout_pictures,
    portable_pictures,
)
from onnxopt.report.raster import (
    MAX_CELLS,
    Axis,
    classes_of_lists,
    classes_of_parts,
    count_cells,
    density_levels,
)
from onnxopt.sites import discover, reference_cpu
from onnxopt.target.variant import AttentionVariant, ConvVariant
from samples import build
from tests.plan.test_strips import key_lists
from tests.report.cases import attention_site, longformer, neighbourhood, schedule, square_cuts, strips_of

SMALL = AttentionVariant("mma", 16, 16, 4, 2)


def _dense(lists: KeyLists, keys: int) -> np.ndarray:
    """How often each row needs each key."""
    result = np.zeros((len(lists.row_list), keys), np.int64)
    for row, number in enumerate(lists.row_list):
        np.add.at(result[row], lists.list(int(number)), 1)
    return result


def _folded(matrix: np.ndarray, rows: Axis, columns: Axis) -> np.ndarray:
    """The sums of a matrix over cells."""
    padded = np.zeros((rows.cells * rows.step, columns.cells * columns.step), np.int64)
    padded[: rows.size, : columns.size] = matrix
    return padded.reshape(rows.cells, rows.step, columns.cells, columns.step).sum(axis=(1, 3))


@given(
    st.lists(st.lists(st.integers(0, 11), min_size=1, max_size=8), min_size=1, max_size=24),
    st.integers(1, 24),
    st.integers(1, 12),
    st.integers(0, 2**32 - 1),
)
def test_cells_count_what_lies_in_them(rows: list[list[int]], height: int, width: int, seed: int) -> None:
    lists = key_lists(rows)
    rng = np.random.default_rng(seed)
    row_place, column_place = rng.permutation(len(rows)), rng.permutation(12)
    y, x = Axis.of(len(rows), height), Axis.of(12, width)
    counts = count_cells(classes_of_lists(lists, np.arange(len(rows))), row_place, column_place, y, x)
    placed = np.empty((len(rows), 12), np.int64)
    placed[np.ix_(row_place, column_place)] = _dense(lists, 12)
    assert np.array_equal(counts, _folded(placed, y, x))


@pytest.mark.parametrize("size", [1, 2, 255, 256, 257, 4096, 65_537, 10**9])
def test_an_axis_covers_everything_in_cells_of_one_width(size: int) -> None:
    axis = Axis.of(size)
    assert 1 <= axis.cells <= MAX_CELLS
    assert (axis.cells - 1) * axis.step < size <= axis.cells * axis.step
    assert axis.extents().sum() == size


def test_levels_keep_the_least_visible_and_reach_the_top_only_when_full() -> None:
    axis = Axis(1000, 1000)
    levels = [int(density_levels(np.array([[n]]), axis, axis)[0, 0]) for n in (0, 1, 500_000, 1_000_000, 2_000_000)]
    assert levels == [0, 1, 128, 255, 255]


def test_rows_that_are_not_computed_need_nothing() -> None:
    classes = classes_of_lists(key_lists([[0, 1], [0], [2]]), np.array([0, 2]))
    assert classes.pairs == 3
    assert classes.columns(0, len(classes.lengths)).tolist() == [0, 1, 0, 2]


def test_before_the_plan_rows_and_keys_stand_by_their_tokens() -> None:
    lists = key_lists([[0], [1], [2]])
    site = attention_site([lists], 3, query_tokens=np.array([2, 0, 1]), key_tokens=np.array([1, -1, 0]))
    before, *_ = attention_pictures(site, schedule([((0,), 0, "as is", strips_of(lists, [np.arange(3)]))], SMALL))
    # Row 1 reads token 0 and needs the phantom, which stands last.
    assert np.array_equal(before.needed_levels > 0, [[False, False, True], [True, False, False], [False, True, False]])
    assert before.computed_levels is None
    assert not len(before.tiles)


def _checkerboard() -> tuple[AttentionSite, list[Strip]]:
    lists = key_lists([[0, 2, 4], [1, 3, 5], [0, 2, 4], [1, 3, 5]])
    return attention_site([lists], 6), strips_of(lists, [np.array([0, 2]), np.array([1, 3])])


def test_after_the_plan_strips_and_their_keys_stand_together() -> None:
    site, strips = _checkerboard()
    _, after, _ = attention_pictures(site, schedule([((0,), 0, "equal keys", strips)], SMALL))
    blocks = np.kron(np.eye(2, dtype=bool), np.ones((2, 3), bool))
    assert np.array_equal(after.needed_levels > 0, blocks)
    assert np.array_equal(after.computed_levels, after.needed_levels)
    assert after.order == "equal keys"
    assert (after.needed, after.computed) == (12, 2 * 16 * 16)
    assert after.tiles.tolist() == [[0, 0, 2, 3, TileKind.FULL], [2, 3, 4, 6, TileKind.FULL]]


def test_blocks_show_the_padding_that_is_computed() -> None:
    site, strips = _checkerboard()
    *_, stacked = attention_pictures(site, schedule([((0,), 0, "equal keys", strips)], SMALL))
    assert stacked.rows.size == 32
    assert stacked.columns.size == 16
    assert stacked.computed_levels is not None
    assert (stacked.computed_levels == 255).all()
    assert np.argwhere(stacked.needed_levels).tolist() == [[y, x] for y in (0, 1, 16, 17) for x in (0, 1, 2)]
    assert stacked.tiles.tolist() == [[0, 0, 16, 16, 0], [16, 0, 32, 16, 0]]


def test_a_tile_is_full_only_if_every_row_needs_all_of_it() -> None:
    lists = key_lists([[0, 1, 2, 3], [0, 1, 2, 9]])
    block = Block(np.array([0, 1]), np.array([0, 1, 2, 3, 9]), 16, 16, 2)
    classes = classes_of_lists(lists, np.arange(2))
    assert tile_kinds(block, classes, 2) == [TileKind.FULL, TileKind.MASKED, TileKind.MASKED]


def test_biased_tiles_are_marked() -> None:
    lists = key_lists([[0, 1], [0, 1]])
    site = attention_site([lists], 2, biased=True)
    pictures = attention_pictures(site, schedule([((0,), 0, "as is", strips_of(lists, [np.arange(2)]))], SMALL))
    assert {int(kind) for picture in pictures for kind in picture.tiles[:, 4]} == {TileKind.BIASED}


def test_a_repeated_key_has_a_place_for_each_repetition() -> None:
    lists = key_lists([[3, 3, 5], [3, 5, 5]])
    block = Block(np.array([0, 1]), np.array([3, 3, 5, 5]), 16, 16, 16)
    classes = classes_of_lists(lists, np.arange(2))
    assert [needed_places(block, classes, owner).tolist() for owner in (0, 1)] == [[0, 1, 2], [0, 2, 3]]


def test_a_split_list_shows_in_each_strip_what_that_strip_computes() -> None:
    lists = key_lists([list(range(40))])
    rows = np.array([0])
    strips = [Strip(rows, np.arange(24), True), Strip(rows, np.arange(24, 40), True)]
    _, after, stacked = attention_pictures(
        attention_site([lists], 40), schedule([((0,), 0, "as is", strips)], AttentionVariant("mma", 16, 64, 4, 2))
    )
    assert (after.needed_levels == 255).all()
    assert [int(n) for n in (stacked.needed_levels > 0).sum(axis=1) if n] == [24, 16]


def test_heads_of_different_patterns_have_pictures_of_their_own() -> None:
    first, second = key_lists([[0], [1]]), key_lists([[0, 1], [0, 1]])
    site = attention_site([first, second], 2, head_lists=[0, 1, 0])
    parts = [
        ((0, 2), 0, "as is", strips_of(first, [np.arange(2)])),
        ((1,), 1, "as is", strips_of(second, [np.arange(2)])),
    ]
    pictures = attention_pictures(site, schedule(parts, SMALL))
    assert list(dict.fromkeys(picture.pattern for picture in pictures)) == ["heads 0, 2", "head 1"]


@pytest.mark.parametrize(
    ("heads", "text"),
    [
        ((0, 1, 2, 3), "all 4 heads"),
        ((2,), "head 2"),
        ((0, 1, 3), "heads 0 to 1, 3"),
    ],
)
def test_heads_in_words(heads: tuple[int, ...], text: str) -> None:
    assert describe_heads(heads, 4) == text


def test_the_text_of_many_heads_stays_short() -> None:
    assert len(describe_heads(range(0, 4096, 2), 4096)) < 100


def test_a_neighbourhood_is_drawn_within_bounds() -> None:
    lists = neighbourhood(64, 13)
    strips = strips_of(lists, square_cuts(64, 4))
    pictures = attention_pictures(attention_site([lists], 4096), schedule([((0,), 0, "squares", strips)], SMALL))
    _within_bounds(pictures)
    _, after, stacked = pictures
    assert after.computed_levels is not None
    assert (after.computed_levels >= after.needed_levels).all()
    assert set(stacked.tiles[:, 4].tolist()) == {TileKind.FULL, TileKind.MASKED}
    assert stacked.blocks == 256
    assert stacked.first + stacked.shown <= 256


def test_65537_tokens_take_little_memory() -> None:
    lists = longformer(65_537, 256)
    cuts = [np.array([0]), *np.array_split(np.arange(1, 65_537), 1024)]
    site = attention_site([lists], 65_537, head_lists=[0, 0, 0])
    plan = schedule([((0, 1, 2), 0, "as is", strips_of(lists, cuts))], AttentionVariant("mma", 64, 64, 4, 2))
    tracemalloc.start()
    try:
        pictures = attention_pictures(site, plan)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 200 << 20
    _within_bounds(pictures)
    before = pictures[0].needed_levels
    assert (before[0] > 0).all()
    assert (before[:, 0] > 0).all()
    assert 0.01 < (before > 0).mean() < 0.05


def _within_bounds(pictures: list[Picture]) -> None:
    for picture in pictures:
        assert max(picture.needed_levels.shape) <= MAX_CELLS
        assert picture.needed_levels.shape == (picture.rows.cells, picture.columns.cells)
        assert len(picture.tiles) <= MAX_TILES
        top, left, bottom, right, _ = picture.tiles.T
        assert ((top >= 0) & (top < bottom) & (bottom <= picture.rows.size)).all()
        assert ((left >= 0) & (left < right) & (right <= picture.columns.size)).all()


@pytest.mark.parametrize("name", ["swin", "swin_padded", "longformer2d", "per_head_masks", "cross", "empty_zero"])
def test_portable_plans_of_samples_add_up(name: str) -> None:
    for site in discover(build(name).model).attention:
        plan = plan_attention(site, CpuRates.of(reference_cpu()))
        pictures = portable_pictures(site, plan)
        _within_bounds(pictures)
        for stage in ("before", "after"):
            shown = [picture for picture in pictures if picture.stage == stage]
            assert sum(p.needed * len(part.heads) for p, part in zip(shown, plan.parts, strict=True)) == plan.needed
        computed = [picture.computed for picture in pictures if picture.stage == "after"]
        assert sum(n * len(part.heads) for n, part in zip(computed, plan.parts, strict=True)) == plan.computed


def _sites(name: str) -> list[ConvSite]:
    return list(discover(build(name).model).convolutions)


@pytest.mark.parametrize("name", ["shufflenet_v1", "condensenet_train", "pruned_grouped", "split_convolutions"])
def test_connectivity_is_drawn_as_it_is(name: str) -> None:
    for site in _sites(name):
        classes = classes_of_parts(site.out_channels, site.parts)
        rows, columns = Axis(site.out_channels, 1), Axis(site.in_channels, 1)
        places = np.arange(site.out_channels), np.arange(site.in_channels)
        assert np.array_equal(count_cells(classes, *places, rows, columns) > 0, site.links())


@pytest.mark.parametrize("name", ["shufflenet_v1", "condensenet_train", "condensenet_converted", "pruned_random"])
def test_layouts_of_samples_add_up(name: str) -> None:
    findings = discover(build(name).model)
    plans = plan_convolutions(findings.convolutions, findings.graph, reference_cpu(), margin=0.0)
    for plan in plans:
        pictures = layout_pictures(plan.site, plan)
        _within_bounds(pictures)
        if plan.layout is None:
            assert [picture.stage for picture in pictures] == ["before"]
            continue
        assert {picture.needed for picture in pictures if picture.stage != "blocks"} == {plan.needed}
        assert pictures[1].computed == plan.computed


def test_parts_of_a_kernel_are_padded_to_its_granules() -> None:
    site = next(site for site in _sites("pruned_random") if site.pattern == "pruned")
    links = site.links()
    rows = np.flatnonzero(links.any(axis=1))
    parts = tuple(ConvPart(half, np.flatnonzero(links[half].any(axis=0)), 0) for half in np.array_split(rows, 2))
    variant = ConvVariant("mma", 16, 16, 64, 4, 2)
    plan = ConvSchedule(
        "time",
        "fp16",
        (variant,),
        1,
        parts,
        np.zeros((0, 2), np.int64),
        "clustered",
        1,
        1,
        Forecast(1.0, 1.0, 0.1, False),
        Proof(1.0, 1.0, "by hand", "optimal", 1, ""),
    )
    _, after, stacked = pictures = conv_pictures(site, plan)
    _within_bounds(pictures)
    expected = sum(-(-len(p.outputs) // 8) * 8 * -(-len(p.inputs) // 16) * 16 for p in parts)
    assert after.computed == stacked.computed == expected
    assert after.needed == stacked.needed == site.connections


def test_equal_sites_give_equal_pictures() -> None:
    site, strips = _checkerboard()
    twice = [attention_pictures(site, schedule([((0,), 0, "as is", strips)], SMALL)) for _ in range(2)]
    for first, second in zip(*twice, strict=True):
        assert np.array_equal(first.needed_levels, second.needed_levels)
        assert np.array_equal(first.tiles, second.tiles)
