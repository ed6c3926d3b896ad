"""A read-only view of a model at one batch size: who makes and reads a tensor, its shape, and its value if constant.

Exporters compute shapes, masks and index tables inside the graph. With the batch fixed, every such tensor that does
not depend on the *values* of the graph's inputs is a constant; it is evaluated on demand, so that discovery sees the
same constants whichever way an exporter wrote them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper
from onnx.checker import ValidationError
from onnx.reference import ReferenceEvaluator
from onnx.shape_inference import InferenceError, infer_node_outputs

Shape = tuple[int, ...]

_RANDOM = {
    "RandomNormal",
    "RandomUniform",
    "RandomNormalLike",
    "RandomUniformLike",
    "Multinomial",
    "Bernoulli",
}
_SHAPE_OPERATORS = {"Shape", "Size"}
# Shape inference reads values only of small integer tensors (shapes, axes, pads); larger ones are never needed.
_PROPAGATED_ELEMENTS = 1024


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
        return _static_shape(self._types.get(name))

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
        """Fill in the value of ``wanted`` and of the constants that it needs; iterative, since chains are long."""
        stack = [wanted]
        while stack:
            name = stack[-1]
            if name in self._values:
                stack.pop()
                continue
            if name in self._tensors:
                self._values[name] = _array(self._tensors[name])
                continue
            node = self.node_of(name)
            if node is None or name in self.data:
                self._values[name] = None
                continue
            if _reads_shape(node) and self.is_data(node.input[0]):
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
        start, end = attribute(node, "start", 0), attribute(node, "end", None)
        return np.array(shape[start:end], np.int64)

    def _run(self, node: NodeProto) -> list[np.ndarray | None]:
        feeds = {i: self._values[i] for i in node.input if i}
        unknown: list[np.ndarray | None] = [None] * len(node.output)
        if any(value is None for value in feeds.values()) or node.domain not in ("", "ai.onnx"):
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
            values = iter(ReferenceEvaluator(model).run(None, feeds))
        except Exception:  # the reference evaluator raises whatever an operator's NumPy code raises
            return unknown
        return [np.asarray(next(values)) if output else None for output in node.output]


def attribute(
    node: NodeProto, name: str, default: object = None
) -> object | None | int | float | str | list[int]:
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
    return any(_leading_dim(i) == 0 for i in runtime_inputs(model.graph))


def runtime_inputs(graph: GraphProto) -> list[onnx.ValueInfoProto]:
    """The graph's inputs that are not initializers (old exporters list initializers as inputs too)."""
    initializers = {i.name for i in graph.initializer}
    return [i for i in graph.input if i.name not in initializers]


def view(model: ModelProto, *, batch: int = 1) -> Graph:
    """The view of ``model`` with symbolic first dimensions replaced by ``batch``.

    The model's nodes must be in topological order. The model is not copied and must not change while the view is used.
    """
    return _view(model, model.graph.node, batch)


