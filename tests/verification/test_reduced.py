"""Sites that compute in a narrower type than their model: what they may be off."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxopt.lower.rewrite import NODE_PREFIX
from onnxopt.verification.reduced import verify_rewritten

_CHANNELS = 32


def _model(nodes: list[onnx.NodeProto]) -> onnx.ModelProto:
    rng = np.random.default_rng(0)
    weights = [
        numpy_helper.from_array(rng.standard_normal((_CHANNELS, _CHANNELS, 1, 1)).astype(np.float32) / 6, name)
        for name in ("w0", "w1")
    ]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, _CHANNELS, 8, 8]) for name in "xy"]
    graph = helper.make_graph(nodes, "g", values[:1], values[1:], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def _original() -> onnx.ModelProto:
    """Two convolutions, one behind the other."""
    return _model(
        [
            helper.make_node("Conv", ["x", "w0"], ["a"], name="first"),
            helper.make_node("Relu", ["a"], ["b"], name="relu"),
            helper.make_node("Conv", ["b", "w1"], ["y"], name="second"),
        ]
    )


def _fused(middle: int = 0) -> onnx.ModelProto:
    """Both as one site in fp16, which rounds what the second one reads; ``middle`` names another type for that."""
    site = f"{NODE_PREFIX}conv-0/"
    return _model(
        [
            helper.make_node("Cast", ["x"], ["x16"], name=f"{site}cast/0", to=TensorProto.FLOAT16),
            helper.make_node("Cast", ["x16"], ["x32"], name=f"{site}body/in", to=TensorProto.FLOAT),
            helper.make_node("Conv", ["x32", "w0"], ["a"], name=f"{site}body/first"),
            helper.make_node("Relu", ["a"], ["b"], name=f"{site}body/relu"),
            helper.make_node("Cast", ["b"], ["b16"], name=f"{site}body/narrow", to=middle or TensorProto.FLOAT16),
            helper.make_node("Cast", ["b16"], ["b32"], name=f"{site}body/wide", to=TensorProto.FLOAT),
            helper.make_node("Conv", ["b32", "w1"], ["c"], name=f"{site}body/second"),
            helper.make_node("Cast", ["c"], ["c16"], name=f"{site}body/out", to=TensorProto.FLOAT16),
            helper.make_node("Cast", ["c16"], ["y"], name=f"{site}cast/output", to=TensorProto.FLOAT),
        ]
    )


def test_what_a_convolution_within_a_site_reads_is_rounded_in_the_original_too() -> None:
    report = verify_rewritten(_original(), _fused())
    assert report.passed, report.explain()
    (output,) = report.draws[0].outputs
    # The original rounded in the same three places is off by the same.
    assert output.rms_bound == pytest.approx(2 * output.rms_error, rel=0.2)


def test_a_middle_that_keeps_fewer_digits_is_refused() -> None:
    report = verify_rewritten(_original(), _fused(TensorProto.INT32))
    assert not report.passed
