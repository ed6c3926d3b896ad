"""Which outputs go together within a component: an integer program over its unions and the sizes of parts.

How many parts of which size read which union is chosen by the program; outputs are then handed out by a flow, since a
class may go to any union that has all of its inputs.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pulp
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import maximum_flow

from onnxopt.discover.conv_site import IntArray
from onnxopt.plan.partition.classes import Component, Unions, without_dominated
from onnxopt.plan.partition.knapsack import split_sizes
from onnxopt.plan.partition.problem import CostTable
from onnxopt.plan.partition.sizes import useful_sizes
from onnxopt.plan.solver import Outcome, solve

NODE_LIMIT = 1
# Larger programs take longer than a layer may.
_TERM_LIMIT = 60_000


@dataclass(frozen=True, eq=False)
class Assignment:
    """Groups of outputs, and what the solver said (None where no program had to be solved)."""

    groups: list[IntArray]
    outcome: Outcome | None


def split_class(outputs: IntArray, inputs: int, table: CostTable) -> list[IntArray]:
    """Outputs with equal inputs, cut into the parts that cost least."""
    sizes = split_sizes(table.values[:, inputs], len(outputs))
    return np.split(outputs, np.cumsum(sizes)[:-1])


def separate(component: Component, table: CostTable) -> list[IntArray]:
    """Every class on its own."""
    pairs = zip(component.members, component.degrees.tolist(), strict=True)
    return [group for outputs, inputs in pairs for group in split_class(outputs, inputs, table)]


def assign(
    component: Component, family: Unions, table: CostTable, target: float | None = None, node_limit: int = NODE_LIMIT
) -> Assignment | None:
    """The best groups of a component whose unions are known; None where that takes too long, or no solver works.

    The search ends where groups cost no more than ``target``.
    """
    if not family.exact:
        return None
    if len(component.members) == 1:
        return Assignment(separate(component, table), None)
    family = without_dominated(family, table)
    sizes = useful_sizes(table, family.size, int(component.sizes.sum()))
    if family.fits.sum() * 2 + family.fits.shape[0] * len(sizes) > _TERM_LIMIT:
        return None
    problem, counts = _program(component, family, table, sizes)
    outcome = solve(problem, node_limit=node_limit, target=target)
    if outcome.status == "none":
        return None
    amounts = np.array([[round(outcome.values[v.name]) for v in row] for row in counts])
    handed = _hand_out(component, family, amounts @ sizes)
    if handed is None:
        return None
    groups = []
    for u, outputs in enumerate(handed):
        if len(outputs):
            groups += split_class(outputs, int(family.size[u]), table)
    return Assignment(groups, outcome)


def _program(
    component: Component, family: Unions, table: CostTable, sizes: IntArray
) -> tuple[pulp.LpProblem, list[list[pulp.LpVariable]]]:
    problem = pulp.LpProblem("assignment", pulp.LpMinimize)
    unions, classes = family.fits.shape
    counts = [[problem.add_variable(f"x{u}_{s}", 0, cat="Integer") for s in sizes.tolist()] for u in range(unions)]
    costs = table.values[np.ix_(sizes, family.size)].T
    problem += pulp.LpAffineExpression(
        [(counts[u][s], float(costs[u, s])) for u in range(unions) for s in range(len(sizes))]
    )
    given = {(u, c): problem.add_variable(f"a{u}_{c}", 0) for u, c in np.argwhere(family.fits).tolist()}
    for c in range(classes):
        terms = [(given[u, c], 1) for u in np.flatnonzero(family.fits[:, c]).tolist()]
        problem += pulp.LpAffineExpression(terms) == int(component.sizes[c])
    for u in range(unions):
        room = [(counts[u][s], -int(size)) for s, size in enumerate(sizes.tolist())]
        terms = [(given[u, c], 1) for c in np.flatnonzero(family.fits[u]).tolist()]
        problem += pulp.LpAffineExpression([*terms, *room]) <= 0
    return problem, counts


def _hand_out(component: Component, family: Unions, room: IntArray) -> list[IntArray] | None:
    """Outputs for each union, by a flow from the classes to unions with ``room``; None where some find no place."""
    unions, classes = family.fits.shape
    nodes = 2 + classes + unions
    u, c = np.nonzero(family.fits & (room > 0)[:, None])
    heads = np.concatenate([np.zeros(classes, np.int64), 1 + c, 1 + classes + np.arange(unions)])
    tails = np.concatenate([1 + np.arange(classes), 1 + classes + u, np.full(unions, nodes - 1)])
    limits = np.concatenate([component.sizes, component.sizes[c], room]).astype(np.int32)
    flow = maximum_flow(csr_matrix((limits, (heads, tails)), shape=(nodes, nodes)), 0, nodes - 1)
    if flow.flow_value < int(component.sizes.sum()):
        return None
    moved = flow.flow[1 : 1 + classes, 1 + classes : 1 + classes + unions].toarray()
    result: list[list[IntArray]] = [[] for _ in range(unions)]
    for k, outputs in enumerate(component.members):
        begin = 0
        for union in np.flatnonzero(moved[k] > 0).tolist():
            end = begin + int(moved[k, union])
            result[union].append(outputs[begin:end])
            begin = end
    return [np.concatenate(pieces) if pieces else np.zeros(0, np.int64) for pieces in result]
