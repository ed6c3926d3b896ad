"""Write a planned convolution as one operator of our own, or two where outputs are added up: the plugin form.

The operator reads the tensors of the model where they stand; casts stand around it where its compute type is not
theirs, and transposes where it computes channels last.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import prod

from onnx import FunctionProto, TensorProto

from onnxopt.discover.conv_fusion import ConvFusion
from onnxopt.lower.conv_body import conv_bodies
from onnxopt.lower.operator_nodes import CAST_LABEL, LAYOUT_LABEL, OperatorNodes, tensor_type, to_first, to_last
from onnxopt.lower.plugin_nodes import RESIDUAL
from onnxopt.lower.rewrite import Rewrite
from onnxopt.model.graph import Graph, symbolic_batch
from onnxopt.plan.schedule import ConvSchedule
from onnxopt.plan.tables import ConvTables, ConvWork


@dataclass
class ConvPluginWriter:
    """Writes convolutions of one model; those with the same operator share a body."""

    graph: Graph
    _bodies: dict[str, tuple[FunctionProto, ...]] = field(default_factory=dict)

    def lower(
        self, site: str, fusion: ConvFusion, work: ConvWork, schedule: ConvSchedule, tables: ConvTables
    ) -> Rewrite:
        """The operators' nodes of the site named ``site``, with their tables and bodies."""
        graph, target = self.graph, fusion.target
        kind, outer = tensor_type(schedule.element), graph.element_type(target)
        name = tables.operator()
        if name not in self._bodies:
            self._bodies[name] = conv_bodies(work, schedule, tables, kind, graph)
        shape = graph.shape(target)
        assert shape is not None
        build = OperatorNodes(site, graph, kind, None if symbolic_batch(graph.model) else shape[0])
        first = target if kind == outer else f"{build.prefix}y"
        last, axes = work.layout == "last", len(work.size)
        made = f"{build.prefix}y/last" if last else first

        def operand(name: str, tensor: str) -> str:
            given = build.cast(tensor)
            return build.node("Transpose", [given], f"{LAYOUT_LABEL}/{name}", perm=to_last(axes)) if last else given

        operands = {"x": operand("x", fusion.lead.source)}
        added = {RESIDUAL: operand(RESIDUAL, fusion.residual)} if fusion.residual is not None else {}
        if tables.sum is None:
            build.own(name, operands | added, tables.arrays(), "conv", [made])
        else:
            partial = f"{build.prefix}partial"
            build.own(name, operands, tables.arrays(), "conv", [partial])
            build.value(partial, TensorProto.FLOAT, [shape[0], tables.kernel.slots, prod(work.output_size)])
            build.own(tables.sum.operator(), {"partial": partial} | added, tables.sum.arrays(), "sum", [made])
        build.value(made, kind, [shape[axis] for axis in to_last(axes)] if last else shape)
        if last:
            build.node("Transpose", [made], f"{LAYOUT_LABEL}/y", first, perm=to_first(axes))
        if kind != outer:
            build.node("Cast", [first], f"{CAST_LABEL}/output", target, to=outer)
        return Rewrite(
            site,
            (target,),
            tuple(build.nodes),
            tuple(build.tables.values()),
            self._bodies[name],
            tuple(build.values),
        )
