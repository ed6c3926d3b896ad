"""Everything that is planned and written for exported models is proved."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest

from onnxopt.plan.conv_time import Form
from onnxopt.validate import (
    validate_attention_plan,
    validate_attention_tables,
    validate_conv_plan,
    validate_conv_weights,
)
from tests.validate.cases import attention_cases, conv_cases

SOME = (
    "vil_tiny_224.dynamo.op18",
    "vit_mask_plain.dynamo.op18",
    "shufflenet1_g3.legacy.op17",
    "condensenet_c10_g4_train.legacy.op17",
)


def every_tag() -> list[str]:
    manifest = Path(__file__).resolve().parents[3] / "shared" / "corpus" / "manifest.json"
    return sorted(json.loads(manifest.read_text())["models"]) if manifest.is_file() else []


def check(path: Path) -> None:
    model = onnx.load(path)
    for case in attention_cases(model):
        validate_attention_plan(case.site, case.plan)
        validate_attention_tables(case.site, case.rewrite, case.graph)
    forms: tuple[tuple[Form, ...], ...] = (("direct",), ("transposed",))
    for allowed in forms:
        for conv in conv_cases(model, allowed):
            validate_conv_plan(conv.plan)
            if conv.rewrite is not None:
                validate_conv_weights(conv.plan, conv.rewrite, conv.graph)


@pytest.mark.corpus
@pytest.mark.parametrize("tag", SOME)
def test_a_sample_is_planned_and_written_right(tag: str, corpus_model: Callable[[str], Path]) -> None:
    check(corpus_model(tag))


@pytest.mark.corpus_all
@pytest.mark.parametrize("tag", every_tag())
def test_every_model_is_planned_and_written_right(tag: str, corpus_model: Callable[[str], Path]) -> None:
    check(corpus_model(tag))
