// The partial softmaxes of a swapped strip's warps become one, in the order of the warps, and go to the output.
#pragma once

#include "attention/store.cuh"
#include "attention/swapped_sums.cuh"

namespace attention {

template <int kShape>
struct SwappedMerge {
    using Of = SwappedShape<kShape>;
    static constexpr SwappedLayout kLayout = Of::kLayout;
    static constexpr int kRows = Of::kRows;
    static constexpr int kBlocks = Of::kBlocks;

    const Operands& operands;
    const Job& job;
    const SwappedWarp<kShape>& warp;
    unsigned char* const shared;

    // Of each warp, one a row.
    DEVICE float* maxima(int of_warp) const {
        return reinterpret_cast<float*>(shared + kLayout.maxima) + of_warp * kRows;
    }
    DEVICE float* totals(int of_warp) const {
        return reinterpret_cast<float*>(shared + kLayout.totals) + of_warp * kRows;
    }
    DEVICE int warps() const { return min(kWarps, warp.granules); }

    // The block's maxima instead of the lane's, between two walks.
    DEVICE void share_maxima(SwappedSums<kShape>& sums) const {
        float* all = reinterpret_cast<float*>(shared + kLayout.walk_maxima);
        write_columns(all + warp.number * kRows, [&](int block, int side) {
            return column_maximum(sums.base[block][side]);
        });
        __syncthreads();
#pragma unroll
        for (int block = 0; block < kBlocks; ++block) {
            for (int w = 0; w < kWarps; ++w) {
                const float2 other = read_columns(all + w * kRows, block);
                sums.base[block][0] = fmaxf(sums.base[block][0], other.x);
                sums.base[block][1] = fmaxf(sums.base[block][1], other.y);
            }
        }
    }

    DEVICE void finish(SwappedSums<kShape>& sums) const {
        __syncthreads();
        write_columns(maxima(warp.number), [&](int block, int side) { return sums.base[block][side]; });
        write_columns(totals(warp.number), [&](int block, int side) { return column_sum(sums.totals[block][side]); });
        __syncthreads();
        for (int row = threadIdx.x; row < 8 * warp.blocks; row += kThreads) make_factors(row);
        __syncthreads();
#pragma unroll
        for (int block = 0; block < kBlocks; ++block) {
            const float2 factor = read_columns(maxima(warp.number), block);
            sums.rescale(block, 0, factor.x);
            sums.rescale(block, 1, factor.y);
        }
        merge_rounds(sums);
        if constexpr (!kSplit) {
            const unsigned results = shared_address(shared + kLayout.results);
            store_rows<ResultChannels, SwappedValues, kThreads>(operands, job, results, 0, job.row_count, threadIdx.x);
            if constexpr (kExtras) {
                store_extras<ResultChannels, SwappedValues, kThreads>(operands, job, results, threadIdx.x);
            }
        }
    }

private:
    // Lanes 0 to 3 have two columns of every block.
    template <class Value>
    DEVICE void write_columns(float* row, const Value& value) const {
#pragma unroll
        for (int block = 0; block < kBlocks; ++block) {
            const float2 pair{value(block, 0), value(block, 1)};
            if (warp.lane < 4) reinterpret_cast<float2*>(row + 8 * block)[warp.lane] = pair;
        }
    }
    DEVICE float2 read_columns(const float* row, int block) const {
        return reinterpret_cast<const float2*>(row + 8 * block)[warp.lane % 4];
    }

    // What each warp's sums of a row are multiplied by, in the place of the warp's maximum. A row that needs no key has
    // a total of 0 and gets NaN, as a partial result 0.
    DEVICE void make_factors(int row) const {
        float base = -kInfinity, total = 0.0f;
        for (int w = 0; w < warps(); ++w) base = fmaxf(base, maxima(w)[row]);
        for (int w = 0; w < warps(); ++w) total += totals(w)[row] * exp2_unit(maxima(w)[row] - finite_base(base));
        if constexpr (kWeights) total += __ldg(operands.epsilons + 1);
        const float share = kSplit && total == 0.0f ? 0.0f : reciprocal(total);
        for (int w = 0; w < kWarps; ++w) maxima(w)[row] = share * exp2_unit(maxima(w)[row] - finite_base(base));
        if constexpr (kSplit) {
            if (row < job.row_count) {
                const int slot = partial_slot(operands, job, row);
                if (slot >= 0) operands.lse[slot] = kLn2 * (finite_base(base) + log2_unit(total));
            }
        }
    }

