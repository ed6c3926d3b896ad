"""The host of whole-model jobs against ONNX Runtime, on NumPy and, where it is installed, on PyTorch."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from benchmarks.whole_model_backends import NumpyBackend, TorchBackend
from benchmarks.whole_model_operators import Interpreter
from benchmarks.whole_model_program import LAUNCH, Node, Program, for_host, pruned, read_program, write_program
from benchmarks.whole_model_translate import translated
from onnxopt.errors import InputError
from onnxopt.lower.compat import lower_for_parsers
from onnxopt.model.graph import runtime_inputs
from onnxopt.verification.inputs import draw_inputs
from onnxopt.verification.sessions import opened
from samples import build

Array = npt.NDArray[Any]

SAMPLES = (
    *("swin", "longformer2d_padded", "regionvit_masked", "dynamicvit", "dynamicvit_policy", "neighbourhood"),
    *("empty_zero", "masked_vit", "shufflenet_v1", "shuffle_einsum", "condensenet_v2", "grouped_conv1d"),
    *("grouped_conv3d", "split_convolutions"),
)


def errors(model: onnx.ModelProto, backend: Any, batch: int = 1) -> list[float]:
    """How far the host is from ONNX Runtime, as shares of the largest value of each output."""
    lower_for_parsers(model)
    feeds = draw_inputs(model, seed=5, batch=batch)
    with opened(model, threads=1) as runner:
        expected = runner.run(feeds).values()
    run = Interpreter(translated(model, batch), backend)
    with np.errstate(all="ignore"):
        found = run({name: backend.tensor(array) for name, array in feeds.items()})
    pairs = zip((backend.numpy(value) for value in found), expected, strict=True)
    return [float(np.abs(own - wanted).max() / np.abs(wanted).max()) for own, wanted in pairs]


@pytest.mark.parametrize("name", SAMPLES)
def test_the_host_computes_what_onnx_runtime_computes(name: str) -> None:
    assert max(errors(build(name).model, NumpyBackend("fp32"))) < 3e-6


def test_in_fp16_tensors_are_rounded_between_operators() -> None:
    found = max(errors(build("swin").model, NumpyBackend("fp16")))
    assert 1e-5 < found < 1e-2


@pytest.mark.corpus
@pytest.mark.parametrize("tag", ["nat_3layer.dynamo.op18", "shufflenet2_1x.legacy.op17"])
def test_the_host_computes_exported_models(tag: str, corpus_model: Callable[[str], Path]) -> None:
    assert max(errors(onnx.load(corpus_model(tag)), NumpyBackend("fp32"))) < 1e-5


@pytest.mark.corpus_all
def test_the_host_computes_every_exported_model(
    corpus_manifest: dict[str, Any], corpus_model: Callable[[str], Path]
) -> None:
    wrong = {}
    for tag in corpus_manifest:
        found = max(errors(onnx.load(corpus_model(tag)), NumpyBackend("fp32")))
        if not found < 2e-5:
            wrong[tag] = found
    assert wrong == {}


@pytest.mark.parametrize("name", ["swin", "regionvit_masked", "dynamicvit", "shufflenet_v1", "grouped_conv3d"])
def test_pytorch_computes_what_onnx_runtime_computes(name: str) -> None:
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    assert max(errors(build(name).model, TorchBackend(torch, "fp32", "cpu"))) < 3e-6


def test_both_backends_have_the_same_methods() -> None:
    def parameters(kind: type) -> dict[str, list[str]]:
        public = inspect.getmembers(kind, inspect.isfunction)
        return {name: list(inspect.signature(f).parameters) for name, f in public if not name.startswith("_")}

    assert parameters(NumpyBackend) == parameters(TorchBackend)


def one_node(kind: str, shapes: Sequence[Sequence[int]], constants: Mapping[int, Array], **more: Any) -> Any:
    """A model of one operator; inputs are float tensors, those of ``constants`` initializers."""
    names = [f"i{number}" for number in range(len(shapes) + len(constants))]
    node = helper.make_node(kind, names, ["y"], name="only", **more)
    free = [name for number, name in enumerate(names) if number not in constants]
    given = [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in zip(free, shapes, strict=True)]
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    stored = [numpy_helper.from_array(array, names[number]) for number, array in constants.items()]
    graph = helper.make_graph([node], "one", given, [output], stored)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


@pytest.mark.parametrize(
    ("kind", "attributes"),
    [
        ("MaxPool", {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1], "ceil_mode": 1}),
        ("MaxPool", {"kernel_shape": [2, 3], "strides": [2, 1], "auto_pad": "SAME_UPPER"}),
        ("MaxPool", {"kernel_shape": [3, 3], "dilations": [2, 2], "pads": [0, 1, 2, 1]}),
        ("AveragePool", {"kernel_shape": [3, 3], "strides": [2, 2], "ceil_mode": 1, "pads": [1, 1, 1, 1]}),
        ("AveragePool", {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "count_include_pad": 1}),
        ("GlobalAveragePool", {}),
    ],
)
def test_pools(kind: str, attributes: dict[str, Any]) -> None:
    assert max(errors(one_node(kind, [[1, 4, 10, 11]], {}, **attributes), NumpyBackend("fp32"))) < 1e-6


@pytest.mark.parametrize(
    ("kind", "shape", "constants", "attributes"),
    [
        ("Slice", [1, 6, 5], {1: [4], 2: [-7], 3: [1], 4: [-2]}, {}),
        ("Slice", [1, 6, 5], {1: [-3, 1], 2: [99, -1], 3: [1, 2]}, {}),
        ("Gather", [1, 6, 5], {1: [[-1, 0], [2, 2]]}, {"axis": -2}),
        ("Gather", [1, 6, 5], {1: -2}, {"axis": 1}),
        ("GatherND", [1, 6, 5], {1: [[0, -1], [0, 3]]}, {}),
        ("Pad", [1, 6, 5], {1: [0, 1, 0, 0, 2, 3]}, {}),
        ("Tile", [1, 6, 5], {1: [2, 1, 3]}, {}),
        ("Expand", [1, 6, 5], {1: [2, 3, 6, 5]}, {}),
        ("ReduceSum", [1, 6, 5], {1: [-1]}, {"keepdims": 0}),
        ("Flatten", [1, 6, 5], {}, {"axis": 2}),
    ],
)
def test_movements(kind: str, shape: list[int], constants: dict[int, Any], attributes: dict[str, Any]) -> None:
    arrays = {number: np.array(value, np.int64) for number, value in constants.items()}
    assert max(errors(one_node(kind, [shape], arrays, **attributes), NumpyBackend("fp32"))) < 1e-6


def test_an_unknown_operator_is_refused_by_name() -> None:
    with pytest.raises(InputError, match=r"operators Selu \(first node 'only' \(Selu\)\).*supported: Abs, Add"):
        translated(one_node("Selu", [[1, 4]], {}), 1)


def test_a_parameter_from_the_input_is_refused() -> None:
    model = one_node("Expand", [[1, 4], [2]], {})
    model.graph.input[1].type.tensor_type.elem_type = TensorProto.INT64
    with pytest.raises(InputError, match="has no static shape"):
        translated(model, 1)


def test_numbers_beyond_fp16_stay_finite() -> None:
    stored = for_host(np.array([-1e9, -np.inf, np.nan, 70000.0, 1.5], np.float32), "fp16")
    np.testing.assert_array_equal(stored, np.array([-65504, -np.inf, np.nan, 65504, 1.5], np.float16))


def test_equal_constants_of_several_programs_are_stored_once(tmp_path: Path) -> None:
    constants = {"a": np.ones((2, 3), np.float32), "table:b": np.arange(3, dtype=np.int32)}
    nodes = (Node("Add", "add", ("x", "a"), ("y",)),)
    launch = Node(LAUNCH, "own", ("y",), ("z",), {"tables": {"b": "table:b"}})
    for name in ("one.json", "two.json"):
        write_program(Program(("x",), ("z",), (*nodes, launch), constants), tmp_path, name, "fp16")
    assert len(list((tmp_path / "constants").iterdir())) == 2
    again = read_program(tmp_path, "two.json")
    assert again.nodes == (*nodes, launch)
    assert again.constants["a"].dtype == np.float16
    assert again.constants["table:b"].dtype == np.int32


def test_what_nothing_needs_is_dropped() -> None:
    nodes = (Node("Relu", "a", ("x",), ("a",)), Node("Relu", "b", ("x",), ("b",)), Node("Add", "c", ("a", "k"), ("c",)))
    constants = {"k": np.ones(1), "l": np.ones(1)}
    program = pruned(Program(("x",), ("c",), nodes, constants))
    assert ([n.name for n in program.nodes], list(program.constants)) == (["a", "c"], ["k"])
    assert [n.name for n in pruned(program, ["a"]).nodes] == ["a", "c"]


def test_inputs_of_the_program_are_those_of_the_model() -> None:
    model = build("dynamicvit_policy").model
    assert translated(model, 1).inputs == tuple(value.name for value in runtime_inputs(model.graph))
