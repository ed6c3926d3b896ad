"""Solving linear and integer programs with PuLP: HiGHS first, CBC where HiGHS is missing, crashes or answers wrongly.

Limits are numbers of nodes, so that the same program gives the same answer on a slow machine as on a fast one; the
limit in seconds is only a guard against a solver that hangs. What a solver reports is read from the state of its
solution and from its bound, and its solution is checked against the constraints here.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import pulp

Status = Literal["optimal", "feasible", "none"]

# A guard only: programs here end by their node limits long before.
GUARD_SECONDS = 60
# How far a solution may be from a constraint, relative to the size of the constraint's terms.
_TOLERANCE = 1e-5


@dataclass(frozen=True)
class Outcome:
    """What came out: ``value`` and ``values`` of the best solution known, and the solver's ``bound`` on any.

    ``status`` is ``optimal`` only where bound and value meet, ``none`` where there is no solution. ``duals`` are the
    prices of the constraints by name, for programs without integers. ``note`` says what went wrong on the way.
    """

    status: Status
    value: float
    bound: float
    nodes: int
    solver: str
    values: Mapping[str, float] = field(default_factory=dict, repr=False)
    duals: Mapping[str, float] = field(default_factory=dict, repr=False)
    note: str = ""


Backend = Callable[[pulp.LpProblem, int, Mapping[str, float], float], Outcome]


def solve(
    problem: pulp.LpProblem,
    *,
    node_limit: int,
    warm_start: Mapping[str, float] | None = None,
    backends: Sequence[tuple[str, Backend]] | None = None,
    guard_seconds: float = GUARD_SECONDS,
    target: float | None = None,
) -> Outcome:
    """Solve to the end or to ``node_limit`` nodes; never raises because of a solver.

    ``warm_start`` gives values of variables by name. A minimisation may end at a solution of ``target`` or less. Each
    of ``backends`` (HiGHS and CBC by default) is tried in turn until one gives a solution that holds; where none does,
    the outcome's status is ``none``.
    """
    notes: list[str] = []
    for name, backend in (
        backends if backends is not None else (("HiGHS", partial(_highs, target=target)), ("CBC", _cbc))
    ):
        try:
            outcome = backend(problem, max(1, node_limit), dict(warm_start or {}), guard_seconds)
        except Exception as error:  # whatever a solver throws, the next one can still answer
            notes.append(f"{name} failed: {type(error).__name__}: {str(error)[:120]}")
            continue
        fault = _fault(problem, outcome) if outcome.status != "none" else "no solution"
        if not fault:
            return replace(outcome, solver=name, note="; ".join([*notes, outcome.note]).strip("; "))
        notes.append(f"{name} gave {fault}" + (f" ({outcome.note})" if outcome.note else ""))
    worst = math.inf if problem.sense == pulp.LpMinimize else -math.inf
    return Outcome("none", worst, -worst, 0, "none", note="; ".join(notes))


def _fault(problem: pulp.LpProblem, outcome: Outcome) -> str:
    """What is wrong with a solution, in words; empty where it holds."""
    values = outcome.values
    for variable in problem.variables():
        value = values.get(variable.name, math.nan)
        low = -math.inf if variable.lowBound is None else variable.lowBound
        high = math.inf if variable.upBound is None else variable.upBound
        scale = _TOLERANCE * max(1.0, abs(value))
        if not low - scale <= value <= high + scale:
            return f"a value outside its limits ({variable.name} = {value})"
        if variable.cat == pulp.LpInteger and abs(value - round(value)) > _TOLERANCE:
            return f"a fraction where an integer is due ({variable.name} = {value})"
    for constraint in problem.constraints():
        terms = [coefficient * values[variable.name] for variable, coefficient in constraint.items()]
        excess = sum(terms) + constraint.constant
        scale = _TOLERANCE * max(1.0, abs(constraint.constant), *map(abs, terms)) if terms else _TOLERANCE
        holds = {
            pulp.LpConstraintLE: excess <= scale,
            pulp.LpConstraintGE: excess >= -scale,
            pulp.LpConstraintEQ: abs(excess) <= scale,
        }
        if not holds[constraint.sense]:
            return f"a solution that violates constraint {constraint.name}"
    return ""


def _status(problem: pulp.LpProblem, value: float, bound: float) -> Status:
    """Optimal only where the bound says so."""
    away = value - bound if problem.sense == pulp.LpMinimize else bound - value
    return "optimal" if away <= 1e-6 * max(1.0, abs(value)) else "feasible"


def _value(problem: pulp.LpProblem, values: Mapping[str, float]) -> float:
    terms = (coefficient * values[variable.name] for variable, coefficient in problem.objective.items())
    return float(sum(terms) + problem.objective.constant)


def _is_integer(problem: pulp.LpProblem) -> bool:
    return any(variable.cat == pulp.LpInteger for variable in problem.variables())


def _highs(
    problem: pulp.LpProblem,
    node_limit: int,
    warm: Mapping[str, float],
    seconds: float,
    target: float | None = None,
) -> Outcome:
    import highspy

    class Run(pulp.HiGHS):  # type: ignore[misc]
        """PuLP's interface, with a warm start; PuLP cannot read a run that ended at its node limit."""

        def callSolver(self, lp: Any) -> None:  # noqa: N802
            if warm:
                start = highspy.HighsSolution()
                start.col_value = [float(warm.get(variable.name, 0.0)) for variable in lp.variables()]
                lp.solverModel.setSolution(start)
            lp.solverModel.run()

        def findSolutionValues(self, lp: Any) -> tuple[int, int]:  # noqa: N802
            return pulp.constants.LpStatusNotSolved, pulp.constants.LpSolutionNoSolutionFound

    # Rounding in the objective must not make HiGHS miss its target by a hair.
    settings: dict[str, Any] = {} if target is None else {"objective_target": target + 1e-6 * max(1.0, abs(target))}
    # This one of its searches at the root takes a third of the time here, and finds nothing that others do not.
    settings["mip_heuristic_run_root_reduced_cost"] = False
    # Settings are said one by one: HiGHS stops at a gap of its own where it is not told to close it.
    run = Run(
        msg=False,
        threads=1,
        gapRel=0.0,
        gapAbs=1e-9,
        timeLimit=seconds,
        mip_max_nodes=node_limit,
        random_seed=0,
        parallel="off",
        **settings,
    )
    run.actualSolve(problem)
    model = problem.solverModel
    status, info = model.getModelStatus(), model.getInfo()
    ends = (highspy.HighsModelStatus.kOptimal, highspy.HighsModelStatus.kObjectiveTarget)
    note = "" if status in ends else model.modelStatusToString(status)
    if info.primal_solution_status != highspy.SolutionStatus.kSolutionStatusFeasible:
        return Outcome("none", math.inf, -math.inf, 0, "HiGHS", note=note or "no feasible solution")
    solution = model.getSolution()
    values = {v.name: float(x) for v, x in zip(problem.variables(), solution.col_value, strict=True)}
    value, sign = _value(problem, values), 1 if problem.sense == pulp.LpMinimize else -1
    if _is_integer(problem):
        bound = sign * float(info.mip_dual_bound) + problem.objective.constant
        return Outcome(
            _status(problem, value, bound), value, bound, int(info.mip_node_count), "HiGHS", values, {}, note
        )
    rows = zip(problem.constraints(), solution.row_dual, strict=True)
    duals = {row.name: sign * float(y) for row, y in rows}
    done = status == highspy.HighsModelStatus.kOptimal
    bound = value if done else -sign * math.inf
    return Outcome("optimal" if done else "feasible", value, bound, 0, "HiGHS", values, duals, note)


