"""Replace the producers of some tensors in a model, and drop what nobody reads any more.

A rewrite gives new nodes for tensors that keep their names, so the rest of the model, its inputs and its outputs never
notice. What the old producers alone needed disappears; what something else still reads stays.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from onnx import FunctionProto, GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

from onnxopt.model.graph import Graph, nested_names

NODE_PREFIX = "onnxopt/"
TABLE_PREFIX = "onnxopt_table_"
DOMAIN = "onnxopt"
DOMAIN_VERSION = 1
# The first version of the format that has functions.
_IR_WITH_FUNCTIONS = 8
_COPIED_AS_MESSAGE = 1 << 30


@dataclass(frozen=True)
class Rewrite:
    """New nodes, in topological order, that make the tensors in ``replaces``, and the constants they read.

    ``functions`` are the bodies of operators of our own among the nodes, ``values`` the types and shapes of what these
    make.
    """

    site: str
    replaces: tuple[str, ...]
    nodes: tuple[NodeProto, ...]
    tables: tuple[TensorProto, ...]
    functions: tuple[FunctionProto, ...] = ()
    values: tuple[ValueInfoProto, ...] = ()


def table(values: np.ndarray) -> TensorProto:
    """A constant whose name is its content, so that equal tables are stored once in a model."""
    values = np.asarray(values, order="C")
    digest = hashlib.sha256(f"{values.dtype.str}{values.shape}".encode() + values.tobytes()).hexdigest()[:16]
    return numpy_helper.from_array(values, TABLE_PREFIX + digest)


def is_own_node(node: NodeProto) -> bool:
    """Whether a node was written by a rewrite; such nodes are final and never rewritten again."""
    return node.name.startswith(NODE_PREFIX) or is_plugin_node(node)


def is_plugin_node(node: NodeProto) -> bool:
    """Whether a node's operator is one of our own."""
    return node.domain == DOMAIN


def apply_rewrites(model: ModelProto, rewrites: Sequence[Rewrite]) -> ModelProto:
    """A new model with the rewrites in place; ``model`` itself is left as it is.

    Nodes that the rewrites made dead are removed with the initializers that only they read; nodes and initializers that
    were unused before stay, and so does the order of everything untouched.
    """
    if not rewrites:
        return model
    making = {name: rewrite for rewrite in rewrites for name in rewrite.replaces}
    placed: set[str] = set()
    nodes: list[NodeProto] = []
    removed: list[NodeProto] = []
    for node in model.graph.node:
        replaced = [name for name in node.output if name in making]
        if not replaced:
            nodes.append(node)
            continue
        if len(replaced) != sum(1 for name in node.output if name):
            raise ValueError(f"node {node.name!r} makes {list(node.output)}, but only {replaced} have a rewrite")
        removed.append(node)
        for name in replaced:
            rewrite = making[name]
            if rewrite.site not in placed:
                placed.add(rewrite.site)
                nodes.extend(rewrite.nodes)
    nodes, removed = _drop_dead(nodes, removed, {o.name for o in model.graph.output})
    result = _rebuild(model, nodes, removed, [t for rewrite in rewrites for t in rewrite.tables])
    _declare(result, rewrites)
    return result


def _declare(model: ModelProto, rewrites: Sequence[Rewrite]) -> None:
    """Add the functions of rewrites, each once, with what they need of the model, and the types of what they make."""
    known = {value.name for value in (*model.graph.value_info, *model.graph.output)}
    model.graph.value_info.extend(v for rewrite in rewrites for v in rewrite.values if v.name not in known)
    present = {(function.domain, function.name) for function in model.functions}
    added = {(f.domain, f.name): f for rewrite in rewrites for f in rewrite.functions}
    model.functions.extend(function for name, function in added.items() if name not in present)
    if added:
        import_domain(model)


def import_domain(model: ModelProto) -> None:
    """Let a model use operators of our own with bodies."""
    model.ir_version = max(model.ir_version, _IR_WITH_FUNCTIONS)
    if all(opset.domain != DOMAIN for opset in model.opset_import):
        model.opset_import.append(helper.make_opsetid(DOMAIN, DOMAIN_VERSION))


