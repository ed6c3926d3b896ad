"""Which operators only move data, or scale and shift it by constants, and the way back through them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from onnx import NodeProto, TensorProto

from onnxopt.model.graph import Graph, attribute

# Which inputs of an operator are moved; the others say how. None: all of them.
MOVED: dict[str, tuple[int, ...] | None] = {
    "Cast": (0,),
    "Col2Im": (0,),
    "Concat": None,
    "DepthToSpace": (0,),
    "Dropout": (0,),
    "Expand": (0,),
    "Flatten": (0,),
    "Gather": (0,),
    "GatherElements": (0,),
    "GatherND": (0,),
    "Identity": (0,),
    "Pad": (0, 2),
    "Reshape": (0,),
    "ScatterElements": (0, 2),
    "ScatterND": (0, 2),
    "Slice": (0,),
    "SpaceToDepth": (0,),
    "Split": (0,),
    "Squeeze": (0,),
    "Tile": (0,),
    "Transpose": (0,),
    "Unsqueeze": (0,),
    "Where": (1, 2),
}
AFFINE = {"Add", "Sub", "Mul", "Div"}
_FLOATS = {TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE}


def moved_inputs(graph: Graph, node: NodeProto) -> list[str] | None:
    """The tensors that a movement node moves, or None if the node does more than move data.

    Constants among them are included unless they are all zero, so that a walk stops at them like at any other
    source.
    """
    if node.domain not in ("", "ai.onnx"):
        return None
    if node.op_type == "Einsum":
        return [node.input[0]] if _is_transposing_einsum(node) else None
    if node.op_type not in MOVED:
        return None
    positions = MOVED[node.op_type]
    moved = [n for i, n in enumerate(node.input) if n and (positions is None or i in positions)]
    if any(n and graph.is_data(n) and n not in moved for n in node.input):
        return None
    if not _only_moves(graph, node):
        return None
    return [name for name in moved if graph.is_data(name) or not _is_zero(graph, name)]


def _only_moves(graph: Graph, node: NodeProto) -> bool:
    """Whether the attributes and parameters of a node leave every value as it is."""
    if node.op_type in ("ScatterND", "ScatterElements"):
        return attribute(node, "reduction", "none") == "none"
    if node.op_type == "Pad":
        return attribute(node, "mode", "constant") == "constant"
    if node.op_type == "Cast":
        return attribute(node, "to", 0) in _FLOATS
    if node.op_type == "Dropout":
        training = graph.constant(node.input[2]) if len(node.input) > 2 and node.input[2] else np.array(False)
        return training is not None and not training.any()
    return node.op_type != "Col2Im" or folding(graph, node) is not None


def folding(graph: Graph, node: NodeProto) -> tuple[list[int], list[int]] | None:
    """Image and block shape of a Col2Im whose blocks lie side by side, so that it adds nothing up; None for
    others.
    """
    image, block = (graph.constant(name) for name in node.input[1:3])
    shape = graph.shape(node.input[0])
    if image is None or block is None or shape is None or len(image) != len(block) or len(shape) != 3:
        return None
    rank = len(block)
    attributes = (("strides", block), ("dilations", np.ones(rank)), ("pads", np.zeros(2 * rank)))
    defaults = {"strides": [1] * rank, "dilations": [1] * rank, "pads": [0] * (2 * rank)}
    if any(list(wanted) != attribute(node, name, defaults[name]) for name, wanted in attributes):
        return None
    if np.any(block < 1) or np.any(image % block) or shape[2] != np.prod(image // block):
        return None
    return [int(v) for v in image], [int(v) for v in block]


def affine_input(graph: Graph, node: NodeProto) -> str | None:
    """The data operand of an Add, Sub, Mul or Div whose other operand is constant, or None."""
    if node.op_type not in AFFINE or node.domain not in ("", "ai.onnx") or len(node.input) != 2:
        return None
    data = graph.data_inputs(node)
    if len(data) != 1 or (node.op_type == "Div" and node.input[1] == data[0]):
        return None
    return data[0]


def scaling_input(graph: Graph, node: NodeProto) -> str | None:
    """The data operand of a multiplication or division by a constant, or None."""
    return affine_input(graph, node) if node.op_type in ("Mul", "Div") else None


def guarded_input(graph: Graph, node: NodeProto) -> str | None:
    """``x`` of ``Where(IsNaN(x), 0, x)``, by which exporters turn a row without keys into zeros."""
    if node.op_type != "Where" or len(node.input) != 3:
        return None
    check = graph.node_of(node.input[0])
    if check is None or check.op_type != "IsNaN" or check.input[0] != node.input[2]:
        return None
    return node.input[2] if _is_zero(graph, node.input[1]) else None


def walk_back(
    graph: Graph, targets: Sequence[str], follow: Callable[[NodeProto], Sequence[str] | None]
) -> tuple[list[NodeProto], list[str]]:
    """The nodes behind ``targets`` as long as ``follow`` names inputs to go on to, and the tensors it stopped
    at.

    Nodes come in topological order; the stops in the order in which the graph makes them.
    """
    seen: set[str] = set()
    nodes: list[NodeProto] = []
    stops: list[str] = []
    stack = list(targets)
    while stack:
        name = stack.pop()
        if name in seen:
            continue
        seen.add(name)
        node = graph.node_of(name)
        onward = follow(node) if node is not None and graph.is_data(name) else None
        if node is None or onward is None:
            stops.append(name)
            continue
        nodes.append(node)
        stack.extend(onward)
    stops.sort(key=lambda name: (graph.producer.get(name, -1), name))
    return graph.ordered(nodes), stops


def _is_zero(graph: Graph, name: str) -> bool:
    value = graph.constant(name)
    return value is not None and not np.any(np.asarray(value))


def _is_transposing_einsum(node: NodeProto) -> bool:
    """An Einsum of one operand that only permutes its axes."""
    equation = str(attribute(node, "equation", "")).replace(" ", "")
    if len(node.input) != 1 or "->" not in equation or "." in equation:
        return False
    source, target = equation.split("->")
    return sorted(source) == sorted(target) and len(set(source)) == len(source)
