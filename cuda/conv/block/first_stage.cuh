// The first stage, pointwise: inputs are gathered from x channel by channel, kStep at a time, while the step before is
// multiplied. Steps run through the job's positions, its parts, and their inputs without a pause between them.
#pragma once

#include "common/vectors.cuh"
#include "conv/block/patch.cuh"

namespace fused {

constexpr int kTile = kGranule * kGranules * kRowWarps;
// Channels lie in rows of positions whose 16-byte chunks change places, so that 8 rows fall into different banks.
constexpr int kTileChunks = kTile / 8, kTurned = kTileChunks < 8 ? kTileChunks : 8;
static_assert(kTurned == 4 || kTurned == 8, "a step has 32 positions or a multiple of 64");
constexpr int kTileBytes = kStep * kTile * static_cast<int>(sizeof(T));
constexpr int kStepOutputs = kOutputBlock * kBlocks * kColumnWarps;
constexpr int kStepWeights = kStepOutputs * kStep * static_cast<int>(sizeof(T));
constexpr int kBufferBytes = kTileBytes + kStepWeights;

DEVICE int tile_offset(unsigned channel, unsigned chunk) {
    return static_cast<int>((channel * kTileChunks + (chunk ^ channel / (8 / kTurned) % kTurned)) * kChunkBytes);
}

// Eight neighbouring 16-bit elements of which `count` are there; the others are 0. They begin at a multiple of kAligned
// elements, and so many at a time are there or not. Single ones come as the words that hold them, shifted into place; a
// word is read only where both its elements may be, since no tensor begins in the middle of one.
template <int kAligned>
DEVICE uint4 load_eight(const T* from, int count) {
    uint4 eight{0, 0, 0, 0};
    if constexpr (kAligned > 1) {
        Words<T, kAligned>* parts = reinterpret_cast<Words<T, kAligned>*>(&eight);
#pragma unroll
        for (int i = 0; i < 8 / kAligned; ++i) {
            if (i * kAligned < count) parts[i] = __ldg(reinterpret_cast<const Words<T, kAligned>*>(from) + i);
        }
    } else {
        const size_t address = reinterpret_cast<size_t>(from);
        const int odd = address / 2 % 2;
        const unsigned* words = reinterpret_cast<const unsigned*>(address - 2 * odd);
        unsigned read[5];
#pragma unroll
        for (int i = 0; i < 5; ++i) {
            const int first = 2 * i - odd;
            read[i] = 0;
            if (count > 0 && first + 1 < count) {
                if (i < 4 || odd) read[i] = __ldg(words + i);
            } else if (first >= 0 && first < count) {
                read[i] = __ldg(reinterpret_cast<const unsigned short*>(words + i));
            }
        }
        eight = {__funnelshift_r(read[0], read[1], 16 * odd), __funnelshift_r(read[1], read[2], 16 * odd),
                 __funnelshift_r(read[2], read[3], 16 * odd), __funnelshift_r(read[3], read[4], 16 * odd)};
    }
    return eight;
}

class FirstStage {
    static constexpr Stage kStage = kStages[0];
    static constexpr int kPositions = kStage.input.count();
    // Channels begin at multiples of so many elements, and so do steps.
    static constexpr int kRun = power_in(kPositions, 8);
    static constexpr int kPieces = ceil_div(kStep * kTileChunks, kThreads);
    static constexpr int kLists = kStep / 32;

    // Inputs `input` to `input + kStep` of a part at the positions of one tile.
    struct Step {
        int tile, number, input;
        Part part;
    };
    // Lane l has the channels l, l + 32, ... of a step.
    struct Channels {
        int channel[kLists];
        float scale[kLists], shift[kLists];
    };

public:
    DEVICE FirstStage(const Operands& operands, const Job& job, const int4* parts, unsigned char* shared)
        : operands_(operands), parts_(parts), shared_(shared), positions_(job), count_(job.part_counts[0]) {
        // Runs begin at multiples of their length.
        begin_ = positions_.begin / kRun * kRun;
    }

