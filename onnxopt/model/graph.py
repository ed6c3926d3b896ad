"""A read-only view of a model at one batch size: who makes and reads a tensor, its shape, and its value if
constant.

Exporters compute shapes, masks and index tables inside the graph. With the batch fixed, every such tensor
that does not depend on the *values* of the graph's inputs is a constant; it is evaluated on demand, so that
discovery sees the same constants whichever way an exporter wrote them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper
from onnx.checker import ValidationError
from onnx.reference import ReferenceEvaluator
from onnx.shape_inference import InferenceError, infer_function_output_types, infer_node_outputs

from onnxopt.model.types import Shape as Shape
from onnxopt.model.types import (
    array_of,
    constant_tensor,
    decides_shapes,
    leading_dim,
    reads_shape,
    static_shape,
    with_batch,
)

_RANDOM = {
    "RandomNormal",
    "RandomUniform",
    "RandomNormalLike",
    "RandomUniformLike",
    "Multinomial",
    "Bernoulli",
}
# A few bytes of a file can ask for a tensor of any size; a larger one is not evaluated (4 GB in float32).
_MOST_ELEMENTS = 1 << 30


@dataclass
class Graph:
    """The view; build it with :func:`view`. Attributes are read-only by convention."""

    model: ModelProto
    batch: int
    nodes: Sequence[NodeProto]
    producer: Mapping[str, int]
    consumers: Mapping[str, Sequence[int]]
    data: set[str]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    opset: int
    _types: dict[str, onnx.TypeProto] = field(repr=False)
    _tensors: dict[str, TensorProto] = field(repr=False)
    _values: dict[str, np.ndarray | None] = field(default_factory=dict, repr=False)

    def is_data(self, name: str) -> bool:
        """Whether the tensor depends on the values of the graph's inputs."""
        return name in self.data

    def shape(self, name: str) -> Shape | None:
        """Static shape at this batch size, or None where it is not known."""
        if name in self._tensors:
            return tuple(self._tensors[name].dims)
        return static_shape(self._types.get(name))

    def element_type(self, name: str) -> int:
        """The tensor's ``TensorProto.DataType``; 0 where it is not known."""
        if name in self._tensors:
            return self._tensors[name].data_type
        kind = self._types.get(name)
        return kind.tensor_type.elem_type if kind is not None else 0

    def constant(self, name: str) -> np.ndarray | None:
        """The value of a tensor that does not depend on the inputs, or None."""
        if not name or name in self.data:
            return None
        if name not in self._values:
            self._evaluate(name)
        return self._values[name]

    def node_of(self, name: str) -> NodeProto | None:
        """The node that makes the tensor, or None for graph inputs and initializers."""
        index = self.producer.get(name)
        return None if index is None else self.nodes[index]

    def readers(self, name: str) -> list[NodeProto]:
        """The nodes that read the tensor, in topological order."""
        return [self.nodes[index] for index in self.consumers.get(name, ())]

    def data_readers(self, name: str) -> list[NodeProto]:
        """The nodes that read the tensor's values, not only its shape."""
        return [node for node in self.readers(name) if any(o in self.data for o in node.output)]

    def downstream(self, names: Iterable[str], passes: Callable[[NodeProto], bool]) -> Iterator[NodeProto]:
        """The nodes that read ``names``, and those behind each one that ``passes``, in topological order."""
        pending = {self.producer[reader.output[0]] for name in names for reader in self.data_readers(name)}
        done: set[int] = set()
        while pending:
            index = min(pending)
            pending.discard(index)
            done.add(index)
            node = self.nodes[index]
            yield node
            if passes(node):
                behind = {self.producer[r.output[0]] for name in node.output for r in self.data_readers(name)}
                pending |= behind - done

    def ordered(self, nodes: Iterable[NodeProto]) -> list[NodeProto]:
        """The given nodes, each once, in topological order."""
        return [self.nodes[index] for index in sorted({self.producer[node.output[0]] for node in nodes})]

    def data_inputs(self, node: NodeProto) -> list[str]:
        """The node's inputs that depend on the graph's inputs, in order, with repetitions."""
        return [name for name in node.input if name in self.data]

    def with_nodes(self, nodes: Iterable[NodeProto]) -> Graph:
        """The same view with other nodes, in topological order; the model stays as it is."""
        return _view(self.model, nodes, self.batch)

    def _evaluate(self, wanted: str) -> None:
        """Fill in the value of ``wanted`` and of the constants that it needs; iterative, since chains are
        long.
        """
        stack = [wanted]
        while stack:
            name = stack[-1]
            if name in self._values:
                stack.pop()
                continue
            if name in self._tensors:
                self._values[name] = array_of(self._tensors[name])
                continue
            node = self.node_of(name)
            if node is None or name in self.data:
                self._values[name] = None
                continue
            if reads_shape(node) and self.is_data(node.input[0]):
                self._values[name] = self._shape_value(node)
                continue
            missing = [i for i in node.input if i and i not in self._values]
            if missing:
                stack.extend(missing)
                continue
            for output, value in zip(node.output, self._run(node), strict=False):
                if output:
                    self._values[output] = value

    def _shape_value(self, node: NodeProto) -> np.ndarray | None:
        shape = self.shape(node.input[0])
        if shape is None:
            return None
        if node.op_type == "Size":
            return np.array(int(np.prod(shape)), np.int64)
        start, end = attribute(node, "start", 0), attribute(node, "end", len(shape))
        if not isinstance(start, int) or not isinstance(end, int):
            return None
        return np.array(shape[start:end], np.int64)

    def _run(self, node: NodeProto) -> list[np.ndarray | None]:
        feeds = {i: self._values[i] for i in node.input if i}
        unknown: list[np.ndarray | None] = [None] * len(node.output)
        if any(value is None for value in feeds.values()) or node.domain not in ("", "ai.onnx"):
            return unknown
        if any(int(np.prod(self.shape(output) or (0,))) > _MOST_ELEMENTS for output in node.output):
            return unknown
        try:
            model = helper.make_model(
                helper.make_graph(
                    [node],
                    "constant",
                    [helper.make_empty_tensor_value_info(i) for i in feeds],
                    [helper.make_empty_tensor_value_info(o) for o in node.output if o],
                ),
                opset_imports=[helper.make_opsetid("", self.opset)],
            )
            # A constant may well be infinite or NaN; whether that matters is not for NumPy to say.
            with np.errstate(all="ignore"):
                values = iter(ReferenceEvaluator(model).run(None, feeds))
        except Exception:  # the reference evaluator raises whatever an operator's NumPy code raises
            return unknown
        return [np.asarray(next(values)) if output else None for output in node.output]


