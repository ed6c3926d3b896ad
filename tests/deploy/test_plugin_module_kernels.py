"""Kernels on the CPU with exactly what TensorRT's ahead-of-time plugin object gives, against float64: emulated."""

from __future__ import annotations

from pathlib import Path

import pytest

from onnxopt.kernels.operator_source import operator_source
from onnxopt.kernels.source import with_others
from tests.deploy.lean_answers import check_answer
from tests.deploy.lean_packages import (
    MODELS,
    SMALL,
    TALL,
    Package,
    answers,
    attention,
    code_of,
    needs_lean,
    packaged,
    with_two_tactics,
)
from tests.deploy.lean_running import emulated
from tests.plan.schedules import GROUPED

pytestmark = needs_lean

QUICK = ("split", "sum", "im2col")


@pytest.mark.parametrize("name", [*QUICK, *(pytest.param(n, marks=pytest.mark.slow) for n in MODELS if n not in QUICK)])
def test_every_family_computes_with_the_objects_arguments(name: str, tmp_path: Path, programs: Path) -> None:
    package = packaged(tmp_path / "package", MODELS[name]())
    said = answers(package.module, package.operators, (2,))
    for operator in package.operators:
        nodes = package.nodes[operator.name]
        judgements = emulated(operator, nodes, said[operator.name], tactic=0, case=0, programs=programs)
        assert len(judgements) == len(operator.outputs)
        assert all(judgement.passed and judgement.elements for judgement in judgements), (operator.name, judgements)


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Package:
    """A package whose attention has two tactics."""
    return with_two_tactics(tmp_path_factory.mktemp("modules") / "two", [attention(SMALL), attention(TALL)])


@pytest.mark.parametrize("tactic", [0, 1])
def test_tactics_are_given_the_tables_of_all(tactic: int, two: Package, programs: Path) -> None:
    (operator,) = two.operators
    nodes = two.nodes[operator.name]
    counts = [len(node.tables) for node in nodes]
    assert len(operator.tables) == sum(counts)
    said = answers(two.module, two.operators, (2,))[operator.name]
    (judgement,) = emulated(operator, nodes, said, tactic=tactic, case=0, programs=programs)
    assert judgement.passed, judgement
    own = two.kernels[operator.name][tactic].source
    assert own == with_others(
        operator_source(nodes[tactic].configuration, nodes[tactic].resident),
        sum(counts[:tactic]),
        sum(counts[tactic + 1 :]),
    )


@pytest.mark.slow
def test_warpgroups_of_hopper_compute_with_the_objects_arguments(tmp_path: Path, programs: Path) -> None:
    package = packaged(tmp_path / "package", attention(GROUPED), "sm_90")
    (operator,) = package.operators
    said = answers(package.module, package.operators, (1, 3))[operator.name]
    check_answer(operator, said, package.folder, (1, 3))
    assert b".target sm_90a" in code_of(said["tactics"][0])
    for case in (0, 1):
        (judgement,) = emulated(
            operator, package.nodes[operator.name], said, tactic=0, case=case, programs=programs, order=case
        )
        assert judgement.passed, judgement
