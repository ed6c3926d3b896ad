"""Index tracing of movement: every operator against what the real operator does to real data."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from onnxopt.discover.movement import affine_input, guarded_input, moved_inputs, scaling_input, walk_back
from onnxopt.discover.refusal import NotASite
from onnxopt.discover.tracing import Trace, counting, run_traced
from onnxopt.model.graph import Graph, view

SHAPE = (2, 4, 6)


def model(nodes: list[onnx.NodeProto], shape: tuple[int, ...] = SHAPE, **constants: Any) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "movement",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_empty_tensor_value_info(nodes[-1].output[0])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def node(kind: str, *inputs: str, output: str = "y", **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(kind, inputs, [output], name=f"make_{output}", **attributes)


def traced(graph: Graph, trace: Trace, values: NDArray[Any], **options: Any) -> NDArray[Any]:
    return run_traced(graph, graph.nodes, {"x": values}, [graph.outputs[0]], trace, **options)[graph.outputs[0]]


def run(built: onnx.ModelProto, x: NDArray[np.float32]) -> NDArray[np.float32]:
    session = onnxruntime.InferenceSession(built.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"x": x})[0])


MOVES: dict[str, tuple[list[onnx.NodeProto], dict[str, Any]]] = {
    "transpose": ([node("Transpose", "x", perm=[2, 0, 1])], {}),
    "reshape": ([node("Reshape", "x", "s")], {"s": np.array([4, -1])}),
    "flatten": ([node("Flatten", "x", axis=2)], {}),
    "squeeze": ([node("Unsqueeze", "x", "a", output="u"), node("Squeeze", "u", "a")], {"a": np.array([1])}),
    "slice": ([node("Slice", "x", "b", "e", "a", "t")], {"b": [5], "e": [-9], "a": [2], "t": [-2]}),
    "gather": ([node("Gather", "x", "i", axis=1)], {"i": np.array([3, 0, 0, -1])}),
    "gather_nd": ([node("GatherND", "x", "i", batch_dims=1)], {"i": np.array([[[1], [2]], [[3], [0]]])}),
    "gather_elements": ([node("GatherElements", "x", "i", axis=0)], {"i": np.array([[[1, 0, 1, 0, 0, 1]]])}),
    "pad": ([node("Pad", "x", "p")], {"p": np.array([0, 1, 0, 0, 0, 2])}),
    "concat": (
        [node("Slice", "x", "b", "e", "a", output="s"), node("Concat", "s", "x", axis=1)],
        {"b": [1], "e": [3], "a": [1]},
    ),
    "concat_zeros": ([node("Concat", "x", "z", axis=2)], {"z": np.zeros((2, 4, 1), np.float32)}),
    "split": ([helper.make_node("Split", ["x", "n"], ["first", "y"], axis=2)], {"n": np.array([2, 4])}),
    "expand": ([node("Unsqueeze", "x", "a", output="u"), node("Expand", "u", "s")], {"a": [0], "s": [3, 2, 4, 6]}),
    "tile": ([node("Tile", "x", "r")], {"r": np.array([1, 2, 1])}),
    "where": ([node("Where", "c", "x", "z")], {"c": np.arange(6) % 2 == 0, "z": np.float32(0)}),
    "scatter_nd": (
        [node("Slice", "x", "b", "e", "a", output="u"), node("ScatterND", "x", "i", "u")],
        {"i": np.array([[1]]), "b": [0], "e": [1], "a": [0]},
    ),
    "scatter_elements": (
        [node("Slice", "x", "b", "e", "a", output="u"), node("ScatterElements", "x", "i", "u", axis=2)],
        {"i": np.broadcast_to(np.array([4]), (2, 4, 1)).copy(), "b": [0], "e": [1], "a": [2]},
    ),
    "einsum": ([node("Einsum", "x", equation="a b c -> c a b")], {}),
    "depth_to_space": (
        [node("Reshape", "x", "s", output="r"), node("DepthToSpace", "r", blocksize=2)],
        {"s": [1, 4, 3, 4]},
    ),
    "space_to_depth": (
        [node("Reshape", "x", "s", output="r"), node("SpaceToDepth", "r", blocksize=2)],
        {"s": [1, 1, 4, 12]},
    ),
    "col2im": (
        [node("Col2Im", "x", "i", "k", strides=[2, 1])],
        {"i": np.array([4, 3]), "k": np.array([2, 1])},
    ),
    "identity": ([node("Identity", "x", output="i"), node("Dropout", "i")], {}),
}


@pytest.mark.parametrize("name", MOVES)
def test_indices_say_where_every_element_came_from(name: str) -> None:
    nodes, constants = MOVES[name]
    built = model(nodes, **constants)
    graph = view(built)
    x = np.random.default_rng(0).standard_normal(SHAPE).astype(np.float32)
    numbers = traced(graph, Trace.INDEX, counting(1, x.size).reshape(SHAPE))
    assert numbers.dtype.kind == "i"
    assert np.array_equal(np.concatenate([[0], x.reshape(-1)])[numbers].astype(np.float32), run(built, x))
    assert all(moved_inputs(graph, n) is not None for n in graph.nodes)


def test_factors_and_constants_of_an_affine_chain() -> None:
    nodes = [
        node("Mul", "x", "m", output="a"),
        node("Sub", "c", "a", output="b"),
        node("Div", "b", "d", output="e"),
        node("Add", "e", "x", output="y"),
    ]
    m = np.arange(1, 7, dtype=np.float32)
    graph = view(model(nodes, m=m, c=np.float32(3), d=np.float32(2)))
    ones, zeros = np.ones(SHAPE), np.zeros(SHAPE)
    assert np.allclose(traced(graph, Trace.SCALE, ones), np.broadcast_to(1 - m / 2, SHAPE))
    assert np.allclose(traced(graph, Trace.CONSTANT, zeros), 1.5)


def test_adding_two_traced_tensors_keeps_either_number() -> None:
    graph = view(model([node("Slice", "x", "b", "e", "a", output="s"), node("Add", "s", "x")], b=[0], e=[1], a=[0]))
    numbers = counting(1, 48).reshape(SHAPE)
    assert np.array_equal(traced(graph, Trace.INDEX, numbers, merge="Max"), numbers)
    least = traced(graph, Trace.INDEX, numbers, merge="Min")
    assert np.array_equal(least, np.broadcast_to(numbers[:1], SHAPE))


def test_masks_can_be_looked_through() -> None:
    graph = view(model([node("Where", "c", "x", "z")], c=np.arange(6) % 2 == 0, z=np.float32(7)))
    numbers = counting(1, 48).reshape(SHAPE)
    assert np.array_equal(traced(graph, Trace.INDEX, numbers, through_masks=True), numbers)
    assert np.count_nonzero(traced(graph, Trace.INDEX, numbers)) == 24


def test_what_is_movement_and_what_is_not() -> None:
    nodes = [
        node("Relu", "x", output="r"),
        node("Mul", "r", "m", output="s"),
        node("Cast", "s", output="i", to=TensorProto.INT64),
        node("Cast", "s", output="h", to=TensorProto.FLOAT16),
        node("Gather", "m", "i", output="g"),
        node("Pad", "s", "p", output="e", mode="edge"),
        node("ScatterND", "s", "j", "s", output="a", reduction="add"),
        node("Div", "s", "s", output="q"),
    ]
    graph = view(model(nodes, m=np.ones(6, np.float32), p=np.zeros(6, np.int64), j=np.array([[0], [1]])))
    by_output = {n.output[0]: n for n in graph.nodes}
    assert moved_inputs(graph, by_output["r"]) is None
    # Digits that a Cast cuts off are no movement.
    assert moved_inputs(graph, by_output["i"]) is None
    assert moved_inputs(graph, by_output["h"]) == ["s"]
    # An index known only at run time is no movement that a trace could follow.
    assert moved_inputs(graph, by_output["g"]) is None
    assert moved_inputs(graph, by_output["e"]) is None
    assert moved_inputs(graph, by_output["a"]) is None
    assert affine_input(graph, by_output["s"]) == scaling_input(graph, by_output["s"]) == "r"
    assert affine_input(graph, by_output["q"]) is None
    by_output["s"].domain = "somewhere.else"
    assert affine_input(graph, by_output["s"]) is None


def test_a_fold_that_adds_up_overlapping_blocks_is_no_movement() -> None:
    constants = {"i": np.array([3, 3]), "k": np.array([2, 2])}
    graph = view(model([node("Col2Im", "x", "i", "k", output="y")], (2, 4, 4), **constants))
    assert moved_inputs(graph, graph.nodes[0]) is None


def test_the_guard_against_nan_is_recognised() -> None:
    nodes = [node("IsNaN", "x", output="n"), node("Where", "n", "z", "x")]
    graph = view(model(nodes, z=np.float32(0)))
    assert guarded_input(graph, graph.nodes[1]) == "x"
    graph = view(model(nodes, z=np.float32(1)))
    assert guarded_input(graph, graph.nodes[1]) is None


def test_walking_back_stops_where_it_is_told() -> None:
    nodes = [
        node("Relu", "x", output="r"),
        node("Transpose", "r", output="t", perm=[0, 2, 1]),
        node("Reshape", "t", "s", output="u"),
        node("Concat", "u", "u", axis=0),
    ]
    graph = view(model(nodes, s=np.array([2, 24])))
    passed, stops = walk_back(graph, ["y"], lambda n: moved_inputs(graph, n))
    assert [n.output[0] for n in passed] == ["t", "u", "y"]
    assert stops == ["r"]


def test_movement_that_cannot_run_is_no_site() -> None:
    graph = view(model([node("Reshape", "x", "s")], s=np.array([5, 5])))
    with pytest.raises(NotASite, match="could not be traced"):
        traced(graph, Trace.INDEX, counting(1, 48).reshape(SHAPE))
    with pytest.raises(NotASite, match="does not follow"):
        run_traced(graph, [], {"x": counting(1, 48).reshape(SHAPE)}, ["y"], Trace.INDEX)


def test_numbers_are_as_small_as_they_can_be() -> None:
    assert counting(1, 10).dtype == np.int32
    assert counting((1 << 31) - 5, 10).dtype == np.int64
