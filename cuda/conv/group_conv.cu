// y = activation(sum of weights times inputs + bias + residual), by GroupConv of docs/tables.md.
#include "common/entry.cuh"
#include "conv/config.cuh"
#include "conv/job.cuh"
#include "conv/tile.cuh"

namespace conv {

constexpr int shared_bytes(int shape = 0) {
    return shape == kShapeCount ? 0 : larger(tile_shared_bytes(kShapes[shape]), shared_bytes(shape + 1));
}

template <int kShape = 0>
DEVICE void compute(const Operands& operands, const Job& job, unsigned char* shared) {
    if (job.variant == kShape) {
        compute_tile<kShape>(operands, job, shared);
    } else if constexpr (kShape + 1 < kShapeCount) {
        compute<kShape + 1>(operands, job, shared);
    }
}

}  // namespace conv

// What a launch must give as dynamic shared memory; read from the compiled module.
extern "C" __device__ const int onnxopt_shared_bytes = conv::shared_bytes();

extern "C" __global__ void __launch_bounds__(conv::kThreads, RESIDENT) group_conv(
    const conv::T* __restrict__ x,
#if RESIDUAL
    const conv::T* __restrict__ residual,
#endif
    OTHER_TABLES(OTHERS_BEFORE) const conv::T* __restrict__ w,
#if !SPLIT
    const float* __restrict__ b,
#endif
    const int* __restrict__ jobs, const int* __restrict__ outputs, const int* __restrict__ inputs,
#if PROLOGUE
    const float* __restrict__ input_scales, const float* __restrict__ input_shifts,
#endif
#if EXTRAS
    const int* __restrict__ extras,
#endif
    OTHER_TABLES(OTHERS_AFTER) int batch, conv::Result* __restrict__ y) {
    using namespace conv;
    extern __shared__ __align__(1024) unsigned char shared[];
    const unsigned groups = (static_cast<unsigned>(batch) + kImages - 1) / kImages;
    const unsigned group = blockIdx.x % groups, first = group * kImages;
    const Job job = load_job(jobs, blockIdx.x / groups, batch - static_cast<int>(first));
    if (kImages > 1 && job.pixel_count <= 0) return;
    Operands operands{};
    operands.x = x + static_cast<size_t>(first) * Input::kElements;
    operands.w = w;
    operands.outputs = outputs;
    operands.inputs = inputs;
    operands.y = y + static_cast<size_t>(first) * Output::kElements;
#if !SPLIT
    operands.b = b;
#endif
#if RESIDUAL
    operands.residual = residual + static_cast<size_t>(first) * Output::kElements;
#endif
#if PROLOGUE
    operands.input_scales = input_scales;
    operands.input_shifts = input_shifts;
#endif
#if EXTRAS
    operands.extras = extras;
#endif
    compute(operands, job, shared);
}
