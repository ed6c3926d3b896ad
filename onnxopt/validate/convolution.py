"""Whether the layout of a convolution's plan connects what its site connects."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from onnxopt.discover.conv_site import ChannelPath, ConvSite
from onnxopt.plan.conv_parts import Layout
from onnxopt.plan.convolution import ConvPlan
from onnxopt.validate.failure import PlanError


def validate_conv_plan(plan: ConvPlan) -> None:
    """Prove that the plan's groups connect every live (output, input) pair of its site exactly once.

    Every output is in one group, once, and channels are ones that exist; ``needed`` and ``computed`` are counted anew.
    Outputs are the convolution's own or, where channels behind it are added up, those sums. Raises :class:`PlanError`.
    """
    site, layout = plan.site, plan.layout
    name = site.node.name or site.output
    links = _links(site, name)
    if plan.decision == "keep":
        if layout is not None:
            raise PlanError(f"{name}: the plan keeps the site, but has a layout")
        _check_counts(plan, name, int(links.sum()), sum(part.live.size for part in site.parts))
        return
    if layout is None:
        raise PlanError(f"{name}: the plan rewrites the site, but has no layout")
    _check_lead(plan.lead, site.in_channels, name)
    links = _behind(plan.tail, links, name)
    _check_channels(layout, links.shape, name)
    _check_cover(layout, links, name)
    groups, outputs = layout.outputs.shape
    _check_counts(plan, name, int(links.sum()), groups * outputs * layout.inputs.shape[1])


def _links(site: ConvSite, name: str) -> npt.NDArray[np.bool_]:
    """The site's connectivity, output x input channels, from its parts' live weights."""
    links = np.zeros((site.out_channels, site.in_channels), bool)
    made = np.zeros(site.out_channels, np.int64)
    for part in site.parts:
        outputs, width = part.live.shape
        each = outputs // part.groups
        for group in range(part.groups):
            row, column = part.first_output + group * each, part.first_input + group * width
            made[row : row + each] += 1
            links[row : row + each, column : column + width] = part.live[group * each : (group + 1) * each]
    wrong = np.flatnonzero(made != 1)
    if wrong.size:
        raise PlanError(f"{name}: output {wrong[0]} is made by {made[wrong[0]]} convolutions, expected 1")
    return links


def _check_lead(lead: ChannelPath, channels: int, name: str) -> None:
    if lead.mix is not None or len(lead.origin) != channels:
        raise PlanError(f"{name}: the path before it is no gather of its {channels} input channels")
    wrong = np.flatnonzero((lead.origin < 0) | (lead.origin >= lead.source_channels))
    if wrong.size:
        at = int(wrong[0])
        raise PlanError(f"{name}: input {at} comes from channel {lead.origin[at]}, of {lead.source_channels}")


def _behind(tail: ChannelPath, links: npt.NDArray[np.bool_], name: str) -> npt.NDArray[np.bool_]:
    """The connectivity of what the layout's outputs are."""
    if tail.mix is None:
        wrong = np.flatnonzero((tail.origin < 0) | (tail.origin >= len(links)))
        if wrong.size:
            at = int(wrong[0])
            raise PlanError(f"{name}: channel {at} behind it comes from output {tail.origin[at]}, of {len(links)}")
        return links
    if tail.mix.shape[1] != len(links):
        raise PlanError(f"{name}: {tail.mix.shape[1]} outputs are added up behind it, of {len(links)}")
    return np.asarray(tail.mix.astype(np.float64) @ links > 0)


def _check_channels(layout: Layout, shape: tuple[int, ...], name: str) -> None:
    if len(layout.outputs) != len(layout.inputs):
        raise PlanError(f"{name}: {len(layout.outputs)} groups have outputs and {len(layout.inputs)} inputs")
    for kind, channels, count in (("output", layout.outputs, shape[0]), ("input", layout.inputs, shape[1])):
        wrong = np.argwhere((channels < -1) | (channels >= count))
        if len(wrong):
            group, place = wrong[0]
            raise PlanError(f"{name}: group {group} has {kind} {channels[group, place]}, but there are {count}")
    seen = np.bincount(layout.outputs[layout.outputs >= 0], minlength=shape[0])
    uneven = np.flatnonzero(seen != 1)
    if uneven.size:
        raise PlanError(f"{name}: output {uneven[0]} is in the layout {seen[uneven[0]]} times, expected 1")


def _check_cover(layout: Layout, links: npt.NDArray[np.bool_], name: str) -> None:
    """Every output is in one group only, so a pair is connected as often as its input is in that group."""
    for outputs, inputs in zip(layout.outputs, layout.inputs, strict=True):
        own = outputs[outputs >= 0]
        seen = np.bincount(inputs[inputs >= 0], minlength=links.shape[1])
        twice = np.flatnonzero(seen > 1)
        if twice.size and own.size:
            at = int(twice[0])
            raise PlanError(f"{name}: output {own[0]} is connected to input {at} {seen[at]} times, expected at most 1")
        missing = np.argwhere(links[own] & (seen == 0))
        if len(missing):
            row, at = missing[0]
            raise PlanError(f"{name}: output {own[row]} is connected to input {at} 0 times, expected 1")


def _check_counts(plan: ConvPlan, name: str, needed: int, computed: int) -> None:
    for word, said, counted in (("needed", plan.needed, needed), ("computed", plan.computed, computed)):
        if said != counted:
            raise PlanError(f"{name}: the plan says {word} = {said} connections, counted {counted}")
    waste = computed / needed if needed else 1.0
    if plan.waste != waste:
        raise PlanError(f"{name}: the plan says waste = {plan.waste}, counted {waste}")
