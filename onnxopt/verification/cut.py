"""Comparing models that hold operators which ONNX Runtime does not know.

Such a node is the same in both models, so it need not run: it is cut out of both, what it reads becomes an
output to compare, and what it makes becomes an input to draw. If the parts between the cuts agree on any
values, so do the models.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import numpy_helper

from onnxopt.errors import MissingError, VerificationError

_KNOWN_DOMAINS = frozenset(
    {"", "ai.onnx", "ai.onnx.ml", "ai.onnx.preview.training", "ai.onnx.training", "com.microsoft"}
)


def unknown_nodes(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    """The nodes of the main graph that neither ONNX Runtime nor a function of the model defines."""
    functions = {(function.domain, function.name) for function in model.functions}
    return [
        node
        for node in model.graph.node
        if node.domain not in _KNOWN_DOMAINS and (node.domain, node.op_type) not in functions
    ]


def cut_unknown(
    original: onnx.ModelProto, candidate: onnx.ModelProto
) -> tuple[onnx.ModelProto, onnx.ModelProto, tuple[str, ...]]:
    """Both models without their unknown nodes, and the names of those nodes; the models themselves if there
    are none.

    Raises VerificationError where the candidate's unknown nodes are not the original's, and MissingError
    where the type or shape of what such a node makes is not declared.
    """
    nodes = unknown_nodes(original)
    others = {tuple(node.output): node for node in unknown_nodes(candidate)}
    if not nodes and not others:
        return original, candidate, ()
    for node in nodes:
        twin = others.pop(tuple(node.output), None)
        if twin is None or not _equal(node, twin) or not _equal_constants(node, original.graph, candidate.graph):
            raise VerificationError(
                f"node {_label(node)} of the original is missing from the candidate or differs there; "
                f"operators that ONNX Runtime "
                "does not know must stay as they are"
            )
    if others:
        raise VerificationError(
            f"node {_label(next(iter(others.values())))} of the candidate is unknown to ONNX Runtime and "
            f"not in the original"
        )
    made = _made_values(original.graph, nodes)
    return _cut(original, nodes, made), _cut(candidate, nodes, made), tuple(_label(node) for node in nodes)


def _label(node: onnx.NodeProto) -> str:
    return f"'{node.name or node.output[0]}' ({node.domain}.{node.op_type})"


def _equal(first: onnx.NodeProto, second: onnx.NodeProto) -> bool:
    one = {attribute.name: attribute.SerializeToString(deterministic=True) for attribute in first.attribute}
    two = {attribute.name: attribute.SerializeToString(deterministic=True) for attribute in second.attribute}
    names = (first.op_type, first.domain, list(first.input)) == (
        second.op_type,
        second.domain,
        list(second.input),
    )
    return names and one == two


def _equal_constants(node: onnx.NodeProto, first: onnx.GraphProto, second: onnx.GraphProto) -> bool:
    one = {tensor.name: tensor for tensor in first.initializer if tensor.name in node.input}
    two = {tensor.name: tensor for tensor in second.initializer if tensor.name in node.input}
    return one.keys() == two.keys() and all(
        tensor.data_type == two[name].data_type
        and np.array_equal(numpy_helper.to_array(tensor), numpy_helper.to_array(two[name]))
        for name, tensor in one.items()
    )


def _made_values(graph: onnx.GraphProto, nodes: list[onnx.NodeProto]) -> list[onnx.ValueInfoProto]:
    declared = {value.name: value for value in [*graph.value_info, *graph.output]}
    read = {name for node in graph.node for name in node.input}
    made: list[onnx.ValueInfoProto] = []
    for node in nodes:
        for name in node.output:
            if name not in read:
                continue
            value = declared.get(name)
            if value is None or not value.type.tensor_type.HasField("shape"):
                raise MissingError(
                    f"ONNX Runtime has no operator for node {_label(node)}, and the model does not "
                    f"declare the type and shape of "
                    f"'{name}', so the model cannot be verified around it: add the value_info and try "
                    f"again, or go without "
                    "verification (--no-verify)"
                )
            made.append(value)
    return made


def _cut(model: onnx.ModelProto, nodes: list[onnx.NodeProto], made: list[onnx.ValueInfoProto]) -> onnx.ModelProto:
    removed = {tuple(node.output) for node in nodes}
    gone = {name for node in nodes for name in node.output}
    wanted = list(dict.fromkeys(name for node in nodes for name in node.input))
    part = onnx.ModelProto()
    part.CopyFrom(model)
    graph = part.graph
    kept = [node for node in graph.node if tuple(node.output) not in removed]
    outputs = [value for value in graph.output if value.name not in gone]
    present = {value.name for value in outputs}
    produced = {name for node in kept for name in node.output}
    outputs += [onnx.ValueInfoProto(name=name) for name in wanted if name in produced and name not in present]
    copies = [onnx.ValueInfoProto.FromString(value.SerializeToString()) for value in outputs]
    rest = [onnx.NodeProto.FromString(node.SerializeToString()) for node in kept]
    infos = [
        onnx.ValueInfoProto.FromString(value.SerializeToString())
        for value in graph.value_info
        if value.name not in gone
    ]
    del graph.output[:], graph.node[:], graph.value_info[:]
    graph.output.extend(copies)
    graph.node.extend(rest)
    graph.value_info.extend(infos)
    graph.input.extend(made)
    return part
