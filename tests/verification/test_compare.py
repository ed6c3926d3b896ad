"""The numeric rule on arrays."""

from __future__ import annotations

import json

import numpy as np
import pytest

from onnxopt.verification.compare import AbsoluteRule, BaselineRule, OutputReport, baseline_rule, compare_outputs


def only(reference: np.ndarray, candidate: np.ndarray, **options: object) -> OutputReport:
    (report,) = compare_outputs({"y": reference}, {"y": candidate}, **options)  # type: ignore[arg-type]
    return report


def noise(count: int = 1000) -> np.ndarray:
    values = np.random.default_rng(0).standard_normal(count).astype(np.float32)
    values[0] = 8.0
    return values


def test_errors_are_relative_to_the_largest_reference_value() -> None:
    found = noise()
    found[5] += 4e-4
    report = only(noise(), found)
    assert report.scale == 8.0
    assert report.max_error == pytest.approx(5e-5, rel=1e-2)
    assert report.rms_error == pytest.approx(5e-5 / np.sqrt(1000), rel=1e-2)
    assert report.passed
    assert report.reason == ""


def test_the_maximum_alone_can_fail() -> None:
    found = noise()
    found[5] += 8.8e-4
    report = only(noise(), found)
    assert not report.passed
    assert report.rms_error < 1e-5
    assert "maximum error 0.00011" in report.reason


def test_the_root_mean_square_alone_can_fail() -> None:
    report = only(noise(), noise() + np.float32(1.2e-4))
    assert not report.passed
    assert report.max_error < 1e-4
    assert "rms error 1.5e-05" in report.reason


@pytest.mark.parametrize("special", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_pass_only_in_the_same_place(special: float) -> None:
    reference, other = noise(), noise()
    reference[3] = special
    other[4] = special
    assert only(reference, reference.copy()).passed
    for candidate in (noise(), other):
        report = only(reference, candidate)
        assert not report.passed
        assert "first different at [3]" in report.reason
    assert not only(noise(), other).passed


def test_an_infinity_of_the_other_sign_or_a_nan_in_its_place_fails() -> None:
    reference = np.array([1, np.inf], np.float32)
    assert not only(reference, np.array([1, -np.inf], np.float32)).passed
    assert not only(reference, np.array([1, np.nan], np.float32)).passed


def test_the_original_decides_about_nan_under_a_wider_reference() -> None:
    wide = np.array([1.0, 2.0])
    broken = np.array([1, np.nan], np.float32)
    assert only(wide, broken, original={"y": broken}).passed
    assert not only(wide, broken, original={"y": wide.astype(np.float32)}).passed
    assert not only(wide, wide.astype(np.float32), original={"y": broken}).passed


def test_integers_and_booleans_must_be_equal() -> None:
    reference = np.arange(10)
    found = reference.copy()
    assert only(reference, found).passed
    found[7] = 0
    report = only(reference, found)
    assert not report.passed
    assert "1 of 10 elements differ" in report.reason
    assert not only(np.array([True, False]), np.array([True, True])).passed


def test_shapes_and_types_must_be_equal() -> None:
    assert "shape [1000, 1] instead of [1000]" in only(noise(), noise()[:, None]).reason
    assert "type float64 instead of float32" in only(noise(), noise().astype(np.float64)).reason
    assert "type int32 instead of int64" in only(np.arange(3), np.arange(3, dtype=np.int32)).reason
    assert only(noise().astype(np.float64), noise()).passed


def test_outputs_on_one_side_only_fail() -> None:
    reports = compare_outputs({"a": noise()}, {"b": noise()})
    assert [(report.name, report.passed) for report in reports] == [("a", False), ("b", False)]


def test_a_reference_of_zeros_allows_rounding_and_no_more() -> None:
    zeros = np.zeros(100, np.float32)
    assert only(zeros, zeros).passed
    assert only(zeros, zeros + np.float32(5e-9)).passed
    assert not only(zeros, zeros + np.float32(1e-6)).passed


def test_a_small_reference_is_judged_by_its_own_size() -> None:
    small = noise() * np.float32(1e-6)
    assert not only(small, small * np.float32(1.001)).passed


def test_empty_and_scalar_outputs() -> None:
    empty = np.zeros((0, 4), np.float32)
    assert only(empty, empty).passed
    assert not only(empty, np.zeros((1, 4), np.float32)).passed
    assert only(np.float32(2).reshape(()), np.float32(2).reshape(())).passed
    assert not only(np.array(np.nan), np.array(1.0)).passed


def test_reduced_precision_allows_twice_the_error_of_the_plain_run() -> None:
    reference = noise()
    plain = reference.astype(np.float16)
    rule = baseline_rule([({"y": reference}, {"y": plain})])
    assert 1e-5 < rule.errors["y"][0] < 1e-3
    assert only(reference, plain, rule=rule).passed
    error = plain.astype(np.float32) - reference
    assert only(reference, reference + np.float32(1.9) * error, rule=rule).passed
    assert not only(reference, reference + np.float32(2.2) * error, rule=rule).passed


def test_the_baseline_is_pooled_over_runs_and_ignores_what_is_not_finite() -> None:
    reference = np.array([1.0, 1.0], np.float32)
    runs = [
        ({"y": reference}, {"y": np.array([1.0, 1.01], np.float16)}),
        ({"y": reference}, {"y": np.array([np.nan, 1.0], np.float16)}),
    ]
    largest, rms = baseline_rule(runs).errors["y"]
    assert largest == pytest.approx(0.01, rel=0.05)
    assert rms == pytest.approx(0.01 / 2, rel=0.05)


def test_an_output_without_a_baseline_gets_the_floor_only() -> None:
    assert BaselineRule({}).bounds("y") == (1e-6, 1e-6)
    assert AbsoluteRule().bounds("y") == (1e-4, 1e-5)


def test_reports_are_json_even_where_an_error_is_infinite() -> None:
    report = only(np.array([np.nan, 1.0]), np.array([1.0, 1.0]))
    text = json.dumps(report.to_json(), allow_nan=False)
    assert json.loads(text)["max_error"] is None
