"""The numeric rule for convolutions: what a plain implementation gives passes, anything worse or elsewhere does not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from onnxopt.plan.tables import ConvTables
from onnxopt.target.variant import ConvVariant, Element
from onnxopt.validate.reference_conv import sum_conv
from onnxopt.verification.conv_rule import (
    draw_conv_operands,
    draw_sum_operands,
    expected_conv,
    judge_group_conv,
    judge_sum_conv,
    plain_conv,
    poisoned_output,
)
from onnxopt.verification.conv_sample import sample_conv_jobs
from onnxopt.verification.kernel_rule import loaded, rounded_to, stored
from tests.kernels.conv_cases import WISHES, made_case

Array = NDArray[Any]

_MMA = ConvVariant("mma", 16, 16, 64, 2, 2)
_SMALL = ConvVariant("mma", 8, 32, 64, 2, 3)
_LANES = ConvVariant("lanes", 4, 4, 128, 4, 1)


def _drawn(wish: str, variant: ConvVariant, element: Element) -> tuple[dict[str, Any], dict[str, Array], Any]:
    case = made_case(WISHES[wish], (variant,), element)
    kernel = case.tables.kernel.to_json()
    return kernel, case.tables.arrays(), draw_conv_operands(kernel, case.batch, 5)


@pytest.mark.parametrize("variant", [_MMA, _LANES], ids=["matrix", "lanes"])
@pytest.mark.parametrize("element", ["fp16", "bf16", "tf32", "fp32"])
@pytest.mark.parametrize("wish", ["pointwise", "prologue", "split inputs, channels last"])
def test_a_plain_implementation_passes(wish: str, element: Element, variant: ConvVariant) -> None:
    kernel, tables, operands = _drawn(wish, variant, element)
    judgement = judge_group_conv(kernel, tables, operands, plain_conv(kernel, tables, operands))
    assert judgement.passed
    assert judgement.elements == poisoned_output(kernel, len(operands.data)).size


def test_products_in_the_lanes_have_all_digits() -> None:
    errors = []
    for variant in (_MMA, _LANES):
        kernel, tables, operands = _drawn("three by three", variant, "tf32")
        errors.append(judge_group_conv(kernel, tables, operands, plain_conv(kernel, tables, operands)).rms_error)
    assert errors[0] > 100 * errors[1]


def test_weights_of_bfloat16_may_be_their_bits() -> None:
    kernel, tables, operands = _drawn("pointwise", _MMA, "bf16")
    bits = {**tables, "w": stored("bf16", tables["w"].astype(np.float32))}
    assert bits["w"].dtype == np.uint16
    for compute in (
        lambda given: expected_conv(kernel, given, operands).values,
        lambda g: plain_conv(kernel, g, operands),
    ):
        assert np.array_equal(compute(bits), compute(tables))


def _nudged(values: Array) -> Array:
    worst = np.unravel_index(np.abs(values).argmax(), values.shape)
    values[worst] *= np.float32(1.01)
    return values


def _missing_bias(values: Array) -> Array:
    values[:, 3] -= np.float32(1)
    return values


def _unwritten(values: Array) -> Array:
    values[0, 2, 5] = np.nan
    return values


@pytest.mark.parametrize("spoil", [_nudged, _missing_bias, _unwritten], ids=lambda f: f.__name__)
def test_a_wrong_result_fails(spoil: Callable[[Array], Array]) -> None:
    kernel, tables, operands = _drawn("three by three", _MMA, "fp16")
    found = spoil(plain_conv(kernel, tables, operands))
    assert not judge_group_conv(kernel, tables, operands, found).passed


def test_some_jobs_write_their_own_elements_and_no_others() -> None:
    kernel, tables, operands = _drawn("folded images", _MMA, "fp16")
    part = {**tables, "jobs": tables["jobs"][:1]}
    found = plain_conv(kernel, part, operands)
    outputs, pixels = part["jobs"][0, [2, 7]]
    assert pixels == 27
    assert np.isfinite(found).sum() == 5 * 9 * outputs
    assert judge_group_conv(kernel, part, operands, found).passed
    stray = np.where(np.isnan(found), np.float32(0), found)
    judgement = judge_group_conv(kernel, part, operands, stray)
    assert not judgement.passed
    assert "was written, which no job of the launch should do" in judgement.explain()


def test_a_sum_is_judged_too() -> None:
    own = _sum_tables()
    operands = draw_sum_operands(own.kernel, 2, 1)
    tables = own.arrays()
    found = rounded_to("fp16", sum_conv(own.kernel, tables, operands.data, operands.residual, np.float32))
    assert judge_sum_conv(own.kernel, tables, operands, found).passed
    assert not judge_sum_conv(own.kernel, tables, operands, found[:, ::-1]).passed
    poison = loaded("fp16", poisoned_output(own.kernel, 2))
    assert not judge_sum_conv(own.kernel, tables, operands, poison).passed


def _sum_tables() -> Any:
    tables: ConvTables = made_case(WISHES["added outputs"], (_MMA,), "fp16").tables
    assert tables.sum is not None
    return tables.sum


def test_a_sample_has_a_job_of_every_kind() -> None:
    case = made_case(WISHES["pruned"], (_MMA, _SMALL), "fp16", seed=8)
    kernel, tables = case.tables.kernel.to_json(), case.tables.arrays()
    jobs = tables["jobs"]
    chosen = jobs[sample_conv_jobs(kernel, tables, 10**9)]
    granules = np.array([variant["output_granule"] for variant in kernel["variants"]])

    def kinds(lines: Array) -> set[tuple[int, ...]]:
        tails = lines[:, 2] % granules[lines[:, 0]] > 0
        return {
            tuple(kind) for kind in np.stack([lines[:, 0], tails, lines[:, 4] == 0, lines[:, 7] < 64], axis=1).tolist()
        }

    assert kinds(chosen) == kinds(jobs)
    assert len(kinds(jobs)) >= 5


def test_a_sample_is_as_cheap_as_asked_but_has_every_variant() -> None:
    case = made_case(WISHES["three by three"], (_MMA, _SMALL), "fp16")
    kernel, tables = case.tables.kernel.to_json(), case.tables.arrays()
    assert set(tables["jobs"][sample_conv_jobs(kernel, tables, 1), 0]) == set(tables["jobs"][:, 0])
    assert len(sample_conv_jobs(kernel, tables, 1)) < len(sample_conv_jobs(kernel, tables, 10**9))


def test_borders_are_kinds_of_their_own() -> None:
    wide = made_case(WISHES["three by three"], (ConvVariant("mma", 32, 32, 32, 2, 2),), "fp16")
    kernel, tables = wide.tables.kernel.to_json(), wide.tables.arrays()
    chosen = tables["jobs"][sample_conv_jobs(kernel, tables, 10**9), 6]
    assert {0, 96} <= set(chosen.tolist())
    assert len(set(chosen.tolist())) >= 3
