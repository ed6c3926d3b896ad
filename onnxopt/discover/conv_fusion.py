"""What around a convolution its kernel computes too: channel movement, normalisation, activation, a residual.

Behind the convolution: scales and shifts, which become part of weights and bias, channel movement, the sum with a
tensor of the same shape, one activation. In front of it: a gather of channels, a scale and a shift of each, one
activation. A tensor that something else reads, or that the model gives, ends both.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field, replace

import numpy as np
from onnx import NodeProto

from onnxopt.discover.channel_function import Activation, ChannelFunction, Floats, channel_function
from onnxopt.discover.channel_terms import POOLS, is_move
from onnxopt.discover.channel_trace import Barred, trace
from onnxopt.discover.channels import ChannelWalker
from onnxopt.discover.conv_site import ChannelPath, ConvSite, joined_paths
from onnxopt.discover.refusal import NotASite
from onnxopt.model.graph import Graph


@dataclass(frozen=True, eq=False)
class ConvFusion:
    """A convolution with what its kernel computes beside it, from ``lead.source`` to ``target``.

    ``input_function`` is by input of the convolution, ``scales`` and ``shifts`` are by output of it. ``nodes`` are all
    that is fused, without the convolution itself.
    """

    lead: ChannelPath
    input_function: ChannelFunction
    tail: ChannelPath
    scales: Floats
    shifts: Floats
    residual: str | None
    activation: Activation
    target: str
    nodes: tuple[NodeProto, ...]

    @property
    def inputs(self) -> tuple[str, ...]:
        """The tensors that the fused part reads."""
        own = (self.lead.source,)
        return own if self.residual in (None, *own) else (*own, str(self.residual))


@dataclass(frozen=True, eq=False)
class _Behind:
    tail: ChannelPath
    scales: Floats
    shifts: Floats
    activation: Activation
    residual: str | None
    target: str
    nodes: tuple[NodeProto, ...]


@dataclass
class ConvFusions:
    """Fuses the convolutions of one graph one after the other: a node belongs to the first that takes it.

    ``borders`` are tensors that others rewrite from or to; nothing is fused across them.
    """

    graph: Graph
    borders: frozenset[str] = frozenset()
    _taken: set[str] = field(default_factory=set)
    _made: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self._walker = ChannelWalker(self.graph)

    def fusion(self, site: ConvSite) -> ConvFusion | None:
        """What can be fused with a convolution; None where its inputs cannot be read in one place."""
        found = self._lead(site)
        if found is None:
            return None
        lead, function = found
        behind = self._behind(site)
        return ConvFusion(
            lead=lead,
            input_function=function,
            tail=behind.tail,
            scales=behind.scales,
            shifts=behind.shifts,
            residual=behind.residual,
            activation=behind.activation,
            target=behind.target,
            nodes=(*lead.nodes, *behind.nodes),
        )

    def take(self, fusion: ConvFusion) -> None:
        """Keep the nodes of a fusion from all later ones."""
        self._taken.update(node.output[0] for node in fusion.nodes)
        self._made.add(fusion.target)

    def _free(self, node: NodeProto) -> bool:
        return node.output[0] not in self._taken

    def _behind(self, site: ConvSite) -> _Behind:
        count = site.out_channels
        none = trace(self.graph, site.output, site.output, [])
        best = _Behind(none, np.ones(count), np.zeros(count), "none", None, site.output, ())
        for path, function in self._stretches(site.output):
            by_output = _by_output(path, function, count)
            if by_output is not None:
                best = _Behind(path, *by_output, function.activation, None, path.target, path.nodes)
                break
        return self._with_residual(best) if best.activation == "none" else best

    def _stretches(self, tensor: str) -> list[tuple[ChannelPath, ChannelFunction]]:
        """The paths from ``tensor`` through what it alone decides that have a function, the longest first."""
        result: list[tuple[ChannelPath, ChannelFunction]] = []
        nodes: list[NodeProto] = []
        if tensor in self.borders:
            return result
        for reached, own in self._walker.behind(tensor):
            inside = {name for node in own for name in node.output} - {reached}
            if not all(map(self._free, own)) or inside & self.borders:
                break
            nodes = self.graph.ordered([*nodes, *own])
            # Halfway through a movement channels and positions are mixed.
            with suppress(Barred, NotASite):
                path = trace(self.graph, tensor, reached, nodes)
                function = channel_function(self.graph, path)
                if function is not None:
                    result.append((path, function))
            if reached in self.borders:
                break
        return result[::-1]

    def _with_residual(self, behind: _Behind) -> _Behind:
        """With the sum of the result and another tensor of its shape and type, and an activation behind that."""
        graph, tensor = self.graph, behind.target
        readers = graph.readers(tensor)
        if tensor in graph.outputs or tensor in self.borders or len(readers) != 1:
            return behind
        add = readers[0]
        others = [name for name in add.input if name != tensor]
        if add.op_type != "Add" or add.domain not in ("", "ai.onnx") or len(others) != 1 or not self._free(add):
            return behind
        other = others[0]
        alike = graph.shape(other) == graph.shape(tensor) == graph.shape(add.output[0])
        if not alike or not graph.is_data(other) or graph.element_type(other) != graph.element_type(tensor):
            return behind
        summed = replace(behind, residual=other, target=add.output[0], nodes=(*behind.nodes, add))
        for path, function in self._stretches(summed.target):
            if not path.moves and path.is_identity and function.is_linear_identity:
                nodes = (*summed.nodes, *path.nodes)
                return replace(summed, activation=function.activation, target=path.target, nodes=nodes)
        return summed

    def _lead(self, site: ConvSite) -> tuple[ChannelPath, ChannelFunction] | None:
        """The longest path in front of a convolution that is a gather with a function, and that only it reads."""
        if len(site.parts) > 1:
            return self._joined_lead(site)
        barred: set[str] = set()
        while True:
            path = self._walker.back(site.input, lambda node: self._passable(node) and node.output[0] not in barred)
            culprit = self._culprit(path, site)
            function = channel_function(self.graph, path) if culprit is None else None
            if function is not None:
                return path, function
            # Without any node there is a function: the identity.
            barred.update((culprit or path.nodes[0]).output)

    def _joined_lead(self, site: ConvSite) -> tuple[ChannelPath, ChannelFunction] | None:
        """The movement in front of several nodes that are one convolution; it may be read elsewhere too."""
        paths = [self._walker.back(part.node.input[0], lambda node: is_move(self.graph, node)) for part in site.parts]
        joint = joined_paths(paths, site.input)
        if joint is None or bool((joint.origin < 0).any()):
            return None
        count = len(joint.origin)
        return joint, ChannelFunction(np.ones(count), np.zeros(count), "none")

    def _passable(self, node: NodeProto) -> bool:
        shown = any(name in self.graph.outputs or name in self.borders for name in node.output)
        return self._free(node) and not shown and node.op_type not in POOLS

    def _culprit(self, path: ChannelPath, site: ConvSite) -> NodeProto | None:
        """A node that the path must not have: something else reads it, it is fused in front, or it is no gather."""
        inside = {node.output[0] for node in (*path.nodes, site.node)}
        for node in reversed(path.nodes):
            readers = [reader for name in node.output for reader in self.graph.readers(name)]
            if any(reader.output[0] not in inside for reader in readers):
                return node
        if not path.nodes:
            return None
        if path.mix is not None or bool((path.origin < 0).any()):
            return path.nodes[-1]
        first = path.nodes[0]
        # Whoever computes the source applies such an operation to it for nothing, before anything moves.
        return first if not is_move(self.graph, first) and self._applies(path) else None

    def _applies(self, path: ChannelPath) -> bool:
        """Whether an engine fuses channelwise operations into what makes a path's source, which only the path reads."""
        inside = {node.output[0] for node in path.nodes}
        node = self.graph.node_of(path.source)
        shared = any(reader.output[0] not in inside for reader in self.graph.readers(path.source))
        if node is None or shared or path.source in self._made:
            return False
        return not is_move(self.graph, node) and node.op_type not in POOLS


def _by_output(path: ChannelPath, function: ChannelFunction, outputs: int) -> tuple[Floats, Floats] | None:
    """Scales and shifts by output of the convolution; None where channels that come from one differ in them."""
    if function.is_linear_identity:
        return np.ones(outputs), np.zeros(outputs)
    if path.mix is not None:
        return None
    scales, shifts = np.ones(outputs), np.zeros(outputs)
    moved = path.origin >= 0
    origin = path.origin[moved]
    scales[origin], shifts[origin] = function.scales[moved], function.shifts[moved]
    same = np.array_equal(scales[origin], function.scales[moved]) and np.array_equal(
        shifts[origin], function.shifts[moved]
    )
    # A channel of zeros is no output whose bias could be shifted.
    return (scales, shifts) if same and not function.shifts[~moved].any() else None
