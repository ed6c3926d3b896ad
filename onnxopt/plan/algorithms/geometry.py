"""What a convolution layer computes, apart from weights and algorithm: channels, sizes, taps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

from onnxopt.errors import InputError

Axes = tuple[int, int, int]

_AXES = 3
_LARGEST = 2**31 - 1


@dataclass(frozen=True)
class LayerGeometry:
    """A convolution over depth, height and width; fewer axes have leading ones of size 1.

    ``pads`` are what lies in front of each axis; what lies behind follows from ``output_size``.
    """

    input_channels: int
    output_channels: int
    groups: int
    input_size: Axes
    output_size: Axes
    kernel: Axes
    strides: Axes
    dilations: Axes
    pads: Axes

    @property
    def taps(self) -> int:
        """Weights of one connection."""
        return prod(self.kernel)

    @property
    def input_positions(self) -> int:
        """Positions of a plane of ``x``."""
        return prod(self.input_size)

    @property
    def positions(self) -> int:
        """Positions of a plane of ``y``."""
        return prod(self.output_size)

    @property
    def depthwise(self) -> bool:
        """Whether every input channel is a group by itself."""
        return self.groups == self.input_channels and self.groups > 1

    @property
    def pointwise(self) -> bool:
        """Whether every output position reads the same position of ``x``, and that alone."""
        return (
            self.taps == 1
            and self.strides == (1, 1, 1)
            and self.pads == (0, 0, 0)
            and self.input_size == self.output_size
        )

    def to_json(self) -> dict[str, Any]:
        """As in the ``kernel`` part of a configuration."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in vars(self).items()}


def layer_geometry(
    input_size: Sequence[int],
    weight_shape: Sequence[int],
    *,
    strides: Sequence[int] | None = None,
    dilations: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    groups: int = 1,
) -> LayerGeometry:
    """The geometry of an ONNX ``Conv`` over one to three axes.

    ``weight_shape`` is outputs x inputs of a group x taps of each axis; ``pads`` are in ONNX's order, first what lies
    in front of each axis. Raises InputError with the figures where the kernel is larger than its padded input, groups
    do not divide the channels, or numbers are missing or out of range.
    """
    rank = len(input_size)
    if not 1 <= rank <= _AXES or len(weight_shape) != rank + 2:
        raise InputError(
            f"a convolution over {rank} axes with weights of {len(weight_shape)} dimensions; allowed: 1 to {_AXES} "
            "axes and weights of two dimensions more"
        )
    outputs, group_inputs, *taps = (int(n) for n in weight_shape)
    steps = _axes("strides", strides, [1] * rank, 1)
    spread = _axes("dilations", dilations, [1] * rank, 1)
    around = _axes("pads", pads, [0] * 2 * rank, 0)
    _least("input size", input_size, 1)
    _least("weights", weight_shape, 1)
    if groups < 1 or outputs % groups:
        raise InputError(f"{outputs} output channels in {groups} groups; allowed: groups that divide the channels")
    size = []
    for axis in range(rank):
        padded = int(input_size[axis]) + around[axis] + around[rank + axis]
        reach = spread[axis] * (taps[axis] - 1) + 1
        if reach > padded:
            raise InputError(
                f"axis {axis}: {taps[axis]} taps with dilation {spread[axis]} reach over {reach} positions, the padded "
                f"input has {padded}; allowed: a kernel that fits its padded input"
            )
        size.append((padded - reach) // steps[axis] + 1)

    def whole(values: Sequence[int], fill: int) -> Axes:
        d, h, w = [fill] * (_AXES - rank) + [int(value) for value in values]
        return d, h, w

    inputs = group_inputs * groups
    geometry = LayerGeometry(
        input_channels=inputs,
        output_channels=outputs,
        groups=groups,
        input_size=whole(input_size, 1),
        output_size=whole(size, 1),
        kernel=whole(taps, 1),
        strides=whole(steps, 1),
        dilations=whole(spread, 1),
        pads=whole(around[:rank], 0),
    )
    for word, count in (
        ("input", inputs * geometry.input_positions),
        ("output", outputs * geometry.positions),
        ("weight", prod(int(n) for n in weight_shape)),
    ):
        if count > _LARGEST:
            raise InputError(f"the {word} has {count:,} elements a batch element; allowed: {_LARGEST:,}")
    return geometry


def _axes(name: str, values: Sequence[int] | None, default: list[int], least: int) -> list[int]:
    if values is None:
        return default
    if len(values) != len(default):
        raise InputError(f"{len(values)} {name} ({list(values)}); allowed: {len(default)} numbers")
    _least(name, values, least)
    return [int(value) for value in values]


def _least(name: str, values: Sequence[int], least: int) -> None:
    if min(values) < least:
        raise InputError(f"{name} are {list(values)}; allowed: {least} or more each")