    DEVICE void compute(const Patch<0>& patch) {
        Step step{0, 0, 0, load_part(parts_, 0)}, next = step;
        Channels channels = load_channels(step);
        load(step, channels);
        advance(next);
        if (exists(next)) channels = load_channels(next);
        store(channels_now_, 0);
        __syncthreads();
        for (int buffer = 0;; buffer ^= 1) {
            const bool more = exists(next);
            Step following = next;
            if (more) {
                copy_weights(next, buffer ^ 1);
                load(next, channels);
                advance(following);
                if (exists(following)) channels = load_channels(following);
            }
            multiply_step(step, buffer);
            if (step.input + kStep >= step.part.input_count) finish(patch, step);
            if (!more) return;
            store(channels_now_, buffer ^ 1);
            __syncthreads();
            step = next;
            next = following;
        }
    }

    // The weights of the first step may come while the patch is cleared.
    DEVICE void start() { copy_weights(Step{0, 0, 0, load_part(parts_, 0)}, 0); }

private:
    DEVICE bool exists(const Step& step) const { return begin_ + step.tile * kTile < positions_.end; }

    DEVICE void advance(Step& step) const {
        step.input += kStep;
        if (step.input < step.part.input_count) return;
        step.input = 0;
        if (++step.number == count_) {
            step.number = 0;
            ++step.tile;
        }
        step.part = load_part(parts_, step.number);
    }

    DEVICE Channels load_channels(const Step& step) const {
        Channels own;
#pragma unroll
        for (int i = 0; i < kLists; ++i) {
            const int input = step.input + 32 * i + threadIdx.x % 32, entry = step.part.input_begin + input;
            const bool present = input < step.part.input_count;
            own.channel[i] = present ? __ldg(operands_.inputs + entry) : -1;
            if constexpr (kPrologue) {
                own.scale[i] = own.channel[i] >= 0 ? __ldg(operands_.input_scales + entry) : 0.0f;
                own.shift[i] = own.channel[i] >= 0 ? __ldg(operands_.input_shifts + entry) : 0.0f;
            }
        }
        return own;
    }

    // Whether this warp's pieces number `i` and further ones are of channels that the step does not have.
    DEVICE bool beyond(int i) const {
        return (threadIdx.x / 32 * 32 + i * kThreads) / kTileChunks >= static_cast<unsigned>(limit_now_);
    }
    DEVICE static unsigned piece(int i) { return threadIdx.x + i * kThreads; }
    // The channel of the step that a piece is of, known to the compiler to lie in one of the lists.
    template <class Value>
    DEVICE static Value of_channel(const Value (&lists)[kLists], unsigned channel) {
        Value found = __shfl_sync(~0u, lists[0], channel % 32);
#pragma unroll
        for (int i = 1; i < kLists; ++i) {
            const Value other = __shfl_sync(~0u, lists[i], channel % 32);
            if (channel / 32 == i) found = other;
        }
        return found;
    }

    DEVICE void load(const Step& step, const Channels& channels) {
        channels_now_ = channels;
        limit_now_ = granules_of(step) * kGranule;
        const int tile = begin_ + step.tile * kTile;
#pragma unroll
        for (int i = 0; i < kPieces; ++i) {
            if (beyond(i)) break;
            const unsigned channel = piece(i) / kTileChunks;
            const int from = of_channel(channels.channel, channel);
            const int position = tile + static_cast<int>(piece(i) % kTileChunks * 8);
            const bool present = from >= 0 && (kFull || channel < kStep);
            held_[i] = load_eight<kRun>(operands_.x + (from * kPositions + position),
                                        present ? positions_.end - position : 0);
        }
    }

    DEVICE void store(const Channels& channels, int buffer) {
        unsigned char* tile = shared_ + buffer * kBufferBytes;
#pragma unroll
        for (int i = 0; i < kPieces; ++i) {
            if (beyond(i)) break;
            const unsigned channel = piece(i) / kTileChunks;
            if constexpr (kPrologue) {
                const float scale = of_channel(channels.scale, channel), shift = of_channel(channels.shift, channel);
                // A channel of zeros has a scale and a shift of 0, and every activation leaves 0 as it is.
                T* elements = reinterpret_cast<T*>(&held_[i]);
#pragma unroll
                for (int k = 0; k < 8; ++k) {
                    elements[k] = converted<T>(activated<kInputActivation>(fmaf(scale, to_float(elements[k]), shift)));
                }
            }
            if (kFull || channel < kStep) {
                *reinterpret_cast<uint4*>(tile + tile_offset(channel, piece(i) % kTileChunks)) = held_[i];
            }
        }
        wait_copies<0>();
    }

