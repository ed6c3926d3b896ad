// What a warp knows of its part of a swapped strip: weighted sums of values, and the softmax of each query.
#pragma once

#include "attention/swapped_shape.cuh"
#include "common/math.cuh"

namespace attention {

// The lanes that have the same two columns of every block.
DEVICE float column_maximum(float value) {
    value = fmaxf(value, __shfl_xor_sync(~0u, value, 4));
    value = fmaxf(value, __shfl_xor_sync(~0u, value, 8));
    return fmaxf(value, __shfl_xor_sync(~0u, value, 16));
}
DEVICE float column_sum(float value) {
    value += __shfl_xor_sync(~0u, value, 4);
    value += __shfl_xor_sync(~0u, value, 8);
    return value + __shfl_xor_sync(~0u, value, 16);
}

// exp2(score - base) is a weight. Where no key is needed so far the base is -inf, and every weight shall be 0.
DEVICE float finite_base(float base) { return base == -kInfinity ? 0.0f : base; }

// `base` is common to the warp's lanes of a column, `totals` are the lane's own.
template <int kShape>
struct SwappedSums {
    using Of = SwappedShape<kShape>;
    static constexpr int kBlocks = Of::kBlocks;
    static constexpr int kGroup = Of::kGroup;

    float values[Of::kChannels][kBlocks][4] = {};
    float totals[kBlocks][2] = {};
    float base[kBlocks][2];

    DEVICE SwappedSums() {
#pragma unroll
        for (int block = 0; block < kBlocks; ++block) base[block][0] = base[block][1] = -kInfinity;
    }

    // The first of two walks over the keys: maxima of the lane alone.
    DEVICE void note_maxima(const float (&scores)[kGroup][4], float factor, int first) {
#pragma unroll
        for (int i = 0; i < kGroup; ++i) {
#pragma unroll
            for (int side = 0; side < 2; ++side) {
                float& largest = base[first + i][side];
                largest = fmaxf(largest, fmaxf(scores[i][side], scores[i][side + 2]) * factor);
            }
        }
    }

    // Raises the bases of the blocks from `first` on to their largest scores. Most blocks have none above their base
    // once a few granules have passed. Where one has, no slack is left: the largest weight is 1, which rounding leaves
    // as it is.
    DEVICE void follow_maxima(const float (&scores)[kGroup][4], float factor, int first, int blocks) {
#pragma unroll
        for (int i = 0; i < kGroup; ++i) {
            if (first + i < blocks) {
                float(&bases)[2] = base[first + i];
                const float left = fmaxf(scores[i][0], scores[i][2]) * factor;
                const float right = fmaxf(scores[i][1], scores[i][3]) * factor;
                if (__any_sync(~0u, left > bases[0] || right > bases[1])) {
                    raise(first + i, 0, fmaxf(bases[0], column_maximum(left)));
                    raise(first + i, 1, fmaxf(bases[1], column_maximum(right)));
                }
            }
        }
    }

    DEVICE void raise(int block, int side, float raised) {
        rescale(block, side, exp2_unit(base[block][side] - finite_base(raised)));
        base[block][side] = raised;
    }

    DEVICE void rescale(int block, int side, float factor) {
        totals[block][side] *= factor;
#pragma unroll
        for (int channel = 0; channel < Of::kChannels; ++channel) {
            values[channel][block][side] *= factor;
            values[channel][block][side + 2] *= factor;
        }
    }
};

}  // namespace attention
