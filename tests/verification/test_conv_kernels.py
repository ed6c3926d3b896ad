"""Running a convolution's PTX on the CPU tells a right kernel from one that computes or reads something else."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onnxopt.emulate import EmulationError
from onnxopt.kernels.compilation import CompiledKernel
from onnxopt.kernels.compiler import compile_kernel
from onnxopt.kernels.conv_source import group_conv_source, sum_conv_source
from onnxopt.target.variant import ConvVariant
from onnxopt.verification.conv_kernels import check_group_conv, check_sum_conv
from tests.kernels.conv_cases import WISHES, ConvCase, made_case

_LANES = ConvVariant("lanes", 4, 1, 64, 2, 1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where what compilers make is kept."""
    return tmp_path_factory.mktemp("programs")


@pytest.fixture(scope="module")
def case() -> ConvCase:
    """A depthwise convolution with padding."""
    return made_case(WISHES["depthwise"], (_LANES,), "fp16")


@pytest.fixture(scope="module")
def compiled(case: ConvCase, folder: Path) -> CompiledKernel:
    """Its kernel."""
    return compile_kernel(group_conv_source(case.tables.kernel.to_json(), 1), "sm_80", folder)


def test_a_right_kernel_passes_in_three_orders(case: ConvCase, compiled: CompiledKernel, folder: Path) -> None:
    kernel, tables = case.tables.kernel.to_json(), case.tables.arrays()
    check = check_group_conv(compiled, kernel, tables, products=20_000, cache=folder)
    assert check.passed, check.worst().explain()
    assert (check.orders, check.batch, len(check.judgements)) == ((0, 1, 2), 2, 3)
    assert all(judgement.elements > 1000 for judgement in check.judgements)


@pytest.mark.parametrize(
    "change",
    [{"pads": [0, 0, 1]}, {"activation": "none"}, {"dilations": [1, 1, 2]}],
    ids=lambda change: next(iter(change)),
)
def test_a_kernel_of_another_convolution_fails(
    case: ConvCase, compiled: CompiledKernel, folder: Path, change: dict[str, Any]
) -> None:
    wanted = {**case.tables.kernel.to_json(), **change}
    assert not check_group_conv(compiled, wanted, case.tables.arrays(), orders=(0,), cache=folder).passed


def test_a_weight_beyond_the_table_is_noticed(case: ConvCase, compiled: CompiledKernel, folder: Path) -> None:
    tables = case.tables.arrays()
    short = {**tables, "w": tables["w"][: tables["jobs"][:, 5].max() + 1]}
    with pytest.raises((EmulationError, ValueError)):
        check_group_conv(compiled, case.tables.kernel.to_json(), short, orders=(0,), cache=folder)


def test_a_sum_with_another_activation_or_half_stored_results_fails(folder: Path) -> None:
    own = made_case(WISHES["split inputs"], (_LANES,), "fp16").tables.sum
    assert own is not None
    tables = own.arrays()
    compiled = compile_kernel(sum_conv_source(own.kernel), "sm_80", folder)
    assert check_sum_conv(compiled, own.kernel, tables, cache=folder).passed
    more = {**tables, "b": tables["b"] + np.float32(1)}
    assert check_sum_conv(compiled, own.kernel, more, orders=(0,), cache=folder).passed
    other = compile_kernel(sum_conv_source({**own.kernel, "activation": "relu"}), "sm_80", folder)
    assert not check_sum_conv(other, own.kernel, tables, orders=(0,), cache=folder).passed
    idle = replace(
        compiled, ptx=compiled.ptx.replace("setp.ge.u32", "setp.ge.s32").replace("st.global.u16", "st.global.u8")
    )
    assert idle.ptx != compiled.ptx
    assert not check_sum_conv(idle, own.kernel, tables, orders=(0,), cache=folder).passed
