"""Decisions in a graph: where a tiny change of a number may rightly change the result a lot.

A TopK over two scores that differ by a rounding error may pick either. Two correct models then disagree,
and only for that input. Such a draw proves nothing, so it is drawn again; but only if the numbers that were
decided on agree by the rule, since a wrong model also decides differently.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx

from onnxopt.verification.compare import AbsoluteRule, Array, compare_outputs, is_float

_DECISIONS = frozenset(
    [
        "TopK",
        "ArgMax",
        "ArgMin",
        "NonZero",
        "NonMaxSuppression",
        "Greater",
        "GreaterOrEqual",
        "Less",
        "LessOrEqual",
        "Equal",
        "Cast",
        "Floor",
        "Ceil",
        "Round",
        "Sign",
    ]
)
_SIZES = frozenset({"Shape", "Size"})
_STEPS = frozenset({"Floor", "Ceil", "Round", "Sign"})


@dataclass(frozen=True)
class Decision:
    """A node that turns floats into a choice: what it reads, and what it decides."""

    node: str
    op_type: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


def find_decisions(model: onnx.ModelProto, known: set[str]) -> list[Decision]:
    """The nodes of the main graph that may decide on floats, in order, whose tensors are in `known`.

    Nodes that only read constants or sizes decide the same in every run and are left out. Which of the others
    really read floats shows when they run: types need not be declared in a model.
    """
    decisions: list[Decision] = []
    varying = {value.name for value in model.graph.input}
    for node in model.graph.node:
        if node.op_type in _SIZES or not any(name in varying for name in node.input):
            continue
        varying.update(node.output)
        if node.op_type not in _DECISIONS:
            continue
        inputs = tuple(name for name in node.input if name in known)
        # The values of TopK are continuous; its indices are not.
        outputs = tuple(node.output[1:] if node.op_type == "TopK" else node.output)
        if inputs and all(name in known for name in outputs if name):
            decisions.append(Decision(node.name or outputs[0], node.op_type, inputs, outputs))
    return decisions


def near_tie(
    decisions: list[Decision],
    reference: Mapping[str, Array],
    candidate: Mapping[str, Array],
    rule: AbsoluteRule,
) -> str | None:
    """The first decision that differs though its inputs agree by `rule`, described; None if there is none.

    Only the first differing decision counts: what comes after it follows from it.
    """
    for decision in decisions:
        inputs = {name: reference[name] for name in decision.inputs}
        if not any(is_float(array) for array in inputs.values()):
            continue
        if all(_same(decision, reference[name], candidate[name]) for name in decision.outputs):
            continue
        agree = all(report.passed for report in compare_outputs(inputs, _select(candidate, inputs), rule=rule))
        return f"{decision.op_type} '{decision.node}'" if agree else None
    return None


def _same(decision: Decision, first: Array, second: Array) -> bool:
    if is_float(first) and decision.op_type not in _STEPS:
        return True
    return first.shape == second.shape and bool(np.array_equal(first, second, equal_nan=is_float(first)))


def _select(arrays: Mapping[str, Array], names: Mapping[str, Array]) -> dict[str, Array]:
    return {name: arrays[name] for name in names}
