// Inputs from x into rows of shared memory: positions below each other, channels side by side.
#pragma once

#include "conv/load_channels.cuh"

namespace conv {

constexpr int kChunkInputs = kChunkBytes / static_cast<int>(sizeof(T));

// Where a row's position stands in x: the offset of its channel 0. What is not inside is zeros.
struct Source {
    bool inside;
    Input::Offset at;
};

// The channels of one chunk of every row.
class ChunkChannels {
public:
    DEVICE ChunkChannels(const Operands& operands, int first) : operands_(operands), first_(first) {
#pragma unroll
        for (int i = 0; i < kChunkInputs; i += 4) {
            const int4 four = __ldg(reinterpret_cast<const int4*>(operands.inputs + first + i));
            channel_[i] = four.x;
            channel_[i + 1] = four.y;
            channel_[i + 2] = four.z;
            channel_[i + 3] = four.w;
        }
    }

    // With channels last: whether the chunk lies in x as it does in a row, at a multiple of 16 bytes.
    DEVICE bool whole() const {
        if constexpr (!kLast || kPrologue || Input::kChannels % kChunkInputs != 0) return false;
        bool same = channel_[0] >= 0 && channel_[0] % static_cast<unsigned>(kChunkInputs) == 0;
#pragma unroll
        for (int i = 1; i < kChunkInputs; ++i) same = same && channel_[i] == channel_[0] + i;
        return same;
    }
    DEVICE int first() const { return channel_[0]; }

    // The chunk at a position, channel by channel.
    DEVICE uint4 gathered(const T* x, Source source) const {
        alignas(kChunkBytes) T elements[kChunkInputs];
        const T* position = x + (source.inside ? source.at : 0);
#pragma unroll
        for (int i = 0; i < kChunkInputs; ++i) {
            const bool present = source.inside && channel_[i] >= 0;
            elements[i] = present ? __ldg(position + static_cast<ptrdiff_t>(channel_[i]) * Input::kChannelStride)
                                  : converted<T>(0.f);
        }
        prepare([&](int i, float scale, float shift) {
            elements[i] = prepared(elements[i], scale, shift, source.inside);
        });
        return reinterpret_cast<const uint4&>(elements);
    }

    // Two neighbouring positions of 16-bit channels, one word a channel.
    DEVICE void load_pairs(unsigned (&word)[kChunkInputs], const T* x, Source source) const {
        const T* position = x + (source.inside ? source.at : 0);
#pragma unroll
        for (int i = 0; i < kChunkInputs; ++i) {
            const T* pair = position + static_cast<ptrdiff_t>(channel_[i]) * Input::kChannelStride;
            word[i] = source.inside && channel_[i] >= 0 ? __ldg(reinterpret_cast<const unsigned*>(pair)) : 0;
        }
    }
    DEVICE void prepare_pairs(unsigned (&word)[kChunkInputs], bool inside) const {
        prepare([&](int i, float scale, float shift) {
            T(&pair)[2] = reinterpret_cast<T(&)[2]>(word[i]);
            pair[0] = prepared(pair[0], scale, shift, inside);
            pair[1] = prepared(pair[1], scale, shift, inside);
        });
    }

private:
    DEVICE static T prepared(T value, float scale, float shift, bool inside) {
        return converted<T>(inside ? prologue(to_float(value), scale, shift) : 0.f);
    }

    // Calls `one(i, scale, shift)` for each channel. These are read anew each time: held, they would take 16 registers.
    template <class One>
    DEVICE void prepare(const One& one) const {
        if constexpr (kPrologue) {
            const int first = renewed(first_);
#pragma unroll
            for (int i = 0; i < kChunkInputs; i += 4) {
                const float4 scale = __ldg(reinterpret_cast<const float4*>(operands_.input_scales + first + i));
                const float4 shift = __ldg(reinterpret_cast<const float4*>(operands_.input_shifts + first + i));
                one(i, scale.x, shift.x);
                one(i + 1, scale.y, shift.y);
                one(i + 2, scale.z, shift.z);
                one(i + 3, scale.w, shift.w);
            }
        }
    }

