"""The shapes in which kernels are compiled: what the planner chooses from, and what profiling and compiling name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Path = Literal["mma", "wgmma"]
Element = Literal["fp16", "bf16", "tf32", "fp32"]


@dataclass(frozen=True, order=True)
class AttentionVariant:
    """One shape of the attention kernel: a block computes a strip of up to ``rows`` queries, ``keys`` keys a tile.

    ``swapped`` puts the keys on the M side of the matrix instruction and the queries on its N side. A kernel skips the
    parts of a strip that lie beyond its last query or key in whole granules, so those are what padding rounds to.
    """

    path: Path
    rows: int
    keys: int
    warps: int
    stages: int
    swapped: bool = False

    @property
    def row_granule(self) -> int:
        """Queries are computed in multiples of this."""
        if self.swapped:
            return 8
        return 16 if self.path == "mma" else 64

    @property
    def key_granule(self) -> int:
        """Keys are computed in multiples of this: the depth of the second product, or the M side when swapped."""
        return 64 if self.swapped and self.path == "wgmma" else 16

    @property
    def threads(self) -> int:
        """Threads of a block; wgmma adds a producer warpgroup to its consumers."""
        return 32 * self.warps + (128 if self.path == "wgmma" else 0)

    @property
    def blocks(self) -> int:
        """Blocks that a strip takes, if its keys are not split."""
        return 1

    def describe(self) -> str:
        """The shape in a word, unique among variants: ``mma 64x64 w4 s2``."""
        return f"{self.path} {self.rows}x{self.keys} w{self.warps} s{self.stages}{' swapped' if self.swapped else ''}"


@dataclass(frozen=True, order=True)
class ConvVariant:
    """One shape of the group-convolution kernel: a block computes ``outputs`` channels of ``pixels`` positions.

    It walks the part's inputs ``inputs`` channels a step. Parts are padded to ``output_granule`` x ``input_granule``.
    ``path`` ``lanes`` is the one without the matrix unit, for depthwise and tiny parts.
    """

    path: Literal["mma", "wgmma", "lanes"]
    outputs: int
    inputs: int
    pixels: int
    warps: int
    stages: int

    @property
    def output_granule(self) -> int:
        """Outputs are computed in multiples of this: the N side of ``mma``, with pixels on the M side."""
        return {"mma": 8, "wgmma": 8, "lanes": 1}[self.path]

    @property
    def input_granule(self) -> int:
        """Inputs are computed in multiples of this: the depth of one matrix instruction."""
        return 1 if self.path == "lanes" else 16

    @property
    def threads(self) -> int:
        """Threads of a block; wgmma adds a producer warpgroup to its consumers."""
        return 32 * self.warps + (128 if self.path == "wgmma" else 0)

    def describe(self) -> str:
        """The shape in a word, unique among variants."""
        return f"{self.path} {self.outputs}x{self.inputs}x{self.pixels} w{self.warps} s{self.stages}"


@dataclass(frozen=True)
class Resources:
    """What one block of a variant takes; ``estimated`` until a compiler's report says so."""

    registers_per_thread: int
    shared_memory_bytes: int
    threads: int
    estimated: bool = True
