"""Grids and arguments: what does not fit the configuration is refused before a launch."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest

from onnxopt.errors import InputError
from onnxopt.kernels.launch import (
    MERGE_PARAMETERS,
    Launch,
    attention_arguments,
    attention_launch,
    merge_arguments,
    merge_launch,
    parameter_names,
)
from onnxopt.kernels.report import ResourceReport
from tests.kernels.small import attention_kernel

_REPORT = ResourceReport(128, 16, 40960, 0, 0, 0, 128)
_MERGE = {"element": "fp16", "value_width": 32, "slots": 8, "y": [128, 1]}


def test_a_block_for_every_job_and_batch_element() -> None:
    assert attention_launch(attention_kernel(), 96, 3, _REPORT) == Launch(288, 128, 40960)


def test_a_warp_for_every_line_of_a_merge() -> None:
    assert [merge_launch(lines, 1) for lines in (1, 4, 5)] == [Launch(n, 128, 0) for n in (1, 1, 2)]
    assert merge_launch(5, 3).grid == 4


@pytest.mark.parametrize(
    ("jobs", "batch", "message"),
    [(0, 1, "jobs is 0"), (1, 0, "batch is 0"), (2**20, 2**12, "make 4,294,967,296 blocks; allowed: 2,147,483,647")],
)
def test_a_grid_that_cannot_be(jobs: int, batch: int, message: str) -> None:
    with pytest.raises(InputError, match=message):
        attention_launch(attention_kernel(), jobs, batch, _REPORT)


def test_a_report_of_another_kernel_is_noticed() -> None:
    with pytest.raises(InputError, match="blocks of 256 threads, its configuration 128"):
        attention_launch(attention_kernel(), 1, 1, ResourceReport(128, 0, 0, 0, 0, 0, 256))


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({"masks": False}, "q k v jobs rows results keys scales batch y"),
        ({}, "q k v jobs rows results keys tiles masks scales batch y"),
        (
            {"biases": True, "masks": False, "own_values": True, "extras": True},
            "q k v jobs rows results keys values tiles biases scales extras batch y",
        ),
        (
            {"biases": True, "columns": 9},
            "q k v weight jobs rows results keys tiles masks biases scales columns diagonals epsilons batch y",
        ),
        ({"slots": 8}, "q k v jobs rows results keys tiles masks scales batch partial lse"),
    ],
)
def test_parameters_are_the_inputs_then_the_batch_then_the_outputs(changes: dict[str, Any], names: str) -> None:
    assert parameter_names(attention_kernel(**changes)) == tuple(names.split())


def _tensors(kernel: dict[str, Any], batch: int) -> dict[str, Any]:
    kind = {"fp16": np.float16, "bf16": ml_dtypes.bfloat16, "fp32": np.float32, "tf32": np.float32}[kernel["element"]]
    shapes = {"jobs": (5, 16), "tiles": (7, 2), "extras": (2, 2), "masks": (64,)}
    floats = {
        **{name: ((batch, kernel[name][0]), kind) for name in "qkvy"},
        "scales": ((kernel["heads"],), np.float32),
        "biases": ((4096,), kind),
        "weight": ((batch, kernel["columns"]), np.float32),
        "epsilons": ((2,), np.float32),
        "partial": ((batch, kernel["slots"], kernel["value_width"]), np.float32),
        "lse": ((batch, kernel["slots"]), np.float32),
    }
    return {
        name: np.zeros(*floats[name]) if name in floats else np.zeros(shapes.get(name, (32,)), np.int32)
        for name in parameter_names(kernel)
        if name != "batch"
    }


@pytest.mark.parametrize("changes", [{}, {"element": "bf16"}, {"columns": 9}, {"slots": 8}, {"extras": True}])
def test_arguments_in_order(changes: dict[str, Any]) -> None:
    kernel = attention_kernel(**changes)
    tensors = _tensors(kernel, 2)
    arguments = attention_arguments(kernel, tensors, 2)
    assert len(arguments) == len(parameter_names(kernel))
    for name, argument in zip(parameter_names(kernel), arguments, strict=True):
        assert argument == 2 if name == "batch" else argument is tensors[name]


def test_bits_stand_for_bfloat16_and_shapes_of_the_model_are_as_good() -> None:
    kernel = attention_kernel(element="bf16")
    tensors = _tensors(kernel, 2)
    for name in "qkvy":
        tensors[name] = np.zeros((2, 64, kernel[name][0] // 64), np.uint16)
    assert len(attention_arguments(kernel, tensors, 2)) == len(tensors) + 1


def _changed(name: str, value: Any) -> dict[str, Any]:
    tensors = _tensors(attention_kernel(columns=9, extras=True), 2)
    return {**tensors, name: value} if value is not None else {k: v for k, v in tensors.items() if k != name}


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("jobs", np.zeros((5, 16), np.int64), "'jobs' is int64; allowed: int32"),
        ("jobs", np.zeros((5, 15), np.int32), "'jobs' has the shape 5 x 15; allowed: any number from 1 on x 16"),
        ("jobs", np.zeros((0, 16), np.int32), "'jobs' has the shape 0 x 16"),
        ("jobs", np.zeros(80, np.int32), "'jobs' has the shape 80"),
        ("rows", np.zeros((4, 8), np.int32), "'rows' has the shape 4 x 8"),
        ("results", np.zeros(31, np.int32), "'results' has the shape 31, but 'rows', to which it is parallel, 32"),
        ("columns", np.zeros(33, np.int32), "'columns' has the shape 33, but 'keys'"),
        ("diagonals", np.zeros(33, np.int32), "'diagonals' has the shape 33, but 'rows'"),
        ("masks", np.zeros(8, np.uint32), "'masks' is uint32; allowed: int32"),
        ("tiles", np.zeros((7, 3), np.int32), "'tiles' has the shape 7 x 3"),
        ("scales", np.zeros(4, np.float32), "'scales' has the shape 4; allowed: 3"),
        ("scales", np.zeros((), np.float32), "'scales' has the shape of a single number"),
        ("weight", np.zeros((2, 8), np.float32), "'weight' has the shape 2 x 8, 16 elements; allowed: 2 x 9 = 18"),
        ("epsilons", np.zeros(2, np.float64), "'epsilons' is float64; allowed: float32"),
        ("q", np.zeros((2, 64 * 288), np.float32), "'q' is float32; allowed: float16"),
        ("v", np.zeros((3, 64 * 288), np.float16), "'v' has the shape 3 x 18432, 55,296 elements"),
        ("y", np.zeros((2, 64, 95), np.float16), "'y' has the shape 2 x 64 x 95"),
        ("extras", None, "extras: missing; allowed: exactly q, k, v, weight, jobs"),
        ("biases", np.zeros(8, np.float16), "biases: not of this kernel"),
    ],
)
def test_a_tensor_that_does_not_fit_is_refused(name: str, value: Any, message: str) -> None:
    with pytest.raises(InputError) as error:
        attention_arguments(attention_kernel(columns=9, extras=True), _changed(name, value), 2)
    assert f"SparseAttention: {message}" in str(error.value)


def test_an_unsupported_head_size_or_batch_is_refused() -> None:
    kernel = attention_kernel()
    with pytest.raises(InputError, match="'width' is 320; allowed: whole numbers from 1 to 256"):
        attention_arguments({**kernel, "width": 320}, _tensors(kernel, 1), 1)
    with pytest.raises(InputError, match="batch is 0"):
        attention_arguments(kernel, _tensors(kernel, 1), 0)


def _merge_tensors(batch: int) -> dict[str, Any]:
    return {
        "partial": np.zeros((batch, 8, 32), np.float32),
        "lse": np.zeros((batch, 8), np.float32),
        "merges": np.zeros((4, 4), np.int32),
        "y": np.zeros((batch, 4, 32), np.float16),
    }


def test_arguments_of_a_merge() -> None:
    tensors = _merge_tensors(3)
    arguments = merge_arguments(_MERGE, tensors, 3)
    assert arguments[MERGE_PARAMETERS.index("batch")] == 3
    assert [a is tensors[n] for n, a in zip(MERGE_PARAMETERS, arguments, strict=True) if n != "batch"] == [True] * 4


@pytest.mark.parametrize(
    ("kernel", "name", "value", "message"),
    [
        (_MERGE, "merges", np.zeros((5, 4), np.int32), "'merges' has the shape 5 x 4; allowed: 4 x 4"),
        (_MERGE, "lse", np.zeros((1, 9), np.float32), "'lse' has the shape 1 x 9; allowed: 1 x 8"),
        (_MERGE, "partial", np.zeros((1, 8, 32), np.float16), "'partial' is float16"),
        ({**_MERGE, "y": [130, 1]}, "lse", np.zeros((1, 8), np.float32), "'y' has 130 elements; allowed: multiples of"),
    ],
)
def test_a_merge_that_does_not_fit_is_refused(kernel: dict[str, Any], name: str, value: Any, message: str) -> None:
    with pytest.raises(InputError) as error:
        merge_arguments(kernel, {**_merge_tensors(1), name: value}, 1)
    assert f"MergeAttention: {message}" in str(error.value)
