// The sums of one warp: products of the tiles of a step, by the matrix unit, or by the ordinary lanes where that takes
// no operands of 32 bits. Lane 4 g + t has of each granule and block {(g, 2 t), (g, 2 t + 1), (g + 8, 2 t), (g + 8,
// 2 t + 1)}, rows first.
#pragma once

#include "common/matrix.cuh"
#include "conv/algorithms/product_config.cuh"

namespace algorithms {

constexpr bool kLanes = kElement == Element::fp32 && __CUDA_ARCH__ < 800;

using Sums = float[kGranules][kBlocks][4];

// Where a warp's part of the block's tile begins.
struct WarpPlace {
    int row, position, lane;
};
DEVICE WarpPlace warp_place() {
    const int warp = threadIdx.x / 32;
    return {warp / kPositionWarps * (16 * kGranules), warp % kPositionWarps * (8 * kBlocks),
            static_cast<int>(threadIdx.x % 32)};
}

// 16 positions of the rows of one step of the matrix instruction.
DEVICE ColumnPair column_pair(unsigned columns, int step, int position, int lane) {
    if constexpr (kHalfPrecision<kElement>) {
        const LanePlace place = rows_place(lane);
        return load_columns_across(columns + (16 * step + place.row) * kColumnRow + 2 * position + 16 * place.chunk);
    } else {
        const unsigned at = columns + (8 * step + lane % 4) * kColumnRow + 4 * (position + lane / 4);
        const unsigned below = at + 4 * kColumnRow;
        return {{load_word(at), load_word(below)}, {load_word(at + 32), load_word(below + 32)}};
    }
}

// A template, as is add_products, so that the compiler looks only at what the architecture has.
template <Element kOperands>
DEVICE void matrix_products(Sums& sums, unsigned weights, unsigned columns, const WarpPlace& place) {
    const LanePlace lane = rows_place(place.lane);
#pragma unroll
    for (int step = 0; step < kDepthBytes / kStepBytes; ++step) {
        Operand<kOperands, 4> rows[kGranules];
#pragma unroll
        for (int i = 0; i < kGranules; ++i) {
            const int row = place.row + 16 * i + lane.row;
            rows[i] = prepared<kOperands>(load_rows(weights + row * kWeightRow + step * kStepBytes + 16 * lane.chunk));
        }
#pragma unroll
        for (int pair = 0; pair < kBlocks / 2; ++pair) {
            const ColumnPair both = column_pair(columns, step, place.position + 16 * pair, place.lane);
            const auto first = prepared<kOperands>(both.first), second = prepared<kOperands>(both.second);
#pragma unroll
            for (int i = 0; i < kGranules; ++i) {
                multiply<kOperands>(sums[i][2 * pair], rows[i], first);
                multiply<kOperands>(sums[i][2 * pair + 1], rows[i], second);
            }
        }
    }
}

DEVICE float load_float(unsigned address) { return __uint_as_float(load_word(address)); }

DEVICE void lane_products(Sums& sums, unsigned weights, unsigned columns, const WarpPlace& place) {
    const unsigned rows = weights + (place.row + place.lane / 4) * kWeightRow;
    const unsigned positions = columns + 4 * (place.position + 2 * (place.lane % 4));
#pragma unroll 2
    for (int depth = 0; depth < kBlockDepth; ++depth) {
        float weight[kGranules][2];
#pragma unroll
        for (int i = 0; i < 2 * kGranules; ++i) {
            weight[i / 2][i % 2] = load_float(rows + 8 * i * kWeightRow + 4 * depth);
        }
#pragma unroll
        for (int block = 0; block < kBlocks; ++block) {
            const unsigned at = positions + depth * kColumnRow + 32 * block;
            const float first = load_float(at), second = load_float(at + 4);
#pragma unroll
            for (int i = 0; i < 2 * kGranules; ++i) {
                float(&own)[4] = sums[i / 2][block];
                own[i % 2 * 2] = fmaf(weight[i / 2][i % 2], first, own[i % 2 * 2]);
                own[i % 2 * 2 + 1] = fmaf(weight[i / 2][i % 2], second, own[i % 2 * 2 + 1]);
            }
        }
    }
}

// sums += w columns, of the tiles of one step at two addresses in shared memory.
template <bool kOrdinary>
DEVICE void add_products(Sums& sums, unsigned weights, unsigned columns, const WarpPlace& place) {
    if constexpr (kOrdinary) {
        lane_products(sums, weights, columns, place);
    } else {
        matrix_products<kElement>(sums, weights, columns, place);
    }
}

}  // namespace algorithms
