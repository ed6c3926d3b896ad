"""What a convolution operator computes, apart from how it is scheduled."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from onnx import NodeProto

from onnxopt.discover.conv_site import ChannelPath, ConvSite, IntArray
from onnxopt.model.graph import attribute

Activation = Literal["none", "relu", "hardswish", "silu"]


@dataclass(frozen=True, eq=False)
class ConvWork:
    """What an operator computes: a convolution with the channel movement around it.

    ``weights`` are outputs x inputs x kernel, zero where nothing is connected. ``channels`` and ``size`` are those of
    the tensor x; input ``i`` reads its channel ``reads[i]``, or zeros where that is -1. ``pads`` are as in ONNX, first
    what lies in front of each axis. ``mix`` (channels of y x outputs) says how often each output is added into each
    channel of y; None where they are the same. Input scales and shifts are by input.
    """

    weights: np.ndarray
    bias: np.ndarray | None
    channels: int
    size: tuple[int, ...]
    reads: IntArray
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    pads: tuple[int, ...]
    mix: IntArray | None = None
    activation: Activation = "none"
    input_activation: Activation = "none"
    input_scales: np.ndarray | None = None
    input_shifts: np.ndarray | None = None
    residual: bool = False
    layout: Literal["first", "last"] = "first"

    @property
    def output_size(self) -> tuple[int, ...]:
        """Positions of y along each axis."""
        rank = len(self.size)
        reach = [d * (k - 1) + 1 for d, k in zip(self.dilations, self.weights.shape[2:], strict=True)]
        return tuple(
            (size + self.pads[axis] + self.pads[rank + axis] - reach[axis]) // self.strides[axis] + 1
            for axis, size in enumerate(self.size)
        )

    @property
    def sums(self) -> IntArray:
        """:attr:`mix`, also where outputs are the channels of y."""
        return np.eye(len(self.weights), dtype=np.int64) if self.mix is None else self.mix


def conv_work(
    site: ConvSite,
    weights: np.ndarray,
    bias: np.ndarray | None,
    size: Sequence[int],
    lead: ChannelPath | None = None,
    tail: ChannelPath | None = None,
) -> ConvWork:
    """The work of a site on an input of ``size`` positions, with dense ``weights`` (outputs x inputs x kernel).

    Channels move in front of it as ``lead`` says and behind it as ``tail`` does, where these are given; operations on
    these paths are not part of the work.
    """
    strides, dilations, pads = geometry(site.node, site.kernel, size)
    inputs = np.arange(site.in_channels)
    reads = inputs if lead is None else inputs_of(lead)
    return ConvWork(
        weights=weights,
        bias=bias,
        channels=site.in_channels if lead is None else lead.source_channels,
        size=tuple(size),
        reads=reads,
        strides=strides,
        dilations=dilations,
        pads=pads,
        mix=None if tail is None or tail.is_identity else tail.matrix(),
    )


def inputs_of(lead: ChannelPath) -> IntArray:
    """The source channel of each target channel of a path that adds nothing up; -1 is a channel of zeros."""
    if lead.mix is not None:
        raise ValueError(f"the channels of {lead.target!r} are sums; they cannot be read one by one")
    return lead.origin


def geometry(
    node: NodeProto, kernel: Sequence[int], size: Sequence[int]
) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    """Strides, dilations and pads (in front of each axis, then behind) of a Conv on ``size`` positions."""
    rank = len(kernel)
    strides = _numbers(node, "strides", [1] * rank)
    dilations = _numbers(node, "dilations", [1] * rank)
    pads = _numbers(node, "pads", [0] * 2 * rank)
    mode = attribute(node, "auto_pad", "NOTSET")
    mode = mode.decode() if isinstance(mode, bytes) else mode
    if mode == "VALID":
        pads = (0,) * 2 * rank
    elif mode in ("SAME_UPPER", "SAME_LOWER"):
        totals = [
            max(0, (-(-n // s) - 1) * s + d * (k - 1) + 1 - n)
            for n, k, s, d in zip(size, kernel, strides, dilations, strict=True)
        ]
        short, long = [t // 2 for t in totals], [-(-t // 2) for t in totals]
        pads = (*short, *long) if mode == "SAME_UPPER" else (*long, *short)
    return strides, dilations, pads


def _numbers(node: NodeProto, name: str, default: list[int]) -> tuple[int, ...]:
    values = attribute(node, name, default)
    return tuple(values) if isinstance(values, Sequence) and not isinstance(values, str) else tuple(default)
