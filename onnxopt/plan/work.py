"""How much a node of a graph computes and moves: what every prediction of time starts from."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from onnx import NodeProto, helper

from onnxopt.model.graph import Graph, attribute

# These only rename a tensor's dimensions.
VIEWS = {"Reshape", "Squeeze", "Unsqueeze", "Flatten", "Identity", "Dropout"}
PRODUCTS = {"MatMul", "Gemm", "Einsum", "Conv", "ConvTranspose", "Attention"}
TRANSPOSING = {"Transpose", "DepthToSpace", "SpaceToDepth", "Col2Im", "Einsum"}
GATHERING = {"Gather", "GatherND", "GatherElements", "ScatterND", "ScatterElements"}
# The tile of a matrix instruction in fp16: outputs, and inputs that one instruction takes.
_OUTPUT_TILE = 8
_INPUT_TILE = 16
EXPONENTIAL = {"Softmax", "Exp", "LogSoftmax", "Sigmoid", "Erf", "Gelu", "Tanh", "HardSwish"}


@dataclass(frozen=True)
class Work:
    """Floating-point operations of products, exponentials, and bytes read and written by one node.

    ``matrix_flops`` are the operations of products on a matrix unit, where every group of a convolution is padded to
    the unit's tile; 0 for a depthwise convolution, which runs in the ordinary lanes.
    """

    op: str
    flops: float
    matrix_flops: float
    exponentials: float
    bytes_read: float
    bytes_written: float

    @property
    def bytes_moved(self) -> float:
        """Bytes read and written together."""
        return self.bytes_read + self.bytes_written


def work_of(graph: Graph, node: NodeProto) -> Work:
    """The work of one node at the view's batch size; unknown shapes count as nothing."""
    written = sum(_bytes(graph, name) for name in node.output if name)
    if node.op_type in VIEWS:
        return Work(node.op_type, 0.0, 0.0, 0.0, 0.0, 0.0)
    read = sum(_bytes(graph, name) for name in node.input if name)
    if node.op_type in ("Gather", "GatherND", "GatherElements", "Slice"):
        # Only what is picked is read, plus the indices.
        read = written + sum(_bytes(graph, name) for name in node.input[1:2] if name)
    exponentials = _elements(graph, node.output[0]) if node.op_type in EXPONENTIAL else 0.0
    flops = _flops(graph, node)
    return Work(node.op_type, flops, flops * _padding(graph, node), exponentials, read, written)


def _padding(graph: Graph, node: NodeProto) -> float:
    """What a matrix unit computes of a convolution, as a multiple of what is needed."""
    weight = graph.shape(node.input[1]) if node.op_type == "Conv" else None
    groups = attribute(node, "group", 1)
    if not weight or not isinstance(groups, int) or groups == 1 or not weight[0] or not weight[1]:
        return 1.0
    outputs, inputs = max(1, weight[0] // groups), weight[1]
    if inputs == 1:
        return 0.0
    padded = -(-outputs // _OUTPUT_TILE) * _OUTPUT_TILE * -(-inputs // _INPUT_TILE) * _INPUT_TILE
    return padded / (outputs * inputs)


def _flops(graph: Graph, node: NodeProto) -> float:
    out = _elements(graph, node.output[0])
    if node.op_type in ("MatMul", "Gemm"):
        shape = graph.shape(node.input[0])
        if not shape:
            return 0.0
        return 2.0 * out * shape[0 if attribute(node, "transA", 0) else -1]
    if node.op_type == "Einsum":
        return 2.0 * _einsum_points(graph, node) if len(node.input) > 1 else 0.0
    if node.op_type == "Conv":
        weight = graph.shape(node.input[1])
        return 2.0 * out * float(np.prod(weight[1:])) if weight else 0.0
    return 0.0


def _einsum_points(graph: Graph, node: NodeProto) -> float:
    """How many products an Einsum sums: the product of the lengths of all its axes."""
    equation = str(attribute(node, "equation", "")).replace(" ", "")
    sizes: dict[str, int] = {}
    for axes, name in zip(equation.split("->")[0].split(","), node.input, strict=False):
        for axis, size in zip(axes, graph.shape(name) or (), strict=False):
            sizes[axis] = max(size, sizes.get(axis, 1))
    return float(np.prod([float(s) for s in sizes.values()])) if sizes else 0.0


def _elements(graph: Graph, name: str) -> float:
    shape = graph.shape(name)
    return float(np.prod(shape, dtype=np.float64)) if shape is not None else 0.0


def _bytes(graph: Graph, name: str) -> float:
    kind = graph.element_type(name)
    if kind == 0:
        return 0.0
    return _elements(graph, name) * helper.tensor_dtype_to_np_dtype(kind).itemsize