def _cbc(problem: pulp.LpProblem, node_limit: int, warm: Mapping[str, float], seconds: float) -> Outcome:
    """CBC as a process of its own, which is ended where it hangs. It starts cold: warming it has no effect."""
    import subprocess

    # CBC comes with PuLP, or is installed beside it.
    path = getattr(pulp.PULP_CBC_CMD, "pulp_cbc_path", "")
    run = pulp.COIN_CMD(msg=False, path=path if Path(path).is_file() else None)
    with tempfile.TemporaryDirectory(prefix="onnxopt-") as folder:
        model, answer = Path(folder) / "program.mps", Path(folder) / "answer.sol"
        variables, names, rows, _ = problem.writeMPS(str(model), rename=1)
        sense = ["-max"] if problem.sense == pulp.LpMaximize else []
        limits = ["-sec", str(seconds), "-ratio", "0", "-threads", "0", "-maxNodes", str(node_limit)]
        ask = ["-solve", "-printingOptions", "all", "-solution", str(answer)]
        done = subprocess.run(
            [run.path, str(model), *sense, *limits, *ask],
            capture_output=True,
            text=True,
            timeout=2 * seconds,
            check=True,
        )
        _, known, _, prices, _, state = run.readsol_MPS(str(answer), problem, variables, names, rows)
    if state not in (pulp.constants.LpSolutionOptimal, pulp.constants.LpSolutionIntegerFeasible):
        return Outcome("none", math.inf, -math.inf, 0, "CBC", note=pulp.LpSolution[state])
    values = {name: float(value) for name, value in known.items()}
    value = _value(problem, values)
    if not _is_integer(problem):
        return Outcome("optimal", value, value, 0, "CBC", values, {name: float(y) for name, y in prices.items()})
    return _cbc_integer(problem, values, value, done.stdout)


def _cbc_integer(problem: pulp.LpProblem, values: dict[str, float], value: float, log: str) -> Outcome:
    """CBC calls a run optimal that stopped at a limit; only its log tells the two apart, and gives the bound."""
    facts = {line.split(":")[0].strip(): line.split(":")[1].strip() for line in log.splitlines() if ":" in line}
    nodes = int(float(facts.get("Enumerated nodes", "0").split()[0]))
    sign = 1 if problem.sense == pulp.LpMinimize else -1
    bound = -sign * math.inf
    if "Result - Optimal solution found" in log and "Stopped on" not in log:
        bound = value
    elif "Lower bound" in facts or "Upper bound" in facts:
        bound = float((facts.get("Lower bound") or facts["Upper bound"]).split()[0])
    return Outcome(
        _status(problem, value, bound), value, bound, nodes, "CBC", values, {}, facts.get("Result - Stopped on", "")
    )