    // A step's weights are neighbours in memory.
    DEVICE void copy_weights(const Step& step, int buffer) const {
        const int blocks = ceil_div_of(step.part.output_count, kOutputBlock);
        const int granules = granules_of(step);
        const int chunks = granules * blocks * (kWeightBlock * static_cast<int>(sizeof(T)) / kChunkBytes);
        const T* from = operands_.w + step.part.weight_begin + step.input / kGranule * blocks * kWeightBlock;
        const unsigned to = shared_address(shared_) + buffer * kBufferBytes + kTileBytes;
        for (int chunk = threadIdx.x; chunk < chunks; chunk += kThreads) {
            copy_chunk(to + chunk * kChunkBytes, reinterpret_cast<const unsigned char*>(from) + chunk * kChunkBytes);
        }
        commit_copies();
    }

    DEVICE static int granules_of(const Step& step) {
        return ceil_div_of(min(kStep, step.part.input_count - step.input), kGranule);
    }
    DEVICE static int ceil_div_of(int value, int divisor) { return (value + divisor - 1) / divisor; }

    DEVICE void multiply_step(const Step& step, int buffer) {
        const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
        const int row = warp / kColumnWarps * kGranules, column = warp % kColumnWarps * kBlocks;
        const int blocks = ceil_div_of(step.part.output_count, kOutputBlock);
        const int granules = granules_of(step);
        const LanePlace place = columns_place(lane);
        const unsigned tile = shared_address(shared_) + buffer * kBufferBytes;
        const unsigned char* weights = shared_ + buffer * kBufferBytes + kTileBytes + lane * 8;
        if (step.input == 0) clear_sums();
#pragma unroll
        for (int granule = 0; granule < kStep / kGranule; ++granule) {
            if (granule >= granules) break;
            Operand<kElement, 4> pixels[kGranules];
#pragma unroll
            for (int i = 0; i < kGranules; ++i) {
                Rows turned;
                load_matrices_transposed(turned.word,
                                         tile + tile_offset(granule * kGranule + place.row, 2 * (row + i) + place.chunk));
                pixels[i] = prepared<kElement>(turned);
            }
#pragma unroll
            for (int block = 0; block < kBlocks; ++block) {
                if (column + block >= blocks) break;
                const int at = (granule * blocks + column + block) * kWeightBlock * static_cast<int>(sizeof(T));
                const auto own = prepared<kElement>(weight_columns(*reinterpret_cast<const uint2*>(weights + at)));
#pragma unroll
                for (int i = 0; i < kGranules; ++i) multiply<kElement>(sums_[i][block], pixels[i], own);
            }
        }
    }

    DEVICE void finish(const Patch<0>& patch, const Step& step) const {
        const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
        const int begin = begin_ + step.tile * kTile + warp / kColumnWarps * (kGranules * kGranule);
        const int first = warp % kColumnWarps * (kBlocks * kOutputBlock);
        store_patch(patch, operands_, step.part, first, lane, sums_, [&](int row) {
            const int position = begin + row;
            return position >= positions_.begin && position < positions_.end ? position : -1;
        });
    }

    DEVICE void clear_sums() {
#pragma unroll
        for (int i = 0; i < kGranules * kBlocks * 4; ++i) sums_[i / (4 * kBlocks)][i / 4 % kBlocks][i % 4] = 0.0f;
    }

    static constexpr bool kFull = kStep * kTileChunks % kThreads == 0;
    const Operands& operands_;
    const int4* parts_;
    unsigned char* shared_;
    Positions<0> positions_;
    int count_, begin_, limit_now_ = 0;
    Channels channels_now_;
    uint4 held_[kPieces];
    float sums_[kGranules][kBlocks][4];
};

}  // namespace fused
