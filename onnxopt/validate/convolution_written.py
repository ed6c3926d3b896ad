"""Reading the written form of a convolution: a gather, channelwise operations, one convolution, and the same behind."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from onnx import NodeProto, numpy_helper

from onnxopt.discover.conv_site import ChannelPath
from onnxopt.lower.rewrite import Rewrite
from onnxopt.model.graph import Graph, attribute
from onnxopt.validate.failure import PlanError


@dataclass(frozen=True, eq=False)
class Channels:
    """Channels of a written tensor: where each comes from, and the constants of the operations on it.

    ``constants`` has one array a constant that differs by channel, channels x values, in the order of the operations.
    """

    origin: np.ndarray
    constants: tuple[np.ndarray, ...] = ()


@dataclass(frozen=True, eq=False)
class WrittenConvolution:
    """``inputs`` are the slots that the convolution reads, in its order, ``place`` says for each channel of the target
    which output of it that is, and ``behind`` are the operations on the target's channels; ``node`` is the convolution.
    """

    inputs: Channels
    node: NodeProto
    weight: np.ndarray
    bias: np.ndarray | None
    place: np.ndarray
    behind: Channels


def read_convolution(rewrite: Rewrite, lead: ChannelPath, tail: ChannelPath, graph: Graph) -> WrittenConvolution:
    """What the nodes do, checking that their operations are those of the paths. Raises :class:`PlanError`."""
    reader = _Reader(rewrite, graph, {t.name: numpy_helper.to_array(t) for t in rewrite.tables})
    tensor, index = reader.gather(lead.source, lead.source_channels)
    inputs = np.arange(lead.source_channels) if index is None else index
    tensor, constants = reader.operations(lead, tensor, len(inputs))
    node = reader.take("a convolution", lambda n: n.op_type in ("Conv", "ConvTranspose"))
    reader.need(node.input[0] == tensor, node, f"it reads {node.input[0]!r}, expected {tensor!r}")
    weight = reader.table(node, 1)
    bias = reader.table(node, 2) if len(node.input) > 2 else None
    outputs = _outputs(node, weight)
    before = bool(tail.steps) and reader.next_kind() != "Gather"
    tensor, early = reader.operations(tail, node.output[0], outputs) if before else (node.output[0], ())
    tensor, order = reader.gather(tensor, outputs)
    place = np.arange(outputs) if order is None else order
    tensor, late = (tensor, tuple(c[place] for c in early)) if before else reader.operations(tail, tensor, len(place))
    reader.finish(tensor, tail.target)
    return WrittenConvolution(Channels(inputs, constants), node, weight, bias, place, Channels(place, late))


def path_constants(path: ChannelPath) -> tuple[np.ndarray, ...]:
    """The constants that differ by channel along a path, for each channel of its target."""
    tables = [(step, step.tables[position]) for step in path.steps for position in sorted(step.tables)]
    return tuple(table[step.rows].reshape(len(step.rows), -1) for step, table in tables)


def _outputs(node: NodeProto, weight: np.ndarray) -> int:
    group = attribute(node, "group", 1)
    assert isinstance(group, int)
    return int(weight.shape[0] if node.op_type == "Conv" else weight.shape[1] * group)


@dataclass
class _Reader:
    rewrite: Rewrite
    graph: Graph
    tables: dict[str, np.ndarray]
    done: int = field(default=0)

    def need(self, holds: bool, node: NodeProto, what: str) -> None:
        if not holds:
            raise PlanError(f"{self.rewrite.site}: node {node.name!r} ({node.op_type}): {what}")

    def next_kind(self) -> str:
        nodes = self.rewrite.nodes
        return nodes[self.done].op_type if self.done < len(nodes) else ""

    def take(self, what: str, fits: Callable[[NodeProto], bool]) -> NodeProto:
        nodes = self.rewrite.nodes
        if self.done >= len(nodes):
            raise PlanError(f"{self.rewrite.site}: its nodes end where {what} was expected")
        node = nodes[self.done]
        self.done += 1
        self.need(node.domain == "" and fits(node), node, f"expected {what}")
        self.need(len(node.output) == 1, node, f"it makes {list(node.output)}")
        return node

    def table(self, node: NodeProto, position: int) -> np.ndarray:
        name = node.input[position] if position < len(node.input) else ""
        self.need(name in self.tables, node, f"there is no table {name!r}")
        return self.tables[name]

    def gather(self, tensor: str, channels: int) -> tuple[str, np.ndarray | None]:
        """The tensor behind a Gather along the channels and its indices, if that is the next node."""
        if self.next_kind() != "Gather":
            return tensor, None
        node = self.take("a Gather", lambda n: n.op_type == "Gather")
        index = self.table(node, 1)
        self.need(node.input[0] == tensor, node, f"it reads {node.input[0]!r}, expected {tensor!r}")
        along = attribute(node, "axis", 0) == 1 and index.ndim == 1 and index.dtype == np.int64
        self.need(along, node, "it does not take channels")
        wrong = index[(index < 0) | (index >= channels)]
        if wrong.size:
            self.need(False, node, f"index {wrong[0]} points at nothing: there are {channels} channels")
        return node.output[0], index

    def operations(self, path: ChannelPath, tensor: str, channels: int) -> tuple[str, tuple[np.ndarray, ...]]:
        """The tensor behind the path's operations, and their constants as written for each of ``channels``."""
        held = {path.source: tensor}
        steps = {step.node.output[0]: step for step in path.steps}
        constants: list[np.ndarray] = []
        for node in path.nodes:
            step = steps.get(node.output[0])
            if step is None:
                moved = {held[name] for name in node.input if name in held}
                self.need(len(moved) == 1, node, f"it moves the results of different operations: {sorted(moved)}")
                held.update(dict.fromkeys(node.output, moved.pop()))
                continue
            written = self.take(f"{node.op_type}, as {node.name!r} is", _like(node))
            self.need(len(written.input) == len(node.input), written, f"it has other inputs than {node.name!r}")
            for position, name in enumerate(node.input):
                if position in step.tables and name not in held:
                    constants.append(self._by_channel(written, position, channels, node))
                else:
                    found, expected = written.input[position], held.get(name, name)
                    self.need(found == expected, written, f"it reads {found!r}, expected {expected!r}")
            held[node.output[0]] = written.output[0]
        return held.get(path.target, tensor), tuple(constants)

    def _by_channel(self, written: NodeProto, position: int, channels: int, original: NodeProto) -> np.ndarray:
        values = self.table(written, position)
        rank = len(self.graph.shape(original.output[0]) or ())
        shape = (channels,) if original.op_type == "BatchNormalization" else (channels, *[1] * (rank - 2))
        self.need(values.shape == shape, written, f"input {position} has the shape {values.shape}, expected {shape}")
        return values.reshape(channels, -1)

    def finish(self, tensor: str, target: str) -> None:
        rewrite = self.rewrite
        if self.done < len(rewrite.nodes):
            self.need(False, rewrite.nodes[self.done], "no more nodes were expected")
        if tensor != target or rewrite.replaces != (target,):
            raise PlanError(f"{rewrite.site}: {tensor!r} replaces {list(rewrite.replaces)}, expected {target!r}")


def _like(node: NodeProto) -> Callable[[NodeProto], bool]:
    """Whether another node has the same operator and attributes."""

    def fits(other: NodeProto) -> bool:
        return other.op_type == node.op_type and _attributes(other) == _attributes(node)

    return fits


def _attributes(node: NodeProto) -> Sequence[bytes]:
    return sorted(item.SerializeToString(deterministic=True) for item in node.attribute)
