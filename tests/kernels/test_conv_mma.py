"""The convolution kernel on mma, emulated: every way in which inputs are brought, every layout, and odd tiles."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from onnxopt.kernels.compilation import architecture_for
from onnxopt.kernels.compiler import compile_kernel
from onnxopt.kernels.conv_source import group_conv_source
from onnxopt.plan.group_conv_cost import GroupConvCost
from onnxopt.target import load_target
from onnxopt.target.variant import ConvVariant, Element
from onnxopt.verification.conv_kernels import check_group_conv
from tests.kernels.conv_cases import WISHES, ConvWish, check_case, made_case


def mma(outputs: int, inputs: int, each: int = 16, warps: int = 2, stages: int = 2) -> ConvVariant:
    """A shape whose warps have ``each`` pixels."""
    return ConvVariant("mma", outputs, inputs, each * warps, warps, stages)


FEW = (mma(8, 16, stages=3), mma(8, 64, 32, stages=1))
SOME = (mma(16, 32), mma(32, 16, 32, stages=3))
MANY = (mma(64, 32, 16, 4, 3),)
LARGE = (mma(128, 64, 32, 2, 2),)

CASES: list[tuple[str, tuple[ConvVariant, ...], str, Element]] = [
    ("gathered inputs", FEW, "sm_75", "fp16"),
    ("many outputs", LARGE, "sm_90a", "bf16"),
    ("three by three", MANY, "sm_120", "fp32"),
    ("three axes", FEW, "sm_75", "fp32"),
    ("folded images", SOME, "sm_86", "bf16"),
    ("repeated outputs", FEW, "sm_100a", "fp16"),
    ("repeated outputs, channels last", SOME, "sm_89", "fp16"),
    ("split inputs", SOME, "sm_80", "fp16"),
    ("prologue of gathered inputs", SOME, "sm_80", "fp16"),
]
_CHOSEN = {name for name, *_ in CASES}
_TURNS: tuple[tuple[tuple[ConvVariant, ...], str, Element], ...] = (
    (SOME, "sm_80", "fp16"),
    (FEW, "sm_75", "fp16"),
    (MANY, "sm_87", "tf32"),
    (SOME, "sm_120", "bf16"),
    (FEW, "sm_89", "fp32"),
)
FURTHER = [(name, *_TURNS[i % len(_TURNS)]) for i, name in enumerate(n for n in WISHES if n not in _CHOSEN)]

# How inputs come: channels as they lie in x, runs over all taps or one row of the kernel, and single positions.
SOURCES = {
    "channels in pieces of 4 bytes": ConvWish(40, 16, (10, 3), gathered=True, images=2, batch=3),
    "channels, scaled": ConvWish(24, 16, (6, 8), scaled=True, input_activation="relu", residual=True),
    "a run of single positions": ConvWish(20, 16, (7, 7), images=3, batch=4),
    "runs of kernel rows": ConvWish(20, 16, (5, 60), (3, 3), pads=(1,) * 4),
    "a run of every other position": ConvWish(20, 16, (131,), (5,), (2,), pads=(2, 2)),
    "positions of a wide stride": ConvWish(20, 16, (14, 12), (3, 3), (2, 3), pads=(1, 0, 1, 2), scaled=True),
    "a run, scaled": ConvWish(20, 16, (9, 6), (3, 1), pads=(1, 0, 1, 0), scaled=True, input_activation="silu"),
}


@pytest.mark.parametrize(("name", "variants", "architecture", "element"), CASES)
def test_any_convolution_agrees_with_float64(
    name: str, variants: tuple[ConvVariant, ...], architecture: str, element: Element, programs: Path
) -> None:
    for check in check_case(WISHES[name], variants, architecture, element, programs):
        assert check.passed, check.worst()


@pytest.mark.slow
@pytest.mark.parametrize(("name", "variants", "architecture", "element"), FURTHER)
def test_further_convolutions_agree_with_float64(
    name: str, variants: tuple[ConvVariant, ...], architecture: str, element: Element, programs: Path
) -> None:
    for check in check_case(WISHES[name], variants, architecture, element, programs):
        assert check.passed, check.worst()


@pytest.mark.parametrize("name", SOURCES)
def test_inputs_come_in_every_way(name: str, programs: Path) -> None:
    for check in check_case(SOURCES[name], (mma(16, 16, 32),), "sm_80", "fp16", programs):
        assert check.passed, check.worst()


@pytest.mark.slow
@pytest.mark.parametrize("element", ["fp16", "fp32"])
@pytest.mark.parametrize("name", SOURCES)
def test_inputs_come_in_every_way_to_every_type_and_layout(name: str, element: Element, programs: Path) -> None:
    for architecture in ("sm_75", "sm_80"):
        wish = replace(SOURCES[name], layout="last" if architecture == "sm_80" else "first")
        for check in check_case(wish, (mma(16, 32, 16),), architecture, element, programs):
            assert check.passed, check.worst()


@pytest.mark.parametrize("kernel", [(1, 1), (3, 3)])
def test_tiles_may_begin_anywhere(kernel: tuple[int, int], programs: Path) -> None:
    """Nothing in the tables says that tiles begin at multiples of what is read or stored at once."""
    wish = ConvWish(20, 12, (8, 8), kernel, pads=tuple(k // 2 for k in kernel) * 2, residual=True, in_order=True)
    case = made_case(wish, (mma(16, 16),), "fp16")
    document, arrays = case.tables.kernel.to_json(), dict(case.tables.arrays())
    jobs = []
    for job in arrays["jobs"]:
        first, second = job.copy(), job.copy()
        first[7], second[6], second[7] = 13, job[6] + 13, job[7] - 13
        jobs += [first, second]
    arrays["jobs"] = np.array(jobs, np.int32)
    compiled = compile_kernel(group_conv_source(document, 1), "sm_80", programs)
    check = check_group_conv(compiled, document, arrays, cache=programs)
    assert check.passed, check.worst()


@pytest.mark.parametrize(("target", "element"), [("sm_80", "fp16"), ("sm_75", "fp32")])
@pytest.mark.parametrize("kernel", [(1, 1), (3, 3)])
def test_the_plan_leaves_room_for_what_is_compiled(
    target: str, element: Element, kernel: tuple[int, int], programs: Path
) -> None:
    gpu = load_target(target).need_gpu_profile()
    cost = GroupConvCost.of(gpu, kernel[0] * kernel[1], 30 * 30, element)
    wish = ConvWish(64, 64, (30, 30), kernel, pads=tuple(k // 2 for k in kernel) * 2)
    wish = replace(wish, scaled=True, input_activation="silu", residual=True, activation="silu")
    variants = [v for v in cost.variants() if v.path == "mma"]
    for variant in variants[:: max(1, len(variants) // 4)]:
        source = group_conv_source(
            made_case(wish, (variant,), element).tables.kernel.to_json(), cost.occupancy([variant])
        )
        report = compile_kernel(source, architecture_for(gpu.architecture), programs).report
        assert report.shared <= cost.resources(variant).shared_memory_bytes, variant.describe()
