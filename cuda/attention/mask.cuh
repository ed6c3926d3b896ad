// Which pairs of a tile are needed, and what is added to their scores. Both tables lie as the sums of the matrix
// instruction do: of a granule of 16 rows on the M side, lane 4 g + t has rows g and g + 8 and, of every block of 8
// columns, 2 t and 2 t + 1.
#pragma once

#include "attention/job.cuh"
#include "common/copy.cuh"
#include "common/math.cuh"

namespace attention {

// A line of `tiles`; -1 where the tile has no mask or no bias.
struct TileLine {
    int mask, bias;
};
DEVICE TileLine load_tile_line(const Operands& operands, int line) {
    if constexpr (kTiles) {
        const int2 begins = __ldg(reinterpret_cast<const int2*>(operands.tiles) + line);
        return {kMasks ? begins.x : -1, kBiases ? begins.y : -1};
    } else {
        return {-1, -1};
    }
}

constexpr int mask_words(int columns) { return ceil_div(columns, 32); }

// The bits of a lane's two rows; its columns are bits 0 and 1 of each eight.
template <int kColumns>
struct MaskRows {
    static constexpr int kWords = mask_words(kColumns);
    unsigned word[2][kWords];

    DEVICE bool needed(int block, int element) const {
        return word[element / 2][block / 4] >> (8 * (block % 4) + element % 2) & 1;
    }

    // 1 where the pair is needed, else 0. Multiplied, not chosen: the compiler would choose together with the scores,
    // long before, and keep a register for each pair.
    DEVICE float one(int block, int element) const {
        return __uint_as_float((word[element / 2][block / 4] >> (8 * (block % 4) + element % 2) & 1) * 0x3f800000u);
    }
};

// `tile` is a mask tile in shared memory, or null: all pairs are needed. Columns from `limit` on are not. `row` is the
// lane's first row, `word` its t.
template <int kColumns>
DEVICE MaskRows<kColumns> load_mask_rows(const unsigned* tile, int row, int limit, int word) {
    constexpr int kWords = MaskRows<kColumns>::kWords;
    MaskRows<kColumns> rows;
#pragma unroll
    for (int w = 0; w < kWords; ++w) {
        const int left = limit - 32 * w;
        const unsigned inside = left >= 32 ? ~0u : left <= 0 ? 0u : (1u << left) - 1;
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const unsigned bits = tile == nullptr ? ~0u : tile[(row + 8 * half) * kWords + w];
            rows.word[half][w] = (bits & inside) >> (2 * word);
        }
    }
    return rows;
}

// Scores of a granule's first `blocks` blocks whose pair is not needed become -inf.
template <int kBlocks, int kColumns>
DEVICE void apply_mask(float (&scores)[kBlocks][4], const MaskRows<kColumns>& mask, int blocks = kBlocks) {
#pragma unroll
    for (int block = 0; block < kBlocks; ++block) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            if (block < blocks && !mask.needed(block, i)) scores[block][i] = -kInfinity;
        }
    }
}

DEVICE float2 load_pair(const float* pair) { return __ldg(reinterpret_cast<const float2*>(pair)); }
DEVICE float2 load_pair(const __half* pair) { return __half22float2(__ldg(reinterpret_cast<const __half2*>(pair))); }
DEVICE float2 load_pair(const __nv_bfloat16* pair) {
    return __bfloat1622float2(__ldg(reinterpret_cast<const __nv_bfloat162*>(pair)));
}

// scores * factor + bias * log2(e), for the first `blocks` blocks; `tile` is the bias tile's first entry, or null.
template <int kColumns, int kBlocks>
DEVICE void add_bias(float (&scores)[kBlocks][4], float factor, const T* tile, int row, int word,
                     int blocks = kBlocks) {
    if (tile == nullptr) {
#pragma unroll
        for (int i = 0; i < 4 * kBlocks; ++i) scores[i / 4][i % 4] *= factor;
        return;
    }
    // One address, so that each load has its place in its instruction.
    const T* pairs = held(tile + row * kColumns + 2 * word);
#pragma unroll
    for (int block = 0; block < kBlocks; ++block) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            if (block < blocks) {
                float(&own)[4] = scores[block];
                const float2 bias = load_pair(pairs + 8 * half * kColumns + 8 * block);
                own[2 * half] = fmaf(own[2 * half], factor, bias.x * kLog2E);
                own[2 * half + 1] = fmaf(own[2 * half + 1], factor, bias.y * kLog2E);
            }
        }
    }
}

}  // namespace attention
