// One strip: which of the four ways of computing it a shape takes.
#pragma once

#include "attention/job.cuh"
#if PATH_WGMMA
#include "attention/strip_wgmma.cuh"
#include "attention/strip_wgmma_swapped.cuh"
#else
#include "attention/strip_mma.cuh"
#include "attention/strip_mma_swapped.cuh"
#endif

namespace attention {

constexpr int strip_shared_bytes(Shape shape) {
#if PATH_WGMMA
    return shape.swapped ? wgmma_swapped_shared_bytes(shape) : wgmma_shared_bytes(shape);
#else
    return shape.swapped ? mma_swapped_shared_bytes(shape) : mma_shared_bytes(shape);
#endif
}

template <int kShape>
DEVICE void compute_strip(const Operands& operands, const Job& job, unsigned char* shared) {
    if (job.key_count == 0) {
        store_zeros(operands, job);
        return;
    }
#if PATH_WGMMA
    if constexpr (kShapes[kShape].swapped) {
        compute_wgmma_swapped<kShape>(operands, job, shared);
    } else {
        compute_wgmma<kShape>(operands, job, shared);
    }
#else
    if constexpr (kShapes[kShape].swapped) {
        compute_mma_swapped<kShape>(operands, job, shared);
    } else {
        compute_mma<kShape>(operands, job, shared);
    }
#endif
}

}  // namespace attention
