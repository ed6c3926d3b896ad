"""Grids and arguments of convolutions: what does not fit the configuration is refused before a launch."""

from __future__ import annotations

from math import prod
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from onnxopt.errors import InputError
from onnxopt.kernels.conv_launch import (
    group_conv_arguments,
    group_conv_launch,
    group_conv_parameters,
    sum_conv_arguments,
    sum_conv_launch,
    sum_conv_parameters,
)
from onnxopt.kernels.launch import Launch
from onnxopt.kernels.report import ResourceReport
from onnxopt.target.variant import ConvVariant, Element
from onnxopt.verification.conv_rule import draw_conv_operands, draw_sum_operands, poisoned_output
from onnxopt.verification.kernel_rule import stored
from tests.kernels.conv_cases import WISHES, made_case

_MMA = (ConvVariant("mma", 16, 16, 64, 2, 2),)
_REPORT = ResourceReport(90, 0, 9216, 0, 0, 0, 64)


def _given(wish: str, element: Element = "fp16", batch: int = 2) -> tuple[dict[str, Any], dict[str, Any]]:
    """A kernel part with all tensors of its operator."""
    tables = made_case(WISHES[wish], _MMA, element).tables
    kernel = tables.kernel.to_json()
    operands = draw_conv_operands(kernel, batch, 0)
    tensors = {**tables.arrays(), "x": stored(element, operands.data)}
    if operands.residual is not None and not kernel["split"]:
        tensors["residual"] = stored(element, operands.residual)
    return kernel, {**tensors, "partial" if kernel["split"] else "y": poisoned_output(kernel, batch)}


def _summed(batch: int = 2) -> tuple[dict[str, Any], dict[str, Any]]:
    own = made_case(WISHES["split inputs"], _MMA, "fp16").tables.sum
    assert own is not None
    operands = draw_sum_operands(own.kernel, batch, 0)
    assert operands.residual is not None
    tensors = {**own.arrays(), "partial": operands.data, "residual": stored("fp16", operands.residual)}
    return dict(own.kernel), {**tensors, "y": poisoned_output(own.kernel, batch)}


@pytest.mark.parametrize(
    ("wish", "batch", "grid"), [("pointwise", 3, 21), ("folded images", 5, 14), ("folded images", 6, 14)]
)
def test_a_block_for_every_job_and_group_of_images(wish: str, batch: int, grid: int) -> None:
    assert group_conv_launch(_given(wish)[0], 7, batch, _REPORT) == Launch(grid, 64, 9216)


def test_a_thread_for_every_element_of_a_sum() -> None:
    kernel = _summed()[0]
    elements = kernel["output_channels"] * prod(kernel["output_size"])
    assert elements == 504
    assert [sum_conv_launch(kernel, batch) for batch in (1, 2)] == [Launch(2, 256, 0), Launch(4, 256, 0)]


@pytest.mark.parametrize(
    ("jobs", "batch", "message"),
    [(0, 1, "jobs is 0"), (1, 0, "batch is 0"), (2**20, 2**12, "make 4,294,967,296 blocks; allowed: 2,147,483,647")],
)
def test_a_grid_that_cannot_be(jobs: int, batch: int, message: str) -> None:
    with pytest.raises(InputError, match=message):
        group_conv_launch(_given("pointwise")[0], jobs, batch, _REPORT)


def test_a_report_of_another_kernel_is_noticed() -> None:
    with pytest.raises(InputError, match="blocks of 128 threads, its configuration 64"):
        group_conv_launch(_given("pointwise")[0], 1, 1, ResourceReport(90, 0, 0, 0, 0, 0, 128))


@pytest.mark.parametrize(
    ("wish", "names"),
    [
        ("pointwise", "x w b jobs outputs inputs batch y"),
        ("repeated outputs", "x residual w b jobs outputs inputs extras batch y"),
        ("prologue", "x w b jobs outputs inputs input_scales input_shifts batch y"),
        ("split inputs", "x w jobs outputs inputs batch partial"),
        ("prologue of split inputs", "x w jobs outputs inputs input_scales input_shifts batch partial"),
    ],
)
def test_parameters_are_the_inputs_then_the_batch_then_the_output(wish: str, names: str) -> None:
    assert group_conv_parameters(_given(wish)[0]) == tuple(names.split())


