// The softmax of rows whose scores come tile by tile. A lane has parts of two rows, g and g + 8 of a granule; the four
// lanes of equal g share them.
#pragma once

#include "attention/config.cuh"
#include "common/math.cuh"

namespace attention {

// The largest score so far, and this lane's part of the sum of exp2(unit * (score - largest)).
struct SoftmaxRows {
    float largest[2] = {-kInfinity, -kInfinity};
    float sum[2] = {0.f, 0.f};
};

// Scores become scale * score * log2(e) by `unit`, which is positive, since a maximum is taken before it is applied:
// where `negative`, scores change their sign. No scale is so small that its product with -inf were not -inf.
struct ScoreScale {
    float unit;
    bool negative;
};
DEVICE ScoreScale score_scale(float scale) {
    return {fmaxf(fabsf(scale) * kLog2E, 1e-30f), scale < 0.f};
}

DEVICE float quad_maximum(float value) {
    value = fmaxf(value, __shfl_xor_sync(~0u, value, 1));
    return fmaxf(value, __shfl_xor_sync(~0u, value, 2));
}
DEVICE float quad_sum(float value) {
    value += __shfl_xor_sync(~0u, value, 1);
    return value + __shfl_xor_sync(~0u, value, 2);
}

// What is subtracted from unit * score. Where no key is needed so far it is 0, so that all weights are exp2(-inf) = 0.
DEVICE float softmax_base(float largest, float unit) { return largest == -kInfinity ? 0.f : largest * unit; }

// exp2(x), x <= 0; `number` counts the exponentials of a lane, of which some do without the special-function unit.
DEVICE float weight_of(float x, int number) {
    constexpr int kPeriod = kWeights || kSplit ? 0 : polynomial_period<kElement>(kWidth);
    return kPeriod != 0 && number % larger(kPeriod, 1) == kPeriod - 1 ? exp2_polynomial(x) : exp2_unit(x);
}

// Run-time weights of keys: none.
struct Unweighted {
    DEVICE float operator()(float weight, int, int) const { return weight; }
};

// Takes a tile's scores, the first `blocks` blocks of 8 columns of a granule, and leaves their weights relative to the
// rows' new largest scores. `rescale` is what all former weights shrink by. `weigh(weight, block, element)` applies
// run-time weights.
template <int kBlocks, class Weigh = Unweighted>
DEVICE void softmax_step(float (&scores)[kBlocks][4], SoftmaxRows& rows, float (&rescale)[2], float unit,
                         int blocks = kBlocks, const Weigh& weigh = {}) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        float largest = rows.largest[half];
#pragma unroll
        for (int block = 0; block < kBlocks; ++block) {
            if (block < blocks) {
                largest = fmaxf(largest, fmaxf(scores[block][2 * half], scores[block][2 * half + 1]));
            }
        }
        largest = quad_maximum(largest);
        const float base = softmax_base(largest, unit);
        rescale[half] = exp2_unit(fmaf(rows.largest[half], unit, -base));
        rows.largest[half] = largest;
        float sum = rows.sum[half] * rescale[half];
#pragma unroll
        for (int block = 0; block < kBlocks; ++block) {
            if (block < blocks) {
#pragma unroll
                for (int i = 2 * half; i < 2 * half + 2; ++i) {
                    const float weight = weight_of(fmaf(scores[block][i], unit, -base), 2 * block + i % 2);
                    scores[block][i] = weigh(weight, block, i);
                    sum += scores[block][i];
                }
            }
        }
        rows.sum[half] = sum;
    }
}

// log(sum of exp(score)) of a row whose `sum` is that of all four lanes; -inf where no key is needed.
DEVICE float log_sum(float largest, float unit, float sum) {
    return kLn2 * (softmax_base(largest, unit) + log2_unit(sum));
}

}  // namespace attention
