"""Write a convolution as the steps of an algorithm, each one operator of our own: the plugin form of dense layers.

Tensors between the steps are ordinary tensors of the model: the workspace that the choice of algorithms counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from onnx import FunctionProto, TensorProto

from onnxopt.discover.channel_function import ChannelFunction
from onnxopt.discover.channel_trace import trace
from onnxopt.discover.conv_fusion import ConvFusion
from onnxopt.discover.conv_site import ConvSite
from onnxopt.lower.algorithm_body import algorithm_bodies
from onnxopt.lower.operator_nodes import CAST_LABEL, OperatorNodes, tensor_type
from onnxopt.lower.plugin_nodes import FIRST_OPERANDS, RESIDUAL
from onnxopt.lower.rewrite import Rewrite
from onnxopt.model.graph import Graph, symbolic_batch
from onnxopt.plan.algorithms.tables import StepTables
from onnxopt.plan.tables import ConvWork
from onnxopt.target.variant import Element

_LABELS = {
    "ConvScalar": "scalar",
    "ConvUnfold": "unfold",
    "ConvProduct": "product",
    "ConvShiftAdd": "shift-add",
    "ConvDirect": "direct",
    "ConvSlices": "slices",
    "SumConv": "sum",
    "WinogradInput": "winograd-input",
    "WinogradOutput": "winograd-output",
}


def step_fusion(graph: Graph, site: ConvSite, fusion: ConvFusion) -> ConvFusion:
    """What of a fusion the steps of an algorithm can do: nothing in front, and behind nothing that moves channels."""
    lead = trace(graph, site.input, site.input, [])
    own = {id(node) for node in fusion.lead.nodes}
    behind = tuple(node for node in fusion.nodes if id(node) not in own)
    identity = ChannelFunction(np.ones(site.in_channels), np.zeros(site.in_channels), "none")
    if fusion.tail.is_identity and graph.shape(fusion.target) == graph.shape(site.output):
        tail, scales, shifts = fusion.tail, fusion.scales, fusion.shifts
        return ConvFusion(
            lead, identity, tail, scales, shifts, fusion.residual, fusion.activation, fusion.target, behind
        )
    count = site.out_channels
    tail = trace(graph, site.output, site.output, [])
    return ConvFusion(lead, identity, tail, np.ones(count), np.zeros(count), None, "none", site.output, ())


@dataclass
class AlgorithmWriter:
    """Writes layers of one model; layers with the same operator share its body, which keeps the shape of the first."""

    graph: Graph
    _bodies: dict[str, tuple[FunctionProto, tuple[int, ...]]] = field(default_factory=dict)

    def lower(
        self, site: str, fusion: ConvFusion, work: ConvWork, algorithm: str, steps: Sequence[StepTables]
    ) -> Rewrite:
        """The nodes of the site named ``site``, with their tables and bodies.

        ``fusion`` is one of :func:`step_fusion`, ``work`` what it makes of the site.
        """
        graph, target = self.graph, fusion.target
        element: Element = steps[0].step.kernel["element"]
        kind, outer = tensor_type(element), graph.element_type(target)
        shape = graph.shape(target)
        assert shape is not None
        if any(step.operator() not in self._bodies for step in steps):
            made = algorithm_bodies(algorithm, work, steps, kind, graph)
            for step, function in zip(steps, made, strict=True):
                self._bodies.setdefault(step.operator(), (function, tuple(shape)))
        build = OperatorNodes(site, graph, kind, None if symbolic_batch(graph.model) else shape[0])
        tensors = {"x": build.cast(fusion.lead.source)}
        if fusion.residual is not None:
            tensors[RESIDUAL] = build.cast(fusion.residual)
        for step in steps[:-1]:
            self._step(build, step, tensors, shape[0])
        own_shape = self._bodies[steps[-1].operator()][1]
        reshaped, cast = own_shape[1:] != tuple(shape[1:]), kind != outer
        last = f"{build.prefix}y" if reshaped or cast else target
        self._own(build, steps[-1], tensors, last)
        build.value(last, kind, [shape[0], *own_shape[1:]])
        if reshaped:
            sizes = build.table(np.array([-1, *shape[1:]], np.int64))
            last = build.node("Reshape", [last, sizes], "shape", None if cast else target)
        if cast:
            build.node("Cast", [last], f"{CAST_LABEL}/output", target, to=outer)
        functions = {step.operator(): self._bodies[step.operator()][0] for step in steps}
        return Rewrite(
            site,
            (target,),
            tuple(build.nodes),
            tuple(build.tables.values()),
            tuple(functions.values()),
            tuple(build.values),
        )

    def _step(self, build: OperatorNodes, step: StepTables, tensors: dict[str, str], batch: int) -> None:
        (name,) = step.step.outputs
        tensors[name] = f"{build.prefix}{name}"
        self._own(build, step, tensors, tensors[name])
        kind = TensorProto.FLOAT if step.step.output_type == "float32" else build.kind
        build.value(tensors[name], kind, [batch, *step.step.output_shape])

    def _own(self, build: OperatorNodes, step: StepTables, tensors: dict[str, str], output: str) -> None:
        """The operator's node; the tensor that a step starts from is its first input, whatever made it."""
        first = FIRST_OPERANDS[step.step.operator]
        operands = {first: tensors[step.step.inputs[0]]}
        if RESIDUAL in step.step.inputs:
            operands[RESIDUAL] = tensors[RESIDUAL]
        build.own(step.operator(), operands, step.tables, _LABELS[step.step.operator], [output])
