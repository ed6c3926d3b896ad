// What a stage leaves for the next one in shared memory: positions, zeros around the image among them, and the slots of
// each side by side.
#pragma once

#include "conv/block/job.cuh"

namespace fused {

// Rows of 16 bytes that lie an odd number of such rows apart fall into different banks, eight in a row.
template <int kStage>
struct Patch {
    static constexpr Stage kNext = kStages[kStage + 1];
    static constexpr int kWidth = patch_width(kStage);
    static constexpr int kSlots = kStages[kStage].slots;
    static constexpr int kPitch = kSlots * static_cast<int>(sizeof(T));
    static_assert(kSlots % 16 == 8, "positions lie an odd number of 16 bytes apart");

    T* memory;
    int row_begin;

    DEVICE Patch(unsigned char* shared, const Job& job)
        : memory(reinterpret_cast<T*>(shared)), row_begin(rows_of<kStage>(job).begin) {}

    // Where a position of the stage lies, in elements; -1 where the next stage does not read it.
    DEVICE int place(int row, int column) const {
        const int at = column + kNext.pads.w;
        return at < kWidth ? ((row - row_begin) * kWidth + at) * kSlots : -1;
    }
    // Where the first tap of a position of the next stage lies, in elements.
    DEVICE static int first_tap(int row, int column, int next_begin) {
        return ((row - next_begin) * kNext.strides.h * kWidth + column * kNext.strides.w) * kSlots;
    }
    // How far a tap lies from the first one, in elements.
    DEVICE static int tap_shift(unsigned tap) {
        constexpr unsigned kTapsWide = kNext.kernel.w;
        return static_cast<int>(tap / kTapsWide * kNext.dilations.h * kWidth + tap % kTapsWide * kNext.dilations.w) *
               kSlots;
    }

    // By all threads; slots without an output and positions outside of the image stay 0.
    DEVICE void clear() const {
        const unsigned begin = shared_address(memory);
        for (int at = threadIdx.x * kChunkBytes; at < patch_bytes(kStage); at += kThreads * kChunkBytes) {
            store_chunk(begin + at, uint4{0, 0, 0, 0});
        }
    }
};

// A warp's sums into the patch of its stage: `position(row)` is the position of one of its 16 * kGranules rows, -1 for
// none; the part's outputs from `first` on.
template <int kStage, class Position>
DEVICE void store_patch(const Patch<kStage>& patch, const Operands& operands, const Part& part, int first, int lane,
                        const float (&sums)[kGranules][kBlocks][4], const Position& position) {
    constexpr unsigned kWidth = kStages[kStage].output.w;
    int places[kGranules][2];
#pragma unroll
    for (int i = 0; i < 2 * kGranules; ++i) {
        const int at = position(8 * i + lane / 4);
        const unsigned number = at;
        places[i / 2][i % 2] = at < 0 ? -1 : patch.place(number / kWidth, number % kWidth);
    }
#pragma unroll
    for (int block = 0; block < kBlocks; ++block) {
        const int output = first + kOutputBlock * block + lane % 4 * 2;
        if (first + kOutputBlock * block >= part.output_count) break;
        const int2 slots = __ldg(reinterpret_cast<const int2*>(operands.outputs + part.output_begin + output));
        const float2 bias = __ldg(reinterpret_cast<const float2*>(operands.b + part.output_begin + output));
#pragma unroll
        for (int i = 0; i < 2 * kGranules; ++i) {
            const int place = places[i / 2][i % 2];
            const float* own = sums[i / 2][block] + i % 2 * 2;
            constexpr Activation kActivation = kStages[kStage].activation;
            if (place >= 0 && slots.x >= 0) {
                patch.memory[place + slots.x] = converted<T>(activated<kActivation>(own[0] + bias.x));
            }
            if (place >= 0 && slots.y >= 0) {
                patch.memory[place + slots.y] = converted<T>(activated<kActivation>(own[1] + bias.y));
            }
        }
    }
}

// The weights of a block of 8 outputs by 16 inputs, which lie as the instruction takes them: 8 bytes a lane.
constexpr int kWeightBlock = kOutputBlock * kGranule;
DEVICE Columns weight_columns(uint2 words) { return {{words.x, words.y}}; }

}  // namespace fused
