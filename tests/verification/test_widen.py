"""Widening a model changes its types and none of its values."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxopt.verification import widen as widen_module
from onnxopt.verification.sessions import opened
from onnxopt.verification.widen import float64_reference, uses_type, widen

ModelMaker = Callable[..., onnx.ModelProto]
FLOAT, DOUBLE = TensorProto.FLOAT, TensorProto.DOUBLE
node = helper.make_node


@pytest.fixture
def varied(make: ModelMaker) -> onnx.ModelProto:
    """Floats in every place where a model can hold them."""
    then = helper.make_graph(
        [node("Constant", [], ["t"], value_float=0.1)],
        "then",
        [],
        [helper.make_tensor_value_info("t", FLOAT, [])],
    )
    other = helper.make_graph(
        [node("Constant", [], ["e"], value_float=0.2)],
        "else",
        [],
        [helper.make_tensor_value_info("e", FLOAT, [])],
    )
    nodes = [
        node("Constant", [], ["c"], value=numpy_helper.from_array(np.float32([0.1, 0.2, 0.3]))),
        node("Constant", [], ["l"], value_floats=[0.1, 0.2, 0.3]),
        node("ConstantOfShape", ["three"], ["z"]),
        node("Cast", ["i"], ["f"], to=FLOAT),
        node("If", ["flag"], ["b"], then_branch=then, else_branch=other),
        node("Sum", ["x", "c", "l", "z", "f", "b", "w"], ["y"]),
    ]
    weights = {
        "three": np.array([3]),
        "i": np.arange(3),
        "flag": np.array(True),
        "w": np.float32([1 / 3, 1, 2]),
    }
    return make(nodes, [("x", FLOAT, [3])], [("y", FLOAT, [3])], weights)


def test_every_float_becomes_wide_with_its_value(varied: onnx.ModelProto) -> None:
    before = varied.SerializeToString(deterministic=True)
    wide = widen(varied, DOUBLE)
    assert varied.SerializeToString(deterministic=True) == before
    assert not uses_type(wide, FLOAT)
    with opened(wide, threads=1) as runner:
        found = runner.run({"x": np.zeros(3, np.float32)})["y"]
    assert found.dtype == np.float64
    constants = np.float32([0.1, 0.2, 0.3]).astype(np.float64)
    weights = np.float32([1 / 3, 1, 2]).astype(np.float64)
    np.testing.assert_array_equal(found, 2 * constants + np.arange(3) + np.float64(np.float32(0.1)) + weights)


def test_half_precision_can_be_widened_to_float32(network: Callable[..., onnx.ModelProto]) -> None:
    for kind in (TensorProto.FLOAT16, TensorProto.BFLOAT16):
        wide = widen(network(elem_type=kind), FLOAT)
        assert not uses_type(wide, kind)
        with opened(wide, threads=1) as runner:
            assert runner.run({"x": np.zeros((2, 16), np.float32)})["y"].dtype == np.float32


def test_no_float64_reference_for_large_models_or_missing_kernels(
    network: Callable[..., onnx.ModelProto], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert float64_reference(network(), threads=1) is not None
    assert float64_reference(network(activation="Erf"), threads=1) is None
    monkeypatch.setattr(widen_module, "MAX_WIDENED_BYTES", 100)
    assert float64_reference(network(), threads=1) is None
