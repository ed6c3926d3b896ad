"""What is known about a sample before any tool looks at it.

Every array here comes from the geometry of the pattern (window sizes, chunk offsets, drawn masks), never from
the finished model, so that a test can set the two against each other.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import onnx
from numpy.typing import NDArray

IntArray = NDArray[np.int32]
BoolArray = NDArray[np.bool_]
FloatArray = NDArray[np.float64]

Fill = Literal["randn", "policy", "mask", "ids"]
BiasKind = Literal["none", "shared", "per_head"]
EmptyResult = Literal["none", "uniform", "unmasked", "zero", "nan"]
RuntimeRule = Literal["none", "policy", "penalty"]
ConvPattern = Literal["grouped", "pruned", "gathered", "split", "depthwise", "dense"]

ID_LIMIT = 16
"""Integer id inputs are drawn from [0, ID_LIMIT)."""


@dataclass(frozen=True)
class Projection:
    """Columns `start:stop` of a linear layer: `rows @ weight[:, start:stop] + bias[start:stop]`.

    A 1x1 convolution's weight (out, in, 1, 1) counts as the transposed matrix.
    """

    weight: str
    bias: str
    start: int
    stop: int

    def part(self, index: int, parts: int) -> Projection:
        """The `index`-th of `parts` equal column ranges, as in a packed query-key-value projection."""
        width = (self.stop - self.start) // parts
        begin = self.start + index * width
        return replace(self, start=begin, stop=begin + width)


@dataclass(frozen=True, eq=False)
class Wiring:
    """Where one attention sits in its graph.

    Tensors are flattened per batch element to rows x channels. `query_rows[i]` is the row of
    `query_source` that query i is projected from and `output_rows[i]` the row of `output` that it ends
    in, after the output projection. Sources and output are batch x channels x positions where
    `channels_first`.
    """

    query_source: str
    key_source: str
    output: str
    query: Projection
    key: Projection
    value: Projection
    projection: Projection
    query_rows: IntArray
    output_rows: IntArray
    channels_first: bool = False


@dataclass(frozen=True, eq=False)
class AttentionTruth:
    """One attention, for one batch element.

    `links[h, i, j]` says how often query i of head h (one head stands for all where they are equal) uses
    key j. The first `keys` columns are tokens; columns behind them are phantom keys, which were padded
    before the projection, so that their K and V are the projection's bias. `bias` has the same layout and
    holds what is added to a score without masking it. `empty_support[i, j]` says which keys the softmax
    of a fully masked query still ranges over. `mixture` names the logical attention whose parts have
    softmaxes of their own.
    """

    node: str
    heads: int
    head_dim: int
    keys: int
    scale: tuple[float, ...]
    links: IntArray
    wiring: Wiring
    bias: FloatArray | None = None
    cosine: bool = False
    runtime: RuntimeRule = "none"
    runtime_input: str = ""
    empty_result: EmptyResult = "none"
    empty_support: IntArray | None = None
    mixture: str = ""

    @property
    def adjacency(self) -> IntArray:
        """Multiplicities (heads or 1, queries, keys), without phantom keys; fully masked queries are zero
        rows."""
        return self.links[:, :, : self.keys]

    @property
    def live(self) -> BoolArray:
        """Which query rows have a live key in at least one head."""
        rows: BoolArray = np.asarray(self.links.any(axis=(0, 2)))
        return rows

    @property
    def queries(self) -> int:
        return int(self.live.sum())

    @property
    def empty_rows(self) -> int:
        return len(self.live) - self.queries

    @property
    def pairs_total(self) -> int:
        """Live (query token, key token) pairs over all heads, with multiplicity, without phantom keys."""
        repeat = self.heads // len(self.links)
        return int(self.adjacency.sum()) * repeat

    @property
    def pairs(self) -> int:
        return self.pairs_total // self.heads

    @property
    def phantom_pairs(self) -> int:
        """Pairs with phantom keys, per head."""
        return int(self.links[:, :, self.keys :].sum()) // len(self.links)

    @property
    def density(self) -> float:
        return self.pairs / (len(self.live) * self.keys)

    @property
    def runtime_mask(self) -> bool:
        return self.runtime != "none"

    @property
    def bias_kind(self) -> BiasKind:
        if self.bias is None:
            return "none"
        return "per_head" if self.bias.shape[0] > 1 else "shared"

    @property
    def distinct_masks(self) -> int:
        return len({head.tobytes() for head in self.links})


@dataclass(frozen=True, eq=False)
class ConvTruth:
    """One convolution site: the Conv nodes and the channel movement around them.

    `connections` counts live (output channel, input channel) pairs of the convolution itself.
    `connectivity[o, i]` counts the ways from channel i of `source` to channel o of `output`, through the
    movement on both sides.
    """

    nodes: tuple[str, ...]
    out_channels: int
    in_channels: int
    groups: int
    connections: int
    kernel: tuple[int, ...]
    pattern: ConvPattern
    source: str
    output: str
    connectivity: IntArray

    @property
    def density(self) -> float:
        return self.connections / (self.out_channels * self.in_channels)


@dataclass(frozen=True, eq=False)
class Sample:
    """A model with its ground truth. `inputs` says how each graph input is to be filled."""

    name: str
    model: onnx.ModelProto
    attention: tuple[AttentionTruth, ...] = ()
    convolutions: tuple[ConvTruth, ...] = ()
    inputs: Mapping[str, Fill] = field(default_factory=dict)

    def named(self, name: str) -> Sample:
        """The same sample under another name, which is also the graph's name."""
        self.model.graph.name = name
        return replace(self, name=name)

    def to_bytes(self) -> bytes:
        """The serialised model; equal arguments give equal bytes."""
        return self.model.SerializeToString(deterministic=True)

    def draw(self, seed: int = 0, batch: int = 2) -> dict[str, NDArray[Any]]:
        """Random inputs of the declared kinds; a symbolic dimension becomes `batch`."""
        rng = np.random.default_rng(seed)
        return {
            value.name: _draw(rng, self.inputs[value.name], _shape(value, batch)) for value in self.model.graph.input
        }


def _shape(value: onnx.ValueInfoProto, batch: int) -> tuple[int, ...]:
    return tuple(d.dim_value if d.HasField("dim_value") else batch for d in value.type.tensor_type.shape.dim)


def _draw(rng: np.random.Generator, fill: Fill, shape: tuple[int, ...]) -> NDArray[Any]:
    if fill == "ids":
        return rng.integers(0, ID_LIMIT, shape, dtype=np.int64)
    if fill == "randn":
        return rng.standard_normal(shape).astype(np.float32)
    # Policies and masks keep their first token: a row without any key is a case of its own.
    chosen = (rng.random(shape) < 0.7).astype(np.float32)
    chosen[:, 0] = 1.0
    return chosen
