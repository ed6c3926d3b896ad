"""Small models that the tests of verification share."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

Value = tuple[str, int, Sequence[int | str]]
ModelMaker = Callable[..., onnx.ModelProto]


@pytest.fixture(scope="session")
def make() -> ModelMaker:
    """Builds a model from nodes, inputs, outputs and weights by name."""

    def build(
        nodes: Sequence[onnx.NodeProto],
        inputs: Sequence[Value],
        outputs: Sequence[Value],
        weights: dict[str, np.ndarray] | None = None,
        values: Sequence[Value] = (),
        domains: Sequence[str] = (),
    ) -> onnx.ModelProto:
        graph = helper.make_graph(
            list(nodes),
            "g",
            [helper.make_tensor_value_info(*value) for value in inputs],
            [helper.make_tensor_value_info(*value) for value in outputs],
            [numpy_helper.from_array(array, name) for name, array in (weights or {}).items()],
            value_info=[helper.make_tensor_value_info(*value) for value in values],
        )
        opsets = [helper.make_opsetid("", 18), *(helper.make_opsetid(domain, 1) for domain in domains)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=9)

    return build


@pytest.fixture
def network(make: ModelMaker) -> Callable[..., onnx.ModelProto]:
    """A two-layer network x[n, 16] -> y[n, 8]; `activation` is any unary operator, `types` its float type."""

    def build(
        batch: int | str = 2,
        activation: str = "Tanh",
        elem_type: int = TensorProto.FLOAT,
        change: float = 0.0,
    ) -> onnx.ModelProto:
        rng = np.random.default_rng(7)
        dtype = helper.tensor_dtype_to_np_dtype(elem_type)
        first, second = rng.standard_normal((16, 32)), rng.standard_normal((32, 8))
        weights = {"w1": first.astype(dtype), "w2": (second * (1 + change)).astype(dtype)}
        nodes = [
            helper.make_node("MatMul", ["x", "w1"], ["h"], name="first"),
            helper.make_node(activation, ["h"], ["a"], name="act"),
            helper.make_node("MatMul", ["a", "w2"], ["s"], name="second"),
            helper.make_node("Softmax", ["s"], ["y"], name="soft"),
        ]
        return make(nodes, [("x", elem_type, [batch, 16])], [("y", elem_type, [batch, 8])], weights)

    return build
