"""Writing a planned convolution in standard operators: Gather, channelwise operations, one grouped Conv, Gather."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper

from onnxopt.discover.conv_site import ChannelPath, ConvSite, IntArray
from onnxopt.lower.rewrite import NODE_PREFIX, Rewrite, table
from onnxopt.model.graph import Graph
from onnxopt.plan.conv_parts import Layout
from onnxopt.plan.convolution import ConvPlan, transposed_pads

_GEOMETRY = ("auto_pad", "dilations", "kernel_shape", "pads", "strides")


def lower_convolution(site_id: str, plan: ConvPlan, graph: Graph) -> Rewrite:
    """The rewrite of a plan whose decision is ``rewrite``: its outputs keep their names, and the batch may be dynamic.

    ``graph`` is the view that the plan was made from; ``site_id`` names the new nodes.
    """
    layout, lead, tail = plan.layout, plan.lead, plan.tail
    if layout is None:
        raise ValueError(f"the plan of {site_id} keeps the site as it is")
    writer = _Writer(graph, site_id)
    tensor = lead.source
    index = layout.input_index(lead)
    if index is not None:
        tensor = writer.gather(tensor, index, "inputs")
    tensor = writer.steps(lead, tensor, layout.slots())
    tensor = writer.convolution(plan, layout, tensor)
    order = layout.output_order(tail)
    # A Relu right behind the convolution is fused into it by runtimes, so operations go before the Gather if they can.
    if tail.is_permutation:
        tensor = writer.steps(tail, tensor, _behind(layout, tail))
    if order is not None:
        tensor = writer.gather(tensor, order, "outputs")
    if not tail.is_permutation:
        tensor = writer.steps(tail, tensor, np.arange(len(tail.origin)))
    return writer.finish(tail.target)


def site_weights(site: ConvSite, graph: Graph) -> tuple[NDArray[Any], NDArray[Any] | None]:
    """The site's weights as one dense array (outputs x inputs x kernel), and its bias if it has one."""
    weights = [graph.constant(part.node.input[1]) for part in site.parts]
    first = weights[0]
    assert first is not None
    dense = np.zeros((site.out_channels, site.in_channels, *site.kernel), first.dtype)
    bias = np.zeros(site.out_channels, first.dtype)
    has_bias = False
    for part, weight in zip(site.parts, weights, strict=True):
        assert weight is not None
        outputs, width = weight.shape[:2]
        rows = np.arange(outputs)
        columns = part.first_input + rows[:, None] // (outputs // part.groups) * width + np.arange(width)
        dense[part.first_output + rows[:, None], columns] = weight
        value = graph.constant(part.node.input[2]) if len(part.node.input) > 2 and part.node.input[2] else None
        if value is not None:
            has_bias = True
            bias[part.first_output : part.first_output + outputs] = value
    return dense, bias if has_bias else None


def packed_weights(
    weight: NDArray[Any], bias: NDArray[Any] | None, layout: Layout
) -> tuple[NDArray[Any], NDArray[Any] | None]:
    """The weights (group after group x inputs of a group x kernel) and bias of a layout; padding is zero."""
    groups, per_group = layout.outputs.shape
    packed = np.zeros((groups, per_group, layout.inputs.shape[1], *weight.shape[2:]), weight.dtype)
    packed_bias = np.zeros((groups, per_group), weight.dtype)
    for g in range(groups):
        rows, columns = np.flatnonzero(layout.outputs[g] >= 0), np.flatnonzero(layout.inputs[g] >= 0)
        outputs, inputs = layout.outputs[g][rows], layout.inputs[g][columns]
        packed[g][np.ix_(rows, columns)] = weight[np.ix_(outputs, inputs)]
        if bias is not None:
            packed_bias[g][rows] = bias[outputs]
    packed = packed.reshape(groups * per_group, *packed.shape[2:])
    return packed, None if bias is None else packed_bias.reshape(-1)


