"""Reading the convolutions in the plugin form back from a model."""

from __future__ import annotations

from dataclasses import dataclass

from onnx import ModelProto

from onnxopt.errors import InputError
from onnxopt.lower.plugin_nodes import GROUP_CONV, SLICES, SUM_CONV, PluginNode, plugin_nodes, site_of

_OPTIMIZE = "optimize the original model again"


@dataclass(frozen=True, eq=False)
class PluginConvolution:
    """One convolution of a model in the plugin form; ``sum`` is there where outputs are added up."""

    site: str
    convolution: PluginNode
    sum: PluginNode | None


def plugin_convolutions(model: ModelProto) -> tuple[PluginConvolution, ...]:
    """The convolutions in the plugin form, in the order of the graph.

    Raises InputError for a node without a body, one whose configuration or tables are not those that it is named
    after, and a sum without its first half.
    """
    nodes = plugin_nodes(model, (GROUP_CONV, SUM_CONV, SLICES))
    # What adds up slices is a step of another algorithm.
    slices = {node.outputs[0] for node in nodes if node.configuration["operator"] == SLICES}
    nodes = [n for n in nodes if n.configuration["operator"] != SLICES and not slices & set(n.operands.values())]
    sums = {node.operands["partial"]: node for node in nodes if node.configuration["operator"] == SUM_CONV}
    found = []
    for node in nodes:
        if node.configuration["operator"] == SUM_CONV:
            continue
        second = sums.pop(node.outputs[0], None)
        if bool(node.kernel.get("split")) != (second is not None):
            raise InputError(f"node '{node.name}': a sum belongs to split outputs and to nothing else; {_OPTIMIZE}")
        found.append(PluginConvolution(site_of(node), node, second))
    if sums:
        raise InputError(f"node '{next(iter(sums.values())).name}': nothing makes its partial rows; {_OPTIMIZE}")
    return tuple(found)
