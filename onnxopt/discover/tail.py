"""What happens to an attention's results before something else than movement reads them."""

from __future__ import annotations

from onnx import NodeProto

from onnxopt.discover.movement import moved_inputs
from onnxopt.discover.refusal import NotASite
from onnxopt.model.graph import Graph


def trace_tail(graph: Graph, starts: list[str]) -> tuple[list[NodeProto], str]:
    """The movement after the value products, and the last tensor through which all of it passes."""
    reached = set(starts)
    open_tensors = set(starts)
    nodes: list[NodeProto] = []
    best: tuple[int, str] | None = (0, starts[0]) if len(starts) == 1 else None
    blocked: set[str] = set()
    done: set[str] = set()
    for node in graph.downstream(starts, lambda node: node.output[0] in reached):
        done.add(node.output[0])
        if not _passes_on(graph, node, reached):
            blocked.update(n for n in node.input if n in reached)
            continue
        nodes.append(node)
        reached.update(node.output)
        open_tensors.update(o for o in node.output if o)
        for name in set(node.input) & reached:
            if name not in graph.outputs and all(r.output[0] in done for r in graph.data_readers(name)):
                open_tensors.discard(name)
        open_tensors |= blocked
        if len(open_tensors) == 1:
            best = (len(nodes), next(iter(open_tensors)))
    if best is None:
        raise NotASite("the results of its value products do not come together in one tensor")
    return nodes[: best[0]], best[1]


def _passes_on(graph: Graph, node: NodeProto, reached: set[str]) -> bool:
    data = graph.data_inputs(node)
    if any(name not in reached for name in data):
        return False
    if node.op_type == "Add":
        return len(data) == 2
    moved = moved_inputs(graph, node)
    return moved is not None and all(name in reached for name in moved)
