"""Which nodes of a model are not plain ONNX, and so must not reach an engine's parser."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import onnx

_STANDARD = ("", "ai.onnx")


def foreign_nodes(model: onnx.ModelProto) -> list[str]:
    """A description of each node, also in subgraphs and functions, that the ONNX standard does not define.

    A node whose operator is a function of the model is fine, unless it is one of this project's plugin
    operators: those stay out of an engine's parser even where they carry a body.
    """
    functions = {(f.domain, f.name) for f in model.functions}
    found = []
    for node in _all_nodes(model):
        domain = "" if node.domain in _STANDARD else node.domain
        known = (node.domain, node.op_type) in functions or (domain == "" and onnx.defs.has(node.op_type, domain))
        if not known or domain == "onnxopt":
            name = node.name or (node.output[0] if node.output else "")
            operator = f"{node.domain}::{node.op_type}" if node.domain else node.op_type
            found.append(f"'{name}' ({operator})")
    return found


def _all_nodes(model: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    yield from _with_subgraphs(model.graph.node)
    for function in model.functions:
        yield from _with_subgraphs(function.node)


def _with_subgraphs(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    for node in nodes:
        yield node
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _with_subgraphs(attribute.g.node)
            for graph in attribute.graphs:
                yield from _with_subgraphs(graph.node)
