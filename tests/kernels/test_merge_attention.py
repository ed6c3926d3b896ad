"""The kernel that merges split keys, emulated: any width and layout, many partial results, and none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from onnxopt.emulate import Uninitialised, build_cpu_kernel
from onnxopt.kernels.compiler import compile_kernel
from onnxopt.kernels.launch import merge_launch
from onnxopt.kernels.source import merge_source
from onnxopt.verification.kernels import check_merge


def kernel(element: str, width: int, lines: int, slots: int, stride: int = 1) -> dict[str, Any]:
    return {"element": element, "value_width": width, "slots": slots, "y": [lines * width, stride]}


def table(counts: NDArray[np.int64], offsets: NDArray[np.int64]) -> NDArray[np.int32]:
    """Lines of so many neighbouring slots each, whose results go to the offsets."""
    first = np.cumsum(counts) - counts
    return np.stack([first, counts, offsets, np.zeros_like(counts)], axis=1).astype(np.int32)


@pytest.fixture
def cache(programs: Path) -> Path:
    return programs


@pytest.mark.parametrize(
    ("element", "width", "stride", "architecture"),
    [("fp16", 64, 1, "sm_80"), ("bf16", 37, 1, "sm_90a"), ("fp32", 132, 1, "sm_120"), ("fp16", 24, 30, "sm_75")],
)
def test_results_of_any_layout_from_few_and_from_hundreds_of_slots(
    element: str, width: int, stride: int, architecture: str, cache: Path
) -> None:
    rng = np.random.default_rng(0)
    counts = rng.integers(1, 6, 30)
    counts[[3, 5, 7]] = 300, 0, 33
    places = rng.permutation(30) * (width if stride == 1 else 1)
    config = kernel(element, width, 30, int(counts.sum()), stride)
    compiled = compile_kernel(merge_source(config), architecture, cache)
    check = check_merge(compiled, config, table(counts, places), cache=cache)
    assert check.passed, check.worst().explain()


def test_slots_without_keys_add_nothing_and_nothing_but_such_slots_give_nan(cache: Path) -> None:
    config = kernel("fp32", 8, 3, 5)
    merges = table(np.array([2, 0, 3]), np.array([0, 8, 16]))
    partial = np.arange(40, dtype=np.float32).reshape(1, 5, 8)
    lse = np.array([[2.0, -np.inf, -np.inf, -np.inf, -np.inf]], np.float32)
    compiled = compile_kernel(merge_source(config), "sm_80", cache)
    y = np.full((1, 24), 7, np.float32)
    launch = merge_launch(3, 1)
    build_cpu_kernel(compiled.ptx, compiled.source.entry, cache).run(
        grid=(launch.grid, 1, 1),
        block=(launch.block, 1, 1),
        shared_bytes=launch.shared_bytes,
        arguments=[partial, lse, merges, np.int32(1), Uninitialised(y)],
        order=0,
    )
    assert np.array_equal(y[0, :8], partial[0, 0])
    assert not y[0, 8:16].any()
    assert np.isnan(y[0, 16:]).all()


@pytest.mark.parametrize(
    ("element", "width", "store"), [("fp16", 64, "v2.b32"), ("bf16", 64, "v2.b32"), ("fp32", 64, "v4.b32")]
)
def test_results_leave_in_vectors(element: str, width: int, store: str, cache: Path) -> None:
    compiled = compile_kernel(merge_source(kernel(element, width, 4, 8)), "sm_90a", cache)
    stores = [line.split()[0] for line in compiled.ptx.splitlines() if "st.global" in line]
    assert stores == [f"st.global.{store}"]