def _behind(layout: Layout, tail: ChannelPath) -> IntArray:
    """The channel of the tail's target that each written output becomes; padding takes any."""
    becomes = np.argsort(tail.origin)
    return becomes[np.maximum(layout.outputs.reshape(-1), 0)]


@dataclass
class _Writer:
    graph: Graph
    site_id: str
    nodes: list[NodeProto] = field(default_factory=list)
    tables: dict[str, TensorProto] = field(default_factory=dict)

    def table(self, values: NDArray[Any]) -> str:
        tensor = table(values)
        self.tables[tensor.name] = tensor
        return tensor.name

    def emit(self, kind: str, inputs: list[str], label: str, **attributes: Any) -> str:
        name = f"{NODE_PREFIX}{self.site_id}/{label}"
        self.nodes.append(helper.make_node(kind, inputs, [name], name=name, **attributes))
        return name

    def gather(self, tensor: str, index: IntArray, label: str) -> str:
        return self.emit("Gather", [tensor, self.table(index.astype(np.int64))], label, axis=1)

    def steps(self, path: ChannelPath, tensor: str, channels: IntArray) -> str:
        """The path's channelwise operations on a tensor whose channels are the given ones of the path's target."""
        holds = {path.source: tensor}
        steps = {step.node.output[0]: step for step in path.steps}
        for node in path.nodes:
            step = steps.get(node.output[0])
            if step is None:
                # Movement has been done in one go; behind it, all its results are the same tensor.
                moved = next(holds[name] for name in node.input if name in holds)
                holds.update(dict.fromkeys(node.output, moved))
                continue
            rank = len(self.graph.shape(node.output[0]) or ())
            copy = NodeProto()
            copy.CopyFrom(node)
            for position, name in enumerate(node.input):
                if name in holds:
                    copy.input[position] = holds[name]
                elif position in step.tables:
                    values = step.tables[position][step.rows[channels]]
                    if node.op_type != "BatchNormalization":
                        values = values.reshape(-1, *[1] * (rank - 2))
                    copy.input[position] = self.table(values)
            copy.name = f"{NODE_PREFIX}{self.site_id}/{len(self.nodes)}-{node.op_type}"
            del copy.output[:]
            copy.output.append(copy.name)
            self.nodes.append(copy)
            tensor = holds[node.output[0]] = copy.name
        return tensor

    def convolution(self, plan: ConvPlan, layout: Layout, tensor: str) -> str:
        weight, bias = site_weights(plan.site, self.graph)
        if plan.tail.mix is not None:
            mix = plan.tail.mix.astype(weight.dtype)
            weight = np.tensordot(mix, weight, axes=1)
            bias = None if bias is None else mix @ bias
        packed, packed_bias = packed_weights(weight, bias, layout)
        kept = {a.name: helper.get_attribute_value(a) for a in plan.site.node.attribute if a.name in _GEOMETRY}
        kind = "Conv"
        if plan.form == "transposed":
            kind = "ConvTranspose"
            kept["pads"] = transposed_pads(plan.site, self.graph)
            packed = _transposed(packed, layout.groups)
        inputs = [tensor, self.table(packed)]
        if packed_bias is not None:
            inputs.append(self.table(packed_bias))
        return self.emit(kind, inputs, "convolution", group=layout.groups, **kept)

    def finish(self, target: str) -> Rewrite:
        """The rewrite, its last result under the name that the rest of the graph reads."""
        self.nodes[-1].output[0] = target
        return Rewrite(self.site_id, (target,), tuple(self.nodes), tuple(self.tables.values()))


def _transposed(packed: NDArray[Any], groups: int) -> NDArray[Any]:
    """Weights of a convolution as those of the transposed one that equals it: taps reversed, inputs first."""
    outputs, inputs, *kernel = packed.shape
    split = packed.reshape(groups, outputs // groups, inputs, *kernel).swapaxes(1, 2)
    reversed_taps = split[(slice(None),) * 3 + (slice(None, None, -1),) * len(kernel)]
    return np.ascontiguousarray(reversed_taps.reshape(groups * inputs, outputs // groups, *kernel))
