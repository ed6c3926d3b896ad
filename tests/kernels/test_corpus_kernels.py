"""The kernels that plans of exported models use, run on the CPU against float64."""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from pathlib import Path

import pytest

from benchmarks.emulated_kernels import kernels_of, page, run
from onnxopt.target.variant import Element

_TAGS = (
    "nat_3layer.dynamo.op18",
    "regionvit_tiny_224.dynamo.op18",
    "regionvit_small_w14_peg_448.dynamo.op18",
    "swin_tiny_224.dynamo.op18",
    "vil_tiny_224.dynamo.op18",
    "vil_tiny_224_exact.dynamo.op18",
    "vil_small_224.dynamo.op18",
    "vit_mask_fused.dynamo.op18",
    "dyvit_s_07.dynamo.op18",
)


@pytest.mark.corpus
def test_kernels_of_a_model_agree_with_float64(corpus_model: Callable[[str], Path], programs: Path) -> None:
    first = islice(kernels_of([corpus_model(_TAGS[0])], "sm_80", "fp16", programs), 2)
    outcomes = [run(kernel, programs) for kernel in first]
    assert [outcome.problem for outcome in outcomes if not outcome.passed] == []
    assert f"{len(outcomes)} of {len(outcomes)} kernels agree" in page(outcomes, {"target": "sm_80"})


@pytest.mark.corpus_all
@pytest.mark.parametrize(("target", "element"), [("sm_90", "fp16"), ("sm_80", "fp32"), ("sm_75", "fp16")])
@pytest.mark.parametrize("tag", _TAGS)
def test_every_kernel_agrees_with_float64(
    tag: str, target: str, element: Element, corpus_model: Callable[[str], Path], programs: Path
) -> None:
    outcomes = [run(kernel, programs) for kernel in kernels_of([corpus_model(tag)], target, element, programs)]
    assert outcomes
    assert [outcome.problem for outcome in outcomes if not outcome.passed] == []
