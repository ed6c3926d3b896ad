"""Bodies of operators of our own as functions: constants, casts around what computes in float32, the text."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from onnx import FunctionProto, NodeProto, TensorProto, helper

from onnxopt.lower.operator_nodes import ATTRIBUTES
from onnxopt.lower.rewrite import DOMAIN, Rewrite


def wide_name(name: str, narrow: int) -> str:
    """What a tensor of the operator is called in float32, where the operator reads the type ``narrow``."""
    return name if narrow == TensorProto.FLOAT else f"{name}_float32"


def widened_function(
    name: str,
    inputs: Sequence[str],
    outputs: Sequence[str],
    rewrite: Rewrite,
    narrow: int,
    opset: int,
    configuration: Mapping[str, Any],
) -> FunctionProto:
    """A function whose constants are nodes, with casts where its operands are not float32."""
    nodes: list[NodeProto] = [helper.make_node("Constant", [], [t.name], value=t) for t in rewrite.tables]
    made = {output for node in rewrite.nodes for output in node.output}
    read = {i for node in rewrite.nodes for i in node.input}
    widened = [tensor for tensor in inputs if wide_name(tensor, narrow) in read - {tensor}]
    nodes += [helper.make_node("Cast", [t], [wide_name(t, narrow)], to=TensorProto.FLOAT) for t in widened]
    nodes += rewrite.nodes
    for tensor in outputs:
        if tensor not in made:
            nodes.append(helper.make_node("Cast", [wide_name(tensor, narrow)], [tensor], to=narrow))
    return operator_function(name, inputs, outputs, nodes, opset, configuration)


def operator_function(
    name: str,
    inputs: Sequence[str],
    outputs: Sequence[str],
    nodes: Sequence[NodeProto],
    opset: int,
    configuration: Mapping[str, Any],
) -> FunctionProto:
    """A function with the operator's configuration as its text."""
    function = helper.make_function(
        DOMAIN, name, list(inputs), list(outputs), nodes, [helper.make_opsetid("", opset)], list(ATTRIBUTES)
    )
    function.doc_string = json.dumps(configuration, sort_keys=True, separators=(",", ":"))
    return function
