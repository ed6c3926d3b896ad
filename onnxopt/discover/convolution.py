"""Finding convolutions and what they really connect: grouped, depthwise, pruned, gathered, split or dense."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from onnx import NodeProto

from onnxopt.discover.channels import ChannelWalker
from onnxopt.discover.conv_geometry import check_attributes, check_bias, check_reach
from onnxopt.discover.conv_site import ChannelPath, ConvPart, ConvSite, Pattern, integer, joined_paths
from onnxopt.discover.refusal import NotASite, Refusal
from onnxopt.model.graph import Graph, attribute

# Operators that convolve too, but not in a form that is handled: a refusal only where they have groups to gain from.
_RELATED = ("ConvTranspose", "ConvInteger", "QLinearConv", "DeformConv")
_GEOMETRY = ("auto_pad", "dilations", "kernel_shape", "pads", "strides")


def find_convolutions(graph: Graph) -> tuple[list[ConvSite], list[Refusal]]:
    """Every convolution of the graph in topological order, and those that cannot be described, with the reason.

    Convolutions on the parts of a split tensor whose results are joined again are one site. Channels are traced through
    movement and channelwise operations on both sides.
    """
    walker = ChannelWalker(graph)
    refusals: list[Refusal] = []
    merged: dict[str, ConvSite] = {}
    for node in graph.nodes:
        site = _split_site(graph, walker, node)
        if site is not None:
            merged.update(dict.fromkeys((part.node.output[0] for part in site.parts), site))
    sites: list[ConvSite] = []
    for node in graph.nodes:
        if node.domain not in ("", "ai.onnx"):
            continue
        if node.op_type in _RELATED and integer(node, "group", 1) > 1:
            refusals.append(Refusal(node.name, node.op_type, f"{node.op_type} with groups is not handled, only Conv"))
        if node.op_type != "Conv":
            continue
        joint = merged.get(node.output[0])
        if joint is not None:
            if node is joint.parts[-1].node:
                sites.append(joint)
            continue
        try:
            sites.append(_site(graph, walker, node))
        except NotASite as reason:
            refusals.append(Refusal(node.name, "Conv", str(reason)))
    return sites, refusals


def _site(graph: Graph, walker: ChannelWalker, node: NodeProto) -> ConvSite:
    part = _part(graph, node)
    before = walker.back(node.input[0])
    after = walker.forward(node.output[0])
    outputs, width = part.live.shape
    return ConvSite(
        parts=(part,),
        input=node.input[0],
        output=node.output[0],
        in_channels=width * part.groups,
        out_channels=outputs,
        kernel=_kernel(graph, node),
        groups=part.groups,
        pattern=_pattern(part, before),
        before=before,
        after=after,
    )


def _part(graph: Graph, node: NodeProto, first_output: int = 0, first_input: int = 0) -> ConvPart:
    """A Conv node's connectivity; raises NotASite where it is not known."""
    weight = graph.constant(node.input[1])
    if weight is None:
        raise NotASite(f"its weights {node.input[1]!r} are not constant")
    if weight.ndim < 3 or weight.size == 0:
        raise NotASite(f"its weights have the shape {list(weight.shape)}, in which nothing is convolved")
    taps = weight.shape[2:]
    check_attributes(node, taps)
    shape = graph.shape(node.input[0])
    if shape is None:
        raise NotASite(f"the shape of its input {node.input[0]!r} is not known")
    groups = integer(node, "group", 1)
    if groups < 1 or weight.shape[0] % groups or shape[1] != weight.shape[1] * groups:
        raise NotASite(
            f"its weights {list(weight.shape)} in {groups} groups do not fit its input of {shape[1]} channels"
        )
    check_reach(node, taps, shape[2:])
    check_bias(graph, node, weight.shape[0])
    if graph.shape(node.output[0]) is None:
        raise NotASite(f"the shape of its output {node.output[0]!r} is not known")
    live = (weight != 0).reshape(*weight.shape[:2], -1).any(axis=2)
    return ConvPart(node, first_output, first_input, live, groups)


def _kernel(graph: Graph, node: NodeProto) -> tuple[int, ...]:
    shape = graph.shape(node.input[1])
    assert shape is not None
    return tuple(shape[2:])


def _pattern(part: ConvPart, before: ChannelPath) -> Pattern:
    width = part.live.shape[1]
    if part.groups > 1 and width == 1:
        return "depthwise"
    if not part.live.all():
        return "pruned"
    if part.groups == 1:
        return "dense"
    return "grouped" if before.is_permutation else "gathered"


def _split_site(graph: Graph, walker: ChannelWalker, node: NodeProto) -> ConvSite | None:
    """The site of a Concat of convolutions that each read channels of their own of one tensor."""
    if node.op_type != "Concat" or attribute(node, "axis", 0) not in (1, 1 - _rank(graph, node.output[0])):
        return None
    convs = [graph.node_of(name) for name in node.input]
    if len(convs) < 2 or any(conv is None or conv.op_type != "Conv" for conv in convs):
        return None
    nodes = [conv for conv in convs if conv is not None]
    if len({conv.output[0] for conv in nodes}) < len(nodes) or not _alike(graph, nodes):
        return None
    paths = [walker.back(conv.input[0]) for conv in nodes]
    before = joined_paths(paths, "")
    if before is None or any(path.is_identity for path in paths):
        return None
    used = before.origin[before.origin >= 0]
    if len(np.unique(used)) < len(used):
        return None
    try:
        parts = _parts(graph, nodes)
    except NotASite:
        return None
    return ConvSite(
        parts=parts,
        input=before.source,
        output=node.output[0],
        in_channels=len(before.origin),
        out_channels=sum(part.live.shape[0] for part in parts),
        kernel=_kernel(graph, nodes[0]),
        groups=sum(part.groups for part in parts),
        pattern="split",
        before=before,
        after=walker.forward(node.output[0]),
    )


def _parts(graph: Graph, nodes: Sequence[NodeProto]) -> tuple[ConvPart, ...]:
    parts: list[ConvPart] = []
    first_output = first_input = 0
    for node in nodes:
        part = _part(graph, node, first_output, first_input)
        parts.append(part)
        first_output += part.live.shape[0]
        first_input += part.live.shape[1] * part.groups
    return tuple(parts)


def _alike(graph: Graph, nodes: Sequence[NodeProto]) -> bool:
    """Whether convolutions have the same geometry, and nothing but the Concat reads their results."""
    kinds = {
        (str([attribute(node, name) for name in _GEOMETRY]), str((graph.shape(node.input[1]) or ())[2:]))
        for node in nodes
    }
    alone = all(len(graph.readers(node.output[0])) == 1 and node.output[0] not in graph.outputs for node in nodes)
    return len(kinds) == 1 and alone


def _rank(graph: Graph, name: str) -> int:
    return len(graph.shape(name) or ())
