"""What discovery says about a convolution: which channels it connects, and how channels move before and after it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto

from onnxopt.model.graph import attribute

IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]
Pattern = Literal["grouped", "pruned", "gathered", "split", "depthwise", "dense"]


def integer(node: NodeProto, name: str, default: int) -> int:
    """The value of an integer attribute."""
    value = attribute(node, name, default)
    return value if isinstance(value, int) else default


@dataclass(frozen=True, eq=False)
class Step:
    """A channelwise operation on a path, ready to be written behind the movement instead of between it.

    ``rows[c]`` says which row of each table the path's target channel ``c`` uses. ``tables`` gives, by input position,
    the constants that differ by channel; constants that all channels share are not in it.
    """

    node: NodeProto
    rows: IntArray
    tables: Mapping[int, NDArray[Any]]


@dataclass(frozen=True, eq=False)
class ChannelPath:
    """How the channels of ``target`` come from those of ``source``, through movement and channelwise operations.

    Target channel c is ``steps`` applied to source channel ``origin[c]``, or to zero where that is -1. Where the path
    adds channels up, ``mix`` (target x source channels) counts how often each is added, and ``origin`` is -1 for every
    sum. ``moves`` and ``nodes`` are the names of the movement nodes and of all nodes, in topological order.
    """

    source: str
    target: str
    source_channels: int
    origin: IntArray
    mix: IntArray | None
    steps: tuple[Step, ...]
    nodes: tuple[NodeProto, ...]
    moves: tuple[str, ...]

    @property
    def is_identity(self) -> bool:
        """Whether every channel stays where it is."""
        return self.mix is None and np.array_equal(self.origin, np.arange(self.source_channels))

    @property
    def is_permutation(self) -> bool:
        """Whether every source channel arrives exactly once."""
        return self.mix is None and np.array_equal(np.sort(self.origin), np.arange(self.source_channels))

    def matrix(self) -> IntArray:
        """Target x source channels: how often each source channel is added into each target channel."""
        if self.mix is not None:
            return self.mix
        result = np.zeros((len(self.origin), self.source_channels), np.int64)
        moved = np.flatnonzero(self.origin >= 0)
        result[moved, self.origin[moved]] = 1
        return result


@dataclass(frozen=True, eq=False)
class ConvPart:
    """One Conv node of a site: it makes the site's output channels from ``first_output`` on."""

    node: NodeProto
    first_output: int
    first_input: int
    live: BoolArray
    """Output channels x inputs of a group: whether any weight of the slice is not zero."""
    groups: int


@dataclass(frozen=True, eq=False)
class ConvSite:
    """One convolution: usually a Conv node; several on the parts of a split tensor count as one.

    ``before`` leads from the tensor in which its channels were made to its input, ``after`` from its output to where
    the channel movement behind it ends. ``in_channels`` and ``out_channels`` are those of the convolution itself.
    """

    parts: tuple[ConvPart, ...]
    input: str
    output: str
    in_channels: int
    out_channels: int
    kernel: tuple[int, ...]
    groups: int
    pattern: Pattern
    before: ChannelPath
    after: ChannelPath

    @property
    def node(self) -> NodeProto:
        """The (first) Conv node."""
        return self.parts[0].node

    @property
    def nodes(self) -> tuple[str, ...]:
        """The names of the site's Conv nodes."""
        return tuple(part.node.name for part in self.parts)

    @property
    def movement(self) -> tuple[str, ...]:
        """The names of the nodes that move its channels, before and after it."""
        return self.before.moves + self.after.moves

    @property
    def inputs(self) -> tuple[str, ...]:
        """The tensors that the site, with its movement, starts from."""
        return (self.before.source,)

    @property
    def outputs(self) -> tuple[str, ...]:
        """The tensors that the site, with its movement, makes."""
        return (self.after.target,)

    @property
    def connections(self) -> int:
        """Live (output channel, input channel) pairs of the convolution itself."""
        return sum(int(part.live.sum()) for part in self.parts)

    @property
    def density(self) -> float:
        """Live pairs over all pairs of the convolution's output and input channels."""
        return self.connections / (self.out_channels * self.in_channels)

    def links(self) -> BoolArray:
        """The convolution's own connectivity, output x input channels."""
        result = np.zeros((self.out_channels, self.in_channels), bool)
        for part in self.parts:
            outputs, width = part.live.shape
            begin = part.first_input + np.arange(outputs) // (outputs // part.groups) * width
            rows = part.first_output + np.arange(outputs)
            result[rows[:, None], begin[:, None] + np.arange(width)] = part.live
        return result

    def connectivity(self) -> IntArray:
        """Channels of the site's output x channels of its input: how many ways lead from one to the other."""
        # In float64, which counts exactly here, and which BLAS multiplies.
        links = self.links().astype(np.float64)
        if not self.before.is_identity:
            links = links @ self.before.matrix()
        links = links if self.after.is_identity else self.after.matrix() @ links
        return links.astype(np.int64)

    def to_json(self) -> dict[str, Any]:
        """The discovered fields of an entry of ``sites`` in ``onnxopt.inspect/1``."""
        return {
            "kind": "conv",
            "nodes": list(self.nodes),
            "out_channels": self.out_channels,
            "in_channels": self.in_channels,
            "connections": self.connections,
            "density": round(self.density, 6),
            "kernel": list(self.kernel),
            "groups": self.groups,
            "pattern": self.pattern,
        }


def joined_paths(paths: Sequence[ChannelPath], target: str) -> ChannelPath | None:
    """One path for the channels of several, in order, or None where they differ in more than their channels."""
    first = paths[0]
    kinds = [tuple(step.node.output[0] for step in path.steps) for path in paths]
    if any(path.source != first.source or path.mix is not None for path in paths) or len(set(kinds)) > 1:
        return None
    steps = tuple(
        Step(step.node, np.concatenate([path.steps[i].rows for path in paths]), step.tables)
        for i, step in enumerate(first.steps)
    )
    nodes = {node.output[0]: node for path in paths for node in path.nodes}
    moves = dict.fromkeys(name for path in paths for name in path.moves)
    origin = np.concatenate([path.origin for path in paths])
    return ChannelPath(
        first.source, target, first.source_channels, origin, None, steps, tuple(nodes.values()), tuple(moves)
    )
