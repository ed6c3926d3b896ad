// y of kn2row: the products of every tap, made at all positions of x, shifted to where they belong and added.
#include "common/entry.cuh"
#include "conv/algorithms/block.cuh"
#include "conv/algorithms/epilogue.cuh"
#include "conv/algorithms/geometry.cuh"

namespace algorithms {

constexpr int kThreads = THREADS;
constexpr unsigned kElements = kOutputs * kOutputPositions;

// `products` are taps x outputs x positions of x.
DEVICE float shifted_sum(const float* products, unsigned output, const Size& position) {
    float sum = 0.0f;
#pragma unroll 4
    for (unsigned tap = 0; tap < kTaps; ++tap) {
        const Size at = read_place(position, place_in(kKernel, tap));
        const float* plane = products + (tap * kOutputs + output) * kInputPositions;
        if (inside(at)) sum += __ldg(plane + offset_in(kInput, at));
    }
    return sum;
}

}  // namespace algorithms

// What a launch must give as dynamic shared memory; read from the compiled module.
extern "C" __device__ const int onnxopt_shared_bytes = 0;

// A thread computes one element of y.
extern "C" __global__ void __launch_bounds__(algorithms::kThreads, algorithms::kLeastBlocks)
    conv_shift_add(const float* __restrict__ products, RESIDUAL_PARAMETER(algorithms::T) OTHER_TABLES(OTHERS_BEFORE)
                   const float* __restrict__ b, OTHER_TABLES(OTHERS_AFTER) int batch, algorithms::T* __restrict__ y) {
    using namespace algorithms;
    const BlockWork work = block_work(batch);
    const unsigned number = work.job * kThreads + threadIdx.x;
    if (number >= kElements) return;
    const unsigned output = number / kOutputPositions;
    const Size position = place_in(kOutput, number % kOutputPositions);
    const float* own = of_element(products, work.element, kTaps * kOutputs * kInputPositions);
    const auto target = target_of(y, RESIDUAL_POINTER, b, work.element, kElements);
    target.store(output, number, shifted_sum(own, output, position));
}
