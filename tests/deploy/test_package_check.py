"""The models for TensorRT in a package: whoever changes one, with a manifest that agrees, is found out."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

from onnxopt import api
from onnxopt.deploy.aot_model import AOT_MODEL
from onnxopt.deploy.launcher_model import LAUNCHER_MODEL
from onnxopt.deploy.manifest import read_manifest, write_manifest
from onnxopt.deploy.operators_file import OPERATORS_FILE
from onnxopt.deploy.package_check import check_engine_models
from onnxopt.errors import InputError
from onnxopt.package import PLUGIN

Change = Callable[[ModelProto], object]


def _model() -> ModelProto:
    """A grouped convolution with a shuffle behind it, for which there is a kernel, and a sum that stays outside."""
    rng = np.random.default_rng(0)
    constants = {
        "w": (rng.standard_normal((256, 64, 1, 1)) / 8).astype(np.float32),
        "bias": rng.standard_normal((1, 1, 28, 28)).astype(np.float32),
        "apart": np.array([0, 4, 64, 28, 28]),
        "together": np.array([0, 256, 28, 28]),
    }
    nodes = [
        helper.make_node("Add", ["x", "bias"], ["b"], name="add"),
        helper.make_node("Add", ["b", "s"], ["m"]),
        helper.make_node("Conv", ["m", "w"], ["c"], name="conv", group=4),
        helper.make_node("Reshape", ["c", "apart"], ["a"]),
        helper.make_node("Transpose", ["a"], ["t"], perm=[0, 2, 1, 3, 4]),
        helper.make_node("Reshape", ["t", "together"], ["y"]),
    ]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 256, 28, 28]) for name in "xy"]
    values.insert(0, helper.make_tensor_value_info("s", TensorProto.FLOAT, [1, 1, 28, 28]))
    tensors = [numpy_helper.from_array(array, name) for name, array in constants.items()]
    graph = helper.make_graph(nodes, "shuffled", values[:2], values[2:], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("check")
    onnx.save(_model(), place / "model.onnx")
    api.optimize(place / "model.onnx", place / "p", target="sm_75", form="plugin", kernel_dtype="fp16", cache=place)
    return place / "p"


def _forged(package: Path, place: Path, changes: Mapping[str, Change] = {}, without: str = "") -> Path:
    """A copy with changed models, whose manifest agrees with them."""
    shutil.copytree(package, place)
    for name, change in changes.items():
        file = place / f"model.{name}.onnx"
        model = onnx.load(file)
        change(model)
        onnx.save(model, file)
    old = read_manifest(place)
    files = [entry.path for entry in old.files if entry.path != without]
    write_manifest(place, target=old.target, versions=old.versions, source=old.source, files=files)
    return place


def _other_constant(model: ModelProto) -> None:
    bias = next(tensor for tensor in model.graph.initializer if tensor.name == "bias")
    bias.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(bias) * 2, "bias"))


def _fixed_input(model: ModelProto) -> None:
    model.graph.initializer.append(numpy_helper.from_array(np.ones((1, 1, 28, 28), np.float32), "s"))


def _function(model: ModelProto) -> None:
    node = helper.make_node("Neg", ["a"], ["b"])
    model.functions.append(helper.make_function("other", "Double", ["a"], ["b"], [node], model.opset_import[:1]))
    model.opset_import.append(helper.make_opsetid("other", 1))


def _other_kernel(model: ModelProto) -> None:
    node = next(node for node in model.graph.node if node.domain == "onnxopt")
    blob = next(a for a in node.attribute if a.type == onnx.AttributeProto.TENSOR)
    blob.t.raw_data = blob.t.raw_data[:-1] + bytes([blob.t.raw_data[-1] ^ 1])


def test_an_untouched_package_agrees(package: Path) -> None:
    assert {AOT_MODEL, LAUNCHER_MODEL, OPERATORS_FILE} <= {entry.path for entry in read_manifest(package).files}
    check_engine_models(package)


@pytest.mark.parametrize("name", ["aot", "launcher"])
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_other_constant, "bias"),
        (_fixed_input, "graph's 'initializer'|input 's' is a constant"),
        (_function, "functions"),
        (lambda model: model.graph.node.append(helper.make_node("Neg", ["x"], ["z"])), "nodes|graph's 'node'"),
        (lambda model: setattr(model.graph.node[0], "op_type", "Mul"), "'add'"),
    ],
)
def test_a_model_that_was_changed_is_refused(
    package: Path, tmp_path: Path, name: str, change: Change, words: str
) -> None:
    folder = _forged(package, tmp_path / "p", {name: change})
    with pytest.raises(InputError, match=rf"model\.{name}\.onnx is not the model of model\.onnx: .*({words})"):
        check_engine_models(folder)


def test_another_kernel_in_a_node_is_refused(package: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"model\.launcher\.onnx is not the model"):
        check_engine_models(_forged(package, tmp_path / "p", {"launcher": _other_kernel}))


@pytest.mark.parametrize(("missing", "words"), [(PLUGIN, "and no model.onnx"), (OPERATORS_FILE, OPERATORS_FILE)])
def test_what_cannot_be_compared_is_refused(package: Path, tmp_path: Path, missing: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        check_engine_models(_forged(package, tmp_path / "p", without=missing))


def test_verification_says_so(package: Path, tmp_path: Path) -> None:
    folder = _forged(package, tmp_path / "p", {"aot": _other_constant})
    with pytest.raises(InputError, match=r"model\.aot\.onnx is not the model of model\.onnx"):
        api.verify(package.parent / "model.onnx", folder)
