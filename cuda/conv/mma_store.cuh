// A warp's sums from registers to y, through a piece of shared memory of its own, so that neighbouring lanes write
// neighbouring elements: pixels with channels first, channels with channels last.
#pragma once

#include "conv/epilogue.cuh"
#include "conv/products.cuh"

namespace conv {

// The sums of `kPixels` pixels and 16 outputs (8 where a tile has no more) at a time, in fp32. Lane 4 g + t writes the
// sums of pixel g and outputs 2 t, 2 t + 1. Channels first: an output's pixels are neighbours, and outputs 2 t begin at
// 8 t modulo 32, since the pitch is 4 more than a multiple of 16. Channels last: pairs of outputs are written at once,
// by 16 lanes of 4 pixels, which begin at 24 g modulo 32: 0, 24, 16, 8. Both use all banks.
template <int kPixels, int kBlocks>
struct Stage {
    static constexpr int kOutputs = kBlocks == 1 ? 8 : 16;
    static constexpr int kPitch = kLast ? (kOutputs == 8 ? 8 : 24) : kPixels + 4;
    static constexpr int kBytes = 4 * kPitch * (kLast ? kPixels : kOutputs);

    DEVICE static int at(int pixel, int output) { return kLast ? pixel * kPitch + output : output * kPitch + pixel; }
};

template <int kPixels, int kBlocks>
class WarpStore {
    using Own = Stage<kPixels, kBlocks>;
    static constexpr int kGranules = kPixels / kGranule;

public:
    // `stage` is the warp's own; its pixels begin at number `first` of the tile.
    DEVICE WarpStore(const Operands& operands, const Job& job, float* stage, int first, int lane)
        : operands_(operands), job_(job), stage_(stage), first_(first), lane_(lane) {}

    // By the whole warp. The lists are padded, so entries behind the last output may be read.
    DEVICE void store(const float (&sums)[kGranules][kBlocks][4]) {
        constexpr int kTogether = Own::kOutputs / 8;
#pragma unroll
        for (int block = 0; block < kBlocks; block += kTogether) {
            if (8 * block >= job_.output_count) break;
            // Else the compiler reads the lists of all blocks at once, into registers that it does not have.
            const int begin = renewed(8 * block), output = begin + lane_ % 4 * 2;
            __syncwarp();
#pragma unroll
            for (int i = 0; i < kTogether; ++i) {
                const bool own = output + 8 * i < job_.output_count;
                const float first = own ? output_bias(operands_, job_, output + 8 * i) : 0.0f;
                const float second =
                    output + 8 * i + 1 < job_.output_count ? output_bias(operands_, job_, output + 8 * i + 1) : 0.0f;
#pragma unroll
                for (int half = 0; half < 2 * kGranules; ++half) {
                    const float(&four)[4] = sums[half / 2][block + i];
                    write_pair(8 * half + lane_ / 4, 8 * i + lane_ % 4 * 2, four[half % 2 * 2] + first,
                               four[half % 2 * 2 + 1] + second);
                }
            }
            __syncwarp();
            if constexpr (kLast) {
                store_last(begin);
            } else if (kPixelRun == 1 || whole_pixel_runs(job_)) {
                store_first<kPixelRun>(begin);
            } else {
                store_first<1>(begin);
            }
        }
    }

private:
    DEVICE void write_pair(int pixel, int output, float first, float second) {
        if constexpr (kLast) {
            *reinterpret_cast<float2*>(stage_ + Own::at(pixel, output)) = float2{first, second};
        } else {
            stage_[Own::at(pixel, output)] = first;
            stage_[Own::at(pixel, output + 1)] = second;
        }
    }

    // Channels first: lanes take runs of kRun pixels of an output.
    template <int kRun>
    DEVICE void store_first(int block_output) {
        constexpr int kRuns = kPixels / kRun, kLanes = kRuns < 32 ? kRuns : 32;
        const int run = lane_ % kLanes, outputs = min(Own::kOutputs, job_.output_count - block_output);
        const int pixel = run * kRun;
        static_assert(kRuns <= 32, "a warp has 32 pixels at most");
        if (first_ + pixel >= job_.pixel_count && !kExtras) return;
        const bool present = first_ + pixel < job_.pixel_count;
        const Pixel place = pixel_of(job_.pixel_begin + first_ + pixel);
        const auto at = Output::offset(place.image, 0, place.position);
        const auto store = [&](int output, int channel) {
            if (!present || channel < 0) return;
            float values[kRun];
#pragma unroll
            for (int i = 0; i < kRun; ++i) values[i] = stage_[Own::at(pixel + i, output)];
            store_results<kRun>(operands_, at + channel * Output::kChannelStride, values);
        };
#pragma unroll
        for (int output = lane_ / kLanes; output < Own::kOutputs; output += 32 / kLanes) {
            if (output < outputs) store(output, output_channel(operands_, job_, block_output + output));
        }
        if constexpr (kExtras) {
            for_each_extra(operands_, job_, block_output, outputs, lane_, [&](int output, int channel) {
                if (lane_ < kLanes) store(output - block_output, channel);
            });
        }
    }

    // Channels last: lanes take runs of channels of a pixel, and further pixels in turn.
    DEVICE void store_last(int block_output) {
        constexpr int kRun = kChannelRun < Own::kOutputs ? kChannelRun : Own::kOutputs;
        constexpr int kRuns = Own::kOutputs / kRun;
        const int outputs = min(Own::kOutputs, job_.output_count - block_output), pixels = job_.pixel_count - first_;
        const int output = lane_ % kRuns * kRun;
        int channel[kRun];
        bool whole = true;
#pragma unroll
        for (int i = 0; i < kRun; ++i) {
            const bool own = output + i < outputs;
            channel[i] = own ? output_channel(operands_, job_, block_output + output + i) : -1;
            whole = whole && own && channel[i] == channel[0] + i;
        }
        whole = whole && channel[0] >= 0 && channel[0] % static_cast<unsigned>(kRun) == 0;
#pragma unroll 1
        for (int pixel = lane_ / kRuns; pixel < min(kPixels, pixels); pixel += 32 / kRuns) {
            const Pixel place = pixel_of(job_.pixel_begin + first_ + pixel);
            const auto at = Output::offset(place.image, 0, place.position);
            float values[kRun];
#pragma unroll
            for (int i = 0; i < kRun; ++i) values[i] = stage_[Own::at(pixel, output + i)];
            if (whole) {
                store_results<kRun>(operands_, at + channel[0], values);
            } else {
#pragma unroll
                for (int i = 0; i < kRun; ++i) {
                    const float one[1] = {values[i]};
                    if (channel[i] >= 0) store_results<1>(operands_, at + channel[i], one);
                }
            }
        }
        if constexpr (kExtras) {
            for_each_extra(operands_, job_, block_output, outputs, lane_, [&](int extra, int target) {
                if (lane_ < pixels && lane_ < kPixels) {
                    const Pixel place = pixel_of(job_.pixel_begin + first_ + lane_);
                    const float one[1] = {stage_[Own::at(lane_, extra - block_output)]};
                    store_results<1>(operands_, Output::offset(place.image, target, place.position), one);
                }
            });
        }
    }

    const Operands& operands_;
    const Job& job_;
    float* stage_;
    int first_, lane_;
};

}  // namespace conv
