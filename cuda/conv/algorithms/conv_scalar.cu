// y by scalar-matrix multiplication: every weight scales a shifted input plane, which is added to an output plane.
#include "common/entry.cuh"
#include "conv/algorithms/block.cuh"
#include "conv/algorithms/epilogue.cuh"
#include "conv/algorithms/geometry.cuh"

namespace algorithms {

constexpr int kThreads = THREADS;
// Positions of the output plane that a thread keeps in registers, a block's width apart.
constexpr int kOwn = OWN_POSITIONS;
constexpr unsigned kPieces = ceil_div(kOutputPositions, kThreads * kOwn);

// Offsets in an input plane that a tap shifts a thread's positions to; -1 outside.
DEVICE void shifted(int (&offsets)[kOwn], unsigned first, unsigned tap) {
#pragma unroll
    for (int i = 0; i < kOwn; ++i) {
        const unsigned position = first + i * kThreads;
        const Size at = read_place(place_in(kOutput, position), place_in(kKernel, tap));
        offsets[i] = position < kOutputPositions && inside(at) ? offset_in(kInput, at) : -1;
    }
}

// sums += one weight * the shifted plane, for each input's weight of a tap.
DEVICE void add_planes(float (&sums)[kOwn], const int (&offsets)[kOwn], const T* x, const T* w) {
#pragma unroll 4
    for (int input = 0; input < kInputs; ++input) {
        const float weight = to_float(__ldg(w + input));
        const T* plane = x + static_cast<size_t>(input) * kInputPositions;
#pragma unroll
        for (int i = 0; i < kOwn; ++i) {
            const float value = offsets[i] < 0 ? 0.0f : to_float(__ldg(plane + offsets[i]));
            sums[i] = fmaf(weight, value, sums[i]);
        }
    }
}

}  // namespace algorithms

// What a launch must give as dynamic shared memory; read from the compiled module.
extern "C" __device__ const int onnxopt_shared_bytes = 0;

// A block computes a piece of one output plane; `w` is outputs x taps x inputs.
extern "C" __global__ void __launch_bounds__(algorithms::kThreads, algorithms::kLeastBlocks) conv_scalar(
    const algorithms::T* __restrict__ x, RESIDUAL_PARAMETER(algorithms::T) OTHER_TABLES(OTHERS_BEFORE)
    const algorithms::T* __restrict__ w, const float* __restrict__ b, OTHER_TABLES(OTHERS_AFTER) int batch,
    algorithms::T* __restrict__ y) {
    using namespace algorithms;
    const BlockWork work = block_work(batch);
    const unsigned output = work.job / kPieces;
    const unsigned first = work.job % kPieces * (kThreads * kOwn) + threadIdx.x;
    const T* planes = of_element(x, work.element, kInputs * kInputPositions);
    float sums[kOwn] = {};
#pragma unroll 1
    for (unsigned tap = 0; tap < kTaps; ++tap) {
        int offsets[kOwn];
        shifted(offsets, first, tap);
        add_planes(sums, offsets, planes, w + (static_cast<size_t>(output) * kTaps + tap) * kInputs);
    }
    const auto target = target_of(y, RESIDUAL_POINTER, b, work.element, kOutputs * kOutputPositions);
#pragma unroll
    for (int i = 0; i < kOwn; ++i) {
        const unsigned position = first + i * kThreads;
        if (position < kOutputPositions) target.store(output, output * kOutputPositions + position, sums[i]);
    }
}