    const Operands& operands_;
    int first_;
    int channel_[kChunkInputs];
};

// So many chunks of a row the first `inputs` of a step fill, in whole granules of 16.
DEVICE int filled_chunks(int inputs) { return (inputs + 15) / 16 * static_cast<int>(sizeof(T)); }

// With channels last: threads take the chunks of a row in turn. `source(n)` and `row(n)` belong to row n of `count`.
template <class Rows, class Sources, class Numbers>
DEVICE void load_rows_last(unsigned rows, const Operands& operands, int first_input, int chunks, int count,
                           const Sources& source, const Numbers& row) {
    const int chunk = loader_number() % Rows::kChunks;
    if (chunk >= chunks) return;
    const ChunkChannels channels(operands, first_input + chunk * kChunkInputs);
    if (channels.whole()) {
        for (int n = loader_number() / Rows::kChunks; n < count; n += kLoaders / Rows::kChunks) {
            const Source from = source(n);
            copy_chunk(rows + Rows::offset(row(n), chunk), operands.x + (from.inside ? from.at + channels.first() : 0),
                       from.inside);
        }
    } else {
        for (int n = loader_number() / Rows::kChunks; n < count; n += kLoaders / Rows::kChunks) {
            store_chunk(rows + Rows::offset(row(n), chunk), channels.gathered(operands.x, source(n)));
        }
    }
}

// With channels first: the lanes of a warp take neighbouring rows, which are neighbours in memory, and turn their
// channels over in registers. Eight lanes that write at once have rows of different remainders.
template <class Rows, class Sources, class Numbers>
DEVICE void load_rows_first(unsigned rows, const Operands& operands, int first_input, int chunks, int count,
                            const Sources& source, const Numbers& row) {
    constexpr int kAcross = lesser(kLoaders / 32, Rows::kChunks), kDown = kLoaders / 32 / kAcross;
    const int warp = loader_number() / 32, lane = threadIdx.x % 32;
    if (warp >= kAcross * kDown) return;
    for (int chunk = warp % kAcross; chunk < chunks; chunk += kAcross) {
        const ChunkChannels channels(operands, first_input + chunk * kChunkInputs);
#pragma unroll 1
        for (int n = warp / kAcross * 32 + lane; n < count; n += 32 * kDown) {
            store_chunk(rows + Rows::offset(row(n), chunk), channels.gathered(operands.x, source(n)));
        }
    }
}

// As above, two positions at a time: `source(n)` is that of the first, `row(n)` gives the row of position n. A warp
// reads 128 bytes of a channel at once, as it would in wider pieces, and needs no more than 8 registers. Where pairs
// lie in rows 2 n and 2 n + 1, every other four lanes write their second row first, so that eight lanes that write at
// once have rows of different remainders; this is the choice of a byte permutation and costs nothing.
template <class Rows, class Sources, class Numbers>
DEVICE void load_row_pairs(unsigned rows, const Operands& operands, int first_input, int chunks, int count,
                           const Sources& source, const Numbers& row) {
    constexpr int kAcross = lesser(kLoaders / 32, Rows::kChunks), kDown = kLoaders / 32 / kAcross;
    const int warp = loader_number() / 32, lane = threadIdx.x % 32;
    if (warp >= kAcross * kDown) return;
    const int second = kSorted == 1 ? lane / 4 % 2 : 0;
    const unsigned low = 0x5410, high = 0x7632;
    for (int chunk = warp % kAcross; chunk < chunks; chunk += kAcross) {
        const ChunkChannels channels(operands, first_input + chunk * kChunkInputs);
#pragma unroll 1
        for (int n = warp / kAcross * 32 + lane; 2 * n < count; n += 32 * kDown) {
            const Source from = source(2 * n);
            unsigned word[kChunkInputs];
            channels.load_pairs(word, operands.x, from);
            channels.prepare_pairs(word, from.inside);
#pragma unroll
            for (int j = 0; j < 2; ++j) {
                const unsigned half = (second ^ j) != 0 ? high : low;
                const uint4 chunk_words{__byte_perm(word[0], word[1], half), __byte_perm(word[2], word[3], half),
                                        __byte_perm(word[4], word[5], half), __byte_perm(word[6], word[7], half)};
                store_chunk(rows + Rows::offset(row(2 * n + (second ^ j)), chunk), chunk_words);
            }
        }
    }
}

template <int kNumber>
class InputLoader {
public:
    static constexpr Shape kShape = kShapes[kNumber];
    static constexpr InputPlan kPlan = InputPlan::of(kShape);
    using Rows = InputRows<kShape.inputs>;
    // Of channels, where they come as they lie in x.
    using ChannelRows = typename Choice<kWarpgroups, BlockedRows<kShape.pixels, kShape.inputs>,
                                        InputRows<kPlan.channels ? kShape.pixels : 64>>::type;

