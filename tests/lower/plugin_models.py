"""Models in the plugin form for tests: sites cut by hand, and made-up sites in a model of their own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from onnxopt.discover.attention_site import AttentionSite
from onnxopt.lower.plugin import PluginWriter
from onnxopt.lower.plugin_nodes import PluginSite
from onnxopt.lower.rewrite import Rewrite, apply_rewrites
from onnxopt.model.graph import Graph, view
from onnxopt.plan.attention import plan_attention
from onnxopt.plan.rates import CpuRates
from onnxopt.plan.schedule import AttentionSchedule
from onnxopt.plan.tables import attention_tables
from onnxopt.sites import discover
from onnxopt.target import load_target
from onnxopt.validate import validate_attention_launch, validate_attention_plan, validate_attention_tables
from onnxopt.validate.reference_attention import merge_attention, sparse_attention

Cut = Callable[[AttentionSite], AttentionSchedule]


def lowered(writer: PluginWriter, site: AttentionSite, schedule: AttentionSchedule, graph: Graph) -> Rewrite:
    """The site in the plugin form, its body proved where there is a proof of it."""
    cpu = load_target("cpu").cpu
    assert cpu is not None
    plan = plan_attention(site, CpuRates.of(cpu))
    validate_attention_plan(site, plan)
    tables = attention_tables(site, schedule, shapes={name: graph.shape(name) or () for name in site.inputs})
    rewrite, body = writer.lower(site, schedule, tables, plan)
    if body is not None and body.rewrite is not None:
        validate_attention_tables(body.site, body.rewrite, body.graph)
    return rewrite


def in_plugin_form(model: onnx.ModelProto, cut: Cut) -> onnx.ModelProto:
    """A model with all its attention in the plugin form, whether or not that pays."""
    found = discover(model)
    writer = PluginWriter(found.graph)
    fixed = [site for site in found.attention if not site.runtime or site.weights is not None]
    return apply_rewrites(model, [lowered(writer, site, cut(site), found.graph) for site in fixed])


def model_of(site: AttentionSite, shapes: Mapping[str, tuple[int, ...]]) -> onnx.ModelProto:
    """A model that takes a made-up site's tensors; what it gives is zeros until the site is rewritten."""
    zeros = helper.make_node(
        "Constant", [], [site.output], value=numpy_helper.from_array(np.zeros(site.output_shape, np.float32))
    )
    graph = helper.make_graph(
        [zeros],
        "made_up",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes.items()],
        [helper.make_tensor_value_info(site.output, TensorProto.FLOAT, site.output_shape)],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def made_up(site: AttentionSite, shapes: Mapping[str, tuple[int, ...]], cut: Cut) -> onnx.ModelProto:
    """The model of a made-up site with the site in the plugin form."""
    model = model_of(site, shapes)
    graph = view(model, batch=site.batch)
    return apply_rewrites(model, [lowered(PluginWriter(graph), site, cut(site), graph)])


def by_reference(plugin: PluginSite, tensors: Mapping[str, NDArray[Any]]) -> NDArray[Any]:
    """What the reference of the tables computes of a node's own constants, flat for each batch element.

    ``tensors`` are those that the node reads.
    """
    node, merge = plugin.attention, plugin.merge
    pair = None if merge is None else (merge.kernel, merge.tables)
    validate_attention_launch(node.kernel, node.tables, pair)
    q, k, v = (tensors[node.operands[name]] for name in "qkv")
    weight = tensors[node.operands["weight"]] if node.kernel["weights"] else None
    results = sparse_attention(node.kernel, node.tables, q, k, v, weight)
    return results[0] if merge is None else merge_attention(merge.kernel, merge.tables, *results)
