"""The view of a model at one batch size: shapes, constants and what depends on the inputs."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from onnxopt.model.graph import attribute, default_opset, nested_names, symbolic_batch, view


def node(kind: str, *inputs: str, output: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(kind, inputs, [output], name=f"make_{output}", **attributes)


def model(
    nodes: list[onnx.NodeProto], shape: tuple[int | str, ...] = (2, 4, 6), opset: int = 18, **constants: Any
) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_empty_tensor_value_info(nodes[-1].output[0])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)


def chain_of_shapes() -> list[onnx.NodeProto]:
    """What a tracing exporter writes for x.view(x.shape[0] * 2, -1, 6)."""
    return [
        node("Shape", "x", output="shape"),
        node("Gather", "shape", "zero", output="batch", axis=0),
        node("Mul", "batch", "two", output="rows"),
        node("Unsqueeze", "rows", "axes", output="rows1"),
        node("Concat", "rows1", "rest", output="target", axis=0),
        node("Reshape", "x", "target", output="y"),
    ]


CONSTANTS = {"zero": np.int64(0), "two": np.int64(2), "axes": np.array([0]), "rest": np.array([-1, 6])}


def test_shapes_computed_in_the_graph_are_constants() -> None:
    graph = view(model(chain_of_shapes(), ("batch", 4, 6), **CONSTANTS), batch=3)
    assert graph.shape("y") == (6, 2, 6)
    value = graph.constant("target")
    assert value is not None
    assert value.tolist() == [6, -1, 6]
    assert not graph.is_data("target")
    assert graph.is_data("y")
    assert graph.constant("y") is None


def test_the_batch_size_changes_what_depends_on_it() -> None:
    built = model(chain_of_shapes(), ("batch", 4, 6), **CONSTANTS)
    assert symbolic_batch(built)
    assert [view(built, batch=size).shape("y") for size in (1, 2)] == [(2, 2, 6), (4, 2, 6)]
    assert not symbolic_batch(model(chain_of_shapes(), **CONSTANTS))


def test_the_model_is_not_changed() -> None:
    built = model(chain_of_shapes(), ("batch", 4, 6), **CONSTANTS)
    before = built.SerializeToString()
    view(built, batch=5).constant("target")
    assert built.SerializeToString() == before


def test_a_mask_computed_in_the_graph_is_a_constant() -> None:
    nodes = [
        node("ConstantOfShape", "size", output="zeros"),
        node("Equal", "zeros", "half", output="hidden"),
        node("Not", "hidden", output="shown"),
        node("Where", "shown", "x", "half", output="y"),
    ]
    graph = view(model(nodes, size=np.array([4, 6]), half=np.float32(0.5)))
    value = graph.constant("shown")
    assert value is not None
    assert value.shape == (4, 6)
    assert value.all()
    assert graph.element_type("shown") == TensorProto.BOOL


def test_constant_nodes_of_every_kind() -> None:
    nodes = [
        node("Constant", output="tensor", value=numpy_helper.from_array(np.ones((2, 2), np.float32))),
        node("Constant", output="int", value_int=3),
        node("Constant", output="ints", value_ints=[1, 2]),
        node("Constant", output="float", value_float=0.5),
        node("Constant", output="floats", value_floats=[0.5, 1.5]),
        node("Add", "x", "float", output="y"),
    ]
    graph = view(model(nodes))
    values = {name: graph.constant(name) for name in ("tensor", "int", "ints", "float", "floats")}
    assert [None if v is None else v.tolist() for v in values.values()] == [
        [[1.0, 1.0], [1.0, 1.0]],
        3,
        [1, 2],
        0.5,
        [0.5, 1.5],
    ]
    assert graph.shape("ints") == (2,)


def test_random_numbers_are_data() -> None:
    nodes = [node("RandomNormal", output="noise", shape=[2, 4, 6]), node("Add", "x", "noise", output="y")]
    graph = view(model(nodes))
    assert graph.is_data("noise")
    assert graph.constant("noise") is None


def test_the_size_of_data_is_a_constant() -> None:
    graph = view(model([node("Relu", "x", output="r"), node("Size", "r", output="y")]))
    value = graph.constant("y")
    assert value is not None
    assert int(value) == 48


def test_part_of_a_shape() -> None:
    graph = view(model([node("Shape", "x", output="y", start=1, end=-1)]))
    value = graph.constant("y")
    assert value is not None
    assert value.tolist() == [4]


def test_names_read_inside_a_subgraph_count() -> None:
    inner = helper.make_graph(
        [helper.make_node("Add", ["x", "outer"], ["sum"])], "then", [], [helper.make_empty_tensor_value_info("sum")]
    )
    branch = helper.make_node("If", ["flag"], ["y"], then_branch=inner, else_branch=inner)
    graph = view(model([branch], flag=np.array(True), outer=np.ones((2, 4, 6), np.float32)))
    assert {"flag", "x", "outer"} <= set(nested_names(branch))
    assert [n.op_type for n in graph.readers("outer")] == ["If"]
    assert graph.is_data("y")


def test_custom_operators_hide_shapes_but_stop_nothing() -> None:
    nodes = [
        helper.make_node("Mystery", ["x"], ["m"], domain="acme"),
        helper.make_node("Mystery", ["c"], ["n"], domain="acme"),
        node("Relu", "x", output="y"),
    ]
    graph = view(model(nodes, c=np.ones(3, np.float32)))
    assert graph.shape("m") is None
    assert graph.is_data("m")
    assert graph.constant("n") is None
    assert graph.shape("y") == (2, 4, 6)


def test_broken_nodes_hide_shapes_but_stop_nothing() -> None:
    nodes = [
        helper.make_node("MatMul", ["x"], ["one_input"]),
        helper.make_node("Reshape", ["x", ""], ["no_shape"]),
        helper.make_node("Shape", [], ["nothing"]),
        helper.make_node("Concat", ["x", "x"], ["no_axis"]),
        helper.make_node("Split", ["x"], ["part", "rest"], axis=0, num_outputs=1),
        helper.make_node("GatherND", ["x", "index"], ["batch_from_the_end"], batch_dims=-9),
        node("Relu", "x", output="y"),
    ]
    graph = view(model(nodes, index=np.array([[[0]], [[1]]])))
    assert [graph.shape(n.output[0]) for n in nodes] == [None, None, None, None, None, None, (2, 4, 6)]


def test_a_damaged_initializer_has_no_value() -> None:
    built = model([node("Add", "x", "c", output="y")], c=np.ones(6, np.float32))
    built.graph.initializer[0].raw_data = b"abc"
    assert view(built).constant("c") is None


def test_a_constant_of_any_size_is_not_evaluated() -> None:
    nodes = [node("ConstantOfShape", "size", output="huge"), node("Relu", "x", output="y")]
    graph = view(model(nodes, size=np.array([1 << 20, 1 << 20])))
    assert graph.shape("huge") == (1 << 20, 1 << 20)
    assert graph.constant("huge") is None


def test_producers_readers_and_order() -> None:
    nodes = [node("Relu", "x", output="a"), node("Shape", "a", output="s"), node("Neg", "a", output="y")]
    graph = view(model(nodes))
    assert [n.op_type for n in graph.readers("a")] == ["Shape", "Neg"]
    assert [n.op_type for n in graph.data_readers("a")] == ["Neg"]
    assert graph.node_of("x") is None
    assert [n.op_type for n in graph.ordered([graph.nodes[2], graph.nodes[0], graph.nodes[2]])] == ["Relu", "Neg"]
    assert graph.data_inputs(graph.nodes[2]) == ["a"]


def test_other_nodes_for_the_same_model() -> None:
    built = model([node("Relu", "x", output="y")])
    graph = view(built)
    other = graph.with_nodes([node("Neg", "x", output="a"), node("Abs", "a", output="y")])
    assert [n.op_type for n in other.nodes] == ["Neg", "Abs"]
    assert other.shape("a") == (2, 4, 6)
    assert [n.op_type for n in graph.nodes] == [n.op_type for n in built.graph.node] == ["Relu"]


def test_inputs_that_are_initializers_are_not_inputs() -> None:
    built = model([node("Add", "x", "c", output="y")], c=np.ones(6, np.float32))
    built.graph.input.append(helper.make_tensor_value_info("c", TensorProto.FLOAT, [6]))
    graph = view(built)
    assert graph.inputs == ("x",)
    assert not graph.is_data("c")


def test_attributes_as_python_data() -> None:
    item = helper.make_node("Pad", ["x"], ["y"], mode="edge", pads=[1, 2], value=0.5)
    assert attribute(item, "mode") == "edge"
    assert attribute(item, "pads") == [1, 2]
    assert attribute(item, "missing", 7) == 7
    assert default_opset(model([node("Relu", "x", output="y")], opset=13)) == 13