def copy_of(model: ModelProto) -> ModelProto:
    """An equal model that may be changed; tensors' bytes are copied one by one, so models over 2 GB can be."""
    return _rebuild(model, model.graph.node, [], [])


def _drop_dead(
    nodes: list[NodeProto], removed: list[NodeProto], outputs: set[str]
) -> tuple[list[NodeProto], list[NodeProto]]:
    """Remove what only removed nodes read, transitively; nodes that were dead before the rewrite are not touched."""
    readers: dict[str, int] = {}
    producer = {name: node for node in nodes for name in node.output if name}
    for node in nodes:
        for name in nested_names(node):
            readers[name] = readers.get(name, 0) + 1
    dead: dict[int, NodeProto] = {}
    queue = list(removed)
    while queue:
        for name in nested_names(queue.pop()):
            maker = producer.get(name)
            if maker is None or id(maker) in dead:
                continue
            if any(o in outputs or readers.get(o, 0) for o in maker.output if o):
                continue
            dead[id(maker)] = maker
            queue.append(maker)
            for read in nested_names(maker):
                readers[read] -= 1
    return [n for n in nodes if id(n) not in dead], removed + list(dead.values())


def _rebuild(
    model: ModelProto, nodes: Iterable[NodeProto], removed: Sequence[NodeProto], tables: Sequence[TensorProto]
) -> ModelProto:
    """A model proto built part by part: copying a whole model fails above 2 GB."""
    source = model.graph
    result = ModelProto()
    for key in ("ir_version", "producer_name", "producer_version", "domain", "model_version", "doc_string"):
        if model.HasField(key):
            setattr(result, key, getattr(model, key))
    result.opset_import.extend(model.opset_import)
    result.metadata_props.extend(model.metadata_props)
    result.functions.extend(model.functions)
    graph = result.graph
    for key in ("name", "doc_string"):
        if source.HasField(key):
            setattr(graph, key, getattr(source, key))
    graph.input.extend(source.input)
    graph.output.extend(source.output)
    graph.metadata_props.extend(source.metadata_props)
    graph.sparse_initializer.extend(source.sparse_initializer)
    graph.quantization_annotation.extend(source.quantization_annotation)
    graph.node.extend(nodes)

    read = {name for node in graph.node for name in nested_names(node)} | {o.name for o in graph.output}
    orphaned = {name for node in removed for name in nested_names(node)} - read
    inputs = {i.name for i in graph.input}
    made = {name for node in graph.node for name in node.output}
    known: set[str] = set()
    for tensor in (*source.initializer, *tables):
        if tensor.name in known or (tensor.name in orphaned and tensor.name not in inputs):
            continue
        known.add(tensor.name)
        _append(graph, tensor)
    graph.value_info.extend(v for v in source.value_info if v.name in made)
    return result


def _append(graph: GraphProto, tensor: TensorProto) -> None:
    """Copy a tensor into a graph; protobuf copies messages only up to 2 GB, but a field of any size."""
    if len(tensor.raw_data) < _COPIED_AS_MESSAGE:
        graph.initializer.append(tensor)
        return
    copy = graph.initializer.add()
    copy.name, copy.data_type, copy.doc_string = tensor.name, tensor.data_type, tensor.doc_string
    copy.dims.extend(tensor.dims)
    copy.raw_data = tensor.raw_data


def rewritten_part(model: ModelProto, graph: Graph, rewrite: Rewrite) -> ModelProto:
    """A model of the rewrite's nodes alone with the constants they read, without copying the rest of ``model``.

    Its boundary tensors are neither inputs nor outputs of it yet: it is there to cut a region from.
    """
    made = {name for node in rewrite.nodes for name in node.output} | {t.name for t in rewrite.tables}
    read = dict.fromkeys(name for node in rewrite.nodes for name in nested_names(node))
    part = ModelProto(ir_version=model.ir_version)
    part.opset_import.extend(model.opset_import)
    part.functions.extend(rewrite.functions)
    if rewrite.functions:
        import_domain(part)
    part.graph.name = model.graph.name
    part.graph.node.extend(rewrite.nodes)
    for tensor in rewrite.tables:
        _append(part.graph, tensor)
    for name in read:
        value = None if name in made else graph.constant(name)
        if value is not None:
            part.graph.initializer.append(numpy_helper.from_array(value, name))
    return part
