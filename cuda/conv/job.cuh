// What a block is told: the line of `jobs` that it computes, and the tensors and tables of its group.
#pragma once

#include "conv/config.cuh"

namespace conv {

struct Job {
    int variant, output_begin, output_count;
    int input_begin, input_count, weight_begin;
    // Pixels of the group; those of batch elements that do not exist are not counted, so that none may be left.
    int pixel_begin, pixel_count;
    int extra_begin, extra_count;
};

// Base pointers of one group of batch elements; those of absent tables are null and never read.
struct Operands {
    const T* x;
    const T* w;
    const float* b;
    const T* residual;
    const int *outputs, *inputs;
    const float *input_scales, *input_shifts;
    const int* extras;
    Result* y;
};

// `images` batch elements of the group exist.
DEVICE Job load_job(const int* jobs, unsigned number, int images) {
    const int4* line = reinterpret_cast<const int4*>(jobs) + 3 * static_cast<size_t>(number);
    const int4 a = __ldg(line), b = __ldg(line + 1), c = __ldg(line + 2);
    int pixels = b.w;
    // Pixels run through the batch elements in order, so what is missing lies behind the last one.
    if constexpr (kImages > 1) pixels = min(pixels, images * kPositions - b.z);
    return {a.x, a.y, a.z, a.w, b.x, b.y, b.z, pixels, c.x, c.y};
}

}  // namespace conv
