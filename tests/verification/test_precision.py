"""Models converted as a whole: how they are run, what leaves their range, and what they may be off."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxopt.errors import VerificationError
from onnxopt.model.convert import Precision, convert
from onnxopt.verification.precision import check_range, converted_original, rounding
from onnxopt.verification.reduced import verify_rewritten
from onnxopt.verification.sessions import opened

_FLOAT = TensorProto.FLOAT


def model(
    nodes: list[onnx.NodeProto], constants: dict[str, np.ndarray], shape: tuple[int, ...] = (4, 32)
) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", _FLOAT, shape)],
        [helper.make_tensor_value_info("y", _FLOAT, None)],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def large(factor: float = 300.0) -> onnx.ModelProto:
    """Up by the square of a factor and down again."""
    nodes = [
        helper.make_node("Mul", ["x", "c"], ["a"], name="up"),
        helper.make_node("Mul", ["a", "c"], ["b"], name="higher"),
        helper.make_node("Div", ["b", "c"], ["d"], name="down"),
        helper.make_node("Div", ["d", "c"], ["y"], name="lower"),
    ]
    return model(nodes, {"c": np.float32(factor)})


def layers() -> onnx.ModelProto:
    rng = np.random.default_rng(0)
    weights = {name: (rng.standard_normal((32, 32)) / 6).astype(np.float32) for name in ("w0", "w1")}
    nodes = [
        helper.make_node("MatMul", ["x", "w0"], ["a"], name="first"),
        helper.make_node("Relu", ["a"], ["b"], name="relu"),
        helper.make_node("MatMul", ["b", "w1"], ["y"], name="second"),
    ]
    return model(nodes, weights)


def run(given: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    with opened(given, threads=1) as runner:
        return np.asarray(runner.run({"x": x})["y"])


@pytest.mark.parametrize(("precision", "digits"), [("fp16", 10), ("bf16", 7)])
def test_every_tensor_is_rounded_where_it_is_made(precision: Precision, digits: int) -> None:
    nodes = [helper.make_node("Add", ["x", "c"], ["a"]), helper.make_node("Sub", ["a", "c"], ["y"])]
    converted = convert(model(nodes, {"c": np.float32(1)}, shape=(2,)), precision)
    step = 2.0**-digits
    # Half of a step is lost when 1 is added, a whole one is not; the input is rounded too.
    x = np.array([step / 4, step * (1 + step / 4)], np.float32)
    assert run(rounding(converted), x).tolist() == [0, step]


def test_onnx_runtime_alone_hides_what_leaves_the_range() -> None:
    """Why models are run rounded: on a CPU float16 is computed in float32 from one node to the next."""
    x = np.ones((4, 32), np.float32)
    converted = convert(large(), "fp16")
    session = onnxruntime.InferenceSession(converted.SerializeToString(), providers=["CPUExecutionProvider"])
    assert np.all(np.isfinite(session.run(None, {"x": x})[0]))
    assert np.all(np.isinf(run(rounding(converted), x)))


def test_the_node_that_leaves_the_range_is_named() -> None:
    message = r"output 'y' is NaN or infinite where .* first happens in .*'higher'.*Take --dtype bf16"
    with pytest.raises(VerificationError, match=message):
        check_range(large(), convert(large(), "fp16"), "fp16")
    check_range(large(), convert(large(), "bf16"), "bf16")
    check_range(large(30), convert(large(30), "fp16"), "fp16")


def test_an_infinite_mask_is_not_what_is_blamed() -> None:
    """A row that is half masked is fine in fp16; what overflows beside it is named."""
    mask = np.where(np.arange(32) < 16, 0, -1e9).astype(np.float32)
    masked = [
        helper.make_node("Add", ["s", "m"], ["t"], name="mask"),
        helper.make_node("Add", ["t", "m"], ["u"], name="mask again"),
        helper.make_node("Softmax", ["u"], ["y"], name="softmax"),
    ]
    fine = model([helper.make_node("Mul", ["x", "c"], ["s"], name="scale"), *masked], {"m": mask, "c": np.float32(2)})
    check_range(fine, convert(fine, "fp16"), "fp16")
    bad = [
        helper.make_node("Mul", ["x", "c"], ["b"], name="huge"),
        helper.make_node("Mul", ["b", "k"], ["s"], name="small"),
        *masked,
    ]
    constants = {"m": mask, "c": np.float32(6e4), "k": np.float32(1e-4)}
    with pytest.raises(VerificationError, match="first happens in .*'huge'"):
        check_range(model(bad, constants), convert(model(bad, constants), "fp16"), "fp16")


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
@pytest.mark.parametrize("convert_io", [False, True])
def test_a_converted_model_agrees_with_the_original(precision: Precision, convert_io: bool) -> None:
    report = verify_rewritten(layers(), convert(layers(), precision, convert_io=convert_io))
    assert report.passed, report.explain()
    (output,) = report.draws[0].outputs
    assert output.max_error > (1e-4 if precision == "fp16" else 1e-3)
    assert "bounds are twice the errors of the converted original" in report.notes[-1]


def test_the_original_is_converted_as_the_candidate_says() -> None:
    converted = convert(layers(), "fp16")
    assert converted_original(layers(), converted) == converted
    assert converted_original(layers(), layers()) is None
    assert converted_original(converted, converted) is None


def _changed(name: str, change: float) -> onnx.ModelProto:
    converted = convert(layers(), "fp16")
    tensor = next(t for t in converted.graph.initializer if t.name == name)
    values = numpy_helper.to_array(tensor).copy()
    values[3, 5] += np.float16(change)
    tensor.CopyFrom(numpy_helper.from_array(values, name))
    return converted


def test_another_function_is_found_below_the_rounding_of_the_type() -> None:
    """A weight off by what rounding alone would allow: the comparison in float32 finds it."""
    report = verify_rewritten(layers(), _changed("w1", 1e-3))
    assert not report.passed
    assert report.notes[-1] == "compared in float32 throughout: rounding is not the cause"


def test_more_roundings_than_the_bounds_allow_are_found() -> None:
    converted = convert(layers(), "fp16")
    node = next(n for n in converted.graph.node if n.op_type == "Relu")
    (made,) = node.output
    node.output[0] = "exact"
    place = list(converted.graph.node).index(node) + 1
    casts = [
        helper.make_node("Cast", ["exact"], ["rough"], to=TensorProto.BFLOAT16),
        helper.make_node("Cast", ["rough"], [made], to=TensorProto.FLOAT16),
    ]
    for cast in reversed(casts):
        converted.graph.node.insert(place, cast)
    report = verify_rewritten(layers(), converted)
    assert not report.passed and "is allowed" in report.explain()
