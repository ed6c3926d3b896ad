"""Running a convolution kernel's PTX on the CPU notices bugs that are planted into the sources, one at a time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from onnxopt.errors import OnnxOptError
from onnxopt.kernels.compiler import compile_kernel
from onnxopt.kernels.conv_source import group_conv_source, sum_conv_source
from onnxopt.target.variant import ConvVariant
from onnxopt.verification.conv_kernels import check_group_conv, check_sum_conv
from onnxopt.verification.kernels import KernelCheck
from tests.kernels.conv_cases import ConvWish, made_case
from tests.kernels.conv_planted_bugs import BUGS
from tests.kernels.planted_bugs import Bug
from tests.kernels.test_conv_lanes import lanes
from tests.kernels.test_conv_mma import mma
from tests.kernels.test_conv_wgmma import wgmma
from tests.kernels.test_planted_bugs import planted

_PADDED = (1, 1, 1, 1)


@dataclass(frozen=True)
class _Case:
    """A kernel of fp16 and what it computes; ``sum`` is the kernel that adds up."""

    wish: ConvWish
    variant: ConvVariant
    sum: bool = False

    @property
    def architecture(self) -> str:
        return "sm_90a" if self.variant.path == "wgmma" else "sm_80"


_ADDED = ConvWish(24, 20, (6, 7), mix="added", residual=True, activation="relu")

_CASES: Mapping[str, _Case] = {
    "mma run": _Case(
        ConvWish(40, 24, (9, 10), (3, 3), pads=_PADDED, residual=True, activation="relu", in_order=True),
        mma(16, 16, 32),
    ),
    "mma run, channels last": _Case(
        ConvWish(40, 24, (9, 11), (3, 3), pads=_PADDED, mix="moved", layout="last"), mma(16, 32)
    ),
    "mma channels": _Case(ConvWish(90, 16, (8, 8), in_order=True), mma(16, 32, stages=3)),
    "mma batches of taps": _Case(ConvWish(64, 64, (6, 8), (3, 3), pads=_PADDED, in_order=True), mma(64, 32, stages=3)),
    "mma dilated": _Case(ConvWish(18, 16, (8, 9), (3, 3), dilations=(2, 3), pads=(2, 3, 2, 3)), mma(16, 16)),
    "mma positions, prologue": _Case(
        ConvWish(20, 16, (14, 12), (3, 3), (2, 3), pads=(1, 0, 1, 2), gathered=True, scaled=True), mma(16, 16)
    ),
    "mma extras": _Case(ConvWish(24, 21, (6, 7), mix="repeated", in_order=True), mma(16, 16)),
    "mma folded": _Case(ConvWish(20, 16, (3, 4), (3, 3), pads=_PADDED, images=3, batch=5), mma(16, 16)),
    "split": _Case(ConvWish(50, 12, (6, 7), pieces=3), mma(16, 16)),
    "lanes shared": _Case(ConvWish(21, 15, (9, 16), (3, 3), pads=_PADDED, in_order=True), lanes(4, 4, 2, 2)),
    "lanes runs": _Case(ConvWish(9, 8, (9, 11), in_order=True), lanes(4, 4, 2, 2)),
    "lanes window": _Case(ConvWish(4, 4, (5, 16), (3, 3), pads=_PADDED, groups=4), lanes(1, 1, 4)),
    "lanes alone": _Case(ConvWish(6, 4, (5, 8), (1, 3), pads=(0, 1, 0, 1)), lanes(1, 1, 2)),
    "lanes prologue": _Case(ConvWish(6, 4, (5, 8), (3, 3), pads=_PADDED, scaled=True, in_order=True), lanes(4, 4)),
    "lanes extras": _Case(ConvWish(8, 21, (6, 7), mix="repeated", in_order=True), lanes(4, 4)),
    "wgmma batches": _Case(ConvWish(136, 32, (12, 16), layout="last", in_order=True), wgmma(32, 32, 2)),
    "wgmma run": _Case(ConvWish(72, 32, (8, 16), (3, 3), pads=_PADDED, in_order=True), wgmma(32, 32, 2, 3)),
    "sum": _Case(_ADDED, mma(16, 16), sum=True),
    "sum, channels last": _Case(replace(_ADDED, layout="last"), mma(16, 16), sum=True),
}
_QUICK = frozenset(
    {
        "dropped barrier behind the copies",
        "border in front is no border",
        "all pixels of a folded tile in the first image",
        "weights are overwritten while they are used",
        "partial rows change places",
        "last partial row is left out",
        "wrong parity of the ring",
    }
)


def problem_of(name: str, folder: Path | None, cache: Path) -> str:
    """What running the kernel of a case shows; empty where all is well."""
    try:
        check = _checked(_CASES[name], folder, cache)
    except OnnxOptError as error:
        return f"{type(error).__name__}: {error}"
    return "" if check.passed else check.worst().explain()


def _checked(case: _Case, folder: Path | None, cache: Path) -> KernelCheck:
    made = made_case(case.wish, (case.variant,), "fp16")
    if case.sum:
        own = made.tables.sum
        assert own is not None
        compiled = compile_kernel(sum_conv_source(own.kernel), case.architecture, folder=folder)
        return check_sum_conv(compiled, own.kernel, own.arrays(), batch=made.batch, cache=cache)
    kernel = made.tables.kernel.to_json()
    compiled = compile_kernel(group_conv_source(kernel, 1), case.architecture, folder=folder)
    return check_group_conv(compiled, kernel, made.tables.arrays(), batch=made.batch, cache=cache)


@pytest.mark.slow
@pytest.mark.parametrize("name", _CASES)
def test_the_kernel_as_it_is_passes(name: str, programs: Path) -> None:
    assert problem_of(name, None, programs) == ""


@pytest.mark.parametrize(
    "bug", [pytest.param(bug, id=bug.name, marks=() if bug.name in _QUICK else pytest.mark.slow) for bug in BUGS]
)
def test_a_planted_bug_is_noticed(bug: Bug, tmp_path: Path, programs: Path) -> None:
    planted(bug, tmp_path / "cuda")
    assert problem_of(bug.case, tmp_path / "cuda", programs) != ""


def test_the_quick_bugs_are_of_every_kernel() -> None:
    quick = [bug for bug in BUGS if bug.name in _QUICK]
    assert len(quick) == len(_QUICK)
    assert {bug.case.split()[0].strip(",") for bug in quick} == {"mma", "wgmma", "split", "lanes", "sum"}
