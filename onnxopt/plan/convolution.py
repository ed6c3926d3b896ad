"""Planning a convolution for standard operators: which parts it really has, and whether writing them out is faster.

Outputs with equal input sets form a part; equal parts make one grouped convolution, behind a Gather where the inputs
are not in place. Parts may be merged (zeros are computed then) because blocks of channels run faster than narrow
groups.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Literal

import numpy as np
from onnx import NodeProto, TensorProto

from onnxopt.discover.channel_terms import is_move
from onnxopt.discover.channels import ChannelWalker
from onnxopt.discover.conv_site import BoolArray, ChannelPath, ConvSite, joined_paths
from onnxopt.model.graph import Graph, attribute
from onnxopt.plan.conv_parts import Layout, input_classes, layouts
from onnxopt.plan.conv_time import ConvTimes, Form
from onnxopt.target.figures import CpuProfile

# A prediction below this is within the model's error; the site is kept.
MARGIN = 1.1
# Larger weights are not unpacked to look for structure.
_UNPACKED_LIMIT = 1 << 27
# Leaving out a channel or two is no reason to write a convolution anew.
_NOTICEABLE = 0.9
_OWN_NODE = "onnxopt/"


@dataclass(frozen=True, eq=False)
class ConvPlan:
    """How a site is computed: ``layout`` says which outputs and inputs each group has, in the order they are written.

    ``lead`` and ``tail`` are the parts of the graph before and after the convolution that are written anew with it.
    ``needed`` and ``computed`` count connections, ``seconds`` are predicted for (original, plan). ``form`` transposed
    writes the convolution as the transposed one that equals it, which copies less where it narrows the channels.
    """

    site: ConvSite
    decision: Literal["rewrite", "keep"]
    reason: str
    needed: int
    computed: int
    predicted_gain: float
    lead: ChannelPath
    tail: ChannelPath
    layout: Layout | None = None
    form: Form = "direct"
    seconds: tuple[float, float] = (0.0, 0.0)
    compared: int = 0

    @property
    def waste(self) -> float:
        """Computed over needed connections; 1 is perfect."""
        return self.computed / self.needed if self.needed else 1.0

    @property
    def inputs(self) -> tuple[str, ...]:
        """The tensors that the rewritten part reads."""
        return (self.lead.source,)

    @property
    def outputs(self) -> tuple[str, ...]:
        """The tensors that the rewritten part makes; they keep their names."""
        return (self.tail.target,)


def plan_convolutions(
    sites: Sequence[ConvSite],
    graph: Graph,
    cpu: CpuProfile,
    forms: Sequence[Form] = ("direct", "transposed"),
    margin: float = MARGIN,
) -> list[ConvPlan]:
    """One plan for each site, in order; no two plans that rewrite share a node.

    ``forms`` are the operators allowed. A site is rewritten where that is predicted to be ``margin`` times as fast; a
    margin of 0 rewrites whatever can be.
    """
    planner = _Planner(graph, ConvTimes(graph, cpu), tuple(forms), margin)
    return [planner.plan(site) for site in sites]


def transposed_pads(site: ConvSite, graph: Graph) -> list[int] | None:
    """Padding with which a transposed convolution with reversed taps equals the site; None where there is none."""
    rank = len(site.kernel)
    dilations: Sequence[int] = attribute(site.node, "dilations", [1] * rank)  # type: ignore[assignment]
    if attribute(site.node, "auto_pad", "NOTSET") != "NOTSET":
        return None
    pads: Sequence[int] = attribute(site.node, "pads", [0] * 2 * rank)  # type: ignore[assignment]
    reach = [d * (k - 1) for d, k in zip(dilations, site.kernel, strict=True)] * 2
    result = [r - p for r, p in zip(reach, pads, strict=True)]
    return result if min(result) >= 0 else None


@dataclass
class _Planner:
    graph: Graph
    times: ConvTimes
    forms: tuple[Form, ...]
    margin: float

    def __post_init__(self) -> None:
        self.walker = ChannelWalker(self.graph)
        self.taken: set[str] = set()

    def plan(self, site: ConvSite) -> ConvPlan:
        lead, tail = _in_place(site.input, site.in_channels), _in_place(site.output, site.out_channels)
        computed = sum(part.live.size for part in site.parts)
        kept = ConvPlan(site, "keep", self._obstacle(site), site.connections, computed, 1.0, lead, tail)
        if kept.reason:
            return kept
        candidates = list(self._candidates(site))
        best = max(candidates, key=lambda plan: plan.predicted_gain, default=None)
        if best is None:
            return replace(kept, reason=_nothing(site))
        if best.predicted_gain < self.margin:
            return replace(kept, reason=_too_little(best), predicted_gain=best.predicted_gain)
        self.taken.update(node.output[0] for node in (*best.lead.nodes, *best.tail.nodes))
        return replace(best, compared=len(candidates))

    def _obstacle(self, site: ConvSite) -> str:
        if any(part.node.name.startswith(_OWN_NODE) for part in site.parts):
            return "already written by onnxopt"
        if site.pattern == "depthwise":
            return "depthwise: every output has one input, nothing to save"
        if site.connections == 0:
            return "all its weights are zero"
        if site.out_channels * site.in_channels * prod(site.kernel) > _UNPACKED_LIMIT:
            return "its weights are too large to look for structure in them"
        if any(self.graph.is_data(name) for part in site.parts for name in part.node.input[2:]):
            return "its bias depends on the input"
        return ""

    def _candidates(self, site: ConvSite) -> Iterator[ConvPlan]:
        lead = self._lead(site)
        if lead is None:
            return
        moved = self.walker.forward(site.output)
        beyond = self.walker.forward(site.output, beyond=True) if moved.mix is None else moved
        if moved.mix is not None and self.graph.element_type(site.output) != TensorProto.FLOAT:
            # Weights added up in advance would be rounded once more than the model's own sums.
            moved = beyond = _in_place(site.output, site.out_channels)
        if bool((moved.origin < 0).any()) and moved.mix is None:
            moved = beyond = _in_place(site.output, site.out_channels)
        links = site.links() if moved.mix is None else (moved.mix @ site.links().astype(np.int64)) > 0
        for layout in layouts(links, lead.origin, moved):
            for tail in (moved,) if moved is beyond else (moved, beyond):
                behind = len(beyond.steps) - len(tail.steps)
                yield from self._costed(site, lead, tail, layout, links, behind)

    def _costed(
        self,
        site: ConvSite,
        lead: ChannelPath,
        tail: ChannelPath,
        layout: Layout,
        links: BoolArray,
        behind: int,
    ) -> Iterator[ConvPlan]:
        if tail.steps and not tail.moves and layout.output_order(tail) is None:
            return
        for form in self.forms:
            if not self._differs(site, lead, tail, layout) if form == "direct" else not self._transposable(site):
                continue
            seconds = (
                self.times.original(site, lead, tail),
                self.times.planned(site, lead, tail, layout, form, behind),
            )
            gain = round(seconds[0] / seconds[1], 3)
            reason = f"{layout.describe()}, predicted {gain:.2f} times as fast"
            needed = int(links.sum())
            yield ConvPlan(site, "rewrite", reason, needed, layout.computed, gain, lead, tail, layout, form, seconds)

    def _differs(self, site: ConvSite, lead: ChannelPath, tail: ChannelPath, layout: Layout) -> bool:
        """Whether the layout has other groups than the site, is noticeably smaller, or saves movement."""
        own = sum(part.live.size for part in site.parts)
        same = site.groups == layout.groups and layout.computed > _NOTICEABLE * own
        return bool(len(site.parts) > 1 or lead.moves or tail.moves or not same)

    def _transposable(self, site: ConvSite) -> bool:
        strides: Sequence[int] = attribute(site.node, "strides", [1])  # type: ignore[assignment]
        return (
            self.graph.element_type(site.input) == TensorProto.FLOAT
            and site.groups > 1
            and prod(site.kernel) > 1
            and set(strides) == {1}
            and transposed_pads(site, self.graph) is not None
        )

    def _lead(self, site: ConvSite) -> ChannelPath | None:
        """The longest path before the site that only it reads, and that is a gather and channelwise operations."""
        if len(site.parts) > 1:
            paths = [self.walker.back(part.node.input[0], self._split_move) for part in site.parts]
            joint = joined_paths(paths, site.input)
            return joint if joint is not None and self._culprit(joint, site) is None else None
        barred: set[str] = set()
        while True:
            path = self.walker.back(site.input, lambda node: self._private(node) and node.output[0] not in barred)
            culprit = self._culprit(path, site)
            if culprit is None:
                return path
            barred.add(culprit.output[0])

    def _split_move(self, node: NodeProto) -> bool:
        return is_move(self.graph, node) and self._private(node)

    def _private(self, node: NodeProto) -> bool:
        shown = any(name in self.graph.outputs for name in node.output)
        return not shown and "Pool" not in node.op_type and node.output[0] not in self.taken

    def _culprit(self, path: ChannelPath, site: ConvSite) -> NodeProto | None:
        """A node that must not be on the path: something else reads it too, or the path is no plain gather."""
        inside = {node.output[0] for node in (*path.nodes, *(part.node for part in site.parts))}
        for node in reversed(path.nodes):
            readers = [reader for name in node.output for reader in self.graph.readers(name)]
            if node.output[0] in self.taken or any(reader.output[0] not in inside for reader in readers):
                return node
        gather = path.mix is None and bool((path.origin >= 0).all())
        return None if gather or not path.nodes else path.nodes[-1]


def _in_place(tensor: str, channels: int) -> ChannelPath:
    return ChannelPath(tensor, tensor, channels, np.arange(channels), None, (), (), ())


def _nothing(site: ConvSite) -> str:
    if site.pattern == "dense":
        return "dense: every output uses every input"
    return "its groups are what it needs already"


def _too_little(best: ConvPlan) -> str:
    site = best.site
    if site.pattern == "dense":
        return "dense: every output uses every input"
    kinds = len(input_classes(site.links()))
    shared = f"{kinds} distinct input sets among {site.out_channels} outputs"
    assert best.layout is not None
    gain = f"predicted {best.predicted_gain:.2f} times as fast"
    return f"{shared}; the best rewrite ({best.layout.describe()}) is {gain}, too little"
