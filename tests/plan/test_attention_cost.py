"""Predicted times of strips: monotonic, never below physics, near published figures, overridden by records."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxopt.errors import InputError
from onnxopt.plan.attention_cost import AttentionCost
from onnxopt.plan.attention_resources import AttentionShape
from onnxopt.plan.attention_times import tile_table
from onnxopt.plan.roofline import SMALL_SHARED_BYTES, rates, resident_blocks
from onnxopt.target import GpuProfile, gpu_profiles, load_target
from onnxopt.target.tile_records import TileRecord
from onnxopt.target.variant import AttentionVariant, Element, Resources


@lru_cache
def _cost(gpu: str, width: int, element: Element = "fp16") -> AttentionCost:
    return AttentionCost.of(load_target(gpu).need_gpu_profile(), width, width, element)


def _one(cost: AttentionCost, v: AttentionVariant, rows: int, keys: int, resident: int, masked: bool = False) -> float:
    return float(cost.strip_us(v, np.array([rows]), np.array([keys]), resident, masked)[0])


def _dense_flops(cost: AttentionCost, v: AttentionVariant, keys: int = 16384) -> float:
    """Operations a second of full, long strips on the whole GPU."""
    resident = cost.occupancy([v])
    flops = 2.0 * (cost.width + cost.value_width) * v.rows * keys
    return flops * resident * cost.gpu.multiprocessors / _one(cost, v, v.rows, keys, resident) * 1e6


_SIZES: dict[Element, tuple[int, ...]] = {
    "fp16": tuple(range(16, 257, 16)),
    "bf16": (64,),
    "tf32": (16, 96, 256),
    "fp32": (16, 96, 256),
}


@pytest.mark.parametrize("gpu", gpu_profiles(), ids=lambda gpu: gpu.name)
def test_every_gpu_has_shapes_for_every_head_size_or_says_why_not(gpu: GpuProfile) -> None:
    for element, sizes in _SIZES.items():
        if element in gpu.lacking_types:
            with pytest.raises(InputError, match=f"{element}.*allowed there: fp16, fp32"):
                AttentionCost.of(gpu, 64, 64, element)
            continue
        for size in sizes:
            cost = AttentionCost.of(gpu, size, size, element)
            variants = cost.variants()
            # 64 KB of shared memory leave little choice for long rows of 4 bytes, which are not swapped either.
            assert (5 if element == "fp16" else 1) <= len(variants) <= 24
            assert list(variants) == sorted(set(variants))
            assert len({v.describe() for v in variants}) == len(variants)
            assert all(cost.occupancy([v]) >= 1 for v in variants)
            shared = [cost.resources(v).shared_memory_bytes for v in variants]
            assert min(shared) <= SMALL_SHARED_BYTES
            assert max(shared) <= gpu.shared_memory_per_block_bytes
            assert max(cost.resources(v).registers_per_thread for v in variants) <= gpu.registers_per_thread
            wgmma = gpu.architecture == "sm_90" and element in ("fp16", "bf16")
            assert any(v.path == "wgmma" for v in variants) == wgmma
            if gpu.architecture == "sm_75":
                assert max(v.stages for v in variants) <= 2


@pytest.mark.parametrize("width", [0, 257, -1])
def test_a_head_size_out_of_range_is_refused(width: int) -> None:
    gpu = load_target("H200").need_gpu_profile()
    with pytest.raises(InputError, match=f"head size is {width}.*1 to 256"):
        AttentionCost.of(gpu, width, 64)
    with pytest.raises(InputError, match=f"head size of the values is {width}"):
        AttentionCost.of(gpu, 64, width)


def test_a_gpu_with_too_little_shared_memory_names_the_limit() -> None:
    small = replace(load_target("T4").need_gpu_profile(), shared_memory_per_block_bytes=16 << 10)
    with pytest.raises(InputError, match="256.*T4.*shared_memory_per_block_bytes.*16,384"):
        AttentionCost.of(small, 256, 256).variants()


def test_the_same_target_has_the_same_shapes() -> None:
    gpu = load_target("H200").need_gpu_profile()
    assert AttentionCost.of(gpu, 64, 64).variants() == AttentionCost.of(gpu, 64, 64).variants()


def test_shared_memory_is_that_of_the_formula() -> None:
    cost = AttentionCost.of(load_target("A100").need_gpu_profile(), 64, 32)
    variant = AttentionVariant("mma", 64, 32, 4, 2)
    # Bit rows, columns with run-time weights, and two slots of three lists.
    lists = 2 * (4 * 64 + 8 * 32) + 2 * 3 * 4 * 32
    assert cost.resources(variant).shared_memory_bytes == 2 * (64 * 64 + 2 * 32 * (64 + 32)) + lists


def test_shared_memory_of_swapped_shapes_is_that_of_their_walk_or_their_merge() -> None:
    cost = AttentionCost.of(load_target("H200").need_gpu_profile(), 64, 32)
    walk = AttentionVariant("mma", 16, 64, 4, 2, swapped=True)
    # Queries, two stages of keys and values, and a maximum of each row from each warp.
    assert cost.resources(walk).shared_memory_bytes == 2 * (16 * 64 + 2 * 64 * (64 + 32)) + 4 * 4 * 16
    merge = AttentionVariant("mma", 64, 16, 1, 1, swapped=True)
    # Maxima and totals, results, and a block of sums.
    assert _cost("H200", 16).resources(merge).shared_memory_bytes == 8 * 64 + 2 * 64 * 16 + 4 * 64 * 12
    group = AttentionVariant("wgmma", 16, 64, 4, 2, swapped=True)
    # Queries up to a kilobyte's multiple, weights, keys, values of 64 channels; weighed columns, barriers, row sums.
    tiles = 2 * 16 * 64 + 2 * 16 * 64 + 2 * 2 * 64 * (64 + 64)
    assert cost.resources(group).shared_memory_bytes == tiles + 8 * 2 * 64 + 4 * 8 * 2 + 2 * 8 * 16


@pytest.mark.parametrize(
    ("shape", "width", "blocks"),
    [
        # Where the compiler was seen to take just what the launch leaves it, and to lack some with one block more.
        (AttentionVariant("mma", 64, 64, 4, 3), 32, 4),
        (AttentionVariant("mma", 16, 64, 4, 2, swapped=True), 32, 6),
        (AttentionVariant("mma", 24, 128, 8, 3, swapped=True), 16, 2),
        (AttentionVariant("wgmma", 64, 64, 4, 2), 64, 3),
        (AttentionVariant("wgmma", 64, 80, 4, 3), 32, 3),
        (AttentionVariant("wgmma", 16, 64, 4, 3, swapped=True), 32, 5),
        (AttentionVariant("wgmma", 48, 64, 4, 2, swapped=True), 64, 4),
        (AttentionVariant("wgmma", 64, 64, 4, 2, swapped=True), 64, 2),
        (AttentionVariant("wgmma", 96, 64, 4, 2, swapped=True), 128, 1),
        (AttentionVariant("wgmma", 64, 192, 12, 2, swapped=True), 128, 0),
        (AttentionVariant("wgmma", 128, 176, 8, 2), 112, 0),
        (AttentionVariant("wgmma", 128, 160, 8, 2), 112, 1),
        (AttentionVariant("wgmma", 192, 128, 12, 3), 48, 1),
    ],
    ids=lambda value: value.describe() if isinstance(value, AttentionVariant) else None,
)
def test_registers_bound_the_blocks_of_a_multiprocessor(shape: AttentionVariant, width: int, blocks: int) -> None:
    cost = _cost("H200", width)
    registers = cost.resources(shape).registers_per_thread
    # As if shared memory were no limit.
    assert resident_blocks(cost.gpu, Resources(registers, 0, shape.threads)) == blocks


def test_a_producer_of_single_elements_takes_more_registers() -> None:
    shape = AttentionVariant("wgmma", 64, 64, 4, 2)
    odd, even = (_cost("H200", width).resources(shape).registers_per_thread for width in (50, 56))
    assert odd > even


def _work(v: AttentionVariant, rows: int, keys: Sequence[int], resident: int) -> list[float]:
    """Times of strips of which nothing but products and softmax counts, relative to the first."""
    shape = AttentionShape(v, 64, 64, "fp16")
    table = tile_table(shape, rates(load_target("H200").need_gpu_profile(), v.path, "fp16"), np.array([rows]), False)
    none = np.zeros(1)
    table = replace(table, l2=none, l2_ends=none, ends=none, tile_chain=0.0, tile_load=0.0)
    times = table.times(np.zeros(len(keys), np.int64), np.array(keys), resident)
    return [float(time) for time in times / times[0]]


@pytest.mark.parametrize("resident", [1, 8])
def test_wgmma_computes_its_last_tile_by_halves(resident: int) -> None:
    # Half of 80 keys is 48 of the granules of a product.
    shape = AttentionVariant("wgmma", 64, 80, 4, 2)
    ratios = _work(shape, 64, (80, 1, 48, 49, 81, 128, 129, 160), resident)
    assert ratios == pytest.approx([1, 0.6, 0.6, 1, 1.6, 1.6, 2, 2])
    assert _work(shape, 1, (80,), resident) == _work(shape, 64, (80,), resident)


def test_swapped_wgmma_computes_64_keys_a_warpgroup() -> None:
    shape = AttentionVariant("wgmma", 64, 192, 12, 2, swapped=True)
    assert _work(shape, 64, (192, 1, 193, 256, 257), 8) == pytest.approx([1, 1 / 3, 4 / 3, 4 / 3, 5 / 3])
    # Alone, a warpgroup takes longer for its 64 keys than its share of the matrix unit's time.
    alone = _work(shape, 64, (192, 1, 64), 1)
    assert 1 > alone[1] == alone[2] > 0.4


def test_swapped_wgmma_computes_all_rows_of_its_shape() -> None:
    shape = AttentionShape(AttentionVariant("wgmma", 64, 64, 4, 2, swapped=True), 64, 64, "fp16")
    rate = rates(load_target("H200").need_gpu_profile(), "wgmma", "fp16")
    table = tile_table(shape, rate, np.array([0, 1, 8, 64]), False)
    assert table.chain[0] == 0
    assert table.busy[0] < table.busy[1] == table.busy[2] == table.busy[3]
    assert table.chain[1] == table.chain[2] == table.chain[3]


def test_a_launch_is_one_block_size_and_one_path() -> None:
    cost = _cost("H200", 64)
    four, eight = AttentionVariant("mma", 64, 64, 4, 2), AttentionVariant("mma", 128, 64, 8, 2)
    group = AttentionVariant("wgmma", 64, 64, 4, 2)
    assert eight.threads == group.threads
    assert cost.occupancy([four]) >= 1
    assert cost.occupancy([four, eight]) == cost.occupancy([eight, group]) == cost.occupancy([]) == 0
    deep = AttentionVariant("mma", 64, 128, 4, 3)
    assert cost.occupancy([four, deep]) == min(cost.occupancy([four]), cost.occupancy([deep]))


_CASES = st.sampled_from([("H200", 64), ("H200", 32), ("A100", 128), ("T4", 40), ("L4", 256)]).flatmap(
    lambda case: st.tuples(st.just(_cost(*case)), st.sampled_from(_cost(*case).variants()))
)


@given(_CASES, st.data())
def test_more_rows_keys_or_company_never_take_less_time(
    case: tuple[AttentionCost, AttentionVariant], data: st.DataObject
) -> None:
    cost, v = case
    rows, keys = data.draw(st.integers(1, v.rows)), data.draw(st.integers(0, 5000))
    resident, masked = data.draw(st.integers(1, 32)), data.draw(st.booleans())
    here = _one(cost, v, rows, keys, resident, masked)
    assert here > 0
    assert _one(cost, v, data.draw(st.integers(rows, v.rows)), keys, resident, masked) >= here
    assert _one(cost, v, rows, keys + data.draw(st.integers(0, 500)), resident, masked) >= here
    assert _one(cost, v, rows, keys, resident + 1, masked) >= here
    assert _one(cost, v, rows, keys, resident, True) >= here


@given(_CASES, st.data())
def test_strips_do_not_know_one_another(case: tuple[AttentionCost, AttentionVariant], data: st.DataObject) -> None:
    cost, v = case
    strips = data.draw(st.lists(st.tuples(st.integers(0, v.rows), st.integers(0, 3000)), min_size=1, max_size=8))
    together = cost.strip_us(v, np.array([r for r, _ in strips]), np.array([k for _, k in strips]), 2, False)
    assert together.tolist() == [_one(cost, v, r, k, 2) for r, k in strips]


@given(_CASES, st.data())
def test_no_launch_is_predicted_below_its_bound(
    case: tuple[AttentionCost, AttentionVariant], data: st.DataObject
) -> None:
    cost, v = case
    rows, keys = data.draw(st.integers(1, v.rows)), data.draw(st.integers(1, 5000))
    resident = cost.occupancy([v])
    rounds = data.draw(st.integers(1, 5))
    strips = rounds * resident * cost.gpu.multiprocessors
    predicted = cost.launch_us + rounds * _one(cost, v, rows, keys, resident)
    assert predicted >= cost.bound_us(float(strips * rows * keys), 0.0)


def test_the_bound_is_the_longest_of_products_exponentials_bytes_and_launch() -> None:
    narrow, wide = _cost("H200", 32), _cost("H200", 128)
    pairs = 1e9
    assert wide.bound_us(pairs, 0.0) == pytest.approx(4 * 128 * pairs / 989e12 * 1e6)
    assert narrow.bound_us(pairs, 0.0) == pytest.approx(pairs / (16 * 132 * 1.83e9) * 1e6)
    assert wide.bound_us(1.0, 4.8e9) == pytest.approx(1000.0)
    assert wide.bytes_floor_us(4.8e9) == pytest.approx(1000.0)
    assert wide.bound_us(1.0, 1.0) == wide.launch_us == pytest.approx(2.0)


@pytest.mark.parametrize(
    ("gpu", "width", "published"),
    [("H200", 128, 648e12), ("H200", 64, 497e12), ("A100", 128, 225e12), ("A100", 64, 190e12)],
)
def test_long_dense_strips_come_near_published_kernels(gpu: str, width: int, published: float) -> None:
    cost = _cost(gpu, width)
    best = max(_dense_flops(cost, v) for v in cost.variants())
    assert best == pytest.approx(published, rel=0.2)


def test_gathering_keys_for_few_queries_is_limited_by_l2() -> None:
    cost = _cost("H200", 64)
    few = max(_dense_flops(cost, v) for v in cost.variants() if v.rows <= 16)
    many = max(_dense_flops(cost, v) for v in cost.variants())
    assert few < many / 4


def test_idle_warps_do_not_help_the_others() -> None:
    cost = _cost("A100", 64)
    wide, narrow = AttentionVariant("mma", 64, 64, 4, 2), AttentionVariant("mma", 16, 64, 1, 2)
    assert _one(cost, wide, 16, 4096, 3) > 0.9 * _one(cost, wide, 64, 4096, 3)
    assert _one(cost, wide, 16, 4096, 1) == pytest.approx(_one(cost, narrow, 16, 4096, 1), rel=0.3)


def test_many_strips_take_no_loop_in_python() -> None:
    cost, v = _cost("H200", 64), _cost("H200", 64).variants()[-1]
    generator = np.random.default_rng(1)
    rows, keys = generator.integers(1, v.rows + 1, 100_000), generator.integers(1, 4000, 100_000)
    start = time.perf_counter()
    cost.strip_us(v, rows, keys, 2, True)
    assert time.perf_counter() - start < 0.5


def test_rows_beyond_the_variant_are_an_error() -> None:
    cost, v = _cost("H200", 64), AttentionVariant("mma", 64, 64, 4, 2)
    with pytest.raises(ValueError, match="0 to 64 rows"):
        cost.strip_us(v, np.array([65]), np.array([64]), 1, False)
    assert cost.strip_us(v, np.empty(0, np.int64), np.empty(0, np.int64), 1, False).shape == (0,)


def test_merging_is_free_where_nothing_is_split() -> None:
    cost = _cost("H200", 64)
    assert cost.merge_us(1000, 1) == cost.merge_us(0, 4) == 0.0
    assert cost.launch_us < cost.merge_us(1000, 2) < cost.merge_us(1000, 4) < cost.merge_us(100_000, 4)


_VARIANT = next(v for v in _cost("H200", 64).variants() if (v.path, v.rows, v.swapped) == ("wgmma", 64, False))


def _record(factor: float, **changes: object) -> TileRecord:
    cost = _cost("H200", 64)
    extent = (64, 640)
    known = TileRecord(
        kind="attention",
        gpu="NVIDIA H200",
        architecture="sm_90",
        element="fp16",
        variant=_VARIANT.describe(),
        widths=(64, 64),
        extent=extent,
        masked=False,
        resident=2,
        microseconds=factor * _one(cost, _VARIANT, *extent, 2),
        threads=_VARIANT.threads,
        registers=90,
        shared_bytes=50_000,
        driver="580.1",
        nvrtc="13.0.88",
        source="0123456789abcdef",
        clock_hz=1.83e9,
        date="2026-11-20",
    )
    return replace(known, **changes)  # type: ignore[arg-type]


def test_records_decide_for_their_variant_alone() -> None:
    gpu, model = load_target("H200").need_gpu_profile(), _cost("H200", 64)
    assert not model.measured
    cost = AttentionCost.of(gpu, 64, 64, records=[_record(1.2), _record(1.3), _record(1.4)])
    other = next(v for v in cost.variants() if v != _VARIANT)
    assert cost.measured
    assert _one(cost, _VARIANT, 40, 333, 1, True) == pytest.approx(1.3 * _one(model, _VARIANT, 40, 333, 1, True))
    assert _one(cost, other, 8, 333, 1) == _one(model, other, 8, 333, 1)
    assert cost.resources(_VARIANT) == Resources(90, 50_000, _VARIANT.threads, estimated=False)
    assert cost.resources(other).estimated
    assert cost.uncertainty_of([_VARIANT]) < 0.5 * cost.uncertainty_of([other])
    assert cost.uncertainty == model.uncertainty > 0.3


@pytest.mark.parametrize(
    "changes",
    [
        {"gpu": "NVIDIA H100"},
        {"element": "bf16"},
        {"widths": (64, 32)},
        {"variant": "mma 1x1"},
        {"kind": "conv", "widths": (64,)},
        {"microseconds": 1e8},
        {"extent": (65, 640)},
    ],
)
def test_records_of_something_else_do_not_count(changes: dict[str, object]) -> None:
    gpu, model = load_target("H200").need_gpu_profile(), _cost("H200", 64)
    cost = AttentionCost.of(gpu, 64, 64, records=[_record(1.3, **changes)])
    assert not cost.measured
    assert _one(cost, _VARIANT, 64, 640, 2) == _one(model, _VARIANT, 64, 640, 2)
    assert cost.uncertainty == model.uncertainty


def test_no_record_makes_a_strip_faster_than_physics() -> None:
    cost = AttentionCost.of(load_target("H200").need_gpu_profile(), 64, 64, records=[_record(0.1)])
    pairs = 64 * 8192.0 * cost.occupancy([_VARIANT]) * cost.gpu.multiprocessors
    assert _one(cost, _VARIANT, 64, 8192, cost.occupancy([_VARIANT])) >= 0.999 * cost.bound_us(pairs, 0.0)
