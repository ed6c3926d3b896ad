"""Bugs to plant into the kernels' sources, one at a time: each must be noticed by running the PTX on the CPU."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Bug:
    """``before`` stands exactly once in ``file`` and becomes ``after``; ``case`` names the kernel that shows it."""

    name: str
    case: str
    file: str
    before: str
    after: str


_MMA = "attention/strip_mma.cuh"
_TILES = "attention/key_tiles.cuh"
_SWAPPED = "attention/strip_mma_swapped.cuh"
_MERGED = "attention/swapped_merge.cuh"
_WGMMA = "attention/strip_wgmma.cuh"
_RING = "common/ring.cuh"
_MASK = "attention/mask.cuh"
_SOFTMAX = "attention/softmax.cuh"

BUGS = (
    Bug(
        "dropped barrier behind a tile's copies",
        "mma",
        _TILES,
        "        wait_copies<larger(kShape.stages - 2, 0)>();\n        __syncthreads();",
        "        wait_copies<larger(kShape.stages - 2, 0)>();",
    ),
    Bug(
        "copies are not waited for",
        "mma",
        _TILES,
        "wait_copies<larger(kShape.stages - 2, 0)>();",
        "wait_copies<kShape.stages>();",
    ),
    Bug("missing rescale of the sums", "mma", _MMA, "*= rescale[i % 4 / 2];", "*= 1.f;"),
    Bug("missing rescale of the row's total", "mma", _SOFTMAX, "rows.sum[half] * rescale[half]", "rows.sum[half]"),
    Bug(
        "wrong swizzle where vectors are written",
        "mma",
        "attention/tile.cuh",
        "% (kTurned / kUnit));",
        "% (kTurned / kUnit) ^ (place == 9));",
    ),
    Bug(
        "wrong bit of a mask",
        "mma",
        _MASK,
        "return word[element / 2][block / 4] >> (8 * (block % 4) + element % 2) & 1;",
        "return word[element / 2][block / 4] >> (8 * (block % 4) + element / 2) & 1;",
    ),
    Bug(
        "mask of the neighbouring row",
        "mma",
        _MASK,
        "tile[(row + 8 * half) * kWords + w]",
        "tile[(row + 8 * half ^ 1) * kWords + w]",
    ),
    Bug("tail one key too long", "mma tail", _MASK, "(1u << left) - 1;", "(2u << left) - 1;"),
    Bug(
        "last granule of keys left out",
        "mma tail",
        _MMA,
        "ceil_div(keys, Tiles::kKeyGranule)}",
        "keys / Tiles::kKeyGranule}",
    ),
    Bug(
        "bias of the wrong column",
        "mma",
        _MASK,
        "held(tile + row * kColumns + 2 * word);",
        "held(tile + row * kColumns + 2 * (word ^ 1));",
    ),
    Bug("bias in the wrong unit", "mma", _MASK, "bias.x * kLog2E);", "bias.x);"),
    Bug(
        "result of the neighbouring row",
        "mma",
        "attention/store.cuh",
        "return {row, place < 0 ? -1 : job.y_shift + place};",
        "return {row ^ 1, place < 0 ? -1 : job.y_shift + place};",
    ),
    Bug("logarithm of partial results in base 2", "split", _SOFTMAX, "return kLn2 * (", "return ("),
    Bug(
        "keys are turned over twice",
        "swapped",
        _SWAPPED,
        "transposed(packed<kElement>(scores[i][2], scores[i][3]))",
        "packed<kElement>(scores[i][2], scores[i][3])",
    ),
    Bug("ring refilled too early", "swapped", _SWAPPED, "wait_copies<2 * kSlots - 1>();", "wait_copies<2 * kSlots>();"),
    Bug(
        "warps merge before all have written",
        "swapped",
        _MERGED,
        "            __syncthreads();\n            merge_sums",
        "            merge_sums",
    ),
    Bug(
        "one warp's sums are forgotten",
        "swapped",
        _MERGED,
        "for (int w = 0; w < warps(); ++w) {\n                const float4",
        "for (int w = 0; w + 1 < warps(); ++w) {\n                const float4",
    ),
    Bug(
        "maximum does not follow",
        "swapped",
        "attention/swapped_sums.cuh",
        "        rescale(block, side, exp2_unit(",
        "        if (false) rescale(block, side, exp2_unit(",
    ),
    Bug(
        "missing fence before wgmma reads",
        "wgmma",
        _RING,
        "        fence_before_matrix_reads();\n        ring_.publish",
        "        ring_.publish",
    ),
    Bug(
        "tile released before its values are used",
        "wgmma",
        _WGMMA,
        "        wait_for_products<0>();\n        pin(sums_);\n        tiles_.ring.release(2 * tile - 1);",
        "        tiles_.ring.release(2 * tile - 1);\n        wait_for_products<0>();\n        pin(sums_);",
    ),
    Bug(
        "sums are not scaled down",
        "wgmma",
        _WGMMA,
        "sums_[i / 4][i % 4] *= rescale_[i % 4 / 2];",
        "sums_[i / 4][i % 4] *= 1.f;",
    ),
    Bug("wrong parity of the ring", "wgmma", _RING, "return item / kSlots & 1;", "return item / kSlots & 0;"),
    Bug("channels of the values by half a step", "wgmma", _WGMMA, "values.across(depth)", "values.across(depth ^ 1)"),
    Bug(
        "partial results weigh alike",
        "merge",
        "attention/merge_attention.cu",
        "expf(__ldg(lse + slot) - largest)",
        "1.0f",
    ),
)