def attribute(node: NodeProto, name: str, default: object = None) -> object | int | float | str | list[int] | None:
    """The value of a node's attribute as Python data (strings decoded), or ``default``."""
    for item in node.attribute:
        if item.name == name:
            value = helper.get_attribute_value(item)
            if isinstance(value, bytes):
                return value.decode("utf-8", "replace")
            return list(value) if item.type in (AttributeProto.INTS, AttributeProto.FLOATS) else value
    return default


def default_opset(model: ModelProto) -> int:
    """The version of the default operator domain that the model imports."""
    return max((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), default=1)


def symbolic_batch(model: ModelProto) -> bool:
    """Whether an input's first dimension is symbolic or unknown."""
    return any(leading_dim(i) == 0 for i in runtime_inputs(model.graph))


def runtime_inputs(graph: GraphProto) -> list[onnx.ValueInfoProto]:
    """The graph's inputs that are not initializers (old exporters list initializers as inputs too)."""
    initializers = {i.name for i in graph.initializer}
    return [i for i in graph.input if i.name not in initializers]


def view(model: ModelProto, *, batch: int = 1) -> Graph:
    """The view of ``model`` with symbolic first dimensions replaced by ``batch``.

    The model's nodes must be in topological order. The model is not copied and must not change while the view
    is used.
    """
    return _view(model, model.graph.node, batch)


def _view(model: ModelProto, nodes: Iterable[NodeProto], batch: int) -> Graph:
    graph = model.graph
    nodes = list(nodes)
    tensors = {i.name: i for i in graph.initializer}
    producer: dict[str, int] = {}
    consumers: dict[str, list[int]] = {}
    data = {i.name for i in runtime_inputs(graph)}
    types = {i.name: with_batch(i.type, batch) for i in runtime_inputs(graph)}
    for index, node in enumerate(nodes):
        for name in dict.fromkeys(nested_names(node)):
            consumers.setdefault(name, []).append(index)
        for name in node.output:
            if name:
                producer[name] = index
        constant = constant_tensor(node)
        if constant is not None:
            tensors[node.output[0]] = constant
    result = Graph(
        model=model,
        batch=batch,
        nodes=nodes,
        producer=producer,
        consumers=consumers,
        data=data,
        inputs=tuple(i.name for i in runtime_inputs(graph)),
        outputs=tuple(o.name for o in graph.output),
        opset=default_opset(model),
        _types=types,
        _tensors=tensors,
    )
    _infer(result)
    return result


