"""What an operator of our own computes, in standard operators: the function that a model carries beside its nodes.

The function takes the operator's inputs, tables included, but computes from tables of its own, those of the portable
form: the same queries, keys, masks and biases, written for Gather and MatMul instead of for a kernel. It computes in
float32 whatever the compute type, and its biases are not rounded to that.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from onnx import FunctionProto, NodeProto, TensorProto, helper

from onnxopt.discover.attention_site import AttentionSite
from onnxopt.discover.operand import Operand, Source
from onnxopt.lower.attention import lower_attention
from onnxopt.lower.rewrite import DOMAIN, Rewrite
from onnxopt.lower.split import lower_merge, lower_partials
from onnxopt.model.graph import Graph, view
from onnxopt.plan.attention import AttentionPlan
from onnxopt.plan.schedule import AttentionSchedule
from onnxopt.plan.tables import AttentionTables
from onnxopt.target.variant import Element

# Names of tensors inside of a function; operands are float32 there.
_SITE = "body"
ATTRIBUTES = {"plugin_namespace": DOMAIN, "plugin_version": "1"}


@dataclass(frozen=True)
class Body:
    """A function of standard operators. Its ``rewrite`` computes ``site``, whose tensors are the function's own;
    ``graph`` has their shapes. With split keys there is no rewrite of the whole: each of two functions has a part.
    """

    functions: tuple[FunctionProto, ...]
    site: AttentionSite
    graph: Graph
    rewrite: Rewrite | None


def tensor_type(element: Element) -> int:
    """The ONNX type of tensors that kernels of a compute type read."""
    return {"fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}.get(element, TensorProto.FLOAT)


def attention_body(
    site: AttentionSite, schedule: AttentionSchedule, tables: AttentionTables, plan: AttentionPlan, graph: Graph
) -> Body:
    """The functions of a site's operators: one, or two where its key lists are split."""
    narrow = tensor_type(schedule.element)
    own, own_graph = _inner(site, graph, narrow)
    opset = graph.opset
    if tables.merge is None:
        rewrite = lower_attention(own, plan, own_graph, np.dtype(np.float32))
        names = ["q", "k", "v", *tables.arrays()]
        return Body(
            (_function(tables.operator(), names, ["y"], rewrite, narrow, opset, tables.configuration()),),
            own,
            own_graph,
            rewrite,
        )
    names = ["q", "k", "v", *tables.arrays()]
    partials = lower_partials(own, schedule, tables, own_graph, ("partial", "lse"))
    first = _function(tables.operator(), names, ["partial", "lse"], partials, narrow, opset, tables.configuration())
    merged = lower_merge(own, tables.merge, own_graph, ("partial", "lse"))
    names = ["partial", "lse", *tables.merge.arrays()]
    second = _function(tables.merge.operator(), names, ["y"], merged, narrow, opset, tables.merge.configuration())
    return Body((first, second), own, own_graph, None)


def _inner(site: AttentionSite, graph: Graph, narrow: int) -> tuple[AttentionSite, Graph]:
    """The site as the function sees it: one tensor an operand, float32, named after the function's inputs."""
    operands, values = {}, []
    for name in "qkv":
        operand: Operand = getattr(site, name)
        inner = _wide(name, narrow)
        source, shape = _source(operand, inner, site.batch, graph)
        operands[name] = Operand((source,), operand.width)
        values.append(helper.make_tensor_value_info(inner, TensorProto.FLOAT, shape))
    model = helper.make_model(helper.make_graph([], _SITE, values, []), opset_imports=list(graph.model.opset_import))
    fields: dict[str, Any] = {"id": _SITE, "output": _wide("y", narrow), **operands}
    return replace(site, **fields), view(model, batch=site.batch)


def _source(operand: Operand, name: str, batch: int, graph: Graph) -> tuple[Source, Sequence[int]]:
    first = operand.sources[0]
    if len(operand.sources) > 1:
        return Source(name, operand.vectors, operand.width, -1), [batch, operand.vectors, operand.width]
    shape = graph.shape(first.tensor)
    assert shape is not None
    return replace(first, tensor=name), shape


def _wide(name: str, narrow: int) -> str:
    return name if narrow == TensorProto.FLOAT else f"{name}_float32"


def _function(
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
    widened = [tensor for tensor in inputs if _wide(tensor, narrow) != tensor and _wide(tensor, narrow) in read]
    nodes += [helper.make_node("Cast", [t], [_wide(t, narrow)], to=TensorProto.FLOAT) for t in widened]
    nodes += rewrite.nodes
    for tensor in outputs:
        if tensor not in made:
            nodes.append(helper.make_node("Cast", [_wide(tensor, narrow)], [tensor], to=narrow))
    function = helper.make_function(
        DOMAIN, name, list(inputs), list(outputs), nodes, [helper.make_opsetid("", opset)], list(ATTRIBUTES)
    )
    function.doc_string = json.dumps(configuration, sort_keys=True, separators=(",", ":"))
    return function
