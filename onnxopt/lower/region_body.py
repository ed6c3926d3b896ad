"""The body of an operator whose keys have run-time weights: the part of the model that it takes the place of.

Such a part is copied node by node, from the tensors that the site reads to the one that it makes, under names of its
own. It computes in the types that the model has there; the operator's inputs are cast to them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx import AttributeProto, NodeProto, TensorProto, helper, numpy_helper

from onnxopt.discover.attention_site import AttentionSite
from onnxopt.errors import InputError
from onnxopt.lower.plugin_nodes import WEIGHT
from onnxopt.lower.rewrite import NODE_PREFIX
from onnxopt.model.graph import Graph, symbolic_batch

_PREFIX = "region/"
_DEFAULT_DOMAIN = ("", "ai.onnx")


class NoBody(InputError):  # noqa: N818  # a reason to keep a site rather than a fault
    """A part of a model that no function can hold; the message is the reason for keeping the site as it is."""


def read_by(site: AttentionSite) -> dict[str, str]:
    """The tensors that a site reads, each with the operand by which its body reads it.

    Raises :class:`NoBody` where the vectors of an operand stand in several tensors.
    """
    found: dict[str, str] = {}
    for operand in "qkv":
        sources = getattr(site, operand).sources
        if len(sources) > 1:
            raise NoBody(f"the vectors of {operand} stand in {len(sources)} tensors")
        found.setdefault(sources[0].tensor, operand)
    if site.weights is not None:
        found.setdefault(site.weights.tensor, WEIGHT)
    return found


def check_same_reading(first: AttentionSite, second: AttentionSite) -> None:
    """Raise :class:`NoBody` where the body of one site reads by one operand what the other site has in several."""
    read_by(second)
    own, wanted, given = read_by(first), _tensors(first), _tensors(second)
    for operand in wanted:
        by = own[wanted[operand]]
        if given[operand] != given[by]:
            raise NoBody(f"another site has the same operator, and reads {by} and {operand} from one tensor")


def _tensors(site: AttentionSite) -> dict[str, str]:
    found = {operand: getattr(site, operand).sources[0].tensor for operand in "qkv"}
    return found if site.weights is None else {**found, WEIGHT: site.weights.tensor}


def region_nodes(site: AttentionSite, graph: Graph, kind: int) -> list[NodeProto]:
    """Nodes that make ``y`` of the operator's operands ``q``, ``k``, ``v`` (of the ONNX type ``kind``) and ``weight``.

    Raises :class:`NoBody` with the reason where a function cannot hold them.
    """
    return _Region(site, graph, kind).nodes()


class _Region:
    def __init__(self, site: AttentionSite, graph: Graph, kind: int) -> None:
        self.site, self.graph, self.kind = site, graph, kind
        self.boundary = read_by(site)
        self.stored = {tensor.name: tensor for tensor in graph.model.graph.initializer}
        self.made: list[NodeProto] = []

    def nodes(self) -> list[NodeProto]:
        """All nodes of the function, in order."""
        nodes, sizes, constants = self._walk()
        for tensor, operand in self.boundary.items():
            self._enter(tensor, operand)
        for name in constants:
            self._constant(name, self.stored[name])
        inside = [*self.boundary, *(name for node in nodes for name in node.output)]
        whole = [node for node in sizes if node.input[0] in inside and symbolic_batch(self.graph.model)]
        for node in sizes:
            if node not in whole:
                self._known_size(node)
        self.made += [_renamed(node, number) for number, node in enumerate(self.graph.ordered([*nodes, *whole]))]
        self._leave()
        return self.made

    def _walk(self) -> tuple[list[NodeProto], list[NodeProto], list[str]]:
        """What the output needs: nodes, those that ask for a size, and names of stored tensors."""
        nodes: dict[str, NodeProto] = {}
        sizes: dict[str, NodeProto] = {}
        constants: dict[str, None] = {}
        seen, stack = set(self.boundary), [self.site.output]
        while stack:
            name = stack.pop()
            if name in seen or not name:
                continue
            seen.add(name)
            node = self.graph.node_of(name)
            if node is None and name not in self.stored:
                raise NoBody(f"it needs {name!r} of the model as well")
            if node is None:
                constants[name] = None
                continue
            _check(node)
            if node.op_type in ("Shape", "Size"):
                sizes[node.output[0]] = node
                continue
            nodes[node.output[0]] = node
            seen.update(node.output)
            stack += node.input
        return list(nodes.values()), list(sizes.values()), sorted(constants)

    def _enter(self, tensor: str, operand: str) -> None:
        """A tensor of the model as the operator's operand has it: its type and its shape."""
        kind, shape = self.graph.element_type(tensor), self.graph.shape(tensor)
        if shape is None or not shape or shape[0] % self.site.batch:
            raise NoBody(f"the first axis of {tensor!r} does not run over the batch")
        name, current = operand, TensorProto.FLOAT if operand == WEIGHT else self.kind
        if operand == WEIGHT and self.site.weights is not None and self.site.weights.inverted:
            name = self._add("Not", self._add("Cast", name, to=TensorProto.BOOL))
            current = TensorProto.BOOL
        if current != kind:
            name = self._add("Cast", name, to=kind)
        sizes = [-1 if symbolic_batch(self.graph.model) else shape[0], *shape[1:]]
        self._add("Reshape", name, self._numbers(sizes), output=_PREFIX + tensor)

    def _leave(self) -> None:
        output = self.site.output
        if self.graph.element_type(output) == self.kind:
            self._add("Identity", _PREFIX + output, output="y")
        else:
            self._add("Cast", _PREFIX + output, output="y", to=self.kind)

    def _known_size(self, node: NodeProto) -> None:
        """The size of a tensor whose shape is known, or that of a tensor outside, which only the batch may change."""
        name, value = node.output[0], self.graph.constant(node.output[0])
        if value is None:
            raise NoBody(f"it asks for the size of {node.input[0]!r}, which is not known")
        if not symbolic_batch(self.graph.model):
            self._constant(name, numpy_helper.from_array(value))
            return
        first = next(iter(self.boundary))
        shape = self.graph.shape(node.input[0])
        known = self.graph.shape(first) or (0,)
        if node.op_type != "Shape" or node.attribute or not shape or not shape[0] == known[0] == self.graph.batch:
            raise NoBody(f"it asks for the size of {node.input[0]!r}, which lies outside of it")
        whole = self._add("Shape", _PREFIX + first)
        batch = self._add("Gather", whole, self._numbers([0]), axis=0)
        self._add("Concat", batch, self._numbers(value[1:]), output=_PREFIX + name, axis=0)

    def _numbers(self, values: np.ndarray | list[int]) -> str:
        name = f"own/{len(self.made)}"
        self.made.append(
            helper.make_node("Constant", [], [name], value=numpy_helper.from_array(np.array(values, np.int64)))
        )
        return name

    def _constant(self, name: str, value: TensorProto) -> None:
        copy = TensorProto()
        copy.CopyFrom(value)
        copy.name = _PREFIX + name
        self.made.append(helper.make_node("Constant", [], [copy.name], value=copy))

    def _add(self, operator: str, *inputs: str, output: str = "", **attributes: Any) -> str:
        name = output or f"own/{len(self.made)}"
        self.made.append(helper.make_node(operator, list(inputs), [name], **attributes))
        return name


def _check(node: NodeProto) -> None:
    label = f"{node.name or node.output[0]!r} ({node.op_type})"
    if node.domain not in _DEFAULT_DOMAIN:
        raise NoBody(f"its node {label} is of the domain {node.domain!r}")
    if any(a.type in (AttributeProto.GRAPH, AttributeProto.GRAPHS) for a in node.attribute):
        raise NoBody(f"its node {label} has a graph of its own")


def _renamed(node: NodeProto, number: int) -> NodeProto:
    copy = NodeProto()
    copy.CopyFrom(node)
    copy.name = f"{NODE_PREFIX}body/{_PREFIX}{number}"
    for names in (copy.input, copy.output):
        for place, name in enumerate(names):
            names[place] = _PREFIX + name if name else ""
    return copy
