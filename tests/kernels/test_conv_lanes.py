"""The convolution kernel without the matrix unit, emulated: every kind of part, window and layout, and how it reads."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from onnxopt.emulate import Uninitialised, build_cpu_kernel
from onnxopt.kernels.compilation import CompiledKernel
from onnxopt.kernels.compiler import compile_kernel
from onnxopt.kernels.conv_launch import group_conv_arguments, group_conv_launch
from onnxopt.kernels.conv_source import group_conv_source
from onnxopt.plan.group_conv_cost import GroupConvCost
from onnxopt.target import load_target
from onnxopt.target.variant import ConvVariant, Element
from onnxopt.verification.kernels import ORDERS
from tests.kernels.conv_cases import WISHES, ConvCase, ConvWish, check_case, made_case


def lanes(outputs: int, inputs: int, each: int = 1, warps: int = 1) -> ConvVariant:
    """A shape whose threads have ``each`` positions."""
    return ConvVariant("lanes", outputs, inputs, 32 * warps * each, warps, 1)


ALONE = (lanes(1, 1, 2),)
SMALL = (lanes(4, 1, 4), lanes(1, 4))
LARGE = (lanes(8, 4, 2), lanes(4, 8))
MULTIPLE = (lanes(4, 1, 1, 2), lanes(1, 1, 4, 2))

CASES: list[tuple[str, tuple[ConvVariant, ...], str, Element]] = [
    ("depthwise", ALONE, "sm_90a", "fp16"),
    ("depthwise, channels last", ALONE, "sm_75", "fp32"),
    ("folded images", ALONE, "sm_80", "bf16"),
    ("multiplier", MULTIPLE, "sm_120", "fp16"),
    ("pruned", SMALL, "sm_86", "fp16"),
    ("three axes", ALONE, "sm_89", "tf32"),
    ("repeated outputs, channels last", LARGE, "sm_100a", "bf16"),
    ("split inputs, channels last", LARGE, "sm_80", "fp16"),
    ("prologue of gathered inputs", SMALL, "sm_80", "fp32"),
    ("added outputs", ALONE, "sm_75", "fp16"),
]

WINDOWS = {
    "rows of whole vectors": ConvWish(3, 3, (5, 16), (3, 3), pads=(1,) * 4, groups=3),
    "a stride over vectors": ConvWish(3, 3, (9, 16), (3, 3), (2, 2), pads=(1,) * 4, groups=3, activation="silu"),
    "taps apart": ConvWish(2, 2, (3, 24), (1, 3), dilations=(1, 6), pads=(0, 5, 0, 7), groups=2),
    "taps far apart": ConvWish(2, 2, (2, 96), (1, 3), dilations=(1, 36), pads=(0, 36, 0, 35), groups=2),
    "more taps than one window has": ConvWish(1, 1, (2, 20), (1, 37), pads=(0, 18, 0, 18), residual=True),
    "taps beyond both ends": ConvWish(2, 2, (2, 4), (2, 5), pads=(1, 4, 1, 4), groups=2, input_activation="silu"),
}


@pytest.mark.parametrize(("name", "variants", "architecture", "element"), CASES)
def test_any_convolution_agrees_with_float64(
    name: str, variants: tuple[ConvVariant, ...], architecture: str, element: Element, programs: Path
) -> None:
    # Where threads share nothing, their order means nothing.
    orders = (0,) if variants == ALONE else ORDERS
    given = WISHES[name], variants, architecture, element, programs
    for check in check_case(*given, products=100_000, orders=orders):
        assert check.passed, check.worst().explain()


@pytest.mark.parametrize("wish", WINDOWS.values(), ids=WINDOWS)
def test_windows_of_four_positions_at_any_alignment(wish: ConvWish, programs: Path) -> None:
    for check in check_case(wish, [lanes(1, 1, 4)], "sm_80", "fp16", programs, orders=(0,)):
        assert check.passed, check.worst().explain()


def compiled_case(wish: ConvWish, variants: tuple[ConvVariant, ...], programs: Path) -> tuple[ConvCase, CompiledKernel]:
    case = made_case(wish, variants, "fp16")
    return case, compile_kernel(group_conv_source(case.tables.kernel.to_json(), 8), "sm_80", programs)


def computed(case: ConvCase, compiled: CompiledKernel, x: NDArray[Any], programs: Path) -> NDArray[Any]:
    """y of batch x elements by the kernel on the CPU."""
    kernel, arrays, batch = case.tables.kernel.to_json(), case.tables.arrays(), len(x)
    y = np.zeros((batch, kernel["output_channels"] * int(np.prod(kernel["output_size"]))), np.float16)
    arguments = group_conv_arguments(kernel, {**arrays, "x": x, "y": y}, batch)
    launch = group_conv_launch(kernel, len(arrays["jobs"]), batch, compiled.report)
    build_cpu_kernel(compiled.ptx, compiled.source.entry, programs).run(
        grid=(launch.grid, 1, 1),
        block=(launch.block, 1, 1),
        shared_bytes=launch.shared_bytes,
        arguments=[*arguments[:-2], np.int32(batch), Uninitialised(y)],
    )
    return y


def test_a_position_that_is_not_a_number_reaches_only_the_windows_that_have_it(programs: Path) -> None:
    wish = ConvWish(5, 3, (4, 8), (1, 3), pads=(0, 1, 0, 1), activation="relu", in_order=True, batch=1)
    case, compiled = compiled_case(wish, (lanes(4, 4, 4),), programs)
    x = np.ones((1, 5, 4, 8), np.float16)
    x[0, 4, 2, 5] = np.nan
    y = computed(case, compiled, x.reshape(1, -1), programs).reshape(3, 4, 8)
    expected = np.zeros((3, 4, 8), bool)
    expected[:, 2, 4:7] = True
    assert np.array_equal(np.isnan(y), expected)


def test_rows_of_whole_vectors_are_read_and_written_by_vectors(programs: Path) -> None:
    _, compiled = compiled_case(WINDOWS["rows of whole vectors"], (lanes(1, 1, 4),), programs)
    # In each of the three rows: four columns at once, and one on either side.
    assert len(re.findall(r"ld\.global\.nc\.v2\.u32", compiled.ptx)) >= 3
    assert re.findall(r"st\.global\.(\S+)", compiled.ptx) == ["v2.b32"]


def test_parts_of_one_output_and_input_share_nothing(programs: Path) -> None:
    _, compiled = compiled_case(WISHES["depthwise"], ALONE, programs)
    assert compiled.report.dynamic_shared == 0
    assert "bar.sync" not in compiled.ptx


@pytest.mark.parametrize("variant", [lanes(1, 1, 4, 2), lanes(1, 8, 1, 2), lanes(4, 1, 4, 2), lanes(8, 8, 4, 2)])
def test_no_shape_takes_more_than_the_plan_counts_on(variant: ConvVariant, programs: Path) -> None:
    gpu = load_target("sm_80").need_gpu_profile()
    cost = GroupConvCost.of(gpu, taps=9, positions=28 * 28, element="fp16")
    case = made_case(ConvWish(32, 32, (28, 28), (3, 3), pads=(1,) * 4), [variant], "fp16")
    resident = cost.occupancy([variant])
    report = compile_kernel(group_conv_source(case.tables.kernel.to_json(), resident), "sm_80", programs).report
    assert report.dynamic_shared <= cost.resources(variant).shared_memory_bytes
    assert report.registers * report.threads * resident <= 65536
