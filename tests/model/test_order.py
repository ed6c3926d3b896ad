"""Order: nodes are sorted where that is possible, and refused by name where it is not."""

from __future__ import annotations

import random
from collections.abc import Callable

import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import NodeProto, TensorProto, helper

from onnxopt.errors import InputError
from onnxopt.model.order import check_and_sort

MakeModel = Callable[..., onnx.ModelProto]


def relu(source: str, target: str) -> NodeProto:
    return helper.make_node("Relu", [source], [target], name=f"{source}>{target}")


def graph_of(nodes: list[NodeProto], inputs: list[str], outputs: list[str]) -> onnx.GraphProto:
    def values(names: list[str]) -> list[onnx.ValueInfoProto]:
        return [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in names]

    return helper.make_graph(nodes, "graph", values(inputs), values(outputs))


def model_of(*nodes: NodeProto, output: str = "y") -> onnx.ModelProto:
    return helper.make_model(graph_of(list(nodes), ["x"], [output]))


def names(model: onnx.ModelProto) -> list[str]:
    return [node.name for node in model.graph.node]


def test_a_wrong_order_is_sorted() -> None:
    model = model_of(relu("b", "y"), relu("a", "b"), relu("x", "a"))
    check_and_sort(model)
    assert names(model) == ["x>a", "a>b", "b>y"]


@given(st.integers(0, 2**32), st.integers(1, 30))
def test_sorting_keeps_what_may_stay_and_every_node(seed: int, count: int) -> None:
    rng = random.Random(seed)
    nodes = [relu("x" if i == 0 else f"t{rng.randrange(i)}", f"t{i}") for i in range(count)]
    model = model_of(*nodes, output=f"t{count - 1}")
    ordered = names(model)
    check_and_sort(model)
    assert names(model) == ordered
    rng.shuffle(nodes)
    shuffled = model_of(*nodes, output=f"t{count - 1}")
    check_and_sort(shuffled)
    assert sorted(names(shuffled)) == sorted(ordered)
    seen = {"x"}
    for node in shuffled.graph.node:
        assert node.input[0] in seen
        seen.add(node.output[0])


def test_what_a_subgraph_reads_counts() -> None:
    branch = graph_of([relu("late", "chosen")], [], ["chosen"])
    choice = helper.make_node("If", ["x"], ["y"], name="if", then_branch=branch, else_branch=branch)
    model = model_of(choice, relu("x", "late"))
    check_and_sort(model)
    assert names(model) == ["x>late", "if"]


def test_the_nodes_of_a_subgraph_are_sorted() -> None:
    branch = graph_of([relu("a", "b"), relu("x", "a")], [], ["b"])
    model = model_of(helper.make_node("If", ["x"], ["y"], then_branch=branch, else_branch=branch))
    check_and_sort(model)
    for attribute in model.graph.node[0].attribute:
        assert [node.name for node in attribute.g.node] == ["x>a", "a>b"]


def test_optional_inputs_and_outputs_may_be_empty() -> None:
    model = model_of(helper.make_node("Clip", ["x", "", ""], ["y", "", ""]))
    check_and_sort(model)


def test_a_cycle_is_refused_by_its_nodes() -> None:
    model = model_of(relu("x", "y"), relu("c", "a"), relu("a", "b"), relu("b", "c"), relu("c", "end"))
    with pytest.raises(InputError, match="cycle") as caught:
        check_and_sort(model)
    for name in ("'c>a'", "'a>b'", "'b>c'"):
        assert name in str(caught.value)
    assert "'c>end'" not in str(caught.value)


def test_a_node_that_reads_its_own_output_is_a_cycle() -> None:
    with pytest.raises(InputError, match="cycle: Relu node 'y>y' -> Relu node 'y>y'"):
        check_and_sort(model_of(relu("y", "y")))


def test_a_long_cycle_is_named_in_short() -> None:
    nodes = [relu(f"t{i}", f"t{(i + 1) % 5000}") for i in range(5000)]
    with pytest.raises(InputError, match=r"cycle.*\(4995 more\)"):
        check_and_sort(model_of(*nodes, output="t0"))


def test_a_tensor_that_nobody_makes_is_refused() -> None:
    with pytest.raises(InputError, match="Relu node 'z>y' needs the tensor 'z'"):
        check_and_sort(model_of(relu("z", "y")))


def test_a_tensor_that_nobody_makes_for_a_subgraph_is_refused() -> None:
    branch = graph_of([relu("z", "a")], [], ["a"])
    choice = helper.make_node("If", ["x"], ["y"], then_branch=branch, else_branch=branch)
    with pytest.raises(InputError, match="'z>a' needs the tensor 'z'"):
        check_and_sort(model_of(choice))


def test_an_output_that_nobody_makes_is_refused() -> None:
    with pytest.raises(InputError, match="outputs needs the tensor 'z'"):
        check_and_sort(model_of(relu("x", "y"), output="z"))


def test_a_tensor_made_twice_is_refused() -> None:
    with pytest.raises(InputError, match="'a>y' makes the tensor 'y', and so does Relu node 'x>y'"):
        check_and_sort(model_of(relu("x", "y"), relu("x", "a"), relu("a", "y")))


def test_a_node_that_makes_an_input_is_refused() -> None:
    with pytest.raises(InputError, match="so does an input or initializer"):
        check_and_sort(model_of(relu("x", "y"), relu("y", "x")))


def test_two_inputs_or_initializers_of_one_name_are_refused(make_model: MakeModel) -> None:
    model = make_model()
    model.graph.initializer.append(model.graph.initializer[0])
    with pytest.raises(InputError, match="two initializers have the name 'w'"):
        check_and_sort(model)
    model = make_model()
    model.graph.input.append(model.graph.input[0])
    with pytest.raises(InputError, match="two inputs have the name 'x'"):
        check_and_sort(model)


def function(name: str, *calls: str) -> onnx.FunctionProto:
    nodes = [helper.make_node(call, ["a"], ["b" if i == 0 else f"b{i}"], domain="my") for i, call in enumerate(calls)]
    return helper.make_function("my", name, ["a"], ["b"], nodes, [helper.make_opsetid("my", 1)])


def test_functions_that_call_one_another_are_refused() -> None:
    model = model_of(relu("x", "y"))
    model.functions.extend([function("F", "G"), function("G", "Unknown", "F")])
    with pytest.raises(InputError, match="functions call one another in a circle"):
        check_and_sort(model)


def test_a_function_is_checked_as_a_scope_of_its_own() -> None:
    model = model_of(relu("x", "y"))
    model.functions.append(
        helper.make_function("my", "F", ["a"], ["b"], [relu("x", "b")], [helper.make_opsetid("", 17)])
    )
    with pytest.raises(InputError, match="needs the tensor 'x' in function 'F'"):
        check_and_sort(model)


def test_a_function_defined_twice_is_refused() -> None:
    model = model_of(relu("x", "y"))
    model.functions.extend([function("F", "G"), function("F", "G")])
    with pytest.raises(InputError, match="'F' is defined twice"):
        check_and_sort(model)
