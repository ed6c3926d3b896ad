"""Parts of models, cut out and run alone, give what the whole model computes between the same tensors."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxopt.errors import InputError
from onnxopt.lower.rewrite import Rewrite, apply_rewrites
from onnxopt.measure.extract import extract_region
from onnxopt.model.graph import view


def small_model(batch: int | str = 2) -> onnx.ModelProto:
    """Two layers; the first is reshaped by a Shape chain that asks about the model's input."""
    rng = np.random.default_rng(0)
    tensors = {
        "w1": rng.standard_normal((4, 6)).astype(np.float32),
        "w2": rng.standard_normal((6, 3)).astype(np.float32),
        "unused": np.zeros(1, np.float32),
        "first": np.array([0], np.int64),
        "rest": np.array([-1, 6], np.int64),
        "half": np.array([0.25], np.float32),
    }
    nodes = [
        helper.make_node("MatMul", ["x", "w1"], ["a"], "layer1"),
        helper.make_node("Relu", ["a"], ["b"], "relu"),
        helper.make_node("Shape", ["x"], ["shape"], "shape"),
        helper.make_node("Gather", ["shape", "first"], ["count"], "gather"),
        helper.make_node("Concat", ["count", "rest"], ["target"], "concat", axis=0),
        helper.make_node("Reshape", ["b", "target"], ["c"], "reshape"),
        helper.make_node("Add", ["half", "half"], ["one_half"], "fold"),
        helper.make_node("Mul", ["c", "one_half"], ["d"], "scale"),
        helper.make_node("MatMul", ["d", "w2"], ["y"], "layer2"),
    ]
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, 5, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [batch, 5, 3])],
        [numpy_helper.from_array(value, name) for name, value in tensors.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def run(model: onnx.ModelProto, feeds: dict[str, np.ndarray], outputs: list[str] | None = None) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return list(session.run(outputs, feeds))


def with_outputs(model: onnx.ModelProto, *names: str) -> onnx.ModelProto:
    result = onnx.ModelProto()
    result.CopyFrom(model)
    result.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    return result


@pytest.mark.parametrize("batch", [2, "n"])
def test_region_computes_what_the_model_computes(batch: int | str) -> None:
    model = small_model(batch)
    region = extract_region(model, view(model, batch=2), ["a"], ["y"])
    onnx.checker.check_model(region, full_check=True)
    x = np.random.default_rng(1).standard_normal((2, 5, 4)).astype(np.float32)
    a, y = run(with_outputs(model, "a"), {"x": x}, ["a", "y"])
    np.testing.assert_array_equal(run(region, {"a": a})[0], y)


def test_region_holds_only_what_it_needs() -> None:
    model = small_model("n")
    region = extract_region(model, view(model, batch=3), ["a"], ["y"])
    assert [node.name for node in region.graph.node] == [
        "relu",
        "gather",
        "concat",
        "reshape",
        "fold",
        "scale",
        "layer2",
    ]
    assert {tensor.name for tensor in region.graph.initializer} == {"w2", "first", "rest", "half", "shape"}
    assert [(i.name, [d.dim_value for d in i.type.tensor_type.shape.dim]) for i in region.graph.input] == [
        ("a", [3, 5, 6])
    ]
    shape = next(tensor for tensor in region.graph.initializer if tensor.name == "shape")
    assert numpy_helper.to_array(shape).tolist() == [3, 5, 4]


def test_initializer_on_the_boundary_stays_a_constant_and_unread_inputs_disappear() -> None:
    model = small_model()
    region = extract_region(model, view(model, batch=2), ["c", "half", "x"], ["d"])
    assert [value.name for value in region.graph.input] == ["c"]
    assert [tensor.name for tensor in region.graph.initializer] == ["half"]


def test_region_of_a_rewritten_model() -> None:
    model = small_model()
    graph = view(model, batch=2)
    node = helper.make_node("MatMul", ["d", "table"], ["y"], "new")
    table = numpy_helper.from_array(np.ones((6, 3), np.float32), "table")
    region = extract_region(apply_rewrites(model, [Rewrite("s", ("y",), (node,), (table,))]), graph, ["d"], ["y"])
    assert [n.name for n in region.graph.node] == ["new"]
    d = np.ones((2, 5, 6), np.float32)
    np.testing.assert_array_equal(run(region, {"d": d})[0], np.full((2, 5, 3), 6, np.float32))


def test_region_with_a_subgraph_includes_what_the_subgraph_reads() -> None:
    branch = helper.make_graph(
        [helper.make_node("Mul", ["x", "w"], ["inner"])],
        "branch",
        [],
        [helper.make_tensor_value_info("inner", TensorProto.FLOAT, [2])],
    )
    model = helper.make_model(
        helper.make_graph(
            [
                helper.make_node("Neg", ["v"], ["x"], "neg"),
                helper.make_node("If", ["yes"], ["y"], "if", then_branch=branch, else_branch=branch),
                helper.make_node("Abs", ["y"], ["z"], "abs"),
            ],
            "outer",
            [helper.make_tensor_value_info("v", TensorProto.FLOAT, [2])],
            [helper.make_tensor_value_info("z", TensorProto.FLOAT, [2])],
            [
                numpy_helper.from_array(np.array(True), "yes"),
                numpy_helper.from_array(np.array([2, 3], np.float32), "w"),
            ],
        ),
        opset_imports=[helper.make_opsetid("", 18)],
        ir_version=9,
    )
    region = extract_region(model, view(model), ["x"], ["z"])
    assert run(region, {"x": np.array([-1, 1], np.float32)})[0].tolist() == [2, 3]


def test_missing_input_is_named() -> None:
    model = small_model()
    with pytest.raises(InputError, match=r"node 'layer1' \(MatMul\) needs the model's input 'x'"):
        extract_region(model, view(model, batch=2), ["d"], ["a"])


def test_unknown_output_is_named() -> None:
    model = small_model()
    with pytest.raises(InputError, match="'nowhere'"):
        extract_region(model, view(model, batch=2), ["x"], ["nowhere"])


def test_boundary_without_a_static_shape_is_named() -> None:
    model = small_model()
    model.graph.node[1].domain = "vendor"
    model.opset_import.append(helper.make_opsetid("vendor", 1))
    with pytest.raises(InputError, match="tensor 'b' is not known"):
        extract_region(model, view(model, batch=2), ["b"], ["y"])
