"""The model for TensorRT with its operators, and the file that describes them: what is written, read and refused."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxopt import api
from onnxopt.deploy.aot_model import AOT_MODEL, AotModel, aot_model, check_aot, operator_of
from onnxopt.deploy.manifest import check_manifest
from onnxopt.deploy.operator_specs import engine_operators, package_operators
from onnxopt.deploy.operators_file import OPERATORS_FILE, parse_operators, read_operators, write_operators
from onnxopt.deploy.plugin_module import kernel_name
from onnxopt.errors import InputError
from onnxopt.lower.plugin_nodes import OPERATORS, plugin_nodes
from onnxopt.model.read import read_model
from onnxopt.plan.roofline import SMALL_SHARED_BYTES
from samples import build as sample
from tests.deploy.test_operator_specs import MODELS, report_of

Change = Callable[[dict[str, Any]], object]


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A package whose operators have several tactics."""
    place = tmp_path_factory.mktemp("aot")
    path = place / "model.onnx"
    path.write_bytes(sample("neighbourhood").to_bytes())
    folder = place / "package"
    api.optimize(path, folder, target="sm_90", form="plugin", kernel_dtype="fp16", cache=place / "cache", verify=False)
    return folder


@pytest.fixture(scope="module")
def aot(package: Path) -> AotModel:
    return AotModel(read_model(package / AOT_MODEL), read_operators(package / OPERATORS_FILE).operators)


def single(model: onnx.ModelProto) -> AotModel:
    """A model whose operators have one tactic each."""
    reports = {node.operator: report_of(node) for node in plugin_nodes(model, OPERATORS)}
    return aot_model(model, engine_operators(model, reports), {})


def test_a_package_has_the_model_its_operators_and_their_kernels(package: Path, aot: AotModel) -> None:
    check_manifest(package)
    plugin = read_model(package / "model.onnx")
    check_aot(aot, plugin)
    assert not [function for function in aot.model.functions if function.domain == "onnxopt"]
    onnx.checker.check_model(aot.model)
    own = [node for node in aot.model.graph.node if node.domain == "onnxopt"]
    assert {node.op_type for node in own} == {operator.name for operator in aot.operators}
    for node in own:
        found = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
        assert found == {"plugin_namespace": b"onnxopt", "plugin_version": b"1", "aot": 1}
    assert max(len(operator.tactics) for operator in aot.operators) > 1
    for operator in aot.operators:
        assert min(tactic.shared_bytes for tactic in operator.tactics) <= SMALL_SHARED_BYTES
        for number, tactic in enumerate(operator.tactics):
            name = kernel_name(operator, number)
            ptx = (package / "kernels" / f"{name}.ptx").read_text()
            assert (package / "kernels" / f"{name}.sm_90a.cubin").is_file()
            # It is called with the tables of all tactics.
            head = ptx.partition(f".entry {tactic.entry}(")[2].partition(")")[0]
            assert head.count(".param") == len(operator.inputs) + 1 + len(operator.outputs)
            assert f".maxntid {tactic.threads}" in ptx


def test_the_first_tactic_is_the_operator_of_the_plugin_form(package: Path, aot: AotModel) -> None:
    plain = {operator.name: operator for operator in package_operators(package)}
    for operator in aot.operators:
        first = plain[operator_of([operator.tactics[0].configuration])]
        assert (operator.operands, operator.outputs) == (first.operands, first.outputs)
        assert operator.batch_elements == first.batch_elements
        assert operator.tables[: len(first.tables)] == first.tables
        assert operator.tactics[0].grid == first.tactics[0].grid
        # The plan and the package say the same.
    plan = json.loads((package / "plan.json").read_text())
    noted = [site["tactics"] for site in plan["sites"] if "tactics" in site]
    shared = sorted([entry["shared_bytes"] for entry in tactics] for tactics in noted)
    assert shared == sorted([tactic.shared_bytes for tactic in operator.tactics] for operator in aot.operators)


@pytest.mark.parametrize("name", MODELS)
def test_every_family_is_written_and_read_back(name: str, tmp_path: Path) -> None:
    model = MODELS[name]()
    made = single(model)
    onnx.checker.check_model(made.model)
    assert [operator.name for operator in made.operators] == list(
        dict.fromkeys(node.op_type for node in model.graph.node if node.domain == "onnxopt")
    )
    write_operators(tmp_path, made.operators, "sm_90a")
    again = read_operators(tmp_path / OPERATORS_FILE)
    assert (again.architecture, again.operators) == ("sm_90a", made.operators)
    check_aot(AotModel(made.model, again.operators), model)


def test_functions_of_the_model_stay() -> None:
    model = MODELS["split convolution"]()
    twice = helper.make_function(
        "other", "Twice", ["x"], ["y"], [helper.make_node("Add", ["x", "x"], ["y"])], [helper.make_opsetid("", 18)]
    )
    model.functions.append(twice)
    model.opset_import.append(helper.make_opsetid("other", 1))
    model.graph.node.append(helper.make_node("Twice", ["y"], ["z"], domain="other"))
    model.graph.output.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, None))
    assert [function.name for function in single(model).model.functions] == ["Twice"]


def test_an_optimised_model_keeps_single_operators(package: Path, tmp_path: Path) -> None:
    again = tmp_path / "again"
    api.optimize(package / "model.onnx", again, target="sm_90", form="plugin", kernel_dtype="fp16", verify=False)
    found = read_operators(again / OPERATORS_FILE).operators
    assert [len(operator.tactics) for operator in found] == [1] * len(found)
    assert {operator.name for operator in found} == {operator.name for operator in package_operators(package)}
    check_manifest(again)


