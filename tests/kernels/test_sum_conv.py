"""The kernel that adds up partial rows, emulated: any layout, blocks that span batch elements, and no rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from onnxopt.emulate import Uninitialised, build_cpu_kernel
from onnxopt.kernels.compiler import compile_kernel
from onnxopt.kernels.conv_launch import sum_conv_arguments, sum_conv_launch
from onnxopt.kernels.conv_source import sum_conv_source
from onnxopt.verification.conv_kernels import check_sum_conv


def kernel(element: str, channels: int, size: list[int], slots: int, **fields: Any) -> dict[str, Any]:
    return {
        "element": element,
        "layout": "first",
        "output_channels": channels,
        "output_size": size,
        "activation": "none",
        "residual": False,
        "slots": slots,
        **fields,
    }


def tables(counts: NDArray[np.int64], slots: int, seed: int = 0) -> dict[str, NDArray[Any]]:
    """Channels that add so many rows each, ascending, some of them twice."""
    rng = np.random.default_rng(seed)
    rows = [np.sort(rng.integers(0, slots, count)) for count in counts]
    return {
        "b": rng.standard_normal(len(counts)).astype(np.float32),
        "sum_begin": np.cumsum([0, *counts]).astype(np.int32),
        "sum_rows": np.concatenate([*rows, [0]]).astype(np.int32),
    }


@pytest.mark.parametrize(
    ("element", "size", "fields", "architecture"),
    [
        ("fp16", [1, 7, 9], {"activation": "relu"}, "sm_75"),
        ("bf16", [1, 5, 5], {"layout": "last", "residual": True, "activation": "silu"}, "sm_90a"),
        ("fp32", [2, 3, 5], {"residual": True, "activation": "hardswish"}, "sm_120"),
        ("tf32", [1, 1, 1], {"layout": "last"}, "sm_80"),
    ],
)
def test_sums_of_any_layout_agree_with_float64(
    element: str, size: list[int], fields: dict[str, Any], architecture: str, programs: Path
) -> None:
    counts = np.random.default_rng(1).integers(0, 7, 19)
    counts[[2, 11]] = 0, 40
    config = kernel(element, 19, size, 50, **fields)
    compiled = compile_kernel(sum_conv_source(config), architecture, programs)
    check = check_sum_conv(compiled, config, tables(counts, 50), batch=3, cache=programs)
    assert check.passed, check.worst().explain()


def test_rows_are_added_in_order_and_the_bias_behind_them(programs: Path) -> None:
    config = kernel("fp32", 2, [1, 1, 3], 4)
    given = {
        "b": np.array([1, 0.5], np.float32),
        "sum_begin": np.array([0, 3, 3], np.int32),
        "sum_rows": np.array([0, 1, 3, 0], np.int32),
    }
    partial = np.zeros((1, 4, 3), np.float32)
    # In any other order the small number would be lost, or the large ones would not cancel first.
    partial[0, :, 0] = 1e8, -1e8, 7, 1e-3
    y = np.zeros((1, 6), np.float32)
    compiled = compile_kernel(sum_conv_source(config), "sm_80", programs)
    launch = sum_conv_launch(config, 1)
    arguments = sum_conv_arguments(config, {**given, "partial": partial, "y": y}, 1)
    build_cpu_kernel(compiled.ptx, compiled.source.entry, programs).run(
        grid=(launch.grid, 1, 1),
        block=(launch.block, 1, 1),
        shared_bytes=launch.shared_bytes,
        arguments=[*arguments[:-2], np.int32(1), Uninitialised(y)],
    )
    assert y.tolist() == [[np.float32(np.float32(1e-3) + np.float32(1)), 1, 1, 0.5, 0.5, 0.5]]
