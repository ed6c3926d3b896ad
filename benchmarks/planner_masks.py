"""Layers that the planner is measured on without a model: masks of vision transformers, and random connectivity.

A mask of 9,216 x 9,216 pairs is too big for a constant of a graph, so the sites are put together directly, as discovery
would describe them.
"""

from __future__ import annotations

import numpy as np

from onnxopt.discover.attention_site import AttentionSite, KeyLists
from onnxopt.discover.conv_site import BoolArray
from onnxopt.discover.operand import Operand, Source

# Heads and their channels in the first stages of Vision Longformer (small) and of its kind.
HEADS, WIDTH = 3, 32


def longformer(size: int, chunk: int) -> AttentionSite:
    """Square chunks on ``size`` x ``size`` tokens; a token attends to its own chunk and those around it.

    Chunks are cut at the grid's end, and there are none beyond its border. Without global tokens.
    """
    place = np.arange(size)
    own = place // chunk
    first = np.maximum(own - 1, 0) * chunk
    last = np.minimum((own + 2) * chunk, size)
    return _grid_site(f"Vision Longformer {size}x{size}, {chunk}x{chunk} chunks", size, first, last)


def neighbourhood(size: int, window: int) -> AttentionSite:
    """Every token attends to ``window`` x ``window`` tokens; at the border the window is moved, not cut."""
    first = np.clip(np.arange(size) - window // 2, 0, size - window)
    return _grid_site(f"neighbourhood {window}x{window} on {size}x{size}", size, first, first + window)


def _grid_site(name: str, size: int, first: np.ndarray, last: np.ndarray) -> AttentionSite:
    """Tokens of a square grid that attend to rows first[y] to last[y] of columns first[x] to last[x]."""
    spans, number = np.unique(np.stack([first, last], 1), axis=0, return_inverse=True)
    number = number.reshape(-1)
    row_list = (number[:, None] * len(spans) + number[None, :]).reshape(-1)
    keys = [
        (np.arange(top, end)[:, None] * size + np.arange(left, right)[None, :]).reshape(-1)
        for top, end in spans
        for left, right in spans
    ]
    offsets = np.cumsum([0] + [len(own) for own in keys]).astype(np.int64)
    lists = KeyLists(row_list.astype(np.int32), offsets, np.concatenate(keys).astype(np.int32))
    return site_of(name, lists, size * size)


def site_of(name: str, lists: KeyLists, tokens: int, heads: int = HEADS, width: int = WIDTH) -> AttentionSite:
    """A self-attention of ``tokens`` tokens with one pattern for all heads, from a packed projection."""
    packed = Operand((Source("qkv", tokens, 3 * heads * width, -1),), width)
    vectors = np.arange(tokens)[None, :] * 3 * heads + np.arange(heads)[:, None]
    return AttentionSite(
        id=name,
        node=name,
        op="Softmax",
        nodes=(name,),
        heads=heads,
        rows=tokens,
        scale=np.full(heads, width**-0.5),
        q=packed,
        k=packed,
        v=packed,
        query_vectors=vectors,
        key_vectors=vectors + heads,
        value_vectors=vectors + 2 * heads,
        head_lists=np.zeros(heads, np.int64),
        lists=(lists,),
        head_bias=np.full(heads, -1),
        biases=(),
        empty=np.zeros(tokens, bool),
        head_empty=np.zeros((heads, tokens), bool),
        empty_kind=None,
        output="y",
        output_shape=(1, tokens, heads * width),
        channel_axis=-1,
        slots=np.arange(heads)[None, :] * tokens + np.arange(tokens)[:, None],
        query_tokens=np.arange(tokens),
        key_tokens=np.arange(tokens),
        tokens=tokens,
        batch=1,
        runtime=(),
    )


def hidden_blocks(channels: int, blocks: int, seed: int) -> BoolArray:
    """A block-diagonal connectivity of equal blocks whose rows and columns were shuffled."""
    rng = np.random.default_rng(seed)
    owner = np.arange(channels) * blocks // channels
    links = owner[:, None] == owner[None, :]
    return links[rng.permutation(channels)][:, rng.permutation(channels)]


def random_links(outputs: int, inputs: int, density: float, seed: int) -> BoolArray:
    """A connectivity without structure."""
    return np.random.default_rng(seed).random((outputs, inputs)) < density