def test_a_model_that_was_changed_is_refused(aot: AotModel, package: Path) -> None:
    plugin = read_model(package / "model.onnx")

    def changed(change: Callable[[onnx.ModelProto, onnx.NodeProto], object]) -> AotModel:
        model = onnx.ModelProto.FromString(aot.model.SerializeToString())
        change(model, next(node for node in model.graph.node if node.domain == "onnxopt"))
        return AotModel(model, aot.operators)

    def other_table(model: onnx.ModelProto, node: onnx.NodeProto) -> None:
        # Of the last tactic, which the plugin form does not have.
        tensor = next(t for t in model.graph.initializer if t.name == node.input[-1])
        values = numpy_helper.to_array(tensor).copy()
        values.reshape(-1)[0] += 1
        tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))

    def other_operand(_: onnx.ModelProto, node: onnx.NodeProto) -> None:
        node.input[0] = f"{node.input[0]} of something else"

    cases: dict[str, Callable[[onnx.ModelProto, onnx.NodeProto], object]] = {
        "is no constant": lambda _, node: node.input.__setitem__(-1, "somewhere"),
        "its attributes are": lambda _, node: node.attribute.pop(),
        "nothing is known of its operator": lambda _, node: setattr(node, "op_type", "SparseAttention_0"),
        "inputs and": lambda _, node: node.input.pop(),
        "tables of a tactic are not those|is not that of the plugin form": other_table,
        "of the plugin form": other_operand,
        r"has \d+ nodes": lambda model, _: model.graph.node.pop(),
        "'output' is not": lambda model, _: setattr(model.graph.output[0], "name", "else"),
    }
    for message, change in cases.items():
        with pytest.raises(InputError, match=message):
            check_aot(changed(change), plugin)


def test_operators_files_are_read_strictly(package: Path, tmp_path: Path) -> None:
    document = json.loads((package / OPERATORS_FILE).read_text())
    assert parse_operators(document).operators

    def operator(wrong: dict[str, Any]) -> dict[str, Any]:
        found: dict[str, Any] = wrong["operators"][0]
        return found

    def tactic(wrong: dict[str, Any]) -> dict[str, Any]:
        found: dict[str, Any] = operator(wrong)["tactics"][-1]
        return found

    cases: list[tuple[str, Change]] = [
        ("'schema'", lambda d: d.update(schema="onnxopt.operators/2")),
        ("exactly", lambda d: d.update(more=1)),
        ("cannot be compiled for", lambda d: d.update(architecture="sm_1")),
        ("listed twice", lambda d: d["operators"].append(d["operators"][0])),
        ("its name", lambda d: operator(d).update(name="SparseAttention_0123456789abcdef")),
        ("letters, digits", lambda d: operator(d).update(name="import os")),
        ("'batch_elements'", lambda d: operator(d).update(batch_elements=operator(d)["batch_elements"] + 1)),
        ("'elements' of its outputs", lambda d: operator(d)["outputs"][0].update(elements=1)),
        ("several sizes", lambda d: operator(d)["outputs"][0].update(shape=[None, None, 3])),
        ("is of type", lambda d: operator(d)["operands"][0].update(type="int8")),
        ("tensors of tactic 0", lambda d: operator(d)["operands"].reverse()),
        ("tensors of tactic 0", lambda d: operator(d)["tables"].reverse()),
        ("shapes of tactic 0", lambda d: operator(d)["tables"][0].update(shape=[1, 16])),
        ("number of its tables", lambda d: operator(d)["tables"].append(operator(d)["tables"][0])),
        ("launch of tactic", lambda d: tactic(d).update(grid=[1, 1, 1])),
        ("launch of tactic", lambda d: tactic(d).update(first_table=0)),
        ("launch of tactic", lambda d: tactic(d).update(entry="merge_attention")),
        ("threads", lambda d: tactic(d).update(threads=2048)),
        ("threads", lambda d: tactic(d).update(threads=96)),
        ("shared_bytes", lambda d: tactic(d).update(shared_bytes=-1)),
        ("shared_bytes", lambda d: tactic(d).update(shared_bytes=True)),
        ("resident", lambda d: tactic(d).update(resident=0)),
        ("predicted_us", lambda d: tactic(d).update(predicted_us=float("nan"))),
        ("predicted_us", lambda d: tactic(d).update(predicted_us=10**400)),
        ("allowed: a list of 1 to", lambda d: operator(d).update(tactics=[])),
        ("of the operator 'Else'", lambda d: tactic(d)["configuration"].update(operator="Else")),
        ("version 2", lambda d: tactic(d)["configuration"].update(version=2)),
        ("version True", lambda d: tactic(d)["configuration"].update(version=True)),
        ("SHA-256", lambda d: tactic(d)["configuration"].update(tables="0")),
        ("lacks|'variants'", lambda d: tactic(d)["configuration"]["kernel"].pop("variants")),
        ("lacks|its name", lambda d: tactic(d)["configuration"]["shapes"].pop("jobs")),
    ]
    for message, change in cases:
        wrong = copy.deepcopy(document)
        change(wrong)
        with pytest.raises(InputError, match=message):
            parse_operators(wrong)
    place = tmp_path / OPERATORS_FILE
    place.write_text("{")
    with pytest.raises(InputError, match="is not valid JSON"):
        read_operators(place)


def test_equal_operators_give_equal_bytes(aot: AotModel, tmp_path: Path, package: Path) -> None:
    write_operators(tmp_path, aot.operators, "sm_90a")
    assert (tmp_path / OPERATORS_FILE).read_bytes() == (package / OPERATORS_FILE).read_bytes()
