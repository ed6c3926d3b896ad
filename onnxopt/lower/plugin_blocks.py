"""Reading the blocks of convolutions in the plugin form back from a model."""

from __future__ import annotations

from dataclasses import dataclass

from onnx import ModelProto

from onnxopt.lower.plugin_nodes import CONV_BLOCK, PluginNode, plugin_nodes, site_of


@dataclass(frozen=True, eq=False)
class PluginBlock:
    """One block of a model in the plugin form."""

    site: str
    block: PluginNode


def plugin_blocks(model: ModelProto) -> tuple[PluginBlock, ...]:
    """The blocks in the plugin form, in the order of the graph.

    Raises InputError for a node without a body, and for one whose configuration or tables are not those that it is
    named after.
    """
    return tuple(PluginBlock(site_of(node), node) for node in plugin_nodes(model, (CONV_BLOCK,)))
