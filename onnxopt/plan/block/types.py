"""The tables of a block of convolutions, as ``docs/tables.md`` describes them, and the configuration that names it."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from typing import Any, Literal

import numpy as np

from onnxopt.discover.conv_site import IntArray
from onnxopt.plan.tables.types import configuration_of, operator_name
from onnxopt.target.variant import Element

BLOCK_JOB_COLUMNS = (
    "row_begin",
    "row_count",
    "part_begin",
    "parts_0",
    "parts_1",
    "parts_2",
    "reserved_6",
    "reserved_7",
)
PART_COLUMNS = ("output_begin", "output_count", "input_begin", "input_count", "weight_begin")
PART_WIDTH = 8

Sizes = tuple[tuple[tuple[int, int], ...], ...]
"""For each stage of a bundle the numbers of outputs and inputs of its parts."""

Path = Literal["products", "channelwise"]

_PART_BYTES, _ELEMENT_BYTES = 32, 2


@dataclass(frozen=True, order=True)
class BlockShape:
    """How a block of threads is laid out.

    ``columns`` warps beside each other share positions of the first stage; a warp computes ``granules`` times 16
    positions by ``blocks`` times 8 outputs at a time; the first stage brings ``step`` inputs at a time.
    """

    warps: int
    columns: int
    granules: int
    blocks: int
    step: int

    @property
    def threads(self) -> int:
        """Threads of a block."""
        return 32 * self.warps

    @property
    def positions(self) -> int:
        """Positions of the first stage that are computed together."""
        return 16 * self.granules * self.warps // self.columns

    @property
    def outputs(self) -> int:
        """Outputs that a part of the first stage may have."""
        return 8 * self.blocks * self.columns

    def describe(self) -> str:
        """A short name."""
        return f"block_w{self.warps}x{self.columns}_g{self.granules}_b{self.blocks}_k{self.step}"


@dataclass(frozen=True)
class BlockStage:
    """One convolution of a block; axes are two, ``slots`` is 0 for the last stage."""

    path: Path
    activation: str
    input_size: tuple[int, ...]
    output_size: tuple[int, ...]
    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    pads: tuple[int, ...]
    slots: int

    def to_json(self) -> dict[str, Any]:
        """The stage's part of the configuration."""
        sizes = ("input_size", "output_size", "kernel", "strides", "dilations", "pads")
        own = {"path": self.path, "activation": self.activation, "slots": self.slots}
        return {**own, **{name: list(getattr(self, name)) for name in sizes}}

    @property
    def width(self) -> int:
        """Columns of the result before it that it reads, padding included."""
        return (self.output_size[1] - 1) * self.strides[1] + (self.kernel[1] - 1) * self.dilations[1] + 1

    def rows_before(self, rows: int) -> int:
        """Rows of the result before it, padding included, that so many of its rows need."""
        return (rows - 1) * self.strides[0] + (self.kernel[0] - 1) * self.dilations[0] + 1


@dataclass(frozen=True)
class BlockKernel:
    """What the kernel of a block is specialised for; ``rows`` and ``parts`` are the most that a job has."""

    element: Element
    shape: BlockShape
    rows: int
    parts: int
    input_channels: int
    output_channels: int
    stages: tuple[BlockStage, ...]
    input_activation: str
    prologue: bool
    residual: bool

    def to_json(self) -> dict[str, Any]:
        """The ``kernel`` part of the configuration."""
        plain = ("element", "rows", "parts", "input_channels", "output_channels", "input_activation")
        return {
            **{name: getattr(self, name) for name in plain},
            "shape": dict(vars(self.shape)),
            "stages": [stage.to_json() for stage in self.stages],
            "prologue": self.prologue,
            "residual": self.residual,
        }

    @property
    def shared_bytes(self) -> int:
        """Shared memory of a block of threads, as the kernel lays it out."""
        return shared_bytes(self.shape, self.rows, self.parts, self.stages)


def shared_bytes(shape: BlockShape, rows: int, parts: int, stages: tuple[BlockStage, ...]) -> int:
    """Lines of parts, what the first stage leaves, and what its steps bring or the second stage leaves."""
    patches = []
    for before, stage in reversed(list(pairwise(stages))):
        rows = stage.rows_before(rows)
        patches.append(_ELEMENT_BYTES * rows * stage.width * before.slots)
    patches.reverse()
    staged = shape.warps * 4 * (8 if shape.blocks == 1 else 16) * (16 * shape.granules + 4)
    steps = 2 * _ELEMENT_BYTES * shape.step * (shape.positions + shape.outputs)
    if len(stages) == 3:
        first, second = max(patches[0], staged), max(steps, patches[1])
    else:
        first, second = patches[0], max(steps, staged)
    return _up(_PART_BYTES * parts, 128) + _up(first, 128) + second


@dataclass(frozen=True, eq=False)
class StagePart:
    """Outputs of a stage with the inputs that they need, in order."""

    outputs: IntArray
    inputs: IntArray


@dataclass(frozen=True, eq=False)
class Bundle:
    """The parts of each stage that one job computes."""

    stages: tuple[tuple[StagePart, ...], ...]

    @cached_property
    def sizes(self) -> Sizes:
        """Outputs and inputs of every part."""
        return tuple(tuple((len(part.outputs), len(part.inputs)) for part in parts) for parts in self.stages)


@dataclass(frozen=True, eq=False)
class BlockSchedule:
    """How a block is cut: each bundle by ``rows`` output rows at a time, ``resident`` jobs on a multiprocessor.

    ``bound_us`` is what launch or bytes take at least; ``compared`` counts the schedules that it is the best of.
    """

    shape: BlockShape
    rows: int
    resident: int
    bundles: tuple[Bundle, ...]
    element: Element
    predicted_us: float = 0.0
    bound_us: float = 0.0
    compared: int = 0


@dataclass(frozen=True, eq=False)
class BlockTables:
    """One block for the kernel; tables that the configuration leaves out are None."""

    kernel: BlockKernel
    w: np.ndarray = field(repr=False)
    b: np.ndarray = field(repr=False)
    jobs: np.ndarray = field(repr=False)
    parts: np.ndarray = field(repr=False)
    outputs: np.ndarray = field(repr=False)
    inputs: np.ndarray = field(repr=False)
    input_scales: np.ndarray | None = field(repr=False)
    input_shifts: np.ndarray | None = field(repr=False)

    def arrays(self) -> dict[str, np.ndarray]:
        """The tables that there are, by name, in the order of the operator's inputs."""
        names = ("w", "b", "jobs", "parts", "outputs", "inputs", "input_scales", "input_shifts")
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}

    def configuration(self) -> dict[str, Any]:
        """What the operator's name is the hash of; its ``kernel`` is all that the kernel's source depends on."""
        return configuration_of("ConvBlock", self.kernel.to_json(), self.arrays())

    def operator(self) -> str:
        """The operator's name."""
        return operator_name(self.configuration())


def _up(count: int, multiple: int) -> int:
    return -(-count // multiple) * multiple
