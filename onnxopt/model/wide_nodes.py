"""Which nodes of a model stay in float32 when the rest becomes fp16 or bf16."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from onnx import ModelProto, NodeProto, TensorProto, defs

from onnxopt.model.graph import Graph, attribute, default_opset, symbolic_batch, view

WIDE_SUFFIX = "_in_float32"

_TYPES: dict[int, str] = {TensorProto.FLOAT16: "tensor(float16)", TensorProto.BFLOAT16: "tensor(bfloat16)"}
_INTEGERS = frozenset(
    {
        TensorProto.INT8,
        TensorProto.INT16,
        TensorProto.INT32,
        TensorProto.INT64,
        TensorProto.UINT8,
        TensorProto.UINT16,
        TensorProto.UINT32,
        TensorProto.UINT64,
    }
)
# Their sums of squares leave the range of fp16 for inputs of a few hundred, their counts its 11 digits.
_WIDE_OPERATORS = frozenset({"ReduceL2", "ReduceSumSquare", "CumSum", "Range"})
_STANDARD = ("", "ai.onnx")
_FURTHER_DOMAINS = ("com.microsoft",)


def wide_nodes(model: ModelProto, element: int) -> set[str]:
    """The names of nodes of the main graph that stay in float32 where the rest gets the type ``element``.

    These are: operators that standard ONNX does not define for that type, and those of unknown domains; computations of
    indices and sizes, where floats become integers without any data; variances of normalisations that are written out,
    whose squares leave the range of fp16; and sums over squares or counts. The nodes' names must be distinct.
    """
    graph = view(model, batch=2 if symbolic_batch(model) else 1)
    opset = default_opset(model)
    found = {n.name for n in graph.nodes if n.op_type in _WIDE_OPERATORS or not _defined(n, opset, _TYPES[element])}
    for node in graph.nodes:
        if node.op_type == "Cast" and attribute(node, "to") in _INTEGERS:
            found |= {inner.name for inner in _index_nodes(graph, node)}
        elif node.op_type == "Sqrt":
            found |= {inner.name for inner in _variance(graph, node)}
    return {name for name in found if name}


def _defined(node: NodeProto, opset: int, kind: str) -> bool:
    """Whether the operator takes the type wherever it takes float32; nodes without floats do too."""
    if node.domain in _FURTHER_DOMAINS:
        return True
    if node.domain not in _STANDARD:
        return False
    try:
        schema = defs.get_schema(node.op_type, opset, "")
    except defs.SchemaError:
        return False
    lacking = {
        c.type_param_str
        for c in schema.type_constraints
        if "tensor(float)" in c.allowed_type_strs and kind not in c.allowed_type_strs
    }
    used = [_formal(schema.inputs, place) for place, name in enumerate(node.input) if name]
    used += [_formal(schema.outputs, place) for place, name in enumerate(node.output) if name]
    return not lacking.intersection(used)


def _formal(parameters: Sequence[defs.OpSchema.FormalParameter], place: int) -> str:
    """The type of a parameter; the last one may stand for many."""
    return parameters[min(place, len(parameters) - 1)].type_str if parameters else ""


def _index_nodes(graph: Graph, cast: NodeProto) -> Iterator[NodeProto]:
    """A cast to integers, and the nodes that make what it reads of shapes and constants alone."""
    waiting, seen = [cast], set()
    while waiting:
        node = waiting.pop()
        if id(node) in seen or graph.data_inputs(node):
            continue
        seen.add(id(node))
        yield node
        for name in node.input:
            maker = graph.node_of(name) if name and graph.element_type(name) == TensorProto.FLOAT else None
            if maker is not None:
                waiting.append(maker)


def _variance(graph: Graph, root: NodeProto) -> list[NodeProto]:
    """The nodes from a square to the root of its mean; empty where the root is of something else."""
    chain = [root]
    node = graph.node_of(root.input[0])
    if node is not None and node.op_type == "Add":
        chain.append(node)
        node = next((m for m in map(graph.node_of, graph.data_inputs(node)) if m is not None), None)
    if node is None or node.op_type not in ("ReduceMean", "ReduceSum"):
        return []
    chain.append(node)
    square = graph.node_of(node.input[0])
    if square is None or square.op_type not in ("Pow", "Mul"):
        return []
    if square.op_type == "Mul" and square.input[0] != square.input[1]:
        return []
    return [*chain, square]