@pytest.mark.parametrize("element", ["fp16", "bf16", "fp32", "tf32"])
@pytest.mark.parametrize("wish", ["pointwise", "repeated outputs", "prologue", "split inputs"])
def test_arguments_in_order(wish: str, element: Element) -> None:
    kernel, tensors = _given(wish, element)
    for name, argument in zip(group_conv_parameters(kernel), group_conv_arguments(kernel, tensors, 2), strict=True):
        assert argument == 2 if name == "batch" else argument is tensors[name]


def test_arguments_of_a_sum() -> None:
    kernel, tensors = _summed()
    assert sum_conv_parameters(kernel) == ("partial", "residual", "b", "sum_begin", "sum_rows", "batch", "y")
    assert sum_conv_parameters({**kernel, "residual": False})[1:3] == ("b", "sum_begin")
    for name, argument in zip(sum_conv_parameters(kernel), sum_conv_arguments(kernel, tensors, 2), strict=True):
        assert argument == 2 if name == "batch" else argument is tensors[name]


@pytest.mark.parametrize(
    ("wish", "name", "value", "message"),
    [
        (
            "pointwise",
            "jobs",
            np.zeros((5, 16), np.int32),
            "'jobs' has the shape 5 x 16; allowed: any number from 1 on x",
        ),
        ("pointwise", "inputs", np.zeros(8, np.int64), "'inputs' is int64; allowed: int32"),
        ("pointwise", "b", np.zeros(7, np.float32), "'b' has the shape 7, but 'outputs', to which it is parallel"),
        ("pointwise", "b", np.zeros(7, np.float16), "'b' is float16; allowed: float32"),
        ("pointwise", "w", np.zeros(7, np.float32), "'w' is float32; allowed: float16"),
        ("pointwise", "w", np.zeros(7, ml_dtypes.bfloat16), "'w' is bfloat16"),
        (
            "pointwise",
            "x",
            np.zeros((2, 40, 71), np.float16),
            "'x' has the shape 2 x 40 x 71, 5,680 elements; allowed: 2",
        ),
        ("pointwise", "y", np.zeros((2, 9), np.float16), "'y' has the shape 2 x 9, 18 elements; allowed: 2 x 1728"),
        ("pointwise", "residual", np.zeros(8, np.float16), "residual: not of this kernel"),
        ("repeated outputs", "residual", np.zeros(8, np.float16), "'residual' has the shape 8"),
        ("repeated outputs", "extras", None, "extras: missing; allowed: exactly x, residual, w, b, jobs"),
        ("prologue", "input_shifts", np.zeros(3, np.float32), "'input_shifts' has the shape 3, but 'inputs'"),
        ("split inputs", "partial", np.zeros((1, 9), np.float32), "'partial' has the shape 1 x 9"),
    ],
)
def test_a_tensor_that_does_not_fit_is_refused(wish: str, name: str, value: Any, message: str) -> None:
    kernel, tensors = _given(wish)
    tensors = {**tensors, name: value} if value is not None else {k: v for k, v in tensors.items() if k != name}
    with pytest.raises(InputError) as error:
        group_conv_arguments(kernel, tensors, 2)
    assert f"GroupConv: {message}" in str(error.value)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("sum_begin", np.zeros(12, np.int32), "'sum_begin' has the shape 12; allowed: 13"),
        ("b", np.zeros(13, np.float32), "'b' has the shape 13; allowed: 12"),
        ("partial", np.zeros((2, 4), np.float32), "'partial' has the shape 2 x 4"),
        ("y", np.zeros((2, 504), np.float32), "'y' is float32"),
    ],
)
def test_a_sum_that_does_not_fit_is_refused(name: str, value: Any, message: str) -> None:
    kernel, tensors = _summed()
    with pytest.raises(InputError) as error:
        sum_conv_arguments(kernel, {**tensors, name: value}, 2)
    assert f"SumConv: {message}" in str(error.value)


def test_a_configuration_that_is_not_supported_has_no_arguments() -> None:
    kernel, tensors = _given("pointwise")
    with pytest.raises(InputError, match="'activation' is 'gelu'"):
        group_conv_arguments({**kernel, "activation": "gelu"}, tensors, 2)
    with pytest.raises(InputError, match="batch is 0"):
        group_conv_arguments(kernel, tensors, 0)
