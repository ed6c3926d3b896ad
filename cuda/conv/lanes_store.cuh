// Sums of the ordinary lanes to where the tables send them: neighbouring positions of a channel at once, or, channels
// last, neighbouring channels of a position.
#pragma once

#include "conv/epilogue.cuh"

namespace conv {

// kCount neighbouring elements, the first at a multiple of kCount: as many at once as 16 bytes hold.
template <int kCount>
DEVICE void store_neighbours(const Operands& operands, Output::Offset at, const float (&values)[kCount]) {
    constexpr int kAtOnce = power_in(kCount, kChunkResults);
#pragma unroll
    for (int first = 0; first < kCount; first += kAtOnce) {
        float chunk[kAtOnce];
#pragma unroll
        for (int i = 0; i < kAtOnce; ++i) chunk[i] = values[first + i];
        store_results(operands, at + first, chunk);
    }
}

// One channel at the positions of a run; `at` is the place of channel 0 at the first of them.
template <int kRun>
DEVICE void store_channel(const Operands& operands, Output::Offset at, int channel, const float (&values)[kRun]) {
    if constexpr (kLast) {
#pragma unroll
        for (int i = 0; i < kRun; ++i) {
            const float single[1] = {values[i]};
            store_results(operands, at + i * Output::kPositionStride + channel, single);
        }
    } else {
        store_neighbours(operands, at + channel * Output::kChannelStride, values);
    }
}

// The channels that the outputs of a part go to, -1 nowhere.
template <int kOutputs>
struct Destinations {
    int channel[kOutputs];

    DEVICE Destinations(const Operands& operands, const Job& job) {
#pragma unroll
        for (int output = 0; output < kOutputs; ++output) {
            channel[output] = output < job.output_count ? output_channel(operands, job, output) : -1;
        }
    }

    // Whether all are neighbouring channels that are stored at once.
    DEVICE bool are_neighbours() const {
        bool neighbours = channel[0] >= 0 && channel[0] % kOutputs == 0;
#pragma unroll
        for (int output = 1; output < kOutputs; ++output) neighbours &= channel[output] == channel[0] + output;
        return neighbours;
    }
};

// The sums of a run to their first places; `at` is the place of channel 0 at its first position.
template <int kOutputs, int kRun>
DEVICE void store_first_places(const Operands& operands, const Job& job, Output::Offset at,
                               const float (&sums)[kOutputs][kRun]) {
    const Destinations<kOutputs> destinations(operands, job);
    if constexpr (kLast && kOutputs > 1 && Output::kChannels % kOutputs == 0) {
        if (destinations.are_neighbours()) {
#pragma unroll
            for (int i = 0; i < kRun; ++i) {
                float channels[kOutputs];
#pragma unroll
                for (int output = 0; output < kOutputs; ++output) channels[output] = sums[output][i];
                store_neighbours(operands, at + i * Output::kPositionStride + destinations.channel[0], channels);
            }
            return;
        }
    }
#pragma unroll
    for (int output = 0; output < kOutputs; ++output) {
        const int channel = destinations.channel[output];
        if (channel >= 0) store_channel(operands, at, channel, sums[output]);
    }
}

// The further places; which output a line means is known at run time only, so it is picked from all.
template <int kOutputs, int kRun>
DEVICE void store_extras(const Operands& operands, const Job& job, Output::Offset at,
                         const float (&sums)[kOutputs][kRun]) {
    const int2* lines = reinterpret_cast<const int2*>(operands.extras) + job.extra_begin;
#pragma unroll 1
    for (int n = 0; n < job.extra_count; ++n) {
        const int2 line = __ldg(lines + n);
        float values[kRun];
#pragma unroll
        for (int i = 0; i < kRun; ++i) {
            values[i] = sums[0][i];
#pragma unroll
            for (int output = 1; output < kOutputs; ++output) {
                values[i] = output == line.x ? sums[output][i] : values[i];
            }
        }
        store_channel(operands, at, line.y, values);
    }
}

}  // namespace conv
