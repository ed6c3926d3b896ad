"""Write a block of convolutions as one operator of our own: the plugin form.

The operator's body computes the convolutions one behind the other in float32, each as its own operator's body would.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from onnx import FunctionProto, NodeProto, TensorProto

from onnxopt.lower.conv_body import ConvBody
from onnxopt.lower.operator_body import widened_function
from onnxopt.lower.operator_nodes import CAST_LABEL, OperatorNodes, tensor_type
from onnxopt.lower.plugin_nodes import RESIDUAL
from onnxopt.lower.rewrite import Rewrite
from onnxopt.model.graph import Graph, symbolic_batch
from onnxopt.plan.block import BlockTables, BlockWork


@dataclass
class BlockPluginWriter:
    """Writes blocks of one model; those with the same operator share a body."""

    graph: Graph
    _bodies: dict[str, FunctionProto] = field(default_factory=dict)

    def lower(self, site: str, operands: tuple[str, str | None, str], work: BlockWork, tables: BlockTables) -> Rewrite:
        """The operator's node of the block named ``site``, with its tables and body.

        ``operands`` are the tensors of the model that it reads, its residual or None among them, and the one that it
        makes.
        """
        graph, (source, residual, target) = self.graph, operands
        kind, outer, shape = tensor_type(tables.kernel.element), graph.element_type(target), graph.shape(target)
        assert shape is not None
        name = tables.operator()
        if name not in self._bodies:
            self._bodies[name] = block_body(work, tables, kind, graph)
        build = OperatorNodes(site, graph, kind, None if symbolic_batch(graph.model) else shape[0])
        made = target if kind == outer else f"{build.prefix}y"
        given = {"x": build.cast(source)}
        if residual is not None:
            given[RESIDUAL] = build.cast(residual)
        build.own(name, given, tables.arrays(), "block", [made])
        build.value(made, kind, shape)
        if kind != outer:
            build.node("Cast", [made], f"{CAST_LABEL}/output", target, to=outer)
        constants, values = tuple(build.tables.values()), tuple(build.values)
        return Rewrite(site, (target,), tuple(build.nodes), constants, (self._bodies[name],), values)


def block_body(work: BlockWork, tables: BlockTables, kind: int, graph: Graph) -> FunctionProto:
    """The function of a block's operator; ``kind`` is the ONNX type of its operands."""
    given: str | None = None
    nodes: list[NodeProto] = []
    constants: dict[str, TensorProto] = {}
    for number, stage in enumerate(work.stages):
        body = ConvBody(stage, graph, kind, f"body/{number}", given)
        made = body.channels()
        if number == len(work.stages) - 1:
            body.finished(made)
        else:
            given = body.activated(made)
        part = body.rewrite()
        nodes += part.nodes
        constants |= {tensor.name: tensor for tensor in part.tables}
    rewrite = Rewrite("body", (), tuple(nodes), tuple(constants.values()))
    names = ["x", *([RESIDUAL] if work.last.residual else []), *tables.arrays()]
    return widened_function(tables.operator(), names, ["y"], rewrite, kind, graph.opset, tables.configuration())
