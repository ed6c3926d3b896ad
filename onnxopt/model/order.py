"""The order of a model's nodes: every tensor made once, before it is read, and no cycles."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

import onnx
from onnx import FunctionProto, GraphProto, NodeProto

from onnxopt.errors import InputError
from onnxopt.model.tensors import node_label

if TYPE_CHECKING:
    from google.protobuf.internal.containers import RepeatedCompositeFieldContainer

    Nodes = RepeatedCompositeFieldContainer[NodeProto]

_FunctionKey = tuple[str, str, str]


def check_and_sort(model: onnx.ModelProto) -> None:
    """Puts nodes that stand before their inputs into a valid order; an order that is valid stays as it is.

    Raises InputError where a tensor is made twice or by nobody, and for a cycle, naming nodes.
    """
    for function in model.functions:
        where = f" in function {function.name!r}"
        _refuse_unmade(_sort(function.node, set(function.input), function.output, where), where)
    _refuse_recursion(model.functions)
    _refuse_unmade(_sort_graph(model.graph, ""), "")


def _refuse_unmade(readers: dict[str, str], where: str) -> None:
    for name, reader in readers.items():
        raise InputError(
            f"{reader} needs the tensor {name!r}{where}, which no node, input or initializer makes; "
            "the file is damaged or incomplete: export the model again"
        )


def _sort_graph(graph: GraphProto, where: str) -> dict[str, str]:
    """Sorts one graph and those inside it; returns what it reads from outside, with the reader of each.

    Recursive, but no deeper than the protobuf parser lets graphs be nested, which is a few dozen levels.
    """
    given = [value.name for value in graph.input]
    stored = [tensor.name for tensor in graph.initializer]
    stored += [sparse.values.name for sparse in graph.sparse_initializer]
    for names, kind in ((given, "inputs"), (stored, "initializers")):
        if len(set(names)) != len(names):
            twice = Counter(names).most_common(1)[0][0]
            raise InputError(f"two {kind} have the name {twice!r}{where}; names must be unique: export the model again")
    return _sort(graph.node, {*given, *stored}, [value.name for value in graph.output], where)


def _sort(nodes: Nodes, made: set[str], outputs: Iterable[str], where: str) -> dict[str, str]:
    """Sorts the nodes of one scope in which `made` exists already; returns what is read from outside."""
    maker = _makers(nodes, made, where)
    outside: dict[str, str] = {}
    before: list[list[int]] = []
    for node in nodes:
        reads = _reads(node)
        before.append([maker[name] for name in reads if name in maker])
        for name, reader in reads.items():
            if name not in maker and name not in made:
                outside.setdefault(name, reader)
    for name in outputs:
        if name not in maker and name not in made:
            outside.setdefault(name, f"the list of outputs{where}")
    order = _order(before)
    if len(order) < len(before):
        cycle = [node_label(nodes[index]) for index in _cycle(before, set(order))]
        raise InputError(f"the graph has a cycle{where}: {_chain(cycle)}; export the model again")
    _rearrange(nodes, order)
    return outside


def _makers(nodes: Nodes, made: set[str], where: str) -> dict[str, int]:
    """Which node makes each tensor; InputError where one is made twice."""
    maker: dict[str, int] = {}
    for index, node in enumerate(nodes):
        for name in filter(None, node.output):
            if name in made or name in maker:
                other = node_label(nodes[maker[name]]) if name in maker else "an input or initializer"
                raise InputError(
                    f"{node_label(node)} makes the tensor {name!r}{where}, and so does {other}; "
                    "every tensor must be made once: export the model again"
                )
            maker[name] = index
    return maker


def _reads(node: NodeProto) -> dict[str, str]:
    """What a node needs, its subgraphs included, each with the node that reads it."""
    label = node_label(node)
    reads = {name: label for name in node.input if name}
    for graph in _subgraphs(node):
        for name, reader in _sort_graph(graph, f" in a subgraph of {label}").items():
            reads.setdefault(name, reader)
    return reads


def _subgraphs(node: NodeProto) -> Iterator[GraphProto]:
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def _order(before: Sequence[Sequence[int]]) -> list[int]:
    """A topological order that prefers the given one; shorter than `before` where there is a cycle."""
    if all(other < index for index, others in enumerate(before) for other in others):
        return list(range(len(before)))
    after: list[list[int]] = [[] for _ in before]
    for index, others in enumerate(before):
        for other in others:
            after[other].append(index)
    waiting = [len(others) for others in before]
    ready = [index for index, count in enumerate(waiting) if count == 0]
    order: list[int] = []
    while ready:
        index = heapq.heappop(ready)
        order.append(index)
        for follower in after[index]:
            waiting[follower] -= 1
            if waiting[follower] == 0:
                heapq.heappush(ready, follower)
    return order


def _cycle(before: Sequence[Sequence[int]], done: set[int]) -> list[int]:
    """The members of one cycle in the direction of data; `done` are those that an order can reach."""
    index = next(index for index in range(len(before)) if index not in done)
    path: list[int] = []
    position: dict[int, int] = {}
    while index not in position:
        position[index] = len(path)
        path.append(index)
        index = next(other for other in before[index] if other not in done)
    return path[position[index] :][::-1]


def _chain(names: list[str]) -> str:
    shown = names if len(names) <= 6 else [*names[:5], f"({len(names) - 5} more)"]
    return " -> ".join([*shown, names[0]])


def _rearrange(nodes: Nodes, order: list[int]) -> None:
    """Sorts in place: copying nodes would copy the weights that Constant nodes hold."""
    if order == list(range(len(order))):
        return
    ranks = [0] * len(order)
    for position, index in enumerate(order):
        ranks[index] = position
    in_turn = iter(ranks)
    nodes.sort(key=lambda _: next(in_turn))


def _refuse_recursion(functions: Sequence[FunctionProto]) -> None:
    """Functions that call one another in a circle could never be expanded."""
    index = {_key(function.domain, function.name, function): at for at, function in enumerate(functions)}
    if len(index) != len(functions):
        twice = Counter(function.name for function in functions).most_common(1)[0][0]
        raise InputError(f"the function {twice!r} is defined twice; export the model again")
    calls = []
    for function in functions:
        keys = {_key(node.domain, node.op_type, node) for node in _all_nodes(function.node)}
        calls.append([index[key] for key in sorted(keys & index.keys())])
    order = _order(calls)
    if len(order) < len(calls):
        cycle = [f"function {functions[at].name!r}" for at in _cycle(calls, set(order))]
        raise InputError(f"functions call one another in a circle: {_chain(cycle)}; export the model again")


def _key(domain: str, name: str, owner: FunctionProto | NodeProto) -> _FunctionKey:
    return ("" if domain == "ai.onnx" else domain, name, owner.overload)


def _all_nodes(nodes: Iterable[NodeProto]) -> Iterator[NodeProto]:
    """The nodes and those of their subgraphs at any depth."""
    pending = [nodes]
    while pending:
        for node in pending.pop():
            yield node
            pending += [graph.node for graph in _subgraphs(node)]
