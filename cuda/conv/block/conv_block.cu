// Two or three convolutions in a row, by ConvBlock of docs/tables.md: what lies between them stays in shared memory.
#include "common/entry.cuh"
#include "conv/block/channelwise_stage.cuh"
#include "conv/block/first_stage.cuh"
#include "conv/block/product_stage.cuh"

namespace fused {

// Shared memory: the job's lines of `parts`; what the first stage leaves; what its steps bring, and then, where there is
// a stage between, what that leaves. The last stage passes its sums through what is free by then.
constexpr int kPartsBytes = kParts * kPartBytes;
constexpr int kStaging = kWarps * kStagedBytes, kSteps = 2 * kBufferBytes;
constexpr int kFirstBytes = round_up(larger(patch_bytes(0), kStageCount == 3 ? kStaging : 0), 128);
constexpr int kSecondBytes = larger(kSteps, kStageCount == 3 ? patch_bytes(kLast - 1) : kStaging);
constexpr int kSharedBytes = round_up(kPartsBytes, 128) + kFirstBytes + kSecondBytes;

template <int kCount>
DEVICE void compute(const Operands& operands, const Job& job, unsigned char* shared) {
    int4* parts = reinterpret_cast<int4*>(shared);
    const int4* lines = reinterpret_cast<const int4*>(operands.parts) + 2 * job.part_begin;
    for (int i = threadIdx.x; i < 2 * job.parts(); i += kThreads) parts[i] = __ldg(lines + i);
    unsigned char* first = shared + round_up(kPartsBytes, 128);
    unsigned char* second = first + kFirstBytes;
    const Patch<0> patch(first, job);
    patch.clear();
    __syncthreads();
    FirstStage stage(operands, job, parts, second);
    stage.start();
    stage.compute(patch);
    __syncthreads();
    if constexpr (kCount == 3) {
        const Patch<kCount - 2> between(second, job);
        between.clear();
        __syncthreads();
        if constexpr (fused::kStages[kCount - 2].path == Path::channelwise) {
            compute_channelwise<kCount - 2>(operands, job, parts, patch, between);
        } else {
            compute_products<kCount - 2>(operands, job, parts, patch, between);
        }
        __syncthreads();
        compute_last<kCount - 1>(operands, job, parts, between, first);
    } else {
        compute_last<kCount - 1>(operands, job, parts, patch, second);
    }
}

}  // namespace fused

// What a launch must give as dynamic shared memory; read from the compiled module.
extern "C" __device__ const int onnxopt_shared_bytes = fused::kSharedBytes;

extern "C" __global__ void __launch_bounds__(fused::kThreads, RESIDENT) conv_block(
    const fused::T* __restrict__ x,
#if RESIDUAL
    const fused::T* __restrict__ residual,
#endif
    OTHER_TABLES(OTHERS_BEFORE) const fused::T* __restrict__ w, const float* __restrict__ b, const int* __restrict__ jobs,
    const int* __restrict__ parts, const int* __restrict__ outputs, const int* __restrict__ inputs,
#if PROLOGUE
    const float* __restrict__ input_scales, const float* __restrict__ input_shifts,
#endif
    OTHER_TABLES(OTHERS_AFTER) int batch, fused::T* __restrict__ y) {
    using namespace fused;
    extern __shared__ __align__(1024) unsigned char shared[];
    const unsigned count = static_cast<unsigned>(batch);
    const size_t element = blockIdx.x % count;
    const Job job = load_job(jobs, blockIdx.x / count);
    Operands operands{};
    operands.x = x + element * kInputElements;
    operands.w = w;
    operands.b = b;
    operands.parts = parts;
    operands.outputs = outputs;
    operands.inputs = inputs;
    operands.y = y + element * kOutputElements;
#if RESIDUAL
    operands.residual = residual + element * kOutputElements;
#endif
#if PROLOGUE
    operands.input_scales = input_scales;
    operands.input_shifts = input_shifts;
#endif
    compute<kStageCount>(operands, job, shared);
}
