"""Which tile a block of an algorithm's kernel computes: chosen from the layer alone, so that equal layers are equal."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from onnxopt.plan.algorithms.geometry import LayerGeometry

DEPTH_BYTES = 64
"""Bytes of a row of weights that a matrix product walks a step; rows are padded to whole steps."""
PIECE_BYTES = 16
"""Rows of columns that a step writes are padded to whole pieces of this."""
MOST_SHARED = 48 * 1024
"""Shared memory that every launch is granted without asking."""

# With fewer blocks many multiprocessors have nothing to do, and smaller tiles pay.
_ENOUGH_BLOCKS = 128
_MOST_PADDING = 1.25
_WARP = 32
# Shared memory that patches and weights of several channels take at most, so that a few blocks share a multiprocessor.
_PATCH_BYTES = 24 * 1024
_MOST_INPUTS = 16
_SLICE_CHANNELS = 16
_MOST_SLICES = 16


@dataclass(frozen=True)
class ProductTile:
    """``rows`` x ``positions`` sums by ``warps``, ``row_warps`` of which divide the rows; ``stages`` in flight."""

    rows: int
    positions: int
    warps: int
    row_warps: int
    stages: int


# From the fewest loads for a product to the most blocks.
PRODUCT_TILES = (
    ProductTile(128, 128, 8, 4, 2),
    ProductTile(128, 64, 4, 2, 3),
    ProductTile(64, 128, 4, 2, 3),
    ProductTile(64, 64, 4, 2, 3),
    ProductTile(64, 32, 4, 2, 3),
    ProductTile(32, 64, 4, 2, 3),
    ProductTile(64, 16, 4, 4, 3),
    ProductTile(32, 32, 2, 2, 3),
)
"""The tiles of a matrix product among which a layer's sizes choose."""


@dataclass(frozen=True)
class PatchTile:
    """A rectangle of ``height`` x ``width`` positions of ``block_outputs`` channels.

    A warp has ``own_outputs`` channels, a lane ``own_positions`` positions of each; ``position_warps`` divide the
    rectangle, ``block_inputs`` channels of x are held at a time.
    """

    height: int
    width: int
    block_outputs: int
    own_outputs: int
    own_positions: int
    position_warps: int
    block_inputs: int


def product_tile(matrices: int, rows: int, positions: int) -> ProductTile:
    """Of the tiles that waste little the largest that gives enough blocks, else the one that gives the most."""

    def blocks(tile: ProductTile) -> int:
        return matrices * -(-rows // tile.rows) * -(-positions // tile.positions)

    def computed(tile: ProductTile) -> int:
        return blocks(tile) * tile.rows * tile.positions

    least = min(computed(tile) for tile in PRODUCT_TILES)
    tight = [tile for tile in PRODUCT_TILES if computed(tile) <= _MOST_PADDING * least]
    return next((tile for tile in tight if blocks(tile) >= _ENOUGH_BLOCKS), None) or max(tight, key=blocks)


def direct_tile(geometry: LayerGeometry) -> PatchTile:
    """For the direct algorithm: several input channels at a time."""
    height, width, own, _ = _rectangle(geometry, (1,))
    outputs = geometry.output_channels
    tiles = geometry.output_size[0] * -(-geometry.output_size[1] // height) * -(-geometry.output_size[2] // width)
    own_outputs = 8 if outputs >= 32 and tiles * -(-outputs // 32) >= _ENOUGH_BLOCKS else 4
    block_outputs = own_outputs * min(4, -(-outputs // own_outputs))
    one = channel_bytes(geometry, height, width, block_outputs)
    inputs = max(1, min(geometry.input_channels, _MOST_INPUTS, _PATCH_BYTES // one))
    return PatchTile(height, width, block_outputs, own_outputs, own, 1, inputs)


def slices_tile(geometry: LayerGeometry) -> PatchTile:
    """For the depthwise algorithm: one input channel at a time, with its multipliers."""
    multipliers = geometry.output_channels // geometry.groups
    own_outputs = next(n for n in (8, 4, 2, 1) if n <= multipliers)
    warps = min(4, -(-multipliers // own_outputs))
    height, width, own, position_warps = _rectangle(geometry, (1, 2, 4) if warps == 1 else (1,))
    return PatchTile(height, width, warps * own_outputs, own_outputs, own, position_warps, 1)


def slice_count(geometry: LayerGeometry) -> int:
    """Slices of the inputs: each channel for itself where it is a group, else of up to 16 channels, 16 at most."""
    if geometry.depthwise:
        return geometry.input_channels
    return min(_MOST_SLICES, -(-geometry.input_channels // _SLICE_CHANNELS))


def channel_bytes(geometry: LayerGeometry, height: int, width: int, block_outputs: int) -> int:
    """Shared memory for the patch of one channel and its weights, in float32."""
    return 4 * (_patch(geometry, height, width) + geometry.taps * block_outputs)


def _patch(geometry: LayerGeometry, height: int, width: int) -> int:
    sides = [
        (count - 1) * stride + (taps - 1) * dilation + 1
        for count, stride, taps, dilation in zip(
            (height, width), geometry.strides[1:], geometry.kernel[1:], geometry.dilations[1:], strict=True
        )
    ]
    return geometry.kernel[0] * prod(sides)


def _rectangle(geometry: LayerGeometry, warps: tuple[int, ...]) -> tuple[int, int, int, int]:
    """Height, width, positions of a lane and warps beside each other, with the least arithmetic and loads."""
    _, high, wide = geometry.output_size
    best: tuple[float, tuple[int, int, int, int]] | None = None
    for beside in warps:
        for own in (1, 2, 4):
            most = _WARP * own * beside
            for width in range(1, min(wide, most) + 1):
                height = min(high, most // width)
                tiles = -(-high // height) * -(-wide // width)
                # A weight is read once for all positions of a lane.
                work = most * geometry.taps * (1 + 1 / own) + 2 * _patch(geometry, height, width)
                if best is None or tiles * work < best[0]:
                    best = (tiles * work, (height, width, own, beside))
    assert best is not None
    return best[1]
