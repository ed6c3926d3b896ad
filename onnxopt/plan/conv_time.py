"""Predicting how long a convolution takes on a CPU, with the movement around it, as it is and as a plan writes it."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Literal

from onnx import NodeProto

from onnxopt.discover.channel_terms import UNARY
from onnxopt.discover.conv_site import ChannelPath, ConvSite, integer
from onnxopt.model.graph import Graph
from onnxopt.plan.conv_cost import ConvShape, conv_seconds, pass_seconds, transposed_seconds
from onnxopt.plan.conv_parts import Layout
from onnxopt.target.figures import CpuProfile

Form = Literal["direct", "transposed"]

_FREE = ("Dropout", "Flatten", "Identity", "Reshape", "Squeeze", "Unsqueeze")


@dataclass(frozen=True)
class ConvTimes:
    """Predictions for the convolutions of one graph, in seconds at the graph's batch size."""

    graph: Graph
    cpu: CpuProfile

    def original(self, site: ConvSite, lead: ChannelPath, tail: ChannelPath) -> float:
        """The site as it is, with the nodes of ``lead`` and ``tail``."""
        total = sum(self._node(node) for node in lead.nodes)
        plain_in = bool(lead.moves) or not self._made_in_blocks(lead.source)
        plain_out = bool(tail.moves) or len(site.parts) > 1 or not self._read_in_blocks(tail.target)
        for part in site.parts:
            outputs, width = part.live.shape
            shape = self.shape(site, part.groups, width, outputs // part.groups)
            total += conv_seconds(shape, self.cpu) + self._layout_changes(site, shape, plain_in, plain_out)
        if len(site.parts) > 1:
            total += pass_seconds(self._dims(site.output), self.cpu)
        moving = False
        for node in tail.nodes:
            # Operations right behind a convolution are fused into it by the runtime; behind a movement they are not.
            moving = moving or node.name in tail.moves
            total += self._node(node) if moving else 0.0
        return total

    def planned(
        self, site: ConvSite, lead: ChannelPath, tail: ChannelPath, layout: Layout, form: Form, behind: int
    ) -> float:
        """The site as ``layout`` writes it; ``behind`` counts operations that could be fused but for a Gather."""
        shape = self.shape(site, layout.groups, layout.inputs.shape[1], layout.outputs.shape[1])
        batch, _, *positions = self._dims(lead.source)
        gathers = layout.input_index(lead) is not None
        scatters = layout.output_order(tail) is not None
        gathered = (batch, layout.inputs.size, *positions)
        total = pass_seconds(gathered, self.cpu) * (gathers + len(lead.steps))
        if form == "direct":
            plain_in = gathers or not self._made_in_blocks(lead.source)
            plain_out = scatters or not self._read_in_blocks(tail.target)
            total += conv_seconds(shape, self.cpu) + self._layout_changes(site, shape, plain_in, plain_out)
        else:
            total += transposed_seconds(shape, self.cpu)
        return total + (pass_seconds(self._dims(tail.target), self.cpu) * (1 + behind) if scatters else 0.0)

    def shape(self, site: ConvSite, groups: int, inputs: int, outputs: int) -> ConvShape:
        """The size of a convolution over the site's positions, of so many inputs and outputs a group."""
        batch, _, *positions = self._dims(site.output)
        return ConvShape(groups, inputs, outputs, prod(site.kernel), batch * prod(positions), positions[-1])

    def _node(self, node: NodeProto) -> float:
        if node.op_type in _FREE:
            return self.cpu.node_seconds
        dims = self._dims(node.output[0])
        seconds = pass_seconds(dims, self.cpu)
        if node.op_type in ("MatMul", "Einsum") and len(node.input) > 1:
            seconds += prod(dims) * max(self._dims(node.input[1])[-2:]) * 2 / self.cpu.fp32_flops
        return seconds

    def _layout_changes(self, site: ConvSite, shape: ConvShape, plain_in: bool, plain_out: bool) -> float:
        """Passes that bring data into the layout that the convolution or what is around it works in."""
        batch, _, *before = self._dims(site.input)
        _, _, *behind = self._dims(site.output)
        seconds = 0.0
        if plain_in == shape.blocked:
            seconds += pass_seconds((batch, shape.groups * shape.group_inputs, *before), self.cpu)
        if plain_out == shape.blocked:
            seconds += pass_seconds((batch, shape.groups * shape.group_outputs, *behind), self.cpu)
        return seconds

    def _made_in_blocks(self, tensor: str) -> bool:
        """Whether a tensor comes from a convolution that runs in blocks, through operations that keep the layout."""
        node = self.graph.node_of(tensor)
        while node is not None and node.op_type in UNARY | {"BatchNormalization", "MaxPool", "AveragePool"}:
            node = self.graph.node_of(node.input[0])
        return node is not None and self._runs_in_blocks(node)

    def _read_in_blocks(self, tensor: str) -> bool:
        """Whether all that reads a tensor are convolutions that run in blocks, through channelwise operations."""
        readers = self.graph.readers(tensor)
        while len(readers) == 1 and readers[0].op_type in UNARY | {"BatchNormalization"}:
            readers = self.graph.readers(readers[0].output[0])
        return bool(readers) and all(self._runs_in_blocks(node) for node in readers)

    def _runs_in_blocks(self, node: NodeProto) -> bool:
        weight = self.graph.shape(node.input[1]) if node.op_type == "Conv" else None
        groups = integer(node, "group", 1)
        return weight is not None and ConvShape(groups, weight[1], weight[0] // groups, 1, 1, 1).blocked

    def _dims(self, name: str) -> tuple[int, ...]:
        return self.graph.shape(name) or (1, 1, 1)
