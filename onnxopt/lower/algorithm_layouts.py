"""Transposes around operators that compute channels last: those that undo one another go."""

from __future__ import annotations

from collections import Counter

from onnx import ModelProto, NodeProto

from onnxopt.lower.operator_nodes import LAYOUT_LABEL
from onnxopt.lower.rewrite import NODE_PREFIX
from onnxopt.model.graph import attribute, nested_names


def join_layouts(model: ModelProto) -> int:
    """Remove transposes of ours that follow their inverse, in place; how many nodes went.

    Who reads the second reads what the first was made from; the first goes too where nothing else reads it.
    """
    graph = model.graph
    own = {node.output[0]: node for node in graph.node if _is_layout(node)}
    if not own:
        return 0
    given = {value.name for value in graph.output}
    removed, renamed = set(), {}
    for name, node in own.items():
        before = own.get(node.input[0])
        if before is not None and name not in given and _inverse(before, node):
            renamed[name] = before.input[0]
            removed.add(name)
    for node in graph.node:
        for place, name in enumerate(node.input):
            if name in renamed:
                node.input[place] = renamed[name]
    read = Counter(name for node in graph.node if node.output[0] not in removed for name in nested_names(node))
    read.update(given)
    removed |= {name for name in own if not read[name]}
    kept = [node for node in graph.node if node.output[0] not in removed]
    count = len(graph.node) - len(kept)
    if count:
        del graph.node[:]
        graph.node.extend(kept)
        declared = [value for value in graph.value_info if value.name not in removed]
        del graph.value_info[:]
        graph.value_info.extend(declared)
    return count


def _is_layout(node: NodeProto) -> bool:
    label = node.name.removeprefix(NODE_PREFIX).partition("/")[2]
    return node.name.startswith(NODE_PREFIX) and node.op_type == "Transpose" and label.startswith(f"{LAYOUT_LABEL}/")


def _inverse(one: NodeProto, other: NodeProto) -> bool:
    first, second = attribute(one, "perm"), attribute(other, "perm")
    if not isinstance(first, list) or not isinstance(second, list):
        return False
    return [first[axis] for axis in second] == list(range(len(first)))
