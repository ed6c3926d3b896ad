// The queries of a swapped strip: the second operand of every warp's first product.
#pragma once

#include "attention/gather.cuh"
#include "attention/swapped_shape.cuh"
#include "common/matrix.cuh"

namespace attention {

template <int kShape>
struct SwappedQueries {
    using Of = SwappedShape<kShape>;
    static constexpr int kBlocks = Of::kBlocks;

    const unsigned tile;
    const SwappedWarp<kShape>& warp;
    Columns held[Of::kHold ? Of::kDepth : 1][round_up(kBlocks, 2)];

    DEVICE SwappedQueries(unsigned tile, const SwappedWarp<kShape>& warp) : tile(tile), warp(warp) {}

    // By the whole block; zeros behind the last query.
    DEVICE void copy(const Operands& operands, const Job& job) const {
        const int filled = 8 * ceil_div(job.row_count, 8);
        const auto entries = [&](int row) { return row < filled ? __ldg(operands.rows + job.row_begin + row) : -1; };
        gather<QueryChannels, SwappedVectors, Of::kRows, kThreads>(tile, operands.q + job.q_shift, entries, Of::kRows,
                                                                   threadIdx.x);
        commit_copies();
    }

    // Once they have landed for the whole block.
    DEVICE void take(bool negative) {
        if (negative) negate();
        if constexpr (Of::kHold) {
#pragma unroll
            for (int depth = 0; depth < Of::kDepth; ++depth) {
#pragma unroll
                for (int block = 0; block < kBlocks; block += 2) read(depth, block, held[depth] + block);
            }
        }
    }

    // A group of blocks' words of one step of the product.
    DEVICE void columns(int depth, int group, Columns (&words)[Of::kGroup]) const {
        const int first = group * Of::kGroup;
        if constexpr (Of::kHold) {
#pragma unroll
            for (int i = 0; i < Of::kGroup; ++i) words[i] = held[depth][first + i];
        } else {
            Columns read_words[Of::kGroup + 2];
#pragma unroll
            for (int block = first / 2 * 2; block < first + Of::kGroup; block += 2) {
                read(depth, block, read_words + block - first / 2 * 2);
            }
#pragma unroll
            for (int i = 0; i < Of::kGroup; ++i) words[i] = read_words[i + first % 2];
        }
    }

private:
    DEVICE void read(int depth, int block, Columns* words) const {
        if (block >= warp.blocks) return;
        const LanePlace place = columns_place(warp.lane);
        // A last block without a neighbour is read twice.
        const int row = block + 1 < kBlocks ? place.row : place.row % 8;
        const auto lane = cursor<SwappedVectors>(tile, row, place.chunk);
        const ColumnPair pair = load_columns(lane.at(8 * block, 2 * depth));
        words[0] = pair.first;
        words[1] = pair.second;
    }

    DEVICE void negate() const {
        for (int at = threadIdx.x; at < Of::kLayout.query_bytes / 4; at += kThreads) {
            const unsigned address = tile + 4 * at;
            const unsigned word = load_word(address) ^ 0x80008000u;
            asm volatile("st.shared.b32 [%0], %1;" ::"r"(address), "r"(word) : "memory");
        }
        __syncthreads();
    }
};

}  // namespace attention
