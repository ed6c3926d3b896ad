"""The network of a model's convolutions: which tensors between them share a layout, and who needs which."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod

from onnx import NodeProto

from onnxopt.discover.conv_site import ConvSite
from onnxopt.model.graph import Graph, attribute
from onnxopt.plan.algorithms.problem import Conversion, Layer, Network, Option

# These compute position by position or channel by channel, and do so in either layout at the same cost.
_EITHER = {
    "Abs",
    "Add",
    "AveragePool",
    "BatchNormalization",
    "Cast",
    "Clip",
    "Div",
    "Dropout",
    "Elu",
    "Erf",
    "Exp",
    "Gelu",
    "GlobalAveragePool",
    "GlobalMaxPool",
    "HardSigmoid",
    "HardSwish",
    "Identity",
    "LRN",
    "LeakyRelu",
    "LpPool",
    "Max",
    "MaxPool",
    "Mean",
    "Min",
    "Mish",
    "Mul",
    "Neg",
    "PRelu",
    "Pad",
    "Pow",
    "Relu",
    "Resize",
    "Selu",
    "Sigmoid",
    "Softplus",
    "Sqrt",
    "Sub",
    "Sum",
    "Tanh",
    "ThresholdedRelu",
    "Upsample",
}
# These put pieces together or apart along an axis.
_ALONG_AXIS = {"Concat", "Split", "Slice"}
_CHANNELS = 1


def algorithm_network(
    graph: Graph,
    sites: Sequence[ConvSite],
    options: Sequence[Sequence[Option]],
    names: Sequence[str],
    conversion_us: Callable[[int], float],
) -> Network:
    """The network of a model's convolutions in topological order, each with its options.

    ``conversion_us`` is told the elements of a tensor, and says how long converting it to the other layout takes.
    """
    found = _Regions(graph)
    numbers: dict[str, int] = {}
    layers_of: dict[str, list[int]] = {}
    plain: set[str] = set()
    own = {part.node.output[0] for site in sites for part in site.parts}
    for number, site in enumerate(sites):
        for tensor in dict.fromkeys((site.input, site.output)):
            layers_of.setdefault(tensor, []).append(number)
    for node in graph.nodes:
        if node.output and node.output[0] not in own and not _works_in_either(graph, node):
            plain.update(name for name in (*node.input, *node.output) if found.has(name))
    plain.update(name for name in (*graph.inputs, *graph.outputs) if found.has(name))
    conversions = []
    for tensor in found.tensors:
        readers = tuple(layers_of.get(tensor, ()))
        if not readers and tensor not in plain:
            continue
        region = numbers.setdefault(found.root(tensor), len(numbers))
        elements = prod(graph.shape(tensor) or ())
        conversions.append(Conversion(region, conversion_us(elements), readers, tensor in plain))
    layers = tuple(Layer(name, tuple(own_options)) for name, own_options in zip(names, options, strict=True))
    return Network(layers, len(numbers), tuple(conversions))


def _works_in_either(graph: Graph, node: NodeProto) -> bool:
    if node.domain not in ("", "ai.onnx"):
        return False
    rank = len(graph.shape(node.output[0]) or ())
    if node.op_type in _ALONG_AXIS:
        axes = [attribute(node, "axis", 0)] if node.op_type != "Slice" else _given(graph, node, 3)
        return rank > 0 and bool(axes) and all(axis % rank >= _CHANNELS for axis in _integers(axes))
    if node.op_type == "ReduceMean":
        own = _integers(attribute(node, "axes", []) or _given(graph, node, 1))
        return attribute(node, "keepdims", 1) == 1 and bool(own) and all(axis % rank > _CHANNELS for axis in own)
    return node.op_type in _EITHER


def _given(graph: Graph, node: NodeProto, position: int) -> list[int]:
    """Axes that a constant input names; none where there is no such input."""
    found = graph.constant(node.input[position]) if len(node.input) > position else None
    return [] if found is None else [int(axis) for axis in found.reshape(-1)]


def _integers(values: object) -> list[int]:
    return [value for value in values if isinstance(value, int)] if isinstance(values, Sequence) else []


@dataclass(init=False)
class _Regions:
    """Tensors with positions that depend on the model's input, joined where one node makes one of the other."""

    tensors: tuple[str, ...]

    def __init__(self, graph: Graph) -> None:
        names = [*graph.inputs, *(name for node in graph.nodes for name in node.output)]
        self.tensors = tuple(n for n in names if n and graph.is_data(n) and len(graph.shape(n) or ()) > 2)
        self._parent = {name: name for name in self.tensors}
        for node in graph.nodes:
            if _works_in_either(graph, node):
                around = [name for name in (*node.input, *node.output) if name in self._parent]
                for name in around[1:]:
                    self._join(around[0], name)

    def has(self, tensor: str) -> bool:
        """Whether a tensor has a layout."""
        return tensor in self._parent

    def root(self, tensor: str) -> str:
        """The tensor that stands for the region of this one."""
        path = []
        while self._parent[tensor] != tensor:
            path.append(tensor)
            tensor = self._parent[tensor]
        for name in path:
            self._parent[name] = tensor
        return tensor

    def _join(self, one: str, other: str) -> None:
        self._parent[self.root(other)] = self.root(one)
