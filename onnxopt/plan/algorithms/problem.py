"""The choice of convolution algorithms for a whole network as data: options of layers, and tensors between them.

A tensor between convolutions lies in memory in one layout, ``first`` or ``last`` (where its channels are). Nodes that
work in either layout join their tensors to a *region*, which has one layout. A convolution that computes in the other
layout needs the tensor converted on its way in or out; tensors that other nodes read in ONNX's own layout are converted
too where their region has the other one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from onnxopt.errors import InputError
from onnxopt.target.layer_records import LAYOUTS as LAYOUTS
from onnxopt.target.layer_records import Layout as Layout

KEEP = "keep"
"""The option that leaves a convolution to the engine."""


@dataclass(frozen=True)
class Option:
    """One way to compute a layer: its time, the bytes between its steps, and those of its constants.

    ``constant_bytes`` are beyond those of the weights as they are. ``measured`` says where the time comes from.
    """

    algorithm: str
    layout: Layout
    microseconds: float
    workspace_bytes: int = 0
    constant_bytes: int = 0
    measured: bool = False


@dataclass(frozen=True)
class Layer:
    """A convolution by its site's name, with its options."""

    id: str
    options: tuple[Option, ...]


@dataclass(frozen=True)
class Conversion:
    """A tensor of a region: what converting it to the other layout takes, and who needs it in a layout of their own.

    It is converted once if any of ``layers`` (numbers) computes in another layout than the region has, or, with
    ``plain``, if the region's layout is not ``first``.
    """

    region: int
    microseconds: float
    layers: tuple[int, ...]
    plain: bool = False


@dataclass(frozen=True)
class Network:
    """All layers of a network, ``regions`` regions of tensors, and the conversions between them."""

    layers: tuple[Layer, ...]
    regions: int
    conversions: tuple[Conversion, ...]

    def layouts(self, chosen: Sequence[int]) -> tuple[Layout, ...]:
        """The layout of each layer under a choice of option numbers."""
        return tuple(layer.options[n].layout for layer, n in zip(self.layers, chosen, strict=True))


def check_network(network: Network, budget: int | None) -> None:
    """Raise InputError where no choice can exist: a layer without options, or a budget that none fits, with figures.

    The budget holds the largest workspace of a layer, since layers run one after another, and all constants.
    """
    for layer in network.layers:
        if not layer.options:
            raise InputError(f"{layer.id}: no algorithm can compute it, and it cannot be kept either")
    if budget is None:
        return
    if budget < 0:
        raise InputError(f"a workspace budget of {budget} bytes; allowed: 0 or more")
    least = _least_bytes(network)
    if least > budget:
        large = max(network.layers, key=lambda layer: min(o.workspace_bytes for o in layer.options))
        need = min(option.workspace_bytes for option in large.options)
        raise InputError(
            f"a workspace budget of {budget:,} bytes fits no choice: the least that any needs is {least:,}, "
            f"{need:,} of them for '{large.id}'; raise the budget to {least:,} or more"
        )


def _least_bytes(network: Network) -> int:
    """The smallest budget that some choice fits: for every largest workspace, the fewest constants under it."""
    best: int | None = None
    for limit in sorted({option.workspace_bytes for layer in network.layers for option in layer.options} | {0}):
        fewest = 0
        for layer in network.layers:
            own = [option.constant_bytes for option in layer.options if option.workspace_bytes <= limit]
            if not own:
                break
            fewest += min(own)
        else:
            best = limit + fewest if best is None else min(best, limit + fewest)
    assert best is not None
    return best


@dataclass(frozen=True)
class Choice:
    """What was chosen: an option's number for each layer, a layout for each region, and the proof.

    ``microseconds`` is the time of all layers and conversions, ``bound_us`` what no choice undercuts.
    """

    chosen: tuple[int, ...]
    regions: tuple[Layout, ...]
    microseconds: float
    bound_us: float
    status: str
    solver: str
    nodes: int

    @property
    def gap(self) -> float:
        """How far the choice may be from the best, as a share of its time."""
        return max(0.0, (self.microseconds - self.bound_us) / self.microseconds) if self.microseconds else 0.0

    def options(self, network: Network) -> Mapping[str, Option]:
        """The chosen option of each layer by its name."""
        return {layer.id: layer.options[n] for layer, n in zip(network.layers, self.chosen, strict=True)}
