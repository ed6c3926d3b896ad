"""Cut the part of a model between named tensors out as a model of its own, to run and time it alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx
from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

from onnxopt.errors import InputError
from onnxopt.model.graph import Graph, nested_names, runtime_inputs

_SHAPE_OPERATORS = ("Shape", "Size")


def extract_region(model: ModelProto, graph: Graph, inputs: Sequence[str], outputs: Sequence[str]) -> ModelProto:
    """The sub-model of ``model`` that makes ``outputs`` from ``inputs``, with static shapes at ``graph``'s
    batch size.

    ``graph`` is the view of the original model; it gives types and shapes of the boundary tensors. ``model``
    is that original or a rewritten model in which the boundary tensors keep their names, nodes in topological
    order, weights inside. The result holds the needed nodes in their order, the needed initializers, and as
    inputs those of ``inputs`` that are read. A boundary name that is an initializer of ``model`` stays a
    constant.

    Raises InputError where a boundary tensor has no known static shape or type, where an output is not made
    by ``model``, or where the part needs an input of the model that is not among ``inputs``.
    """
    source = model.graph
    initializers = {tensor.name: tensor for tensor in source.initializer}
    boundary = dict.fromkeys(name for name in inputs if name not in initializers)
    walk = _Walk(model, graph, initializers, boundary)
    walk.collect(outputs)

    result = ModelProto(ir_version=model.ir_version)
    result.opset_import.extend(model.opset_import)
    result.functions.extend(model.functions)
    region = result.graph
    region.name = f"{source.name}/part"
    region.node.extend(source.node[index] for index in sorted(walk.nodes))
    region.input.extend(_boundary_value(graph, name) for name in boundary if name in walk.read)
    region.output.extend(_boundary_value(graph, name) for name in outputs)
    region.initializer.extend(tensor for tensor in source.initializer if tensor.name in walk.read)
    region.initializer.extend(walk.shapes.values())
    return result


class _Walk:
    """Collects what the outputs need, from the outputs back to the boundary."""

    def __init__(
        self,
        model: ModelProto,
        graph: Graph,
        initializers: Mapping[str, TensorProto],
        boundary: Mapping[str, None],
    ) -> None:
        self._source = model.graph
        self._graph = graph
        self._initializers = initializers
        self._boundary = boundary
        self._runtime = {value.name for value in runtime_inputs(model.graph)}
        self._producer = {name: index for index, node in enumerate(model.graph.node) for name in node.output if name}
        self.nodes: set[int] = set()
        self.read: set[str] = set()
        self.shapes: dict[str, TensorProto] = {}

    def collect(self, outputs: Sequence[str]) -> None:
        stack: list[tuple[str, str]] = []
        for name in outputs:
            if name not in self._producer:
                raise InputError(
                    f"the tensor {name!r} is to be an output of a part of the model, but no node makes it; "
                    "name a tensor that a node of this model makes"
                )
            stack.append((name, "the part's outputs"))
        while stack:
            name, reader = stack.pop()
            if name in self.read:
                continue
            self.read.add(name)
            if name in self._boundary or name in self._initializers:
                continue
            index = self._maker(name, reader)
            if index is None or index in self.nodes:
                continue
            node = self._source.node[index]
            shape = self._known_shape(node)
            if shape is not None:
                self.shapes[name] = shape
                continue
            self.nodes.add(index)
            stack.extend((read, f"node {node.name!r} ({node.op_type})") for read in nested_names(node))

    def _maker(self, name: str, reader: str) -> int | None:
        """The node that makes a tensor; None for a name that lives inside a subgraph."""
        index = self._producer.get(name)
        if index is None and name in self._runtime:
            raise InputError(
                f"{reader} needs the model's input {name!r}, which is not among the part's inputs "
                f"{list(self._boundary)}; the part cannot be run alone without it"
            )
        return index

    def _known_shape(self, node: NodeProto) -> TensorProto | None:
        """The value of a Shape or Size node; it must not pull in what makes the tensor that it asks about."""
        if node.op_type not in _SHAPE_OPERATORS or node.domain not in ("", "ai.onnx"):
            return None
        value = self._graph.constant(node.output[0])
        return None if value is None else numpy_helper.from_array(value, node.output[0])


def _boundary_value(graph: Graph, name: str) -> ValueInfoProto:
    shape, kind = graph.shape(name), graph.element_type(name)
    if shape is None or kind == onnx.TensorProto.UNDEFINED:
        raise InputError(
            f"the shape or type of the tensor {name!r} is not known before the model runs, so the part "
            "of the model beside it cannot be run alone; export the model with fixed sizes behind the batch"
        )
    return helper.make_tensor_value_info(name, kind, shape)
