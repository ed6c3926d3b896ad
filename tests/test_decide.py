"""Decisions follow predictions and records, and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest

import onnxopt.decide
from onnxopt.api import OptimizeResult, optimize
from onnxopt.measure.timing import PairTiming
from samples import build

Timing = Callable[..., PairTiming]


def reading(ratio: float) -> Timing:
    """A clock that always reads the same ratio."""
    return lambda *_args, **_more: PairTiming(100.0 * ratio, 100.0, ratio, ratio - 0.01, ratio + 0.01, 21)


def forbidden(*_args: Any, **_more: Any) -> PairTiming:
    raise AssertionError("nothing may be measured")


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., OptimizeResult]:
    """Optimise a sample for the CPU with clocks of our own; the records stay between calls."""
    path = tmp_path / "model.onnx"

    def call(name: str, region: Timing, whole: Timing, *, measure: bool = True) -> OptimizeResult:
        onnx.save(build(name).model, path)
        monkeypatch.setattr(onnxopt.decide, "time_regions", region)
        monkeypatch.setattr(onnxopt.decide, "time_models", whole)
        return optimize(path, target="cpu", measure=measure, cache=tmp_path / "cache")

    return call


def test_a_measured_gain_is_rewritten_and_its_record_decides_later(run: Callable[..., OptimizeResult]) -> None:
    first = run("neighbourhood", reading(2.0), reading(1.5))
    assert [s.decision for s in first.sites if s.kind == "attention"] == ["rewrite"]
    model, plan = ((first.package / name).read_bytes() for name in ("model.portable.onnx", "plan.json"))
    again = run("neighbourhood", forbidden, forbidden, measure=False)
    assert (again.package / "model.portable.onnx").read_bytes() == model
    assert (again.package / "plan.json").read_bytes() == plan


def test_a_measured_loss_keeps_the_site_and_says_so(run: Callable[..., OptimizeResult]) -> None:
    result = run("neighbourhood", reading(0.8), forbidden)
    (site,) = (s for s in result.sites if s.kind == "attention")
    assert site.decision == "keep" and "measured 0.80" in site.reason
    assert site.measured_gain == pytest.approx(0.8)
    assert not result.rewritten


def test_sites_that_win_alone_but_not_together_are_all_kept(run: Callable[..., OptimizeResult]) -> None:
    result = run("neighbourhood", reading(2.0), reading(0.9))
    assert not result.rewritten
    assert any("whole model is not faster" in s.reason for s in result.sites)
    original = onnx.load(result.inspection.path)
    assert onnx.load(result.package / "model.portable.onnx").graph == original.graph


def test_without_records_the_prediction_decides(run: Callable[..., OptimizeResult]) -> None:
    result = run("neighbourhood", forbidden, forbidden, measure=False)
    (site,) = (s for s in result.sites if s.kind == "attention")
    assert site.measured_gain is None and "not measured" in site.reason
    assert (site.decision == "rewrite") == ((site.predicted_gain or 0) >= onnxopt.decide.PREDICTED_MARGIN)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("dynamicvit", "every query needs every key"),
        ("dynamicvit_policy", "depends on the model's input"),
        ("bigbird", "depends"),
    ],
)
def test_what_cannot_gain_or_must_not_be_frozen_is_kept(
    run: Callable[..., OptimizeResult], name: str, reason: str
) -> None:
    sites = [s for s in run(name, forbidden, forbidden, measure=False).sites if s.kind == "attention"]
    assert sites and all(s.decision == "keep" for s in sites)
    assert any(reason in s.reason for s in sites)
