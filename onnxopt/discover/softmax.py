"""Find where attention weights are normalised: a Softmax node, or the same written out as exp, mask, sum and
divide.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from onnx import NodeProto

from onnxopt.discover.refusal import INCONSISTENT, Refusal, node_name, reason_for
from onnxopt.model.graph import Graph, attribute

# Operators of this domain were written by this package and are final.
OWN_DOMAIN = "onnxopt"


@dataclass(frozen=True)
class Normalisation:
    """From ``scores`` (before) to ``weights`` (after), along the last axis.

    ``runtime`` names tensors that depend on the input and weigh the keys; they may not be frozen. ``epsilons`` are
    the constants added to each weighed exponential and to their sum; None where one is no single number.
    """

    node: NodeProto
    scores: str
    weights: str
    nodes: tuple[NodeProto, ...]
    runtime: tuple[str, ...] = ()
    epsilons: tuple[float, float] | None = (0.0, 0.0)


def find_normalisations(graph: Graph) -> tuple[list[Normalisation], list[Refusal]]:
    """Every normalisation in the graph, in topological order, and the ones that cannot be used."""
    found: list[Normalisation] = []
    refused: list[Refusal] = []
    for node in graph.nodes:
        if not graph.data_inputs(node):
            continue
        if node.domain not in ("", "ai.onnx"):
            if "Attention" in node.op_type and node.domain != OWN_DOMAIN:
                reason = f"an operator of the domain {node.domain!r}; give the model as it was exported"
                refused.append(Refusal(node_name(node), node.op_type, reason))
            continue
        try:
            outcome = _normalisation(graph, node)
        except INCONSISTENT as error:
            outcome = Refusal(node_name(node), node.op_type, reason_for(error))
        if isinstance(outcome, Refusal):
            refused.append(outcome)
        elif outcome is not None:
            found.append(outcome)
    return found, refused


def _normalisation(graph: Graph, node: NodeProto) -> Normalisation | Refusal | None:
    if node.op_type == "Softmax":
        return _softmax(graph, node)
    return _written_out(graph, node) if node.op_type == "Div" and len(node.input) == 2 else None


def _softmax(graph: Graph, node: NodeProto) -> Normalisation | Refusal:
    shape = graph.shape(node.input[0])
    if not shape:
        return Refusal(node_name(node), "Softmax", "the shape of its input is not known; export with static shapes")
    axis = attribute(node, "axis", -1)
    if axis not in (-1, len(shape) - 1):
        return Refusal(node_name(node), "Softmax", f"it normalises axis {axis} of {len(shape)}, not the last one")
    scores, shift = _without_shift(graph, node.input[0])
    return Normalisation(node, scores, node.output[0], (*shift, node))


def _without_shift(graph: Graph, name: str) -> tuple[str, tuple[NodeProto, ...]]:
    """``x`` where ``name`` is ``x - ReduceMax(x)``, which a softmax does not notice, and the nodes passed
    over.
    """
    node = graph.node_of(name)
    if node is None or node.op_type != "Sub":
        return name, ()
    maximum = graph.node_of(node.input[1])
    if maximum is None or maximum.op_type != "ReduceMax" or maximum.input[0] != node.input[0]:
        return name, ()
    if not _reduces_last_axis(graph, maximum):
        return name, ()
    return node.input[0], (maximum, node)


def _written_out(graph: Graph, divide: NodeProto) -> Normalisation | None:
    """``(w [+ eps']) / (ReduceSum(w) [+ eps])`` with ``w = Exp(x - max) [* policy]``."""
    numerator, passed = _skip(graph, divide.input[0], ("Add",))
    denominator, passed_below = _skip(graph, divide.input[1], ("Add",))
    total = graph.node_of(denominator)
    if total is None or total.op_type != "ReduceSum" or total.input[0] != numerator:
        return None
    if not _reduces_last_axis(graph, total):
        return None
    above, below = _added(graph, passed), _added(graph, passed_below)
    weighted = graph.node_of(numerator)
    runtime: tuple[str, ...] = ()
    inner = numerator
    if weighted is not None and weighted.op_type == "Mul":
        sides = [_skip(graph, name, ("Cast",))[0] for name in weighted.input]
        exponentials = [s for s in sides if _made_by(graph, s, "Exp")]
        if len(exponentials) != 1:
            return None
        inner = exponentials[0]
        runtime = tuple(name for name, side in zip(weighted.input, sides, strict=True) if side != inner)
        passed = (*passed, weighted)
    exponential = graph.node_of(inner)
    if exponential is None or exponential.op_type != "Exp":
        return None
    shifted, casts = _skip(graph, exponential.input[0], ("Cast",))
    scores, shift = _without_shift(graph, shifted)
    nodes = (*shift, *casts, exponential, *passed, total, *passed_below, divide)
    epsilons = None if above is None or below is None else (above, below)
    return Normalisation(divide, scores, divide.output[0], nodes, runtime, epsilons)


def _added(graph: Graph, nodes: tuple[NodeProto, ...]) -> float | None:
    """The sum of what the additions among the nodes add, None where that is not the same number everywhere."""
    total = 0.0
    for node in nodes:
        if node.op_type != "Add":
            continue
        values = [graph.constant(name) for name in node.input if not graph.is_data(name)]
        if len(values) != 1 or values[0] is None or np.unique(values[0]).size != 1:
            return None
        total += float(np.unique(values[0])[0])
    return total


def _skip(graph: Graph, name: str, kinds: tuple[str, ...]) -> tuple[str, tuple[NodeProto, ...]]:
    """Go back over casts, identities and additions of constants of the given kinds."""
    passed: list[NodeProto] = []
    while True:
        node = graph.node_of(name)
        if node is None or node.op_type not in (*kinds, "Identity", "Cast"):
            return name, tuple(passed)
        data = graph.data_inputs(node)
        if len(data) != 1:
            return name, tuple(passed)
        passed.append(node)
        name = data[0]


def _made_by(graph: Graph, name: str, kind: str) -> bool:
    node = graph.node_of(name)
    return node is not None and node.op_type == kind


def _reduces_last_axis(graph: Graph, node: NodeProto) -> bool:
    shape = graph.shape(node.input[0])
    axes = attribute(node, "axes", None)
    if axes is None and len(node.input) > 1 and node.input[1]:
        value = graph.constant(node.input[1])
        axes = None if value is None else value.reshape(-1).tolist()
    return shape is not None and isinstance(axes, list) and axes in ([-1], [len(shape) - 1])
