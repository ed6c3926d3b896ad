"""Whole models in fp16 and bf16: what is converted, what stays, and what cannot be."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxopt.errors import InputError
from onnxopt.model.bfloat16 import rounded
from onnxopt.model.convert import Precision, convert, converted_to, element_of
from onnxopt.model.graph import view
from onnxopt.model.wide_nodes import wide_nodes

BOTH: tuple[Precision, ...] = ("fp16", "bf16")
_FLOAT, _INT = TensorProto.FLOAT, TensorProto.INT64


def model(
    nodes: list[onnx.NodeProto],
    constants: dict[str, np.ndarray] | None = None,
    shape: tuple[int | str, ...] = (2, 8),
    opset: int = 18,
    outputs: tuple[str, ...] = ("y",),
    kind: int = _FLOAT,
) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", kind, shape)],
        [helper.make_tensor_value_info(name, kind, None) for name in outputs],
        [numpy_helper.from_array(array, name) for name, array in (constants or {}).items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)


def stored(converted: onnx.ModelProto, name: str) -> np.ndarray:
    return np.asarray(next(numpy_helper.to_array(t) for t in converted.graph.initializer if t.name == name))


def types(converted: onnx.ModelProto) -> dict[str, int]:
    graph = view(converted)
    return {name: graph.element_type(name) for node in graph.nodes for name in node.output}


def norm() -> onnx.ModelProto:
    """A normalisation that is written out, between two products."""
    return model(
        [
            helper.make_node("MatMul", ["x", "w"], ["a"]),
            helper.make_node("ReduceMean", ["a", "last"], ["mean"]),
            helper.make_node("Sub", ["a", "mean"], ["centred"]),
            helper.make_node("Pow", ["centred", "two"], ["square"]),
            helper.make_node("ReduceMean", ["square", "last"], ["variance"]),
            helper.make_node("Add", ["variance", "eps"], ["shifted"]),
            helper.make_node("Sqrt", ["shifted"], ["root"]),
            helper.make_node("Div", ["centred", "root"], ["b"]),
            helper.make_node("MatMul", ["b", "w"], ["y"]),
        ],
        {
            "w": np.eye(8, dtype=np.float32) * 300,
            "last": np.array([-1]),
            "two": np.array(2, np.float32),
            "eps": np.array(1e-12, np.float32),
        },
    )


@pytest.mark.parametrize("precision", BOTH)
def test_inputs_and_outputs_keep_names_and_types(precision: Precision) -> None:
    before = norm()
    text = before.SerializeToString(deterministic=True)
    after = convert(before, precision)
    assert before.SerializeToString(deterministic=True) == text
    assert after.SerializeToString(deterministic=True) == convert(before, precision).SerializeToString(
        deterministic=True
    )
    assert list(after.graph.input) == list(before.graph.input)
    assert [(o.name, o.type.tensor_type.elem_type) for o in after.graph.output] == [("y", _FLOAT)]
    assert types(after)["a"] == element_of(precision)
    onnx.checker.check_model(after, full_check=True)
    assert converted_to(after) == (precision, False) and converted_to(before) is None


@pytest.mark.parametrize("precision", BOTH)
def test_inputs_and_outputs_are_converted_where_asked(precision: Precision) -> None:
    after = convert(norm(), precision, convert_io=True)
    values = [*after.graph.input, *after.graph.output]
    assert [(v.name, v.type.tensor_type.elem_type) for v in values] == [
        ("x", element_of(precision)),
        ("y", element_of(precision)),
    ]
    assert converted_to(after) == (precision, True)
    onnx.checker.check_model(after, full_check=True)


@pytest.mark.parametrize("convert_io", [False, True])
@pytest.mark.parametrize("precision", BOTH)
def test_outputs_that_no_node_makes_are_kept(precision: Precision, convert_io: bool) -> None:
    constants = {"k": np.array([1.5, 2], np.float32), "w": np.eye(8, dtype=np.float32)}
    before = model([helper.make_node("MatMul", ["x", "w"], ["y"])], constants, outputs=("x", "y", "k"))
    before.graph.output[0].CopyFrom(before.graph.input[0])
    after = convert(before, precision, convert_io=convert_io)
    kind = element_of(precision) if convert_io else _FLOAT
    assert [(o.name, o.type.tensor_type.elem_type) for o in after.graph.output] == [(n, kind) for n in "xyk"]
    assert types(after)["y"] == kind
    onnx.checker.check_model(after, full_check=True)


@pytest.mark.parametrize("precision", BOTH)
def test_a_variance_stays_in_float32_without_roundings_within(precision: Precision) -> None:
    after = convert(norm(), precision)
    kinds = types(after)
    made = {node.op_type: node for node in after.graph.node if node.op_type in ("Pow", "Add", "Sqrt")}
    assert all(kinds[node.output[0]] == _FLOAT for node in made.values())
    assert made["Sqrt"].input[0] == made["Add"].output[0]
    # One cast into it and one out of it, beside those of the input and the output.
    assert [node.op_type for node in after.graph.node].count("Cast") == 4
    assert stored(after, "eps") == np.float32(1e-12) and stored(after, "two").dtype == np.float32


def test_constants_beyond_fp16_stay_finite_and_stay_there() -> None:
    values = {"m": np.array([-1e9, -3.4e38, -np.inf, 0, 1e-12, -1e-30, 7e4, 1], np.float32)}
    found = stored(convert(model([helper.make_node("Add", ["x", "m"], ["y"])], values), "fp16"), "m")
    assert found.dtype == np.float16
    least = 2.0**-24
    assert found.tolist() == [-65504, -65504, -np.inf, 0, least, -least, 65504, 1]


def test_bf16_has_the_values_of_float32_and_not_of_fp16() -> None:
    values = np.array([-1e9, -3.4028235e38, -np.inf, 0, 1e-12, -1e-45, 7e4, 1.00390625], np.float32)
    found = stored(convert(model([helper.make_node("Add", ["x", "m"], ["y"])], {"m": values}), "bf16"), "m")
    largest = float(ml_dtypes.finfo(ml_dtypes.bfloat16).max)
    assert found.dtype == ml_dtypes.bfloat16
    assert found[1] == -largest and found[5] < 0 and np.isneginf(found[2]) and found[3] == 0
    close = [0, 4, 6, 7]
    assert abs(found[5]) == ml_dtypes.finfo(ml_dtypes.bfloat16).smallest_subnormal
    assert np.allclose(found[close].astype(np.float64), values[close], rtol=2.0**-8, atol=0)
    assert np.array_equal(rounded(values), found)


def test_constants_of_nodes_and_of_both_types_are_exact_where_float32_reads_them() -> None:
    tensor = numpy_helper.from_array(np.array([1 / 3] * 8, np.float32))
    nodes = [
        helper.make_node("Constant", [], ["third"], value=tensor),
        helper.make_node("Constant", [], ["half"], value_float=0.5),
        helper.make_node("CumSum", ["third", "axis"], ["sum"]),
        helper.make_node("Mul", ["x", "third"], ["a"]),
        helper.make_node("Mul", ["a", "half"], ["b"]),
        helper.make_node("Add", ["b", "sum"], ["y"]),
    ]
    after = convert(model(nodes, {"axis": np.array(0)}), "fp16")
    (cumulated,) = [node for node in after.graph.node if node.op_type == "CumSum"]
    assert stored(after, cumulated.input[0])[0] == np.float32(1 / 3)
    assert stored(after, "third")[0] == np.float16(1 / 3) and stored(after, "half").dtype == np.float16


@pytest.mark.parametrize("precision", BOTH)
def test_sizes_and_indices_are_computed_in_float32(precision: Precision) -> None:
    """A size that fp16 and bf16 cannot hold, through floats: 4099 * 1 as an integer."""
    nodes = [
        helper.make_node("Shape", ["x"], ["sizes"]),
        helper.make_node("Cast", ["sizes"], ["floats"], to=_FLOAT),
        helper.make_node("Mul", ["floats", "one"], ["scaled"]),
        helper.make_node("Floor", ["scaled"], ["floored"]),
        helper.make_node("Cast", ["floored"], ["integers"], to=_INT),
        helper.make_node("Neg", ["x"], ["z"]),
        helper.make_node("Reshape", ["z", "integers"], ["y"]),
    ]
    after = convert(model(nodes, {"one": np.array(1, np.float32)}, shape=(1, 4099)), precision)
    graph = view(after)
    assert np.array_equal(graph.constant("integers"), [1, 4099])
    assert graph.element_type("z") == element_of(precision)


def test_operators_without_the_type_stay_in_float32() -> None:
    nodes = [
        helper.make_node("Einsum", ["x", "w"], ["a"], equation="ij,jk->ik", name="product"),
        helper.make_node("Relu", ["a"], ["y"], name="relu"),
    ]
    before = model(nodes, {"w": np.eye(8, dtype=np.float32)})
    assert wide_nodes(before, TensorProto.FLOAT16) == set()
    assert wide_nodes(before, TensorProto.BFLOAT16) == {"product"}
    after = convert(before, "bf16")
    assert [node.op_type for node in after.graph.node] == ["Einsum", "Cast", "Relu", "Cast"]
    assert stored(after, "w").dtype == np.float32
    onnx.checker.check_model(after, full_check=True)


def test_bf16_raises_the_opset_to_the_one_that_has_it() -> None:
    nodes = [helper.make_node("MaxPool", ["x"], ["y"], kernel_shape=[2], name="pool")]
    before = model(nodes, shape=(1, 4, 8), opset=13)
    after = convert(before, "bf16")
    assert [(o.domain, o.version) for o in after.opset_import] == [("", 22)]
    assert types(after)[after.graph.node[1].output[0]] == TensorProto.BFLOAT16
    assert convert(before, "fp16").opset_import[0].version == 13


def test_a_tensor_read_by_two_wide_nodes_is_cast_once() -> None:
    nodes = [
        helper.make_node("Relu", ["x"], ["a"]),
        helper.make_node("ReduceL2", ["a"], ["b"], keepdims=1),
        helper.make_node("ReduceSumSquare", ["a"], ["c"], keepdims=1),
        helper.make_node("Add", ["b", "c"], ["y"]),
    ]
    after = convert(model(nodes), "fp16")
    assert sum(node.op_type == "Cast" and node.input[0] == "a" for node in after.graph.node) == 1
    assert [node.op_type for node in after.graph.node if node.op_type != "Cast"] == [n.op_type for n in nodes]


@pytest.mark.parametrize("precision", BOTH)
def test_a_branch_is_converted_too(precision: Precision) -> None:
    """If: constants of a branch get the type, and its result does."""

    def branch(value: float) -> onnx.GraphProto:
        constant = numpy_helper.from_array(np.full(8, value, np.float32), f"c{value}")
        return helper.make_graph(
            [helper.make_node("Add", ["a", constant.name], [f"r{value}"])],
            "branch",
            [],
            [helper.make_tensor_value_info(f"r{value}", _FLOAT, [2, 8])],
            [constant],
        )

    nodes = [
        helper.make_node("Relu", ["x"], ["a"]),
        helper.make_node("If", ["yes"], ["b"], then_branch=branch(1e5), else_branch=branch(2.0)),
        helper.make_node("Neg", ["b"], ["y"]),
    ]
    after = convert(model(nodes, {"yes": np.array(True)}), precision)
    onnx.checker.check_model(after, full_check=True)
    (choice,) = [node for node in after.graph.node if node.op_type == "If"]
    then = next(item.g for item in choice.attribute if item.name == "then_branch")
    value = numpy_helper.to_array(then.initializer[0])[0]
    assert then.initializer[0].data_type == element_of(precision)
    assert value == (65504 if precision == "fp16" else ml_dtypes.bfloat16(1e5))


def _with_function() -> onnx.ModelProto:
    found = model([helper.make_node("Twice", ["x"], ["y"], domain="own")])
    body = helper.make_node("Add", ["a", "a"], ["b"])
    opsets = [helper.make_opsetid("", 18)]
    found.functions.append(helper.make_function("own", "Twice", ["a"], ["b"], [body], opsets))
    found.opset_import.append(helper.make_opsetid("own", 1))
    return found


def _unknown() -> onnx.ModelProto:
    """An operator of an unknown domain, whose result's type nobody says."""
    nodes = [helper.make_node("Odd", ["x"], ["a"], domain="elsewhere"), helper.make_node("Relu", ["a"], ["y"])]
    found = model(nodes)
    found.opset_import.append(helper.make_opsetid("elsewhere", 1))
    return found


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            model([helper.make_node("Relu", ["x"], ["y"])], kind=TensorProto.FLOAT16),
            "--dtype fp16 cannot convert this model: it holds float16 already; it takes float32 models",
        ),
        (
            model([helper.make_node("Relu", ["x"], ["y"])], kind=TensorProto.DOUBLE),
            "it holds no float32; leave out --dtype",
        ),
        (_with_function(), "it holds the function 'Twice'; inline functions"),
        (_unknown(), "the type of 'a', which Odd makes and which stays in float32, is not known"),
    ],
    ids=["narrow", "double", "function", "unknown"],
)
def test_what_cannot_be_converted_is_refused(given: onnx.ModelProto, message: str) -> None:
    with pytest.raises(InputError, match=message):
        convert(given, "fp16")


def test_unknown_operators_of_known_type_stay_in_float32() -> None:
    given = _unknown()
    given.graph.value_info.append(helper.make_tensor_value_info("a", _FLOAT, [2, 8]))
    after = convert(given, "fp16")
    (odd,) = [node for node in after.graph.node if node.op_type == "Odd"]
    assert list(odd.input) == ["x"]
    (behind,) = [node for node in after.graph.node if odd.output[0] in node.input]
    assert (behind.op_type, list(behind.output)) == ("Cast", ["a"])
