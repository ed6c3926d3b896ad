"""Write a planned attention as one operator of our own, or two where its key lists are split: the plugin form.

The operator reads the tensors of the model where they stand and its tables as constants. Casts stand around it where
its compute type is not that of the tensors, and a Concat in front where the vectors of an operand stand in several.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from onnx import FunctionProto, NodeProto, TensorProto, ValueInfoProto, helper

from onnxopt.discover.attention_site import AttentionSite
from onnxopt.discover.operand import Operand, Source
from onnxopt.lower.body import ATTRIBUTES, Body, attention_body, tensor_type
from onnxopt.lower.rewrite import DOMAIN, NODE_PREFIX, Rewrite, table
from onnxopt.model.graph import Graph, symbolic_batch
from onnxopt.plan.attention import AttentionPlan
from onnxopt.plan.schedule import AttentionSchedule
from onnxopt.plan.tables import AttentionTables

CAST_LABEL = "cast"


@dataclass
class PluginWriter:
    """Writes sites of one model; sites with the same operator share a body, which keeps the shape of the first."""

    graph: Graph
    _bodies: dict[str, tuple[tuple[FunctionProto, ...], tuple[int, ...]]] = field(default_factory=dict)

    def lower(
        self, site: AttentionSite, schedule: AttentionSchedule, tables: AttentionTables, plan: AttentionPlan
    ) -> tuple[Rewrite, Body | None]:
        """The operator's node and what belongs to it, and its body where no earlier site had it.

        ``plan`` is the schedule of the body, where key lists are not split.
        """
        name, body = tables.operator(), None
        if name not in self._bodies:
            body = attention_body(site, schedule, tables, plan, self.graph)
            self._bodies[name] = body.functions, site.output_shape
        functions, shape = self._bodies[name]
        build = _Nodes(site, self.graph, tensor_type(schedule.element))
        operands = [build.operand(getattr(site, side)) for side in "qkv"]
        made = build.attention(tables, operands, shape)
        build.finish(made, shape)
        rewrite = Rewrite(
            site.id, (site.output,), tuple(build.nodes), tuple(build.tables.values()), functions, tuple(build.values)
        )
        return rewrite, body


class _Nodes:
    """The nodes of one site; tensors are named after the nodes that make them."""

    def __init__(self, site: AttentionSite, graph: Graph, kind: int) -> None:
        self.site, self.graph, self.kind = site, graph, kind
        self.prefix = f"{NODE_PREFIX}{site.id}/"
        self.batch = None if symbolic_batch(graph.model) else site.batch
        self.nodes: list[NodeProto] = []
        self.tables: dict[str, TensorProto] = {}
        self.values: list[ValueInfoProto] = []
        self._known: dict[tuple[object, ...], str] = {}

    def operand(self, operand: Operand) -> str:
        """The tensor that holds the vectors of an operand, in the compute type."""
        if len(operand.sources) == 1:
            return self._cast(operand.sources[0].tensor)
        key = (operand.sources, operand.width)
        if key not in self._known:
            parts = [self._vectors(source, operand.width) for source in operand.sources]
            self._known[key] = self._node("Concat", parts, f"join/{len(self.nodes)}", axis=1)
        return self._known[key]

    def attention(self, tables: AttentionTables, operands: Sequence[str], shape: Sequence[int]) -> str:
        """The operators of the site; the name of their output, whose shape is that of the operator's body."""
        kernel, merge = tables.kernel, tables.merge
        if merge is None:
            (made,) = self._own(tables.operator(), operands, tables.arrays(), "attention", [self._result(shape)])
            self._value(made, self.kind, shape)
            return made
        first, sums = self._own(
            tables.operator(), operands, tables.arrays(), "attention", [f"{self.prefix}partial", f"{self.prefix}lse"]
        )
        self._value(first, TensorProto.FLOAT, [self.site.batch, kernel.slots, kernel.value_width])
        self._value(sums, TensorProto.FLOAT, [self.site.batch, kernel.slots])
        (made,) = self._own(merge.operator(), [first, sums], merge.arrays(), "merge", [self._result(shape)])
        self._value(made, self.kind, shape)
        return made

    def finish(self, made: str, shape: Sequence[int]) -> None:
        """Bring the result into the shape and the type that the site's output has in the model."""
        site = self.site
        if tuple(shape[1:]) != tuple(site.output_shape[1:]):
            target = self._table(np.array([-1, *site.output_shape[1:]], np.int64))
            made = self._node("Reshape", [made, target], "shape", None if self._is_cast else site.output)
        if self._is_cast:
            self._node("Cast", [made], f"{CAST_LABEL}/output", site.output, to=self._outer)

    @property
    def _outer(self) -> int:
        return self.graph.element_type(self.site.output)

    @property
    def _is_cast(self) -> bool:
        return self._outer != self.kind

    def _result(self, shape: Sequence[int]) -> str:
        """The name of what the last operator makes: the site's own output where nothing follows."""
        follows = self._is_cast or tuple(shape[1:]) != tuple(self.site.output_shape[1:])
        return f"{self.prefix}y" if follows else self.site.output

    def _vectors(self, source: Source, width: int) -> str:
        shape = self._table(np.array([-1, source.rows * source.channels // width, width], np.int64))
        return self._node("Reshape", [self._cast(source.tensor), shape], f"vectors/{len(self.nodes)}")

    def _cast(self, tensor: str) -> str:
        if self.graph.element_type(tensor) == self.kind:
            return tensor
        key = (tensor,)
        if key not in self._known:
            self._known[key] = self._node("Cast", [tensor], f"{CAST_LABEL}/{len(self.nodes)}", to=self.kind)
        return self._known[key]

    def _own(
        self,
        operator: str,
        operands: Sequence[str],
        arrays: Mapping[str, np.ndarray],
        label: str,
        outputs: Sequence[str],
    ) -> Sequence[str]:
        inputs = [*operands, *(self._table(array) for array in arrays.values())]
        name = self.prefix + label
        self.nodes.append(helper.make_node(operator, inputs, outputs, name=name, domain=DOMAIN, **ATTRIBUTES))
        return outputs

    def _node(self, kind: str, inputs: Sequence[str], label: str, output: str | None = None, **more: Any) -> str:
        name = self.prefix + label
        self.nodes.append(helper.make_node(kind, list(inputs), [output or name], name=name, **more))
        return output or name

    def _table(self, array: np.ndarray) -> str:
        tensor = table(array)
        self.tables[tensor.name] = tensor
        return tensor.name

    def _value(self, name: str, kind: int, shape: Sequence[int]) -> None:
        """Declare a tensor, whose first size is open where the batch is."""
        first = None if self.batch is None else shape[0]
        self.values.append(helper.make_tensor_value_info(name, kind, [first, *shape[1:]]))
