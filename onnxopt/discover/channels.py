"""Where the channels of a tensor come from: a walk through movement and channelwise operations, traced by index.

The walk goes from a tensor back (or on) through single operators, and through a fork and its join (Split and Concat,
``x * sigmoid(x)``) in one go. What it collects is run on channel numbers, and the answer is one gather of channels
followed by channelwise operations: movement commutes with them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from onnx import NodeProto

from onnxopt.discover.channel_terms import BINARY, POOLS, UNARY, is_move, reorders
from onnxopt.discover.channel_trace import Barred, trace
from onnxopt.discover.conv_site import ChannelPath
from onnxopt.model.graph import Graph, attribute

# A fork joins again after a few operators; a longer search would only find residual connections.
_FORK_DEPTH = 24

Allowed = Callable[[NodeProto], bool]


@dataclass
class ChannelWalker:
    """Walks channel paths of one graph and remembers what it found out about single nodes."""

    graph: Graph
    _entries: dict[str, tuple[str, frozenset[int]] | None] = field(default_factory=dict)

    def back(self, tensor: str, allowed: Allowed | None = None) -> ChannelPath:
        """The longest path that ends in ``tensor``, through nodes that ``allowed`` admits."""
        barred: set[int] = set()
        while True:
            source, indices = tensor, set[int]()
            while True:
                step = self._entry(source)
                if step is None or any(i in barred for i in step[1]):
                    break
                if allowed is not None and not all(allowed(self.graph.nodes[i]) for i in step[1]):
                    break
                source, indices = step[0], indices | step[1]
            try:
                return trace(self.graph, source, tensor, [self.graph.nodes[i] for i in sorted(indices)])
            except Barred as stop:
                barred.add(self.graph.producer[stop.node.output[0]])

    def behind(self, tensor: str) -> Iterator[tuple[str, list[NodeProto]]]:
        """The tensors that are one after the other all that the rest of the graph sees of ``tensor``.

        With each the nodes that lead to it from the one before, in order; pooling is never passed.
        """
        reached = tensor
        while (step := self._exit(reached)) is not None:
            reached, indices = step
            yield reached, [self.graph.nodes[index] for index in sorted(indices)]

    def forward(self, tensor: str, *, beyond: bool = False) -> ChannelPath:
        """The path from ``tensor`` to where its channel movement ends, through tensors that nothing else reads.

        ``beyond`` goes on through channelwise operations, also where nothing moves; pooling is never passed.
        """
        spans: list[tuple[str, frozenset[int]]] = []
        reached = tensor
        while (step := self._exit(reached)) is not None:
            spans.append(step)
            reached = step[0]
        while spans:
            moved = [
                i for i, (_, nodes) in enumerate(spans) if any(reorders(self.graph, self.graph.nodes[n]) for n in nodes)
            ]
            end = len(spans) if beyond else max(moved, default=-1) + 1
            if end == 0:
                break
            indices = sorted(i for _, nodes in spans[:end] for i in nodes)
            try:
                return trace(self.graph, tensor, spans[end - 1][0], [self.graph.nodes[i] for i in indices])
            except Barred as stop:
                barred = self.graph.producer[stop.node.output[0]]
                spans = spans[: next(i for i, (_, nodes) in enumerate(spans) if barred in nodes)]
        return trace(self.graph, tensor, tensor, [])

    def _entry(self, tensor: str) -> tuple[str, frozenset[int]] | None:
        """The nearest tensor that alone decides ``tensor``, and the nodes between."""
        if tensor not in self._entries:
            self._entries[tensor] = None
            self._entries[tensor] = self._find_entry(tensor)
        return self._entries[tensor]

    def _find_entry(self, tensor: str) -> tuple[str, frozenset[int]] | None:
        index = self.graph.producer.get(tensor)
        if index is None or not _passable(self.graph, self.graph.nodes[index]):
            return None
        data = list(dict.fromkeys(self.graph.data_inputs(self.graph.nodes[index])))
        if len(data) == 1:
            return data[0], frozenset({index})
        ways = [self._ancestors(name) for name in data]
        common = next((name for name in ways[0] if all(name in way for way in ways[1:])), None)
        if common is None:
            return None
        return common, frozenset({index}).union(*(way[common] for way in ways))

    def _ancestors(self, tensor: str) -> dict[str, frozenset[int]]:
        """The tensors that ``tensor`` comes from alone, nearest first, with the nodes between."""
        result: dict[str, frozenset[int]] = {tensor: frozenset()}
        reached = tensor
        while len(result) < _FORK_DEPTH and (step := self._entry(reached)) is not None:
            result[step[0]] = result[reached] | step[1]
            reached = step[0]
        return result

    def _exit(self, tensor: str) -> tuple[str, frozenset[int]] | None:
        """The next tensor that is all that the rest of the graph sees of ``tensor``, and the nodes between."""
        if tensor in self.graph.outputs:
            return None
        inside: set[int] = set()
        frontier = {tensor}
        queue = sorted(self.graph.consumers.get(tensor, ()))
        while queue and len(inside) < _FORK_DEPTH:
            index = queue.pop(0)
            if index in inside:
                continue
            node = self.graph.nodes[index]
            if not _passable(self.graph, node) or node.op_type in POOLS:
                return None
            inside.add(index)
            frontier.update(name for name in node.output if name)
            open_ends = [n for n in frontier if any(i not in inside for i in self.graph.consumers.get(n, ()))]
            made = [name for name in node.output if name]
            closed = all(name in frontier for i in inside for name in self.graph.data_inputs(self.graph.nodes[i]))
            if len(made) == 1 and closed and set(open_ends) <= set(made):
                return made[0], frozenset(inside)
            if any(name in self.graph.outputs for name in made):
                return None
            queue = sorted(set(queue).union(*(self.graph.consumers.get(name, ()) for name in made)))
        return None


def _passable(graph: Graph, node: NodeProto) -> bool:
    if node.domain not in ("", "ai.onnx") or not graph.data_inputs(node):
        return False
    if is_move(graph, node):
        return True
    if node.op_type in BINARY:
        return True
    if any(graph.is_data(name) for name in node.input[1:]):
        return False
    if node.op_type in POOLS:
        return len(node.output) == 1
    if node.op_type == "BatchNormalization":
        return len(node.output) == 1 and not attribute(node, "training_mode", 0)
    return node.op_type in UNARY
