"""What is read from machine code, and what of it counts as wrong."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from onnxopt.errors import MissingError, OnnxOptError
from onnxopt.kernels import packages, sass
from onnxopt.kernels.compilation import CompiledKernel
from onnxopt.kernels.compiler import compile_kernel
from onnxopt.kernels.report import ResourceReport
from onnxopt.kernels.sass import (
    blocks_per_multiprocessor,
    check_occupancy,
    check_sass,
    instructions,
    mnemonics,
)
from onnxopt.kernels.source import attention_source
from onnxopt.target import load_target
from onnxopt.target.variant import AttentionVariant
from tests.kernels.small import attention_kernel, scale_source, write_sources

_MMA = (AttentionVariant("mma", 64, 64, 4, 2),)
_WGMMA = (AttentionVariant("wgmma", 64, 64, 4, 2),)


def test_instructions_are_counted_with_their_modifiers(tmp_path: Path) -> None:
    kernel = compile_kernel(scale_source(), "sm_80", folder=write_sources(tmp_path / "cuda"))
    found = instructions(kernel.cubin)
    assert (found["STS"], found["BAR.SYNC"] + found["BAR.SYNC.DEFER_BLOCKING"], found["LDG.E.U16"]) == (1, 1, 1)
    assert mnemonics(found)["LDS"] == 2
    assert mnemonics(found)["EXIT"] >= 1


def test_a_file_that_is_no_cubin(tmp_path: Path) -> None:
    with pytest.raises(OnnxOptError, match="nvdisasm cannot read"):
        instructions(b"\x7fELF and nothing else")


def test_missing_tools_say_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packages, "_file_of", lambda package, name: None)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(MissingError, match="pip install nvidia-cuda-nvdisasm"):
        instructions(b"")


def _compiled(architecture: str, kernel: dict[str, Any], resident: int = 1) -> CompiledKernel:
    report = ResourceReport(128, 0, 40 << 10, 0, 0, 0, 128)
    return CompiledKernel(attention_source(kernel, resident), architecture, b"", "", report, "")


_GOOD = ("HMMA.16816.F32", "LDSM.16.M88.4", "LDGSTS.E.BYPASS.128", "MUFU.EX2")


@pytest.mark.parametrize(
    ("architecture", "changes", "found", "problems"),
    [
        ("sm_80", {}, _GOOD, []),
        ("sm_80", {}, (*_GOOD, "STL.64", "LDL"), ["1 x LDL: local memory", "1 x STL: local memory"]),
        ("sm_80", {}, _GOOD[1:], ["no HMMA"]),
        ("sm_80", {}, (_GOOD[0], _GOOD[2]), ["no LDSM"]),
        ("sm_120", {}, _GOOD[:2], ["no LDGSTS: ", "no LDGSTS of 128 bits"]),
        ("sm_89", {}, (*_GOOD[:2], "LDGSTS.E.64"), ["no LDGSTS of 128 bits"]),
        ("sm_75", {}, ("HMMA.1688.F32", "LDSM.16.M88.4"), []),
        ("sm_75", {"element": "fp32"}, ("FFMA",), []),
        ("sm_75", {"element": "fp32"}, ("FMUL",), ["no FFMA"]),
        ("sm_86", {"element": "tf32"}, ("HMMA.1688.F32.TF32", "LDGSTS.E.128"), []),
        ("sm_90a", {"variants": _WGMMA}, ("HGMMA.64x64x16.F32", "LDGSTS.E.128"), []),
        ("sm_90a", {"variants": _WGMMA}, ("HMMA.16816.F32", "LDGSTS.E.128"), ["no HGMMA"]),
    ],
)
def test_instructions_that_a_path_must_and_must_not_have(
    monkeypatch: pytest.MonkeyPatch,
    architecture: str,
    changes: dict[str, Any],
    found: tuple[str, ...],
    problems: list[str],
) -> None:
    monkeypatch.setattr(sass, "instructions", lambda cubin: Counter(found))
    kernel = attention_kernel(**{"variants": _MMA, **changes})
    seen = check_sass(_compiled(architecture, kernel), kernel)
    assert len(seen) == len(problems)
    for problem, text in zip(problems, seen, strict=True):
        assert text.startswith(f"{architecture}: {problem}")


@pytest.mark.parametrize("changes", [{"width": 20, "value_width": 20}, {"k": None}])
def test_vectors_that_are_not_whole_pieces_need_no_asynchronous_copy(
    monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]
) -> None:
    monkeypatch.setattr(sass, "instructions", lambda cubin: Counter(_GOOD[:2]))
    kernel = attention_kernel(variants=_MMA)
    first = {"k": [64 * 96, 64], "v": [64 * 96, 64]} if "k" in changes else changes
    assert check_sass(_compiled("sm_80", kernel), {**kernel, **first}) == []


def test_blocks_that_fit_are_those_of_the_cost_model() -> None:
    gpu = load_target("sm_80").need_gpu_profile()
    assert blocks_per_multiprocessor(ResourceReport(128, 0, 40 << 10, 0, 0, 0, 128), gpu) == 4
    assert blocks_per_multiprocessor(ResourceReport(64, 1024, 39 << 10, 0, 0, 0, 128), gpu) == 4
    assert blocks_per_multiprocessor(ResourceReport(255, 0, 0, 0, 0, 0, 256), gpu) == 1
    assert blocks_per_multiprocessor(ResourceReport(32, 0, 200 << 10, 0, 0, 0, 128), gpu) == 0


def test_fewer_blocks_than_the_plan_counts_on_are_told() -> None:
    gpu = load_target("sm_80").need_gpu_profile()
    kernel = attention_kernel(variants=_MMA)
    assert check_occupancy(_compiled("sm_80", kernel, 4), gpu) == []
    (problem,) = check_occupancy(_compiled("sm_80", kernel, 5), gpu)
    assert "4 blocks fit a multiprocessor, the plan counts on 5 (128 registers a thread" in problem
