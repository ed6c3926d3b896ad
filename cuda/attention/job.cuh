// What a block is told: the line of `jobs` that it computes, and the tensors and tables of its batch element.
#pragma once

#include "attention/config.cuh"

namespace attention {

struct Job {
    int variant, head, row_begin, row_count;
    int key_begin, key_count, value_begin, tile_begin;
    int q_shift, k_shift, v_shift, y_shift;
    int extra_begin, extra_count;
};

DEVICE Job load_job(const int* jobs, unsigned number) {
    const int4* line = reinterpret_cast<const int4*>(jobs) + 4 * static_cast<size_t>(number);
    const int4 a = __ldg(line), b = __ldg(line + 1), c = __ldg(line + 2), d = __ldg(line + 3);
    return {a.x, a.y, a.z, a.w, b.x, b.y, b.z, b.w, c.x, c.y, c.z, c.w, d.x, d.y};
}

// Base pointers of one batch element; those of absent tables are null and never read.
struct Operands {
    const T *q, *k, *v;
    const int *rows, *results, *keys, *values, *tiles, *masks;
    const T* biases;
    const float* scales;
    const int* extras;
    const float* weight;
    const int *columns, *diagonals;
    const float* epsilons;
    T* y;
    float *partial, *lse;
};

}  // namespace attention
