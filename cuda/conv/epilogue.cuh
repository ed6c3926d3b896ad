// Sums on their way to memory: bias, residual and activation in fp32, then stores of neighbouring elements.
#pragma once

#include "common/vectors.cuh"
#include "conv/geometry.cuh"
#include "conv/job.cuh"

namespace conv {

// The channel of y, or the partial row, that an output of the job goes to; -1 nowhere.
DEVICE int output_channel(const Operands& operands, const Job& job, int output) {
    return __ldg(operands.outputs + job.output_begin + output);
}

// What is added to a sum before it is stored; 0 for partial results.
DEVICE float output_bias(const Operands& operands, const Job& job, int output) {
    if constexpr (kSplit) {
        return 0.0f;
    } else {
        return __ldg(operands.b + job.output_begin + output);
    }
}

// So many neighbouring elements of y take 16 bytes.
constexpr int kChunkResults = 16 / sizeof(Result);

// So many neighbouring pixels of a channel, beginning at a multiple of their number, lie in one image and are stored at
// once with channels first.
constexpr int kPixelRun = kLast ? 1 : power_in(kPositions, kChunkResults);
// So many neighbouring channels of a pixel are stored at once with channels last, if they begin at a multiple of it.
constexpr int kChannelRun = kLast ? power_in(Output::kChannels, kChunkResults) : 1;

// Whether all runs of kPixelRun pixels of a job are whole and begin where they must.
DEVICE bool whole_pixel_runs(const Job& job) {
    return (job.pixel_begin | job.pixel_count) % static_cast<unsigned>(kPixelRun) == 0;
}

// Stores neighbouring elements of y, the first at `at`, a multiple of kCount: sums with their bias, without residual.
template <int kCount>
DEVICE void store_results(const Operands& operands, Output::Offset at, const float (&values)[kCount]) {
    T residual[kCount];
    if constexpr (kResidual) load_vector(operands.residual + at, residual);
    Result results[kCount];
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
        float value = values[i];
        if constexpr (kResidual) value += to_float(residual[i]);
        results[i] = converted<Result>(activated<kActivation>(value));
    }
    store_vector(operands.y + at, results);
}

// The further places of outputs `first` to `first + count`, by one warp: `store(output, channel)` is called by all of
// its lanes together.
template <class Store>
DEVICE void for_each_extra(const Operands& operands, const Job& job, int first, int count, int lane,
                           const Store& store) {
    const int2* lines = reinterpret_cast<const int2*>(operands.extras) + job.extra_begin;
    for (int begin = 0; begin < job.extra_count; begin += 32) {
        const int2 line = begin + lane < job.extra_count ? __ldg(lines + begin + lane) : int2{-1, -1};
        const bool own = line.x >= first && line.x < first + count;
        for (unsigned left = __ballot_sync(~0u, own); left != 0; left &= left - 1) {
            const int source = __ffs(left) - 1;
            store(__shfl_sync(~0u, line.x, source), __shfl_sync(~0u, line.y, source));
        }
    }
}

}  // namespace conv
