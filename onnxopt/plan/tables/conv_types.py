"""The tables of a convolution, as ``docs/tables.md`` describes them, and the configuration that names it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from onnxopt.plan.tables.types import configuration_of, operator_name
from onnxopt.target.variant import ConvVariant, Element

CONV_JOB_COLUMNS = (
    "variant",
    "output_begin",
    "output_count",
    "input_begin",
    "input_count",
    "weight_begin",
    "pixel_begin",
    "pixel_count",
    "extra_begin",
    "extra_count",
    "reserved_10",
    "reserved_11",
)


@dataclass(frozen=True)
class ConvKernel:
    """What the group-convolution kernel is specialised for; axes are three, ``slots`` is 0 where nothing is split."""

    element: Element
    variants: tuple[ConvVariant, ...]
    layout: str
    input_channels: int
    output_channels: int
    input_size: tuple[int, ...]
    output_size: tuple[int, ...]
    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    pads: tuple[int, ...]
    images: int
    activation: str
    input_activation: str
    prologue: bool
    residual: bool
    extras: bool
    slots: int

    def to_json(self) -> dict[str, Any]:
        """The ``kernel`` part of the configuration."""
        sizes = ("input_size", "output_size", "kernel", "strides", "dilations", "pads")
        plain = ("layout", "input_channels", "output_channels", "images", "activation", "input_activation")
        return {
            "element": self.element,
            "variants": [_conv_variant(v) for v in self.variants],
            **{name: getattr(self, name) for name in plain},
            **{name: list(getattr(self, name)) for name in sizes},
            **{name: getattr(self, name) for name in ("prologue", "residual", "extras", "slots")},
            "split": self.slots > 0,
        }


def _conv_variant(v: ConvVariant) -> dict[str, Any]:
    return {
        "path": v.path,
        "outputs": v.outputs,
        "inputs": v.inputs,
        "pixels": v.pixels,
        "warps": v.warps,
        "stages": v.stages,
        "output_granule": v.output_granule,
        "input_granule": v.input_granule,
    }


@dataclass(frozen=True, eq=False)
class SumTables:
    """The second operator of a convolution some of whose outputs are added up."""

    kernel: Mapping[str, Any]
    b: np.ndarray = field(repr=False)
    sum_begin: np.ndarray = field(repr=False)
    sum_rows: np.ndarray = field(repr=False)

    def arrays(self) -> dict[str, np.ndarray]:
        """The tables by name, in the order of the operator's inputs."""
        return {"b": self.b, "sum_begin": self.sum_begin, "sum_rows": self.sum_rows}

    def configuration(self) -> dict[str, Any]:
        """What the operator's name is the hash of."""
        return configuration_of("SumConv", self.kernel, self.arrays())

    def operator(self) -> str:
        """The operator's name."""
        return operator_name(self.configuration())


@dataclass(frozen=True, eq=False)
class ConvTables:
    """One convolution for the kernels; tables that the configuration leaves out are None."""

    kernel: ConvKernel
    w: np.ndarray = field(repr=False)
    b: np.ndarray | None = field(repr=False)
    jobs: np.ndarray = field(repr=False)
    outputs: np.ndarray = field(repr=False)
    inputs: np.ndarray = field(repr=False)
    input_scales: np.ndarray | None = field(repr=False)
    input_shifts: np.ndarray | None = field(repr=False)
    extras: np.ndarray | None = field(repr=False)
    sum: SumTables | None = field(repr=False)

    def arrays(self) -> dict[str, np.ndarray]:
        """The tables that there are, by name, in the order of the operator's inputs."""
        names = ("w", "b", "jobs", "outputs", "inputs", "input_scales", "input_shifts", "extras")
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}

    def configuration(self) -> dict[str, Any]:
        """What the operator's name is the hash of; its ``kernel`` is all that the kernel's source depends on."""
        return configuration_of("GroupConv", self.kernel.to_json(), self.arrays())

    def operator(self) -> str:
        """The operator's name."""
        return operator_name(self.configuration())