def _infer(graph: Graph) -> None:
    """One pass in topological order: types of every output, and which tensors depend on the inputs' values.

    A constant is asked for only after the nodes that make it have been classified, so evaluating it here is
    sound.
    """
    opsets = list(graph.model.opset_import)
    for node in graph.nodes:
        if node.op_type == "Constant" and node.output[0] in graph._tensors:
            continue
        known_shape = reads_shape(node) and graph.shape(node.input[0]) is not None
        if not known_shape and (node.op_type in _RANDOM or any(name in graph.data for name in nested_names(node))):
            graph.data.update(name for name in node.output if name)
        for name, kind in _infer_node(graph, node, opsets).items():
            graph._types[name] = kind


def _infer_node(graph: Graph, node: NodeProto, opsets: list[onnx.OperatorSetIdProto]) -> dict[str, onnx.TypeProto]:
    try:
        schema = onnx.defs.get_schema(node.op_type, graph.opset, "" if node.domain == "ai.onnx" else node.domain)
    except onnx.defs.SchemaError:
        return _infer_function(graph, node)
    if breaks_inference(node):
        return {}
    kinds: dict[str, onnx.TypeProto] = {}
    values: dict[str, TensorProto] = {}
    for name in node.input:
        if not name:
            continue
        kind = _type_of(graph, name)
        if kind is None:
            return {}
        kinds[name] = kind
        if decides_shapes(kind):
            value = graph.constant(name)
            if value is not None:
                values[name] = numpy_helper.from_array(value, name)
    try:
        return dict(infer_node_outputs(schema, node, kinds, values, opset_imports=opsets))
    except (InferenceError, ValidationError, ValueError, RuntimeError, TypeError):
        return {}


def _infer_function(graph: Graph, node: NodeProto) -> dict[str, onnx.TypeProto]:
    """Types of the outputs of a node whose operator is a function of the model."""
    functions = graph.model.functions
    function = next((f for f in functions if (f.domain, f.name) == (node.domain, node.op_type)), None)
    kinds = [_type_of(graph, name) for name in node.input]
    known = [kind for kind in kinds if kind is not None]
    if function is None or len(known) < len(kinds) or len(function.output) < len(node.output):
        return {}
    try:
        made = infer_function_output_types(function, known, list(node.attribute))
    except (InferenceError, ValidationError, ValueError, RuntimeError, TypeError):
        return {}
    return {name: kind for name, kind in zip(node.output, made, strict=False) if name}


def breaks_inference(node: NodeProto) -> bool:
    """Whether a node breaks a rule that ONNX's own inference relies on without checking it (1.23 aborts)."""
    if node.op_type == "Split":
        return attribute(node, "num_outputs", len(node.output)) != len(node.output)
    batch_dims = attribute(node, "batch_dims", 0)
    return not isinstance(batch_dims, int) or batch_dims < 0


def _type_of(graph: Graph, name: str) -> onnx.TypeProto | None:
    if name in graph._types:
        return graph._types[name]
    tensor = graph._tensors.get(name)
    if tensor is None:
        return None
    kind = helper.make_tensor_type_proto(tensor.data_type, list(tensor.dims))
    graph._types[name] = kind
    return kind


def nodes_within(node: NodeProto) -> list[NodeProto]:
    """The nodes in a node's subgraphs, at any depth."""
    found: list[NodeProto] = []
    for item in node.attribute:
        for subgraph in [item.g] if item.type == AttributeProto.GRAPH else item.graphs:
            for inner in subgraph.node:
                found += [inner, *nodes_within(inner)]
    return found


def nested_names(node: NodeProto) -> list[str]:
    """Names that a node reads, those read inside its subgraphs included."""
    names = [name for name in node.input if name]
    for item in node.attribute:
        subgraphs = [item.g] if item.type == AttributeProto.GRAPH else list(item.graphs)
        for subgraph in subgraphs:
            for inner in subgraph.node:
                names.extend(nested_names(inner))
            names.extend(o.name for o in subgraph.output)
    return names