def _view(model: ModelProto, nodes: Iterable[NodeProto], batch: int) -> Graph:
    graph = model.graph
    nodes = list(nodes)
    tensors = {i.name: i for i in graph.initializer}
    producer: dict[str, int] = {}
    consumers: dict[str, list[int]] = {}
    data = {i.name for i in runtime_inputs(graph)}
    types = {i.name: _with_batch(i.type, batch) for i in runtime_inputs(graph)}
    for index, node in enumerate(nodes):
        for name in dict.fromkeys(nested_names(node)):
            consumers.setdefault(name, []).append(index)
        for name in node.output:
            if name:
                producer[name] = index
        constant = _constant_tensor(node)
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

    A constant is asked for only after the nodes that make it have been classified, so evaluating it here is sound.
    """
    opsets = list(graph.model.opset_import)
    for node in graph.nodes:
        if node.op_type == "Constant" and node.output[0] in graph._tensors:
            continue
        known_shape = _reads_shape(node) and graph.shape(node.input[0]) is not None
        if not known_shape and (
            node.op_type in _RANDOM or any(name in graph.data for name in nested_names(node))
        ):
            graph.data.update(name for name in node.output if name)
        for name, kind in _infer_node(graph, node, opsets).items():
            graph._types[name] = kind


def _infer_node(
    graph: Graph, node: NodeProto, opsets: list[onnx.OperatorSetIdProto]
) -> dict[str, onnx.TypeProto]:
    try:
        schema = onnx.defs.get_schema(
            node.op_type, graph.opset, "" if node.domain == "ai.onnx" else node.domain
        )
    except onnx.defs.SchemaError:
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
        if _decides_shapes(kind):
            value = graph.constant(name)
            if value is not None:
                values[name] = numpy_helper.from_array(value, name)
    try:
        return dict(infer_node_outputs(schema, node, kinds, values, opset_imports=opsets))
    except (InferenceError, ValidationError, ValueError, RuntimeError, TypeError):
        return {}


def _decides_shapes(kind: onnx.TypeProto) -> bool:
    shape = _static_shape(kind)
    integer = kind.tensor_type.elem_type in (TensorProto.INT64, TensorProto.INT32)
    # Resize takes its scales as floats, and its output shape depends on them.
    scales = kind.tensor_type.elem_type == TensorProto.FLOAT and shape is not None and len(shape) == 1
    if shape is None or not (integer or scales):
        return False
    return int(np.prod(shape)) <= (8 if scales else _PROPAGATED_ELEMENTS)


def _reads_shape(node: NodeProto) -> bool:
    return node.op_type in _SHAPE_OPERATORS and node.domain in ("", "ai.onnx") and len(node.input) == 1


def _array(tensor: TensorProto) -> np.ndarray | None:
    try:
        return np.asarray(numpy_helper.to_array(tensor))
    except (ValueError, TypeError, KeyError):  # fewer bytes than its shape says, or a type that is not known
        return None


def _type_of(graph: Graph, name: str) -> onnx.TypeProto | None:
    if name in graph._types:
        return graph._types[name]
    tensor = graph._tensors.get(name)
    if tensor is None:
        return None
    kind = helper.make_tensor_type_proto(tensor.data_type, list(tensor.dims))
    graph._types[name] = kind
    return kind


def _static_shape(kind: onnx.TypeProto | None) -> Shape | None:
    if kind is None or not kind.HasField("tensor_type") or not kind.tensor_type.HasField("shape"):
        return None
    dims = kind.tensor_type.shape.dim
    if not all(d.HasField("dim_value") for d in dims):
        return None
    return tuple(d.dim_value for d in dims)


def _leading_dim(value: onnx.ValueInfoProto) -> int:
    """The first dimension of an input: 0 where symbolic or unknown, 1 for a scalar."""
    dims = value.type.tensor_type.shape.dim
    return dims[0].dim_value if dims else 1


def _with_batch(kind: onnx.TypeProto, batch: int) -> onnx.TypeProto:
    result = onnx.TypeProto()
    result.CopyFrom(kind)
    for dim in result.tensor_type.shape.dim:
        if not dim.HasField("dim_value") or dim.dim_value <= 0:
            dim.ClearField("dim_param")
            dim.dim_value = batch
    return result


def _constant_tensor(node: NodeProto) -> TensorProto | None:
    """The tensor of a Constant node, whichever of its attributes holds it."""
    if node.op_type != "Constant" or node.domain not in ("", "ai.onnx"):
        return None
    for item in node.attribute:
        if item.name == "value":
            return item.t
        if item.name in ("value_int", "value_ints"):
            return numpy_helper.from_array(np.array(helper.get_attribute_value(item), np.int64))
        if item.name in ("value_float", "value_floats"):
            return numpy_helper.from_array(np.array(helper.get_attribute_value(item), np.float32))
    return None


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
