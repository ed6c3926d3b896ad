"""A group convolution as strips: outputs are rows, inputs are keys, and every tile of positions is a block more."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from onnxopt.discover.attention_site import KeyLists
from onnxopt.discover.conv_site import BoolArray
from onnxopt.plan.group_conv_cost import GroupConvCost
from onnxopt.target import GpuProfile
from onnxopt.target.variant import ConvVariant


@dataclass(frozen=True)
class ConvShape:
    """A variant as the strip search sees it; one launch has one tile of positions, so that is part of its path."""

    variant: ConvVariant
    blocks: int

    @property
    def path(self) -> str:
        """What the variants of a launch share."""
        return f"{self.variant.path} {self.variant.pixels}"

    @property
    def threads(self) -> int:
        """Threads of a block."""
        return self.variant.threads

    @property
    def rows(self) -> int:
        """Outputs of a strip at most."""
        return self.variant.outputs

    @property
    def row_granule(self) -> int:
        """Outputs are computed in multiples of this."""
        return self.variant.output_granule

    @property
    def key_granule(self) -> int:
        """Inputs are computed in multiples of this."""
        return self.variant.input_granule


@dataclass(frozen=True)
class ConvStrips:
    """The cost of a convolution's strips; ``paths`` names the paths that may be used."""

    cost: GroupConvCost
    paths: tuple[str, ...] = ("mma", "wgmma", "lanes")

    @property
    def gpu(self) -> GpuProfile:
        """The GPU that is planned for."""
        return self.cost.gpu

    @property
    def launch_us(self) -> float:
        """What a launch takes by itself."""
        return self.cost.launch_us

    def variants(self) -> tuple[ConvShape, ...]:
        """Every allowed shape, with the tiles of positions that each strip is computed for, in all groups."""
        allowed = [v for v in self.cost.variants() if v.path in self.paths]
        return tuple(ConvShape(v, self.cost.blocks(v)) for v in allowed or self.cost.variants())

    def occupancy(self, variants: Sequence[ConvShape]) -> int:
        """Blocks that fit on a multiprocessor."""
        return self.cost.occupancy([shape.variant for shape in variants])

    def strip_us(
        self, variant: ConvShape, rows: np.ndarray, keys: np.ndarray, resident: int, masked: bool
    ) -> np.ndarray:
        """Time of one tile of positions; zeros inside a strip are weights like others, so nothing is ever masked."""
        return self.cost.part_us(variant.variant, rows, keys, resident)

    def merge_us(self, rows: int, pieces: int) -> float:
        """Inputs are never split here."""
        return 0.0


def output_lists(links: BoolArray) -> KeyLists:
    """The inputs of every output as key lists, outputs with equal inputs sharing one."""
    unique, inverse = np.unique(np.packbits(links, axis=1), axis=0, return_inverse=True)
    first = np.full(len(unique), len(links))
    np.minimum.at(first, inverse.reshape(-1), np.arange(len(links)))
    # Numbered by their first output, so that the order of the rows shows in the order of the lists.
    rank = np.empty(len(unique), np.int64)
    rank[np.argsort(first, kind="stable")] = np.arange(len(unique))
    outputs, inputs = np.nonzero(links[np.sort(first)])
    offsets = np.concatenate([[0], np.cumsum(np.bincount(outputs, minlength=len(unique)))]).astype(np.int64)
    return KeyLists(rank[inverse.reshape(-1)].astype(np.int32), offsets, inputs.astype(np.int32))
