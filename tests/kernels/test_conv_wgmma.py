"""The convolution kernel on wgmma, emulated: pixels by descriptor and in registers, odd tiles, and what it takes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest

from onnxopt.kernels.compiler import compile_kernel
from onnxopt.kernels.conv_sass import check_conv_sass
from onnxopt.kernels.conv_source import group_conv_source
from onnxopt.plan.group_conv_cost import GroupConvCost
from onnxopt.target import load_target
from onnxopt.target.variant import ConvVariant, Element
from tests.kernels.conv_cases import WISHES, ConvWish, check_case, made_case


def wgmma(outputs: int, inputs: int, groups: int = 1, stages: int = 2) -> ConvVariant:
    """A shape of so many consumer warpgroups."""
    return ConvVariant("wgmma", outputs, inputs, 64 * groups, 4 * groups, stages)


SMALL = (wgmma(16, 32), wgmma(32, 64, stages=3))
PAIR = (wgmma(16, 64, 2, 3), wgmma(32, 32, 2))
LARGE = (wgmma(64, 64, 2), wgmma(128, 32, 2, 3))
LARGEST = (wgmma(256, 64, 2),)

CASES: list[tuple[str, tuple[ConvVariant, ...], Element]] = [
    ("three axes", (wgmma(16, 32),), "fp16"),
    ("folded images", PAIR, "bf16"),
    ("repeated outputs", (wgmma(16, 64),), "fp16"),
    ("prologue of split inputs", (wgmma(16, 32),), "fp16"),
    ("gathered inputs, channels last", (wgmma(32, 64, stages=3),), "bf16"),
]
_CHOSEN = {name for name, *_ in CASES}
_TURNS: tuple[tuple[tuple[ConvVariant, ...], Element], ...] = (
    (SMALL, "bf16"),
    (PAIR, "fp16"),
    (LARGE, "fp16"),
    (LARGEST, "bf16"),
)
FURTHER = [(name, *_TURNS[i % len(_TURNS)]) for i, name in enumerate(n for n in WISHES if n not in _CHOSEN)]

# How inputs come: channels as they lie in x, a row for each pixel, and runs over all taps or one row of the kernel.
SOURCES = {
    "channels in pieces of 16 bytes": ConvWish(40, 12, (9, 16), activation="relu", in_order=True),
    "channels in pieces of 4 bytes": ConvWish(40, 16, (10, 3), gathered=True, images=2, batch=3),
    "channels, scaled": ConvWish(24, 16, (6, 8), scaled=True, input_activation="relu", residual=True),
    "single positions": ConvWish(20, 16, (7, 7), images=3, batch=4),
    "positions of a wide stride": ConvWish(20, 16, (14, 12), (3, 3), (2, 3), pads=(1, 0, 1, 2), scaled=True),
    "runs of kernel rows": ConvWish(20, 16, (5, 60), (3, 3), pads=(1,) * 4),
    "a run of every other position": ConvWish(20, 16, (131,), (5,), (2,), pads=(2, 2)),
    "a run, scaled": ConvWish(20, 16, (9, 6), (3, 1), pads=(1, 0, 1, 0), scaled=True, input_activation="silu"),
}
_QUICK = ("channels in pieces of 16 bytes", "positions of a wide stride", "a run of every other position")


def _agrees(wish: ConvWish, variants: tuple[ConvVariant, ...], element: Element, programs: Path, products: int) -> None:
    for check in check_case(wish, variants, "sm_90a", element, programs, products=products):
        assert check.passed, check.worst().explain()


@pytest.mark.parametrize(("name", "variants", "element"), CASES)
def test_any_convolution_agrees_with_float64(
    name: str, variants: tuple[ConvVariant, ...], element: Element, programs: Path
) -> None:
    _agrees(WISHES[name], variants, element, programs, 100_000)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "variants", "element"), FURTHER)
def test_further_convolutions_agree_with_float64(
    name: str, variants: tuple[ConvVariant, ...], element: Element, programs: Path
) -> None:
    _agrees(WISHES[name], variants, element, programs, 500_000)


@pytest.mark.parametrize("name", [pytest.param(n, marks=() if n in _QUICK else pytest.mark.slow) for n in SOURCES])
def test_inputs_come_in_every_way(name: str, programs: Path) -> None:
    _agrees(SOURCES[name], (wgmma(16, 32),), "fp16", programs, 200_000)


@pytest.mark.slow
@pytest.mark.parametrize("name", SOURCES)
def test_inputs_come_in_every_way_with_channels_last(name: str, programs: Path) -> None:
    _agrees(replace(SOURCES[name], layout="last"), (wgmma(16, 64, 2, 3),), "bf16", programs, 500_000)


@pytest.mark.slow
@pytest.mark.parametrize("outputs", [7, 16, 23, 40, 64, 70, 130, 200, 256])
def test_every_width_of_an_instruction(outputs: int, programs: Path) -> None:
    """Parts of few outputs are computed by narrower instructions than their shape's."""
    shape = wgmma(next(n for n in (16, 32, 64, 128, 256) if n >= outputs), 32)
    for kernel in ((1, 1), (1, 3)):
        wish = ConvWish(40, outputs, (5, 14), kernel, pads=(0, kernel[1] // 2) * 2, in_order=True, batch=1)
        _agrees(wish, (shape,), "fp16", programs, 4_000_000)


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["first", "last"])
@pytest.mark.parametrize("kernel", [(1, 1), (3, 3)])
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("outputs", [16, 32, 64, 128, 256])
def test_the_plan_leaves_room_for_what_is_compiled(
    outputs: int, groups: int, kernel: tuple[int, int], layout: Literal["first", "last"], programs: Path
) -> None:
    """With everything that a convolution may ask for; that nothing is spilled or serialised, the compiler checks."""
    cost = GroupConvCost.of(load_target("sm_90").need_gpu_profile(), kernel[0] * kernel[1], 30 * 30, "fp16")
    wish = ConvWish(64, outputs, (30, 30), kernel, pads=tuple(k // 2 for k in kernel) * 2, mix="repeated", images=2)
    wish = replace(wish, scaled=True, input_activation="silu", residual=True, activation="silu", layout=layout)
    for inputs in (32, 64):
        variant = wgmma(outputs, inputs, groups, 3)
        document = made_case(wish, (variant,), "fp16").tables.kernel.to_json()
        compiled = compile_kernel(group_conv_source(document, cost.occupancy([variant])), "sm_90a", programs)
        assert check_conv_sass(compiled, document) == []
        assert compiled.report.shared <= cost.resources(variant).shared_memory_bytes, variant.describe()


def test_products_and_copies_are_asynchronous(programs: Path) -> None:
    wish = ConvWish(64, 64, (14, 14), (3, 3), pads=(1,) * 4)
    document = made_case(wish, (wgmma(64, 64),), "fp16").tables.kernel.to_json()
    compiled = compile_kernel(group_conv_source(document, 2), "sm_90a", programs)
    assert check_conv_sass(compiled, document) == []
    assert (compiled.report.stack, compiled.report.spill_stores, compiled.report.spill_loads) == (0, 0, 0)