    DEVICE InputLoader(const Operands& operands, const Job& job) : operands_(operands), job_(job) {
        if constexpr (kPlan.run) {
            const Pixel last = pixel_of(job.pixel_begin + job.pixel_count - 1);
            first_ = in_order(pixel_of(job.pixel_begin));
            last_ = in_order(last);
            end_ = (last.image + 1) * kInputPositions;
        }
    }

    // A pixel's first tap, numbered in memory order from the group's begin; negative where it lies in front of x.
    DEVICE static int in_order(Pixel pixel) {
        const Place place = place_of(pixel.position);
        return pixel.image * kInputPositions + place.position();
    }

    // The first position of the run that holds the taps from `tap` on. Where pairs are read, it is even.
    DEVICE int run_begin(int tap) const {
        return (first_ + tap_shift(tap).position()) & -kPairs;
    }

    // Brings what a group of taps, the first of them `tap`, needs of a step's inputs, the first of them `input`.
    DEVICE void load(unsigned rows, int input, int inputs, int tap) const {
        if constexpr (kPlan.channels) {
            load_channels<ChannelRows>(rows, operands_, job_, input, inputs);
        } else {
            load_positions(rows, input, inputs, tap);
        }
    }

private:
    DEVICE void load_positions(unsigned rows, int input, int inputs, int tap) const {
        const int chunks = filled_chunks(inputs), first = job_.input_begin + input;
        if constexpr (kPlan.run) {
            const int begin = run_begin(tap);
            const int count = last_ + tap_shift(tap + kPlan.group - 1).position() - begin + 1;
            const auto source = [&](int n) { return of_position(begin + n); };
            const auto row = [](int n) { return row_of<kPlan.part>(n); };
            if constexpr (kLast) {
                load_rows_last<Rows>(rows, operands_, first, chunks, count, source, row);
            } else if constexpr (kPairs == 2) {
                load_row_pairs<Rows>(rows, operands_, first, chunks, count, source, row);
            } else {
                load_rows_first<Rows>(rows, operands_, first, chunks, count, source, row);
            }
        } else {
            const Place shift = tap_shift(tap);
            const int count = round_up(job_.pixel_count, kMultiplied);
            const auto source = [&](int n) { return of_pixel(n, shift); };
            const auto row = [](int n) { return n; };
            if constexpr (kLast) {
                load_rows_last<Rows>(rows, operands_, first, chunks, count, source, row);
            } else {
                load_rows_first<Rows>(rows, operands_, first, chunks, count, source, row);
            }
        }
    }
    DEVICE Source of_position(int position) const {
        const bool inside = position >= 0 && position < end_;
        const unsigned own = inside ? position : 0;
        const int image = kImages == 1 ? 0 : own / kInputPositions;
        return {inside, Input::offset(image, 0, kImages == 1 ? own : own % kInputPositions)};
    }
    DEVICE Source of_pixel(int n, Place shift) const {
        const Pixel pixel = pixel_of(job_.pixel_begin + n);
        if constexpr (kSamePositions) {
            const bool present = n < job_.pixel_count;
            return {present, present ? Input::offset(pixel.image, 0, pixel.position) : 0};
        }
        const Place place = place_of(pixel.position) + shift;
        const bool inside = n < job_.pixel_count && place.inside();
        return {inside, inside ? Input::offset(pixel.image, 0, place.position()) : 0};
    }

    const Operands& operands_;
    const Job& job_;
    int first_, last_, end_;
};

}  // namespace conv