    // As many channels a round as the warps' sums have room for.
    DEVICE void merge_rounds(const SwappedSums<kShape>& sums) const {
        float* pieces = reinterpret_cast<float*>(shared + kLayout.pieces);
        constexpr int kRoundBlocks = kLayout.merged_blocks;
#pragma unroll
        for (int first = 0; first < kPaddedValueWidth / 8; first += kRoundBlocks) {
            if (first > 0) __syncthreads();
            if (warp.number < warps()) {
                float* own = pieces + warp.number * kRows * kLayout.piece_pitch;
#pragma unroll
                for (int i = 0; i < kRoundBlocks; ++i) {
                    write_piece(own + 8 * i, sums.values[(first + i) / 2], 2 * ((first + i) % 2));
                }
            }
            __syncthreads();
            merge_sums(pieces, 8 * first);
        }
        __syncthreads();
    }

    // Eight channels of all rows, a row every `piece_pitch` floats. That is 4 times an odd number: the four rows of two
    // that a warp writes at once begin 8 banks apart, and its eight channels fill the banks between them.
    DEVICE void write_piece(float* piece, const float (&values)[kBlocks][4], int half) const {
        float* lane = piece + 2 * (warp.lane % 4) * kLayout.piece_pitch + warp.lane / 4;
#pragma unroll
        for (int block = 0; block < kBlocks; ++block) {
            if (block < warp.blocks) {
                lane[8 * block * kLayout.piece_pitch] = values[block][half];
                lane[(8 * block + 1) * kLayout.piece_pitch] = values[block][half + 1];
            }
        }
    }

    // A thread adds up four channels of a row. Eight neighbouring lanes have eight rows, whose 16 bytes lie in eight
    // different places modulo 128, again because the pitch is 4 times an odd number.
    DEVICE void merge_sums(const float* pieces, int first_channel) const {
        constexpr int kQuads = 2 * kLayout.merged_blocks;
        for (int item = threadIdx.x; item < 8 * kQuads * warp.blocks; item += kThreads) {
            const int row = item / (8 * kQuads) * 8 + item % 8, quad = item / 8 % kQuads;
            const float* piece = pieces + row * kLayout.piece_pitch + 4 * quad;
            float4 sum{0.0f, 0.0f, 0.0f, 0.0f};
            for (int w = 0; w < warps(); ++w) {
                const float4 part = *reinterpret_cast<const float4*>(piece + w * kRows * kLayout.piece_pitch);
                sum = {sum.x + part.x, sum.y + part.y, sum.z + part.z, sum.w + part.w};
            }
            put(row, first_channel + 4 * quad, sum);
        }
    }

    DEVICE void put(int row, int channel, float4 sum) const {
        if constexpr (kSplit) {
            const int slot = row < job.row_count ? partial_slot(operands, job, row) : -1;
            if (slot < 0 || channel >= kValueWidth) return;
            if constexpr (kValueWidth % 4 == 0) {
                float* place = operands.partial + static_cast<ptrdiff_t>(slot) * kValueWidth + channel;
                *reinterpret_cast<float4*>(place) = sum;
            } else {
                store_partial_pair(operands, slot, channel, sum.x, sum.y);
                store_partial_pair(operands, slot, channel + 2, sum.z, sum.w);
            }
        } else {
            unsigned char* place = shared + kLayout.results + SwappedValues::offset(row, channel / 8) + channel % 8 * 2;
            *reinterpret_cast<uint2*>(place) = {packed<kElement>(sum.x, sum.y), packed<kElement>(sum.z, sum.w)};
        }
    }
};

}  // namespace attention
