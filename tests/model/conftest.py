"""A model of two nodes, which the tests of reading and writing spoil in their ways."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

MakeModel = Callable[..., onnx.ModelProto]


@pytest.fixture(scope="session")
def make_model() -> MakeModel:
    """Builds y = Relu(x + w) with x of shape [N, 4, 8] and w of shape [4, 8] holding 0, 1, 2, ..."""

    def build(opset: int = 17, element_type: int = TensorProto.FLOAT) -> onnx.ModelProto:
        dtype = helper.tensor_dtype_to_np_dtype(element_type)
        weight = numpy_helper.from_array(np.arange(32).reshape(4, 8).astype(dtype), "w")
        graph = helper.make_graph(
            [
                helper.make_node("Add", ["x", "w"], ["sum"], name="add"),
                helper.make_node("Relu", ["sum"], ["y"], name="relu"),
            ],
            "tiny",
            [helper.make_tensor_value_info("x", element_type, ["N", 4, 8])],
            [helper.make_tensor_value_info("y", element_type, ["N", 4, 8])],
            [weight],
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)

    return build
