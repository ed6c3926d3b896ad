"""Attention sites made up from nothing, with everything that a graph might ask for at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxopt.discover.attention_site import AttentionSite, EmptyRow, KeyLists
from onnxopt.discover.operand import Operand, Source


def key_lists(counts: NDArray[np.int64]) -> KeyLists:
    """Key lists of rows that need key ``j`` as often as ``counts[row, j]`` says."""
    distinct, row_list = np.unique(counts, axis=0, return_inverse=True)
    keys = [np.repeat(np.arange(counts.shape[1]), row) for row in distinct]
    offsets = np.cumsum([0] + [len(own) for own in keys]).astype(np.int64)
    return KeyLists(row_list.reshape(-1).astype(np.int32), offsets, np.concatenate(keys).astype(np.int32))


@dataclass(frozen=True)
class Wish:
    """What a made-up site should have."""

    heads: int = 2
    rows: int = 9
    keys: int = 13
    width: int = 4
    value_width: int = 4
    batch: int = 1
    most: int = 1
    packed: bool = True
    grouped: bool = False
    scattered: bool = False
    channels_first: bool = False
    two_sources: bool = False
    phantoms: bool = False
    own_patterns: bool = False
    bias: bool = False
    empty: EmptyRow | None = None
    repeats: bool = False
    zeros: bool = False


def made_site(wish: Wish, seed: int = 0) -> tuple[AttentionSite, dict[str, tuple[int, ...]]]:
    """A site as wished, and the shapes of its tensors."""
    rng = np.random.default_rng(seed)
    sides, shapes = _operands(wish)
    patterns = wish.heads if wish.own_patterns else 1
    counts = rng.integers(0, wish.most + 1, (patterns, wish.rows, wish.keys)) * (
        rng.random((patterns, wish.rows, wish.keys)) < 0.5
    )
    counts[:, :, 0] = 1
    if wish.rows > 3:
        counts[:, 1] = counts[:, 0]
    empty = np.zeros((wish.heads, wish.rows), bool)
    if wish.empty is not None:
        empty[:, 2] = True
        if wish.empty is not EmptyRow.ZERO and patterns > 1:
            empty[0, wish.rows - 1] = True
    lists = tuple(key_lists(own) for own in counts)
    head_lists = np.arange(wish.heads) % patterns
    head_bias, biases = _biases(wish, lists, head_lists, empty, rng)
    site = AttentionSite(
        id="attention-0",
        node="softmax",
        op="Softmax",
        nodes=("softmax",),
        heads=wish.heads,
        rows=wish.rows,
        scale=np.linspace(0.3, 0.7, wish.heads).astype(np.float32).astype(np.float64),
        q=sides["q"],
        k=sides["k"],
        v=sides["v"],
        query_vectors=_vectors(wish, sides["q"], "q", wish.rows, rng),
        key_vectors=_vectors(wish, sides["k"], "k", wish.keys, rng),
        value_vectors=_vectors(wish, sides["v"], "v", wish.keys, rng),
        head_lists=head_lists,
        lists=lists,
        head_bias=head_bias,
        biases=biases,
        empty=empty.all(axis=0),
        head_empty=empty,
        empty_kind=wish.empty,
        output="y",
        output_shape=(),
        channel_axis=-1,
        slots=np.empty(0),
        query_tokens=np.arange(wish.rows),
        key_tokens=np.arange(wish.keys),
        tokens=wish.keys,
        batch=wish.batch,
        runtime=(),
    )
    return _with_output(site, wish, rng), shapes


def tensors_of(site: AttentionSite, shapes: dict[str, tuple[int, ...]], seed: int = 1) -> dict[str, NDArray[Any]]:
    """Random tensors for the inputs of a site."""
    rng = np.random.default_rng(seed)
    return {name: rng.standard_normal(shapes[name]) for name in site.inputs}


def _operands(wish: Wish) -> tuple[dict[str, Operand], dict[str, tuple[int, ...]]]:
    widths = {"q": wish.width, "k": wish.width, "v": wish.value_width}
    counts = {"q": wish.rows, "k": wish.keys, "v": wish.keys}
    if wish.packed and wish.width == wish.value_width:
        rows = max(wish.rows, wish.keys)
        channels = 3 * wish.heads * wish.width
        source = Source("qkv", rows, channels, 1 if wish.channels_first else -1)
        shape = (wish.batch, channels, rows) if wish.channels_first else (wish.batch, rows, channels)
        return {side: Operand((source,), wish.width) for side in "qkv"}, {"qkv": shape}
    operands, shapes = {}, {}
    for side, width in widths.items():
        channels = wish.heads * width
        own = [counts[side]] if side == "q" or not wish.two_sources else [counts[side] - 4, 4]
        sources = []
        for number, rows in enumerate(own):
            name = f"{side}{number}"
            axis = 1 if wish.channels_first else -1
            sources.append(Source(name, rows, channels, axis))
            # Two windows beside the batch where channels come first, so that rows are not just positions.
            split = 2 if wish.channels_first and rows % 2 == 0 else 1
            first = (wish.batch * split, channels, rows // split)
            shapes[name] = first if wish.channels_first else (wish.batch, rows, channels)
        operands[side] = Operand(tuple(sources), width)
    return operands, shapes


def _vectors(wish: Wish, operand: Operand, side: str, count: int, rng: np.random.Generator) -> NDArray[np.int64]:
    blocks = operand.sources[0].channels // operand.width
    first = "qkv".index(side) * wish.heads if wish.packed and blocks == 3 * wish.heads else 0
    heads = np.arange(wish.heads)
    if wish.grouped and side != "q":
        heads = heads // 2
    if wish.scattered:
        result = rng.integers(0, operand.vectors, (wish.heads, count))
    else:
        result = np.arange(count) * blocks + first + heads[:, None]
    if wish.phantoms:
        result[:, count // 2] = -1
        if wish.scattered:
            result[0, 0] = -1
    return result


def _biases(
    wish: Wish,
    lists: tuple[KeyLists, ...],
    head_lists: NDArray[np.int64],
    empty: NDArray[np.bool_],
    rng: np.random.Generator,
) -> tuple[NDArray[np.int64], tuple[NDArray[np.float32], ...]]:
    if not wish.bias and wish.empty is None:
        return np.full(wish.heads, -1), ()
    values = []
    for head in range(wish.heads):
        own = lists[int(head_lists[head])]
        starts = own.row_offsets()
        bias = (rng.standard_normal(int(starts[-1])) if wish.bias else np.zeros(int(starts[-1]))).astype(np.float32)
        for row in np.flatnonzero(empty[head]):
            place = slice(starts[row], starts[row + 1])
            if wish.empty is EmptyRow.UNIFORM:
                bias[place] = np.float32(-3.4e38)
            elif wish.empty is EmptyRow.UNMASKED:
                bias[place] += np.float32(-10000)
            elif wish.empty is EmptyRow.NAN:
                bias[place] = -np.inf
        values.append(bias)
    return np.arange(wish.heads), tuple(values)


def _with_output(site: AttentionSite, wish: Wish, rng: np.random.Generator) -> AttentionSite:
    slots = np.arange(site.heads)[None, :] * site.rows + np.arange(site.rows)[:, None]
    if wish.scattered:
        slots = rng.permutation(slots.reshape(-1)).reshape(slots.shape)
    if wish.repeats:
        slots = np.concatenate([slots, slots[1:4], slots[1:2]])
    if wish.zeros:
        slots = np.concatenate([slots[:2], np.full((2, site.heads), -1), slots[2:]])
    channels = site.heads * site.v.width
    shape: tuple[int, ...] = (site.batch, len(slots), channels)
    if wish.channels_first:
        windows = 2 if len(slots) % 2 == 0 else 1
        shape = (site.batch * windows, channels, len(slots) // windows)
    fields = {name: getattr(site, name) for name in site.__dataclass_fields__}
    fields |= {"slots": slots, "output_shape": shape, "channel_axis": 1 if wish.channels_first else -1}
    return AttentionSite(**fields)
