"""Write a planned attention as one operator of our own, or two where its key lists are split: the plugin form.

The operator reads the tensors of the model where they stand and its tables as constants. Casts stand around it where
its compute type is not that of the tensors, and a Concat in front where the vectors of an operand stand in several.
Run-time weights of keys are brought into the operator's form by nodes in front.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from onnx import FunctionProto, TensorProto

from onnxopt.discover.attention_site import AttentionSite, KeyWeights
from onnxopt.discover.operand import Operand, Source
from onnxopt.lower.body import Body, attention_body
from onnxopt.lower.operator_nodes import CAST_LABEL, OperatorNodes, tensor_type
from onnxopt.lower.plugin_nodes import WEIGHT
from onnxopt.lower.region_body import check_same_reading
from onnxopt.lower.rewrite import Rewrite
from onnxopt.model.graph import Graph, symbolic_batch
from onnxopt.plan.attention import AttentionPlan
from onnxopt.plan.schedule import AttentionSchedule
from onnxopt.plan.tables import AttentionTables


@dataclass
class PluginWriter:
    """Writes sites of one model; sites with the same operator share a body, which keeps the shape of the first."""

    graph: Graph
    _bodies: dict[str, tuple[tuple[FunctionProto, ...], tuple[int, ...]]] = field(default_factory=dict)
    _first: dict[str, AttentionSite] = field(default_factory=dict)

    def lower(
        self, site: AttentionSite, schedule: AttentionSchedule, tables: AttentionTables, plan: AttentionPlan | None
    ) -> tuple[Rewrite, Body | None]:
        """The operator's node and what belongs to it, and its body where no earlier site had it.

        ``plan`` is the schedule of the body, where key lists are neither split nor weighed at run time. Raises
        :class:`onnxopt.lower.region_body.NoBody` with the reason where weighed keys leave no body.
        """
        name, body = tables.operator(), None
        if name not in self._bodies:
            body = attention_body(site, schedule, tables, plan, self.graph)
            self._bodies[name] = body.functions, site.output_shape
            self._first[name] = site
        elif site.weights is not None:
            check_same_reading(self._first[name], site)
        functions, shape = self._bodies[name]
        build = _Nodes(site, self.graph, tensor_type(schedule.element))
        operands = {side: build.operand(getattr(site, side)) for side in "qkv"}
        if site.weights is not None:
            operands[WEIGHT] = build.weight(site.weights)
        made = build.attention(tables, operands, shape)
        build.finish(made, shape)
        rewrite = Rewrite(
            site.id, (site.output,), tuple(build.nodes), tuple(build.tables.values()), functions, tuple(build.values)
        )
        return rewrite, body


class _Nodes(OperatorNodes):
    """The nodes of one attention."""

    def __init__(self, site: AttentionSite, graph: Graph, kind: int) -> None:
        super().__init__(site.id, graph, kind, None if symbolic_batch(graph.model) else site.batch)
        self.site = site

    def operand(self, operand: Operand) -> str:
        """The tensor that holds the vectors of an operand, in the compute type."""
        if len(operand.sources) == 1:
            return self.cast(operand.sources[0].tensor)
        key = (operand.sources, operand.width)
        if key not in self._known:
            parts = [self._vectors(source, operand.width) for source in operand.sources]
            self._known[key] = self.node("Concat", parts, f"join/{len(self.nodes)}", axis=1)
        return self._known[key]

    def weight(self, weights: KeyWeights) -> str:
        """The run-time weights as batch x columns in float32, 1 where a key counts."""
        shape = self.table(np.array([-1, weights.width], np.int64))
        made, kind = self.node("Reshape", [weights.tensor, shape], "weight"), self.graph.element_type(weights.tensor)
        if weights.inverted:
            made = self.node("Not", [made], "weight/inverted")
        return made if kind == TensorProto.FLOAT else self.node("Cast", [made], "weight/float32", to=TensorProto.FLOAT)

    def attention(self, tables: AttentionTables, operands: Mapping[str, str], shape: Sequence[int]) -> str:
        """The operators of the site; the name of their output, whose shape is that of the operator's body."""
        kernel, merge = tables.kernel, tables.merge
        if merge is None:
            (made,) = self.own(tables.operator(), operands, tables.arrays(), "attention", [self._result(shape)])
            self.value(made, self.kind, shape)
            return made
        first, sums = self.own(
            tables.operator(), operands, tables.arrays(), "attention", [f"{self.prefix}partial", f"{self.prefix}lse"]
        )
        self.value(first, TensorProto.FLOAT, [self.site.batch, kernel.slots, kernel.value_width])
        self.value(sums, TensorProto.FLOAT, [self.site.batch, kernel.slots])
        halves = {"partial": first, "lse": sums}
        (made,) = self.own(merge.operator(), halves, merge.arrays(), "merge", [self._result(shape)])
        self.value(made, self.kind, shape)
        return made

    def finish(self, made: str, shape: Sequence[int]) -> None:
        """Bring the result into the shape and the type that the site's output has in the model."""
        site = self.site
        if tuple(shape[1:]) != tuple(site.output_shape[1:]):
            target = self.table(np.array([-1, *site.output_shape[1:]], np.int64))
            made = self.node("Reshape", [made, target], "shape", None if self._is_cast else site.output)
        if self._is_cast:
            self.node("Cast", [made], f"{CAST_LABEL}/output", site.output, to=self._outer)

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
        shape = self.table(np.array([-1, source.rows * source.channels // width, width], np.int64))
        return self.node("Reshape", [self.cast(source.tensor), shape], f"vectors/{len(self.nodes)}")
