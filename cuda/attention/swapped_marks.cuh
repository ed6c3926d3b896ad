// What applies to the pairs of a granule of keys beside their scores: masks, biases and run-time weights. A lane has
// two keys, and two queries of every block of eight.
#pragma once

#include "attention/mask.cuh"
#include "attention/swapped_sums.cuh"

namespace attention {

// Two neighbours of a table of biases.
DEVICE float2 unpacked(unsigned pair) {
    if constexpr (kElement == Element::bf16) {
        return {__uint_as_float(pair << 16), __uint_as_float(pair & 0xffff0000u)};
    } else {
        return __half22float2(reinterpret_cast<const __half2&>(pair));
    }
}

template <int kShape>
struct SwappedMarks {
    using Of = SwappedShape<kShape>;
    static constexpr int kGroup = Of::kGroup;
    static constexpr int kWords = MaskRows<Of::kRows>::kWords;

    // Whether some pair may not be needed.
    bool masked;
    MaskRows<Of::kRows> needed;
    // The lane's first two entries in a bias tile, or null.
    const T* biases;
    // Run-time weights: each key's column, and its weight.
    int column[2];
    float weight[2];

    DEVICE SwappedMarks(const Operands& operands, const Job& job, const SwappedWarp<kShape>& warp, int step,
                        TileLine line) {
        // Computed anew in every step: the walk has no registers to keep what follows from it.
        const int lane = renewed(warp.lane);
        const int row = warp.tile_row(step) + lane / 4, key = 16 * warp.granule(step) + lane / 4;
        masked = line.mask >= 0 || 16 * warp.granule(step) + 16 > job.key_count;
        biases = nullptr;
        if (kBiases && line.bias >= 0) {
            biases = operands.biases + line.bias + row * Of::kRows + 2 * (lane % 4);
        }
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            if (masked) {
                const unsigned* words = nullptr;
                if (kMasks && line.mask >= 0) {
                    words = reinterpret_cast<const unsigned*>(operands.masks) + line.mask + (row + 8 * half) * kWords;
                }
                read_mask(words, half, key + 8 * half < job.key_count, 2 * (lane % 4));
            }
            if constexpr (kWeights) {
                column[half] = __ldg(operands.columns + job.key_begin + key + 8 * half);
                weight[half] = column[half] < 0 ? 0.0f : __ldg(operands.weight + column[half]);
            }
        }
    }

    // The biases of a group of blocks from `first` on, which are on their way while its scores are computed.
    struct Biases {
        unsigned pair[kBiases ? kGroup : 1][2];
    };
    DEVICE Biases read_biases(int first, int blocks) const {
        Biases result{};
        if constexpr (kBiases) {
            if (biases == nullptr) return result;
#pragma unroll
            for (int i = 0; i < kGroup; ++i) {
#pragma unroll
                for (int half = 0; half < 2; ++half) {
                    const T* pair = biases + half * 8 * Of::kRows + 8 * (first + i);
                    if (first + i < blocks) result.pair[i][half] = __ldg(reinterpret_cast<const unsigned*>(pair));
                }
            }
        }
        return result;
    }

    // Adds the biases, after which scores count in powers of two, and drops what is not needed. Returns the factor that
    // scores are still to be multiplied by.
    DEVICE float apply(float (&scores)[kGroup][4], const Biases& added, float scale, int first) const {
        if constexpr (kBiases) {
            if (biases != nullptr) {
#pragma unroll
                for (int i = 0; i < kGroup; ++i) add_pairs(scores[i], added.pair[i], scale);
                scale = 1.0f;
            }
        }
        if (masked) {
#pragma unroll
            for (int i = 0; i < kGroup; ++i) {
#pragma unroll
                for (int element = 0; element < 4; ++element) {
                    if (!needed.needed(first + i, element)) scores[i][element] = -kInfinity;
                }
            }
        }
        return scale;
    }

private:
    DEVICE void read_mask(const unsigned* words, int half, bool present, int first_bit) {
#pragma unroll
        for (int w = 0; w < kWords; ++w) {
            const unsigned bits = !present ? 0u : words == nullptr ? ~0u : __ldg(words + w);
            needed.word[half][w] = bits >> first_bit;
        }
    }

    DEVICE static void add_pairs(float (&scores)[4], const unsigned (&pairs)[2], float scale) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const float2 added = unpacked(pairs[half]);
            scores[2 * half] = fmaf(scores[2 * half], scale, added.x * kLog2E);
            scores[2 * half + 1] = fmaf(scores[2 * half + 1], scale, added.y * kLog2E);
        }
    }
};

}  // namespace attention
