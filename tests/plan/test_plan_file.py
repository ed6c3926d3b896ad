"""Schedules survive being written, and nothing else is taken for one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxopt.discover.attention import find_attention
from onnxopt.discover.convolution import find_convolutions
from onnxopt.kernel_plans import KernelPlanner
from onnxopt.model.graph import view
from onnxopt.plan.plan_cache import FOLDER, PlanCache, content_key, planner_digest
from onnxopt.plan.plan_file import DamagedError, from_bytes, to_bytes
from onnxopt.plan.schedule import AttentionSchedule, ConvSchedule
from onnxopt.target import GpuProfile, load_target
from samples import attention_windowed as windowed
from samples import convolution_grouped as grouped


@pytest.fixture(scope="module")
def gpu() -> GpuProfile:
    return load_target("sm_90").need_gpu_profile()


@pytest.fixture(scope="module")
def schedules(gpu: GpuProfile) -> tuple[AttentionSchedule, ...]:
    site = find_attention(view(windowed.neighbourhood().model))[0][0]
    return KernelPlanner(gpu, "time").attention(site, top=2)


@pytest.fixture(scope="module")
def parts(gpu: GpuProfile) -> tuple[ConvSchedule, ...]:
    graph = view(grouped.shufflenet_v1().model)
    site = next(site for site in find_convolutions(graph)[0] if site.pattern == "grouped")
    return KernelPlanner(gpu, "waste").convolution(site, graph)


def test_an_attention_comes_back_as_it_was(schedules: tuple[AttentionSchedule, ...]) -> None:
    (first, *rest) = from_bytes(to_bytes(schedules), "attention")
    assert isinstance(first, AttentionSchedule)
    assert len(rest) == len(schedules) - 1
    expected = schedules[0]
    assert (first.variants, first.forecast, first.proof) == (expected.variants, expected.forecast, expected.proof)
    assert np.array_equal(first.jobs, expected.jobs)
    for part, other in zip(first.parts, expected.parts, strict=True):
        assert (part.heads, part.lists, part.order, part.variants) == (
            other.heads,
            other.lists,
            other.order,
            other.variants,
        )
        for strip, own in zip(part.strips, other.strips, strict=True):
            assert np.array_equal(strip.rows, own.rows)
            assert np.array_equal(strip.keys, own.keys)
            assert strip.full == own.full
    assert to_bytes(from_bytes(to_bytes(schedules))) == to_bytes(schedules)  # type: ignore[arg-type]


def test_a_convolution_comes_back_as_it_was(parts: tuple[ConvSchedule, ...]) -> None:
    (found,) = from_bytes(to_bytes(parts), "conv")
    assert isinstance(found, ConvSchedule)
    for part, own in zip(found.parts, parts[0].parts, strict=True):
        assert np.array_equal(part.outputs, own.outputs)
        assert np.array_equal(part.inputs, own.inputs)
        assert part.variant == own.variant
    assert to_bytes((found,)) == to_bytes(parts)


def test_another_kind_is_refused(parts: tuple[ConvSchedule, ...]) -> None:
    with pytest.raises(DamagedError, match="kind 'conv'"):
        from_bytes(to_bytes(parts), "attention")


@given(data=st.data())
def test_a_changed_byte_is_noticed(data: st.DataObject, parts: tuple[ConvSchedule, ...]) -> None:
    content = bytearray(to_bytes(parts))
    place = data.draw(st.integers(0, len(content) - 1))
    content[place] ^= data.draw(st.integers(1, 255))
    with pytest.raises(DamagedError):
        from_bytes(bytes(content), "conv")


@given(data=st.data())
def test_a_cut_or_foreign_file_is_noticed(data: st.DataObject, parts: tuple[ConvSchedule, ...]) -> None:
    content = to_bytes(parts)
    with pytest.raises(DamagedError):
        from_bytes(content[: data.draw(st.integers(0, len(content) - 1))], "conv")
    with pytest.raises(DamagedError):
        from_bytes(data.draw(st.binary(max_size=200)), "conv")


def test_a_plan_is_made_once_and_kept(gpu: GpuProfile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site = find_attention(view(windowed.neighbourhood().model))[0][0]
    made = KernelPlanner.at(gpu, "time", tmp_path).attention(site)
    monkeypatch.setattr("onnxopt.kernel_plans.plan_attention_kernel", lambda *_: pytest.fail("planned again"))
    kept = KernelPlanner.at(gpu, "time", tmp_path).attention(site)
    assert to_bytes(kept) == to_bytes(made)


def test_a_damaged_entry_is_a_warning_and_a_new_plan(
    gpu: GpuProfile, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    site = find_attention(view(windowed.neighbourhood().model))[0][0]
    made = KernelPlanner.at(gpu, "time", tmp_path).attention(site)
    (entry,) = (tmp_path / FOLDER).iterdir()
    entry.write_bytes(entry.read_bytes()[:-3])
    again = KernelPlanner.at(gpu, "time", tmp_path).attention(site)
    assert "cannot be used" in caplog.text
    assert to_bytes(again) == to_bytes(made)
    assert to_bytes(made) == entry.read_bytes()


def test_a_place_that_cannot_be_written_is_a_warning(
    parts: tuple[ConvSchedule, ...], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / FOLDER).write_text("in the way")
    cache = PlanCache(tmp_path)
    cache.put("a" * 64, parts)
    assert "plans are not kept" in caplog.text
    assert cache.get("a" * 64, "conv") is parts


def test_a_key_depends_on_everything(gpu: GpuProfile) -> None:
    other = load_target("sm_80").need_gpu_profile()
    facts = [1, np.arange(3)]
    keys = {
        content_key("conv", gpu, (), facts),
        content_key("attention", gpu, (), facts),
        content_key("conv", other, (), facts),
        content_key("conv", gpu, (), [1, np.arange(4)]),
        content_key("conv", gpu, (), [1, np.arange(3, dtype=np.int32)]),
    }
    assert len(keys) == 5
    assert content_key("conv", gpu, (), facts) in keys
    assert len(planner_digest()) == 64
