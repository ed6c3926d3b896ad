"""Plugin modules of whole packages, as `optimize` writes them, held against NVIDIA's own plugin code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import numpy_helper

from onnxopt.deploy.aot_model import AOT_MODEL
from onnxopt.deploy.engine_operators import EngineOperator
from onnxopt.deploy.plugin_module import PLUGIN_MODULE, write_module
from onnxopt.lower.plugin_nodes import PluginNode
from onnxopt.package import PLUGIN
from onnxopt.target.variant import Element
from samples import build
from tests.corpus_tags import every_tag
from tests.deploy.corpus_packages import SOME, CorpusModel, optimised
from tests.deploy.lean_answers import check_answer, check_nodes
from tests.deploy.lean_packages import answers, needs_lean
from tests.deploy.lean_running import emulated

pytestmark = needs_lean
BATCHES = (1, 3, 8)


def checked(folder: Path, operators: tuple[EngineOperator, ...], batches: tuple[int, ...] = BATCHES) -> dict[str, Any]:
    """Hold every operator of a package and every node of its model against NVIDIA's code; the answers."""
    said = answers(folder / PLUGIN_MODULE, operators, batches)
    assert list(said) == [operator.name for operator in operators]
    for operator in operators:
        check_answer(operator, said[operator.name], folder, batches)
    model, plugin = onnx.load(folder / AOT_MODEL), onnx.load(folder / PLUGIN)
    assert check_nodes(model, plugin, operators, said) >= len(operators)
    return said


def nodes_of(model: onnx.ModelProto, operator: EngineOperator) -> tuple[PluginNode, ...]:
    """For each tactic the tables that a node of the model for TensorRT hands to it, in the order of its inputs."""
    node = next(node for node in model.graph.node if node.op_type == operator.name)
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    operands = {port.name: name for port, name in zip(operator.operands, node.input, strict=False)}
    given = node.input[len(operands) :]
    found = []
    for tactic in operator.tactics:
        own = slice(tactic.first_table, tactic.first_table + tactic.tables)
        ports = zip(operator.tables[own], given[own], strict=True)
        tables = {port.name: numpy_helper.to_array(constants[name]) for port, name in ports}
        outputs = tuple(node.output)
        found.append(PluginNode(node.name, operator.name, tactic.configuration, operands, tables, outputs))
    return tuple(found)


@pytest.mark.parametrize(
    ("name", "all_tactics"),
    [
        ("shuffle_gather", False),
        pytest.param("shuffle_gather", True, marks=pytest.mark.slow),
        pytest.param("neighbourhood", True, marks=pytest.mark.slow),
    ],
)
def test_the_tactics_of_a_package_compute_the_same(
    name: str, all_tactics: bool, tmp_path: Path, programs: Path
) -> None:
    path, folder = tmp_path / "model.onnx", tmp_path / "package"
    path.write_bytes(build(name).to_bytes())
    operators = optimised(path, folder, "sm_80", "fp16", programs)
    said = checked(folder, operators, (1,))
    model = onnx.load(folder / AOT_MODEL)
    assert max(len(operator.tactics) for operator in operators) > 1
    for operator in operators:
        nodes, last = nodes_of(model, operator), len(operator.tactics) - 1
        for tactic in range(0 if all_tactics else last, last + 1):
            judgements = emulated(operator, nodes, said[operator.name], tactic=tactic, case=0, programs=programs)
            assert all(judgement.passed and judgement.elements for judgement in judgements), judgements
    text = (folder / PLUGIN_MODULE).read_text()
    assert write_module(folder, operators, "sm_80").read_text() == text


@pytest.mark.corpus
@pytest.mark.parametrize("tag", SOME)
def test_a_sample_of_packages_agrees_with_nvidias_code(
    tag: str, corpus_model: CorpusModel, tmp_path: Path, programs: Path
) -> None:
    operators = optimised(corpus_model(tag), tmp_path / "package", "sm_90", "fp16", programs)
    assert checked(tmp_path / "package", operators)


@pytest.mark.corpus_all
@pytest.mark.parametrize(("target", "element"), [("sm_90", "fp16"), ("sm_89", "bf16")])
@pytest.mark.parametrize("tag", every_tag())
def test_every_package_agrees_with_nvidias_code(
    tag: str, target: str, element: Element, corpus_model: CorpusModel, tmp_path: Path
) -> None:
    operators = optimised(corpus_model(tag), tmp_path / "package", target, element, tmp_path / "cache")
    if operators:
        checked(tmp_path / "package", operators)
