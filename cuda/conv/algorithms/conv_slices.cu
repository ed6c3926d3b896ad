// The depthwise algorithm: every input channel is convolved by itself, with all its multipliers. Of a dense layer the
// results of a slice of channels are added to partial planes, which a second step adds up.
#include "common/entry.cuh"
#include "conv/algorithms/block.cuh"
#include "conv/algorithms/epilogue.cuh"
#include "conv/algorithms/patch.cuh"

namespace algorithms {

constexpr int kSlices = SLICES;
constexpr bool kGrouped = GROUPS > 1;
static_assert(!kGrouped || GROUPS == kInputs, "a channel is a group by itself");
static_assert(kGrouped ? kSlices == kInputs : kSlices <= kInputs, "a slice has channels");

// Output channels that one input channel goes to.
constexpr int kMultipliers = kGrouped ? kOutputs / GROUPS : kOutputs;
constexpr unsigned kOutputTiles = ceil_div(kMultipliers, kBlockOutputs);
constexpr int kWeightPitch = kOutputTiles * kBlockOutputs;

struct Shared {
    alignas(16) float weights[kTaps * kBlockOutputs];
    float patch[kPatchFloats];
};

// The first channel of a slice, or the end of the one in front; slices differ by one channel at most.
DEVICE int slice_begin(unsigned slice) {
    return static_cast<int>(static_cast<unsigned long long>(slice) * kInputs / kSlices);
}

}  // namespace algorithms

// What a launch must give as dynamic shared memory; read from the compiled module.
extern "C" __device__ const int onnxopt_shared_bytes = sizeof(algorithms::Shared);

#if RAW
#define BIAS_PARAMETER
#define OUTPUT float* __restrict__ partial
#else
#define BIAS_PARAMETER const float* __restrict__ b,
#define OUTPUT algorithms::T* __restrict__ y
#endif

// A block computes a rectangle of some of a slice's planes; `w` is inputs x taps x multipliers in whole blocks.
extern "C" __global__ void __launch_bounds__(algorithms::kThreads, algorithms::kLeastBlocks)
    conv_slices(const algorithms::T* __restrict__ x, RESIDUAL_PARAMETER(algorithms::T) OTHER_TABLES(OTHERS_BEFORE)
                const algorithms::T* __restrict__ w, BIAS_PARAMETER OTHER_TABLES(OTHERS_AFTER) int batch, OUTPUT) {
    using namespace algorithms;
    extern __shared__ __align__(16) unsigned char memory[];
    Shared& shared = *reinterpret_cast<Shared*>(memory);
    const BlockWork work = block_work(batch);
    const int first_output = work.job % kOutputTiles * kBlockOutputs;
    const unsigned slice = work.job / kOutputTiles % kSlices;
    const Size begin = tile_begin(work.job / (kOutputTiles * kSlices));
    const T* planes = of_element(x, work.element, kInputs * kInputPositions);
    const int first = slice_begin(slice), end = slice_begin(slice + 1);
    RegisterTile tile;
#pragma unroll 1
    for (int input = first; input < end; ++input) {
        if (input > first) __syncthreads();
        load_patches<1>(shared.patch, planes + static_cast<size_t>(input) * kInputPositions, 1, begin);
        const T* weights = w + static_cast<size_t>(input) * kTaps * kWeightPitch + first_output;
        load_weights<kTaps>(shared.weights, weights, kTaps, kWeightPitch);
        __syncthreads();
        tile.add_channel(shared.patch, shared.weights);
    }
#if RAW
    float* own = of_element(partial, work.element, kSlices * kOutputs * kOutputPositions);
    tile.store(begin, [=](int output, int position, float sum) {
        const int row = slice * kOutputs + first_output + output;
        if (first_output + output < kMultipliers) own[row * kOutputPositions + position] = sum;
    });
#else
    const auto target = target_of(y, RESIDUAL_POINTER, b, work.element, kOutputs * kOutputPositions);
    tile.store(begin, [=](int output, int position, float sum) {
        const int channel = (kGrouped ? slice * kMultipliers : 0) + first_output + output;
        if (first_output + output < kMultipliers) target.store(channel, channel * kOutputPositions + position, sum);
    });
#endif
}
