"""What a convolution operator of our own computes, in standard operators.

The function computes in float32 from constants of its own: the weights in equal groups, behind a Gather of the
channels that each group reads, with padding where groups differ. Of all such groupings, the dense one included, it has
the one that computes the least.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import prod
from typing import Any

import numpy as np
from onnx import FunctionProto, TensorProto

from onnxopt.discover.channel_function import Activation
from onnxopt.discover.conv_site import ChannelPath, IntArray
from onnxopt.lower.convolution import packed_weights
from onnxopt.lower.operator_body import wide_name, widened_function
from onnxopt.lower.operator_nodes import OperatorNodes, to_first, to_last
from onnxopt.lower.plugin_nodes import RESIDUAL
from onnxopt.lower.rewrite import Rewrite
from onnxopt.model.graph import Graph
from onnxopt.plan.conv_parts import Layout, layouts
from onnxopt.plan.schedule import ConvSchedule
from onnxopt.plan.tables import ConvTables, ConvWork

_SITE = "body"


def conv_bodies(
    work: ConvWork, schedule: ConvSchedule, tables: ConvTables, kind: int, graph: Graph
) -> tuple[FunctionProto, ...]:
    """The functions of a convolution's operators: one, or two where outputs are added up.

    ``kind`` is the ONNX type of the operators' operands.
    """
    added = [RESIDUAL] if work.residual else []
    if tables.sum is None:
        build = ConvBody(work, graph, kind)
        build.finished(build.channels())
        names = ["x", *added, *tables.arrays()]
        own = widened_function(
            tables.operator(), names, ["y"], build.rewrite(), kind, graph.opset, tables.configuration()
        )
        return (own,)
    first = ConvBody(work, graph, kind)
    first.partials(schedule, "partial")
    names = ["x", *tables.arrays()]
    partial = widened_function(
        tables.operator(), names, ["partial"], first.rewrite(), kind, graph.opset, tables.configuration()
    )
    second = ConvBody(work, graph, kind)
    second.finished(second.sums(tables))
    names = ["partial", *added, *tables.sum.arrays()]
    configuration = tables.sum.configuration()
    total = widened_function(tables.sum.operator(), names, ["y"], second.rewrite(), kind, graph.opset, configuration)
    return partial, total


@dataclass
class ConvBody:
    """The nodes of one function, or of one convolution of it, which then reads ``given`` in place of ``x``."""

    work: ConvWork
    graph: Graph
    kind: int
    site: str = _SITE
    given: str | None = None
    nodes: OperatorNodes = field(init=False)

    def __post_init__(self) -> None:
        self.nodes = OperatorNodes(self.site, self.graph, TensorProto.FLOAT, None)

    def rewrite(self) -> Rewrite:
        """What has been built."""
        return Rewrite(_SITE, (), tuple(self.nodes.nodes), tuple(self.nodes.tables.values()))

    def channels(self) -> str:
        """The channels of y with their bias, before what is done with each."""
        work = self.work
        tensor, count, place = self._convolved(work.weights, work.bias)
        sums = work.sums
        filled = np.asarray(sums.any(axis=1))
        tensor = self._gathered(tensor, count, place[sums.argmax(axis=1)], "outputs")
        if filled.all():
            return tensor
        mask = self.nodes.table(self._by_channel(filled))
        return self.nodes.node("Where", [mask, tensor, self._constant(np.zeros(()))], "zeros")

    def partials(self, schedule: ConvSchedule, name: str) -> None:
        """The partial rows in the order of their slots: an output of a part from the part's inputs alone."""
        work, rows = self.work, []
        used = np.asarray(work.sums.any(axis=0))
        for part in schedule.parts:
            for output in part.outputs[used[part.outputs]].tolist():
                row = np.zeros_like(work.weights[output])
                row[part.inputs] = work.weights[output][part.inputs]
                rows.append(row)
        tensor, count, place = self._convolved(np.stack(rows), None)
        tensor = self._gathered(tensor, count, place, "slots")
        shape = self.nodes.table(np.array([-1, len(rows), prod(work.output_size)], np.int64))
        self.nodes.node("Reshape", [tensor, shape], "flat", name)

    def sums(self, tables: ConvTables) -> str:
        """The channels of y from the partial rows, with their bias."""
        assert tables.sum is not None
        begins, rows = tables.sum.sum_begin, tables.sum.sum_rows
        counts = np.zeros((len(begins) - 1, tables.kernel.slots))
        for channel, (begin, end) in enumerate(zip(begins[:-1].tolist(), begins[1:].tolist(), strict=True)):
            np.add.at(counts[channel], rows[begin:end], 1)
        tensor = self.nodes.node("MatMul", [self._constant(counts), "partial"], "sums")
        tensor = self.nodes.node("Add", [tensor, self._constant(tables.sum.b.reshape(-1, 1))], "bias")
        shape = self.nodes.table(np.array([-1, len(counts), *self.work.output_size], np.int64))
        return self.nodes.node("Reshape", [tensor, shape], "shape")

    def finished(self, tensor: str) -> None:
        """Make ``y`` of its channels: residual and activation."""
        if self.work.residual:
            tensor = self.nodes.node("Add", [tensor, self._operand(RESIDUAL)], "sum")
        tensor = self.activated(tensor)
        if self.work.layout == "last":
            self.nodes.node("Transpose", [tensor], "last", perm=to_last(len(self.work.size)))
        self.nodes.nodes[-1].output[0] = wide_name("y", self.kind)

    def activated(self, tensor: str) -> str:
        """A result behind its activation."""
        return self._activated(tensor, self.work.activation, "output")

    def _operand(self, name: str) -> str:
        """A tensor that the operator reads, in float32 with its channels first."""
        if self.given is not None and name == "x":
            return self.given
        tensor = wide_name(name, self.kind)
        if self.work.layout == "first":
            return tensor
        return self.nodes.node("Transpose", [tensor], f"{name}/first", perm=to_first(len(self.work.size)))

    def _convolved(self, weights: np.ndarray, bias: np.ndarray | None) -> tuple[str, int, IntArray]:
        """The convolution of some rows of weights, the number of its channels, and where among them each row is."""
        work = self.work
        layout = _smallest(weights)
        slots = layout.slots()
        tensor = self._gathered(self._operand("x"), work.channels, work.reads[slots], "inputs")
        if work.input_scales is not None and work.input_shifts is not None:
            tensor = self.nodes.node("Mul", [tensor, self._channel_values(work.input_scales[slots])], "input/scale")
            tensor = self.nodes.node("Add", [tensor, self._channel_values(work.input_shifts[slots])], "input/shift")
        tensor = self._activated(tensor, work.input_activation, "input")
        packed, packed_bias = packed_weights(weights, bias, layout)
        inputs = [tensor, self._constant(packed)]
        if packed_bias is not None:
            inputs.append(self._constant(packed_bias))
        geometry: dict[str, Any] = {"strides": work.strides, "dilations": work.dilations, "pads": work.pads}
        made = self.nodes.node("Conv", inputs, "convolution", group=layout.groups, **geometry)
        written = layout.outputs.reshape(-1)
        place = np.zeros(len(weights), np.int64)
        place[written[written >= 0]] = np.flatnonzero(written >= 0)
        return made, len(written), place

    def _gathered(self, tensor: str, channels: int, index: IntArray, label: str) -> str:
        """Some of a tensor's channels; the tensor itself where these are all of them in order."""
        if np.array_equal(index, np.arange(channels)):
            return tensor
        return self.nodes.node("Gather", [tensor, self.nodes.table(index.astype(np.int64))], label, axis=1)

    def _activated(self, tensor: str, kind: Activation, label: str) -> str:
        if kind == "none":
            return tensor
        if kind == "relu":
            return self.nodes.node("Relu", [tensor], f"{label}/relu")
        if kind == "silu":
            gate = self.nodes.node("Sigmoid", [tensor], f"{label}/gate")
        else:
            gate = self.nodes.node("HardSigmoid", [tensor], f"{label}/gate", alpha=1 / 6, beta=0.5)
        return self.nodes.node("Mul", [tensor, gate], f"{label}/{kind}")

    def _by_channel(self, values: np.ndarray) -> np.ndarray:
        return values.reshape(-1, *[1] * len(self.work.size))

    def _channel_values(self, values: np.ndarray) -> str:
        return self._constant(self._by_channel(values))

    def _constant(self, values: np.ndarray) -> str:
        return self.nodes.table(values.astype(np.float32))


def _smallest(weights: np.ndarray) -> Layout:
    """The grouping that computes the fewest connections."""
    links = (weights != 0).reshape(*weights.shape[:2], -1).any(axis=2)
    outputs, inputs = links.shape
    tail = ChannelPath("", "", outputs, np.arange(outputs), None, (), (), ())
    dense = Layout(np.arange(outputs)[None], np.arange(inputs)[None])
    return min([*layouts(links, np.arange(inputs), tail, limit=outputs), dense], key=lambda layout: layout.computed)
