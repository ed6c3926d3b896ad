"""Plans never lose to the cuts that other methods make, and prices are shared among orders without mixing them up."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.planner_layers import ConvLayer, made_conv_layer
from benchmarks.planner_masks import hidden_blocks, longformer, neighbourhood, random_links, site_of
from onnxopt.discover.attention_site import AttentionSite
from onnxopt.plan.attention import filled_rows
from onnxopt.plan.attention_cost import AttentionCost
from onnxopt.plan.attention_kernel import moved_bytes, plan_attention_kernel
from onnxopt.plan.baselines import attention_baselines
from onnxopt.plan.conv_baselines import conv_baselines
from onnxopt.plan.even_cuts import EvenCuts
from onnxopt.plan.group_conv import plan_group_conv
from onnxopt.plan.group_conv_cost import GroupConvCost
from onnxopt.plan.intervals import in_equal_parts, intervals_of
from onnxopt.plan.strip_columns import area_of
from onnxopt.plan.strip_orders import Order
from onnxopt.plan.strip_prices import PriceTable
from onnxopt.plan.strip_space import StripSpace
from onnxopt.plan.strips import coded
from onnxopt.target import GpuProfile, load_target
from onnxopt.validate import validate_attention_schedule, validate_conv_schedule
from tests.plan.fake_cost import EIGHT, SHORT, TALL, FakeCost
from tests.plan.patterns import key_lists

# Rounding of sums of floats.
ROUNDING = 1 + 1e-9


@pytest.fixture(scope="module", params=["sm_80", "sm_90"])
def gpu(request: pytest.FixtureRequest) -> GpuProfile:
    return load_target(request.param).need_gpu_profile()


def windows(side: int, window: int, count: int) -> AttentionSite:
    """Attention within windows that follow one another; ``count`` of them, of ``window`` rows each."""
    lists = key_lists([list(range(n * window, (n + 1) * window)) for n in range(count) for _ in range(window)])
    return site_of(f"{count} windows of {window}", lists, count * window, side, 32)


@pytest.mark.parametrize(
    "site",
    [neighbourhood(12, 5), longformer(14, 4), windows(6, 49, 16), windows(3, 50, 9), windows(2, 197, 1)],
    ids=lambda site: site.id,
)
def test_attention_is_never_slower_than_another_method(gpu: GpuProfile, site: AttentionSite) -> None:
    cost = AttentionCost.of(gpu, 32, 32)
    (schedule,) = plan_attention_kernel(site, cost)
    validate_attention_schedule(site, schedule)
    floor = cost.launch_us + cost.bytes_floor_us(moved_bytes(site, filled_rows(site), "fp16"))
    others = {own.method: own.predicted_us for own in attention_baselines(site, cost, floor)}
    assert schedule.forecast.predicted_us <= min(others.values()) * ROUNDING, others


@pytest.mark.parametrize(
    "layer",
    [
        # Each input makes two outputs, which may be parted.
        made_conv_layer("two outputs an input", np.repeat(np.eye(128, dtype=bool), 2, axis=0), 14),
        made_conv_layer("three outputs an input", np.repeat(np.eye(64, dtype=bool), 3, axis=0), 7),
        made_conv_layer("depthwise", np.eye(200, dtype=bool), 7),
        made_conv_layer("blocks", hidden_blocks(128, 8, 1)),
        made_conv_layer("random", random_links(24, 40, 0.25, 1), 14),
    ],
    ids=lambda layer: layer.name,
)
def test_convolutions_are_never_slower_than_another_method(gpu: GpuProfile, layer: ConvLayer) -> None:
    cost = GroupConvCost.of(gpu, layer.taps, layer.positions)
    (schedule,) = plan_group_conv(
        layer.site, layer.links, cost, objective="time", element="fp16", moved_bytes=layer.moved_bytes
    )
    validate_conv_schedule(layer.links, schedule, pixels=layer.positions)
    others = {o.method: o.predicted_us for o in conv_baselines(layer.links, layer.groups, cost, layer.moved_bytes)}
    assert schedule.forecast.predicted_us <= min(others.values()) * ROUNDING, others


def orders_of(rows: list[list[int]]) -> list[Order]:
    lists = key_lists(rows)
    codes = coded(lists)
    every = {"as is": np.arange(len(rows)), "equal keys": np.argsort(lists.row_list, kind="stable")}
    return [Order.of(name, 2, intervals_of(order, lists, codes), False) for name, order in every.items()]


def test_runs_are_cut_into_parts_of_nearly_one_size() -> None:
    lists = key_lists([[0, 1]] * 49 + [[2]] * 5 + [[0, 1]] * 16)
    parts = in_equal_parts(np.arange(70), lists, coded(lists), 16)
    assert parts.rows[:, 0].tolist() == [0, 13, 12, 12, 12, 5, 16]
    assert parts.keys[:, 0].tolist() == [0, 2, 2, 2, 2, 1, 2]
    assert parts.full.all()
    assert parts.cuts.tolist() == [0, 13, 25, 37, 49, 54, 70]


def test_even_cuts_win_where_the_searched_ones_are_bad() -> None:
    orders = orders_of([[0], [1]] * 24)
    space = StripSpace([orders[:1]], FakeCost(((SHORT, 1, 0, 0.5, 1, 128),), 2), "time", 0.0)
    (setting,) = space.settings()
    # One strip a row, at first.
    slow = space.launched(setting, [(0, np.zeros(len(orders[0].intervals.cuts), np.int64))])
    cuts = [slow]
    even = EvenCuts(space, [orders[1:]])
    assert {"8", "16", "48"} <= set(even.sizes)
    even.add(setting, cuts)
    assert cuts[-1].microseconds < slow.microseconds
    sizes = {int(cuts[-1].orders[0].intervals.rows[end, step]) for end, step in cuts[-1].intervals[0]}
    assert len(sizes) == 1


def test_orders_that_are_added_later_leave_prices_as_they_are() -> None:
    cost = FakeCost(((SHORT, 1, 1, 0.5, 2, 128), (TALL, 3, 0, 0.5, 2, 128)), 2)
    first, second = orders_of([[0, 1, 2]] * 5 + [[3]] * 9 + [[0, 1, 2]] * 4)
    table = PriceTable(cost, "time")
    setting = StripSpace([[first]], cost, "time", 0.0, table).settings()[0]
    before = table.prices(setting)
    shared = StripSpace([[first, second]], cost, "time", 0.0, table)
    apart = StripSpace([[second]], cost, "time", 0.0)
    assert np.array_equal(shared.prices(first, setting).microseconds, before.at(table.numbers(first)).microseconds)
    assert np.array_equal(shared.prices(second, setting).variant, apart.prices(second, setting).variant)
    assert np.array_equal(shared.prices(second, setting).microseconds, apart.prices(second, setting).microseconds)


def test_orders_of_different_lengths_are_searched_together_as_they_are_alone() -> None:
    cost = FakeCost(((EIGHT, 2, 1, 0.5, 2, 128),), 3, irregular=5)
    patterns = [orders_of([[n % 7, n % 3] for n in range(count)]) for count in (5, 90, 61)]
    space = StripSpace(patterns, cost, "time", 0.0)
    together = space.shortest([area_of(space, setting) for setting in space.settings()])
    for number, orders in enumerate(patterns):
        alone = StripSpace([orders], cost, "time", 0.0)
        own = alone.shortest([area_of(alone, setting) for setting in space.settings()])
        assert np.array_equal(own.sums[0], together.sums[number])
        for one, other in zip(own.taken[0], together.taken[number], strict=True):
            assert np.array_equal(one, other)
