// y by the nested loops of a convolution: sums in registers, patches of x and weights in shared memory, no workspace.
#include "common/entry.cuh"
#include "conv/algorithms/block.cuh"
#include "conv/algorithms/epilogue.cuh"
#include "conv/algorithms/patch.cuh"

namespace algorithms {

// Input channels whose patches are held at a time.
constexpr int kBlockInputs = BLOCK_INPUTS;
constexpr unsigned kOutputTiles = ceil_div(kOutputs, kBlockOutputs);
constexpr int kWeightPitch = kOutputTiles * kBlockOutputs;

struct Shared {
    alignas(16) float weights[kBlockInputs * kTaps * kBlockOutputs];
    float patches[kBlockInputs * kPatchFloats];
};

}  // namespace algorithms

// What a launch must give as dynamic shared memory; read from the compiled module.
extern "C" __device__ const int onnxopt_shared_bytes = sizeof(algorithms::Shared);

// A block computes a rectangle of some output channels; `w` is inputs x taps x outputs in whole blocks.
extern "C" __global__ void __launch_bounds__(algorithms::kThreads, algorithms::kLeastBlocks) conv_direct(
    const algorithms::T* __restrict__ x, RESIDUAL_PARAMETER(algorithms::T) OTHER_TABLES(OTHERS_BEFORE)
    const algorithms::T* __restrict__ w, const float* __restrict__ b, OTHER_TABLES(OTHERS_AFTER) int batch,
    algorithms::T* __restrict__ y) {
    using namespace algorithms;
    extern __shared__ __align__(16) unsigned char memory[];
    Shared& shared = *reinterpret_cast<Shared*>(memory);
    const BlockWork work = block_work(batch);
    const int first_output = work.job % kOutputTiles * kBlockOutputs;
    const Size begin = tile_begin(work.job / kOutputTiles);
    const T* planes = of_element(x, work.element, kInputs * kInputPositions);
    RegisterTile tile;
#pragma unroll 1
    for (int first = 0; first < kInputs; first += kBlockInputs) {
        const int count = kInputs - first < kBlockInputs ? kInputs - first : kBlockInputs;
        if (first > 0) __syncthreads();
        load_patches<kBlockInputs>(shared.patches, planes + static_cast<size_t>(first) * kInputPositions, count, begin);
        const T* weights = w + static_cast<size_t>(first) * kTaps * kWeightPitch + first_output;
        load_weights<kBlockInputs * kTaps>(shared.weights, weights, count * kTaps, kWeightPitch);
        __syncthreads();
#pragma unroll 1
        for (int input = 0; input < count; ++input) {
            tile.add_channel(shared.patches + input * kPatchFloats, shared.weights + input * kTaps * kBlockOutputs);
        }
    }
    const auto target = target_of(y, RESIDUAL_POINTER, b, work.element, kOutputs * kOutputPositions);
    tile.store(begin, [=](int output, int position, float sum) {
        const int channel = first_output + output;
        if (channel < kOutputs) target.store(channel, channel * kOutputPositions + position, sum);
    });
}
