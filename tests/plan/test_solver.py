"""Solvers answer, fall back, and are not believed."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping

import pulp
import pytest

from onnxopt.plan import solver
from onnxopt.plan.solver import Backend, Outcome, solve

BACKENDS: dict[str, Backend] = {"HiGHS": solver._highs, "CBC": solver._cbc}


def knapsack(items: int = 30, sense: int = pulp.LpMaximize, kind: str = "Binary") -> pulp.LpProblem:
    rng = random.Random(items)
    problem = pulp.LpProblem("knapsack", sense)
    picks = [problem.add_variable(f"x{i}", 0, 1, kind) for i in range(items)]
    problem += pulp.lpSum(rng.randint(10, 90) * pick for pick in picks) + 7
    for row in range(4):
        weights = [rng.randint(10, 90) for _ in picks]
        used = pulp.lpSum(w * pick for w, pick in zip(weights, picks, strict=True))
        problem += (used <= sum(weights) // 3 if sense == pulp.LpMaximize else used >= sum(weights) // 3), f"r{row}"
    return problem


def crash(problem: pulp.LpProblem, node_limit: int, warm: Mapping[str, float], seconds: float) -> Outcome:
    raise RuntimeError("out of order")


def lie(problem: pulp.LpProblem, node_limit: int, warm: Mapping[str, float], seconds: float) -> Outcome:
    return Outcome("optimal", 1e6, 1e6, 0, "liar", {v.name: 1.0 for v in problem.variables()})


@pytest.mark.parametrize("sense", [pulp.LpMaximize, pulp.LpMinimize])
@pytest.mark.parametrize("kind", ["Binary", "Continuous"])
def test_both_solvers_agree(sense: int, kind: str) -> None:
    found = [solve(knapsack(sense=sense, kind=kind), node_limit=10_000, backends=[b]) for b in BACKENDS.items()]
    assert [outcome.status for outcome in found] == ["optimal", "optimal"]
    assert found[0].value == pytest.approx(found[1].value, rel=1e-6)
    assert [outcome.solver for outcome in found] == ["HiGHS", "CBC"]
    for outcome in found:
        assert outcome.bound == pytest.approx(outcome.value, rel=1e-6)
    if kind == "Continuous":
        for row in ("r0", "r1", "r2", "r3"):
            assert found[0].duals[row] == pytest.approx(found[1].duals[row], abs=1e-5)


@pytest.mark.parametrize("name", BACKENDS)
def test_a_node_limit_gives_the_best_solution_with_its_bound(name: str) -> None:
    full = solve(knapsack(40), node_limit=100_000)
    cut = solve(knapsack(40), node_limit=1, backends=[(name, BACKENDS[name])])
    assert cut.status == "feasible"
    assert cut.value <= full.value + 1e-6 <= cut.bound + 1e-5
    assert cut.bound > cut.value


def test_a_crashing_solver_falls_back_and_says_so() -> None:
    outcome = solve(knapsack(), node_limit=1000, backends=[("HiGHS", crash), ("CBC", solver._cbc)])
    assert outcome.status == "optimal"
    assert outcome.solver == "CBC"
    assert "HiGHS failed: RuntimeError: out of order" in outcome.note


def test_a_wrong_answer_is_not_taken() -> None:
    outcome = solve(knapsack(), node_limit=1000, backends=[("HiGHS", lie), ("CBC", solver._cbc)])
    assert outcome.solver == "CBC"
    assert "HiGHS gave a solution that violates constraint r" in outcome.note


def test_no_solver_at_all_is_an_outcome() -> None:
    outcome = solve(knapsack(), node_limit=1000, backends=[("HiGHS", crash), ("CBC", crash)])
    assert outcome.status == "none"
    assert outcome.solver == "none"
    assert outcome.value == -math.inf
    assert outcome.note.count("failed") == 2


@pytest.mark.parametrize("name", BACKENDS)
def test_what_cannot_be_solved_is_said(name: str) -> None:
    problem = pulp.LpProblem("impossible", pulp.LpMinimize)
    x = problem.add_variable("x", 0, 1, "Integer")
    problem += x
    problem += x >= 2
    outcome = solve(problem, node_limit=10, backends=[(name, BACKENDS[name])])
    assert outcome.status == "none"
    assert name in outcome.note


def test_a_warm_start_is_no_worse() -> None:
    best = solve(knapsack(40), node_limit=100_000)
    again = solve(knapsack(40), node_limit=1, warm_start=best.values)
    assert again.value == pytest.approx(best.value)


def test_the_same_program_gives_the_same_answer() -> None:
    first, second = (solve(knapsack(35), node_limit=50) for _ in range(2))
    assert first == second
    assert first.values == second.values


def test_a_minimisation_ends_at_its_target() -> None:
    best = solve(knapsack(40, pulp.LpMinimize), node_limit=100_000)
    near = solve(knapsack(40, pulp.LpMinimize), node_limit=100_000, target=best.value * 1.2)
    assert best.value <= near.value <= best.value * 1.2 + 1e-3
    assert near.nodes <= best.nodes
    assert near.bound <= best.value + 1e-6
    assert near.note == ""
