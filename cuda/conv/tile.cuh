// One job's tile of pixels and outputs: which of the three ways of computing it a kernel takes.
#pragma once

#include "conv/job.cuh"
#if PATH_LANES
#include "conv/tile_lanes.cuh"
#elif PATH_WGMMA
#include "conv/tile_wgmma.cuh"
#else
#include "conv/tile_mma.cuh"
#endif

namespace conv {

constexpr int tile_shared_bytes(Shape shape) {
#if PATH_LANES
    return lanes_shared_bytes(shape);
#elif PATH_WGMMA
    return wgmma_shared_bytes(shape);
#else
    return mma_shared_bytes(shape);
#endif
}

template <int kShape>
DEVICE void compute_tile(const Operands& operands, const Job& job, unsigned char* shared) {
#if PATH_LANES
    compute_lanes<kShape>(operands, job, shared);
#elif PATH_WGMMA
    compute_wgmma<kShape>(operands, job, shared);
#else
    compute_mma<kShape>(operands, job, shared);
#endif
}

}  // namespace conv
