"""Convolutions in the plugin form for tests: every one of a model, by schedules cut by hand."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from onnxopt.decide import ConvSource
from onnxopt.discover.conv_fusion import ConvFusion, ConvFusions
from onnxopt.discover.conv_site import ConvSite
from onnxopt.lower.conv_plugin import ConvPluginWriter
from onnxopt.lower.convolution import site_weights
from onnxopt.lower.plugin_convolutions import PluginConvolution
from onnxopt.lower.rewrite import apply_rewrites
from onnxopt.model.graph import Graph, symbolic_batch
from onnxopt.plan.tables import ConvWork, conv_tables
from onnxopt.plan.tables.fused import fused_work, summed_before
from onnxopt.sites import discover
from onnxopt.validate import validate_conv_contents, validate_conv_launch
from onnxopt.validate.reference_conv import group_conv, sum_conv
from tests.plan.conv_schedules import conv_scheduled


def work_of(site: ConvSite, fusion: ConvFusion, graph: Graph) -> ConvWork:
    """The work of a site with what is fused around it."""
    shape = graph.shape(site.input)
    assert shape is not None
    return fused_work(site, fusion, *site_weights(site, graph), shape[2:])


def in_plugin_form(
    model: onnx.ModelProto, *, summed: bool = False, images: int = 1, **cut: Any
) -> tuple[onnx.ModelProto, dict[str, ConvSource]]:
    """A model with all its convolutions, dense ones too, in the plugin form, and what each was written from.

    ``summed`` adds up the weights of outputs that are added up; ``cut`` says how schedules are cut.
    """
    found = discover(model)
    fusions, writer = ConvFusions(found.graph), ConvPluginWriter(found.graph)
    rewrites, sources = [], {}
    folded = 1 if symbolic_batch(model) else images
    for number, site in enumerate(found.convolutions):
        fusion = fusions.fusion(site)
        assert fusion is not None
        fusions.take(fusion)
        work = work_of(site, fusion, found.graph)
        work = summed_before(work) if summed else work
        schedule = conv_scheduled(work, images=folded, **cut)
        tables = conv_tables(work, schedule, images=folded)
        validate_conv_contents(work, tables)
        rewrites.append(writer.lower(f"conv-{number}", fusion, work, schedule, tables))
        sources[f"conv-{number}"] = ConvSource(site, fusion, work, tables)
    return apply_rewrites(model, rewrites), sources


def tensors_around(plugin: PluginConvolution) -> tuple[list[str], str]:
    """What a convolution's operators read of the model, and what they give."""
    last = plugin.sum or plugin.convolution
    read = [*plugin.convolution.operands.values(), *last.operands.values()]
    return [name for name in dict.fromkeys(read) if name not in plugin.convolution.outputs], last.outputs[0]


def by_reference(plugin: PluginConvolution, tensors: Mapping[str, NDArray[Any]]) -> NDArray[Any]:
    """What the reference of the tables computes of a node's own constants, batch x channels x positions."""
    first, second = plugin.convolution, plugin.sum
    validate_conv_launch(first.kernel, first.tables, None if second is None else (second.kernel, second.tables))
    read = {name: np.asarray(tensors[tensor]) for name, tensor in first.operands.items()}
    made = group_conv(first.kernel, first.tables, read["x"], read.get("residual"))
    if second is None:
        return made
    added = second.operands.get("residual")
    return sum_conv(second.kernel, second.tables, made, None if added is None else np.asarray(tensors[added]))
