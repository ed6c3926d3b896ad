"""What an operator of our own computes, in standard operators: the function that a model carries beside its nodes.

The function takes the operator's inputs, tables included, but computes from tables of its own, those of the portable
form: the same queries, keys, masks and biases, written for Gather and MatMul instead of for a kernel. It computes in
float32 whatever the compute type, and its biases are not rounded to that. Where keys have run-time weights it is the
part of the model that the operator takes the place of.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from onnx import FunctionProto, TensorProto, helper

from onnxopt.discover.attention_site import AttentionSite
from onnxopt.discover.operand import Operand, Source
from onnxopt.lower.attention import lower_attention
from onnxopt.lower.operator_body import operator_function, wide_name, widened_function
from onnxopt.lower.operator_nodes import tensor_type
from onnxopt.lower.plugin_nodes import WEIGHT
from onnxopt.lower.region_body import region_nodes
from onnxopt.lower.rewrite import Rewrite
from onnxopt.lower.split import lower_merge, lower_partials
from onnxopt.model.graph import Graph, view
from onnxopt.plan.attention import AttentionPlan
from onnxopt.plan.schedule import AttentionSchedule
from onnxopt.plan.tables import AttentionTables

# Names of tensors inside of a function; operands are float32 there.
_SITE = "body"


@dataclass(frozen=True)
class Body:
    """A function of standard operators. Its ``rewrite`` computes ``site``, whose tensors are the function's own;
    ``graph`` has their shapes. With split keys there is no rewrite of the whole: each of two functions has a part. With
    run-time weights there is none either, as nothing is written anew.
    """

    functions: tuple[FunctionProto, ...]
    site: AttentionSite
    graph: Graph
    rewrite: Rewrite | None


def attention_body(
    site: AttentionSite, schedule: AttentionSchedule, tables: AttentionTables, plan: AttentionPlan | None, graph: Graph
) -> Body:
    """The functions of a site's operators: one, or two where its key lists are split.

    ``plan`` is needed where the keys are neither split nor weighed at run time. Raises :class:`NoBody` where weighed
    keys leave no function.
    """
    narrow = tensor_type(schedule.element)
    if site.weights is not None:
        names = ["q", "k", "v", WEIGHT, *tables.arrays()]
        nodes = region_nodes(site, graph, narrow)
        return Body(
            (operator_function(tables.operator(), names, ["y"], nodes, graph.opset, tables.configuration()),),
            site,
            graph,
            None,
        )
    own, own_graph = _inner(site, graph, narrow)
    opset = graph.opset
    if tables.merge is None:
        assert plan is not None
        rewrite = lower_attention(own, plan, own_graph, np.dtype(np.float32))
        names = ["q", "k", "v", *tables.arrays()]
        return Body(
            (widened_function(tables.operator(), names, ["y"], rewrite, narrow, opset, tables.configuration()),),
            own,
            own_graph,
            rewrite,
        )
    names = ["q", "k", "v", *tables.arrays()]
    partials = lower_partials(own, schedule, tables, own_graph, ("partial", "lse"))
    first = widened_function(
        tables.operator(), names, ["partial", "lse"], partials, narrow, opset, tables.configuration()
    )
    merged = lower_merge(own, tables.merge, own_graph, ("partial", "lse"))
    names = ["partial", "lse", *tables.merge.arrays()]
    second = widened_function(
        tables.merge.operator(), names, ["y"], merged, narrow, opset, tables.merge.configuration()
    )
    return Body((first, second), own, own_graph, None)


def _inner(site: AttentionSite, graph: Graph, narrow: int) -> tuple[AttentionSite, Graph]:
    """The site as the function sees it: one tensor an operand, float32, named after the function's inputs."""
    operands, values = {}, []
    for name in "qkv":
        operand: Operand = getattr(site, name)
        inner = wide_name(name, narrow)
        source, shape = _source(operand, inner, site.batch, graph)
        operands[name] = Operand((source,), operand.width)
        values.append(helper.make_tensor_value_info(inner, TensorProto.FLOAT, shape))
    model = helper.make_model(helper.make_graph([], _SITE, values, []), opset_imports=list(graph.model.opset_import))
    fields: dict[str, Any] = {"id": _SITE, "output": wide_name("y", narrow), **operands}
    return replace(site, **fields), view(model, batch=site.batch)


def _source(operand: Operand, name: str, batch: int, graph: Graph) -> tuple[Source, Sequence[int]]:
    first = operand.sources[0]
    if len(operand.sources) > 1:
        return Source(name, operand.vectors, operand.width, -1), [batch, operand.vectors, operand.width]
    shape = graph.shape(first.tensor)
    assert shape is not None
    return replace(first, tensor=name), shape
