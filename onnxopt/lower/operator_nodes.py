"""What the nodes of every site in the plugin form have in common: names, tables, casts, types of what they make."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from onnx import NodeProto, TensorProto, ValueInfoProto, helper

from onnxopt.lower.rewrite import DOMAIN, NODE_PREFIX, table
from onnxopt.model.graph import Graph
from onnxopt.target.variant import Element

CAST_LABEL, LAYOUT_LABEL = "cast", "layout"
ATTRIBUTES = {"plugin_namespace": DOMAIN, "plugin_version": "1"}


def tensor_type(element: Element) -> int:
    """The ONNX type of tensors that kernels of a compute type read."""
    return {"fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}.get(element, TensorProto.FLOAT)


def to_last(axes: int) -> list[int]:
    """How a tensor over so many axes is transposed so that its channels come last."""
    return [0, *range(2, axes + 2), 1]


def to_first(axes: int) -> list[int]:
    """The inverse of :func:`to_last`."""
    return [0, axes + 1, *range(1, axes + 1)]


class OperatorNodes:
    """The nodes of one site; tensors are named after the nodes that make them.

    ``kind`` is the type that its operators read; ``batch`` is None where it is symbolic.
    """

    def __init__(self, site: str, graph: Graph, kind: int, batch: int | None) -> None:
        self.graph, self.kind, self.batch = graph, kind, batch
        self.prefix = f"{NODE_PREFIX}{site}/"
        self.nodes: list[NodeProto] = []
        self.tables: dict[str, TensorProto] = {}
        self.values: list[ValueInfoProto] = []
        self._known: dict[tuple[object, ...], str] = {}

    def cast(self, tensor: str) -> str:
        """A tensor of the model in the compute type."""
        if self.graph.element_type(tensor) == self.kind:
            return tensor
        key = (tensor,)
        if key not in self._known:
            self._known[key] = self.node("Cast", [tensor], f"{CAST_LABEL}/{len(self.nodes)}", to=self.kind)
        return self._known[key]

    def own(
        self,
        operator: str,
        operands: Mapping[str, str],
        arrays: Mapping[str, np.ndarray],
        label: str,
        outputs: Sequence[str],
    ) -> Sequence[str]:
        """An operator of our own on ``operands`` and the tables ``arrays``, both in its order; its outputs."""
        inputs = [*operands.values(), *map(self.table, arrays.values())]
        name = self.prefix + label
        self.nodes.append(helper.make_node(operator, inputs, outputs, name=name, domain=DOMAIN, **ATTRIBUTES))
        return outputs

    def node(self, kind: str, inputs: Sequence[str], label: str, output: str | None = None, **more: Any) -> str:
        """A node of a standard operator; its output."""
        name = self.prefix + label
        self.nodes.append(helper.make_node(kind, list(inputs), [output or name], name=name, **more))
        return output or name

    def table(self, array: np.ndarray) -> str:
        """The name of a constant."""
        tensor = table(array)
        self.tables[tensor.name] = tensor
        return tensor.name

    def value(self, name: str, kind: int, shape: Sequence[int]) -> None:
        """Declare a tensor, whose first size is open where the batch is."""
        first = None if self.batch is None else shape[0]
        self.values.append(helper.make_tensor_value_info(name, kind, [first, *shape[1:]]))
