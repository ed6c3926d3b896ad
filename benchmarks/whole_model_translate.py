"""From ONNX to a whole-model program: constants folded, parameters made attributes, what is unknown refused by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from onnx import ModelProto, NodeProto

from benchmarks.whole_model_program import Node, Program, pruned
from benchmarks.whole_model_rules import TRANSLATORS
from benchmarks.whole_model_translation import Translation, label
from onnxopt.errors import InputError
from onnxopt.lower.rewrite import is_plugin_node
from onnxopt.model.graph import view

OwnOperator = Callable[[Translation, NodeProto], Node]
"""Makes the launch of a node of our own domain."""


def translated(model: ModelProto, batch: int, own: OwnOperator | None = None) -> Program:
    """The program of a model's main graph with symbolic first sizes replaced by ``batch``.

    ``own`` makes the launches of operators of our own. Raises InputError with the names of all operators that a host
    does not have, and for a node whose parameters are not fixed.
    """
    graph = view(model, batch=batch)
    work = Translation(graph)
    live = [node for node in graph.nodes if any(name in graph.data for name in node.output)]
    _refuse_unknown(live, own is not None)
    nodes: list[Node] = []
    for node in live:
        if is_plugin_node(node):
            assert own is not None
            made: Sequence[Node] = [own(work, node)]
        else:
            made = TRANSLATORS[node.op_type](work, node)
        for item in made:
            for name in item.inputs:
                work.read(name, node)
        nodes += made
    for name in graph.outputs:
        if name not in graph.data:
            raise InputError(f"output '{name}' does not depend on the model's inputs; nothing is there to be timed")
    program = Program(graph.inputs, graph.outputs, tuple(nodes), work.constants)
    return pruned(program)


def _refuse_unknown(nodes: Sequence[NodeProto], own: bool) -> None:
    known = {(domain, name) for name in TRANSLATORS for domain in ("", "ai.onnx")}
    unknown = [n for n in nodes if (n.domain, n.op_type) not in known and not (own and is_plugin_node(n))]
    if unknown:
        names = ", ".join(sorted({f"{n.domain}::{n.op_type}" if n.domain else n.op_type for n in unknown}))
        raise InputError(
            f"operators {names} (first {label(unknown[0])}) are not supported by the host; supported: "
            f"{', '.join(sorted(TRANSLATORS))}"
        )
