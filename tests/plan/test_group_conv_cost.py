"""Predicted times of convolution parts: monotonic, never below physics, overridden by records."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxopt.errors import InputError
from onnxopt.plan.group_conv_cost import GroupConvCost
from onnxopt.plan.roofline import SMALL_SHARED_BYTES
from onnxopt.target import GpuProfile, gpu_profiles, load_target
from onnxopt.target.tile_records import TileRecord
from onnxopt.target.variant import ConvVariant, Element, Resources


@lru_cache
def _cost(gpu: str, taps: int, positions: int, element: Element = "fp16") -> GroupConvCost:
    return GroupConvCost.of(load_target(gpu).need_gpu_profile(), taps, positions, element)


def _one(cost: GroupConvCost, v: ConvVariant, outputs: int, inputs: int, resident: int) -> float:
    return float(cost.part_us(v, np.array([outputs]), np.array([inputs]), resident)[0])


@pytest.mark.parametrize("gpu", gpu_profiles(), ids=lambda gpu: gpu.name)
def test_every_gpu_has_shapes_or_says_why_not(gpu: GpuProfile) -> None:
    elements: tuple[Element, ...] = ("fp16", "bf16", "tf32", "fp32")
    for element in elements:
        if element in gpu.lacking_types:
            with pytest.raises(InputError, match=f"{element}.*allowed there: fp16, fp32"):
                GroupConvCost.of(gpu, 1, 784, element)
            continue
        for taps, positions in ((1, 784), (9, 49), (49, 12544)):
            cost = GroupConvCost.of(gpu, taps, positions, element)
            variants = cost.variants()
            assert 5 <= len(variants) <= 24
            assert list(variants) == sorted(set(variants))
            assert len({v.describe() for v in variants}) == len(variants)
            assert all(cost.occupancy([v]) >= 1 for v in variants)
            assert min(cost.resources(v).shared_memory_bytes for v in variants) <= SMALL_SHARED_BYTES
            assert element != "fp16" or any(v.path == "mma" for v in variants)
            wgmma = gpu.architecture == "sm_90" and element in ("fp16", "bf16")
            assert wgmma or not any(v.path == "wgmma" for v in variants)


@pytest.mark.parametrize(("taps", "positions"), [(0, 784), (1, 0), (5000, 784)])
def test_sizes_out_of_range_are_refused(taps: int, positions: int) -> None:
    with pytest.raises(InputError, match="allowed: 1 to"):
        GroupConvCost.of(load_target("H200").need_gpu_profile(), taps, positions)


_CASES = st.sampled_from([("H200", 1, 784), ("H200", 9, 3136), ("A100", 1, 49), ("T4", 9, 196)]).flatmap(
    lambda case: st.tuples(st.just(_cost(*case)), st.sampled_from(_cost(*case).variants()))
)


@given(_CASES, st.data())
def test_more_outputs_inputs_or_company_never_take_less_time(
    case: tuple[GroupConvCost, ConvVariant], data: st.DataObject
) -> None:
    cost, v = case
    outputs, inputs = data.draw(st.integers(1, 600)), data.draw(st.integers(1, 600))
    resident = data.draw(st.integers(1, 32))
    here = _one(cost, v, outputs, inputs, resident)
    assert here > 0
    assert _one(cost, v, outputs + data.draw(st.integers(0, 200)), inputs, resident) >= here
    assert _one(cost, v, outputs, inputs + data.draw(st.integers(0, 200)), resident) >= here
    assert _one(cost, v, outputs, inputs, resident + 1) >= here


@given(_CASES, st.data())
def test_no_launch_is_predicted_below_its_bound(case: tuple[GroupConvCost, ConvVariant], data: st.DataObject) -> None:
    cost, v = case
    outputs, inputs = data.draw(st.integers(1, v.outputs)), data.draw(st.integers(1, 600))
    resident = cost.occupancy([v])
    rounds = data.draw(st.integers(1, 5))
    parts = rounds * resident * cost.gpu.multiprocessors / cost.tiles(v)
    predicted = cost.launch_us + rounds * _one(cost, v, outputs, inputs, resident)
    assert predicted >= cost.bound_us(parts * outputs * inputs, 0.0)


def test_a_part_with_many_outputs_is_full_blocks_and_a_rest() -> None:
    cost, v = _cost("A100", 1, 784), ConvVariant("mma", 32, 32, 64, 4, 2)
    full, rest = _one(cost, v, 32, 100, 2), _one(cost, v, 8, 100, 2)
    assert _one(cost, v, 72, 100, 2) == pytest.approx(2 * full + rest)
    assert _one(cost, v, 64, 100, 2) == pytest.approx(2 * full)
    assert _one(cost, v, 0, 100, 2) == 0.0


def test_tiles_cover_all_positions() -> None:
    v = ConvVariant("mma", 32, 32, 64, 4, 2)
    assert [_cost("A100", 1, n).tiles(v) for n in (1, 64, 65, 784)] == [1, 1, 2, 13]


def test_groups_of_positions_share_no_tile() -> None:
    gpu = load_target("A100").need_gpu_profile()
    one, three = (GroupConvCost.of(gpu, 1, 65, groups=n) for n in (1, 3))
    v = next(v for v in one.variants() if v.pixels == 64)
    assert (one.tiles(v), one.blocks(v), three.tiles(v), three.blocks(v)) == (2, 2, 2, 6)
    assert three.bound_us(1e9, 0.0) == pytest.approx(3 * one.bound_us(1e9, 0.0))
    with pytest.raises(InputError, match="positions"):
        GroupConvCost.of(gpu, 1, 1 << 20, groups=1 << 20)


def test_depthwise_parts_are_cheaper_without_the_matrix_unit() -> None:
    cost = _cost("H200", 9, 3136)

    def each(v: ConvVariant) -> float:
        resident = cost.occupancy([v])
        return _one(cost, v, 1, 1, resident) * cost.tiles(v) / resident

    best = {path: min(each(v) for v in cost.variants() if v.path == path) for path in ("lanes", "mma")}
    assert best["lanes"] < best["mma"] / 2


def test_large_parts_are_cheaper_on_the_matrix_unit() -> None:
    cost = _cost("H200", 9, 3136)
    rates = {
        v: 240 * v.pixels * cost.occupancy([v]) / _one(cost, v, 240, 240, cost.occupancy([v])) for v in cost.variants()
    }
    assert max(rates, key=rates.__getitem__).path != "lanes"


def test_the_bound_is_the_longest_of_products_bytes_and_launch() -> None:
    cost = _cost("H200", 9, 3136)
    assert cost.bound_us(1e6, 0.0) == pytest.approx(2 * 1e6 * 9 * 3136 / 989e12 * 1e6)
    assert cost.bound_us(1.0, 4.8e9) == cost.bytes_floor_us(4.8e9) == pytest.approx(1000.0)
    assert cost.bound_us(1.0, 1.0) == cost.launch_us == pytest.approx(2.0)


def test_shared_memory_is_that_of_the_tiles() -> None:
    cost, v = _cost("A100", 1, 784), ConvVariant("mma", 32, 64, 64, 4, 2)
    rows_of_zeros, run_margin = 8, 16
    assert cost.resources(v).shared_memory_bytes == 64 * 2 * (2 * (64 + run_margin + 32) + rows_of_zeros)
    assert cost.occupancy([v, ConvVariant("lanes", 1, 1, 128, 4, 1)]) == 0


_VARIANT = next(v for v in _cost("H200", 1, 784).variants() if (v.path, v.outputs) == ("mma", 32))


def _record(factor: float, **changes: object) -> TileRecord:
    known = TileRecord(
        kind="conv",
        gpu="NVIDIA H200",
        architecture="sm_90",
        element="fp16",
        variant=_VARIANT.describe(),
        widths=(1,),
        extent=(32, 120),
        masked=False,
        resident=2,
        microseconds=factor * _one(_cost("H200", 1, 784), _VARIANT, 32, 120, 2),
        threads=_VARIANT.threads,
        registers=90,
        shared_bytes=30_000,
        driver="580.1",
        nvrtc="13.0.88",
        source="0123456789abcdef",
        clock_hz=1.83e9,
        date="2026-11-20",
    )
    return replace(known, **changes)  # type: ignore[arg-type]


def test_records_decide_for_their_variant_alone() -> None:
    gpu, model = load_target("H200").need_gpu_profile(), _cost("H200", 1, 784)
    cost = GroupConvCost.of(gpu, 1, 784, records=[_record(0.8), _record(0.9), _record(1.0)])
    other = next(v for v in cost.variants() if v != _VARIANT)
    assert (model.measured, cost.measured) == (False, True)
    assert _one(cost, _VARIANT, 20, 60, 1) == pytest.approx(0.9 * _one(model, _VARIANT, 20, 60, 1))
    assert _one(cost, other, 20, 60, 1) == _one(model, other, 20, 60, 1)
    assert cost.resources(_VARIANT) == Resources(90, 30_000, _VARIANT.threads, estimated=False)
    assert cost.uncertainty_of([_VARIANT]) < 0.5 * cost.uncertainty_of([other])
    assert cost.uncertainty == model.uncertainty > 0.3


@pytest.mark.parametrize(
    "changes", [{"widths": (9,)}, {"element": "bf16"}, {"gpu": "NVIDIA A100"}, {"microseconds": 1e8}]
)
def test_records_of_something_else_do_not_count(changes: dict[str, object]) -> None:
    cost = GroupConvCost.of(load_target("H200").need_gpu_profile(), 1, 784, records=[_record(1.3, **changes)])
    assert not cost.measured
    assert _one(cost, _VARIANT, 32, 120, 2) == _one(_cost("H200", 1, 784), _VARIANT, 32, 120, 2)


def test_no_record_makes_a_part_faster_than_physics() -> None:
    cost = GroupConvCost.of(load_target("H200").need_gpu_profile(), 1, 784, records=[_record(0.06)])
    resident = cost.occupancy([_VARIANT])
    parts = 100 * resident * cost.gpu.multiprocessors / cost.tiles(_VARIANT)
    predicted = 100 * _one(cost, _VARIANT, 32, 4000, resident)
    assert predicted >= 0.999 * cost.bound_us(parts * 32 * 4000, 0.0)
