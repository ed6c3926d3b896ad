"""Every path of the attention kernel computes everything that a site may ask for: its PTX, run on the CPU."""

from __future__ import annotations

from pathlib import Path

import pytest

from onnxopt.kernels.compiler import compile_kernel
from onnxopt.kernels.source import attention_source
from onnxopt.plan.tables import attention_tables
from onnxopt.target.variant import AttentionVariant, Element
from onnxopt.verification.kernels import KernelCheck, check_attention
from tests.kernels.sites import WISHES
from tests.plan.schedules import scheduled
from tests.plan.sites import made_site

_Path = tuple[AttentionVariant, str, Element]

PATHS: dict[str, _Path] = {
    "mma": (AttentionVariant("mma", 32, 32, 2, 2), "sm_80", "fp16"),
    "two granules": (AttentionVariant("mma", 64, 32, 2, 3), "sm_89", "bf16"),
    "swapped": (AttentionVariant("mma", 16, 32, 2, 2, swapped=True), "sm_80", "fp16"),
    "turing": (AttentionVariant("mma", 32, 32, 2, 2), "sm_75", "fp16"),
    "tf32": (AttentionVariant("mma", 32, 32, 2, 2), "sm_80", "tf32"),
    "fp32": (AttentionVariant("mma", 32, 32, 2, 2), "sm_80", "fp32"),
    "fp32 in lanes": (AttentionVariant("mma", 16, 16, 1, 1), "sm_75", "fp32"),
    "wgmma": (AttentionVariant("wgmma", 64, 64, 4, 2), "sm_90a", "fp16"),
    "wgmma swapped": (AttentionVariant("wgmma", 16, 64, 4, 2, swapped=True), "sm_90a", "bf16"),
}

_EVERY = [(path, wish) for path in PATHS for wish in WISHES]
# One kind of site for each path, and all kinds in turn.
_SOME = [(path, list(WISHES)[number % len(WISHES)]) for number, path in enumerate([*PATHS, *PATHS][: len(WISHES)])]


def checked(path: str, wish: str, split: int, programs: Path) -> KernelCheck:
    variant, architecture, element = PATHS[path]
    site, shapes = made_site(WISHES[wish], seed=3)
    schedule = scheduled(site, (variant,), seed=4, split_keys=split, element=element)
    tables = attention_tables(site, schedule, shapes=shapes)
    kernel = tables.kernel.to_json()
    compiled = compile_kernel(attention_source(kernel, 1), architecture, programs)
    return check_attention(compiled, kernel, tables.arrays(), cache=programs)


@pytest.mark.parametrize(("path", "wish"), _SOME)
def test_paths_and_sites_in_turn(path: str, wish: str, programs: Path) -> None:
    check = checked(path, wish, 0, programs)
    assert check.passed, check.worst().explain()


@pytest.mark.slow
@pytest.mark.parametrize("split", [0, 40])
@pytest.mark.parametrize(("path", "wish"), _EVERY)
def test_every_path_on_every_site(path: str, wish: str, split: int, programs: Path) -> None:
    if split and WISHES[wish].repeats:
        pytest.skip("partial results have one place each")
    check = checked(path, wish, split, programs)
    assert check.passed, check.worst().explain()
