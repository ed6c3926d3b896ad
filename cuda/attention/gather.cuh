// Vectors from where they stand in a tensor into a tile.
#pragma once

#include "attention/config.cuh"
#include "attention/tile.cuh"
#include "common/copy.cuh"

namespace attention {

// How many channels of a tensor's vectors a tile holds.
template <int kStride_, int kVectorWidth, int kCount_ = kVectorWidth>
struct Channels {
    static constexpr int kStride = kStride_;
    static constexpr int kCount = kCount_;
    // Every vector is whole 16-byte chunks, each at a multiple of 16 bytes; parts begin at multiples of 16 channels.
    static constexpr bool kWholeChunks = TensorLayout{0, kStride}.whole_chunks(kVectorWidth);
};
using QueryChannels = Channels<kQ.stride, kWidth>;
using KeyChannels = Channels<kK.stride, kWidth>;
using ValueChannels = Channels<kV.stride, kValueWidth>;
using ResultChannels = Channels<kY.stride, kValueWidth>;

// Entries of `rows`, `keys` or `values`: in global memory, or brought to shared memory ahead of the gather.
struct GlobalEntries {
    const int* list;
    DEVICE int operator()(int row) const { return __ldg(list + row); }
};
struct SharedEntries {
    const int* list;
    DEVICE int operator()(int row) const { return list[row]; }
};

// The first channels of 16 bytes of a vector, one by one; zeros behind the last and for an absent vector.
template <class Channels>
DEVICE uint4 gathered_chunk(const T* vector, int first, bool present) {
    constexpr int kElements = kChunkBytes / sizeof(T);
    alignas(kChunkBytes) T elements[kElements];
#pragma unroll
    for (int i = 0; i < kElements; ++i) {
        const bool inside = present && first + i < Channels::kCount;
        const T* element = vector + static_cast<ptrdiff_t>(first + i) * Channels::kStride;
        elements[i] = inside ? __ldg(element) : converted<T>(0.f);
    }
    return reinterpret_cast<const uint4&>(elements);
}

// This lane's chunks of a vector that begins at `row`; kTurned lanes take a vector together.
template <class Channels, class Tile>
DEVICE void copy_vector(unsigned row, const T* base, int entry, int lane) {
    constexpr int kElements = kChunkBytes / sizeof(T);
    const bool present = entry >= 0;
    const T* vector = base + (present ? entry : 0);
#pragma unroll
    for (int chunk = 0; chunk < Tile::kChunks; chunk += Tile::kTurned) {
        const int channel = (chunk + lane) * kElements;
        const bool inside = Tile::kWidth == Channels::kCount || channel < Channels::kCount;
        copy_chunk(row + chunk * kChunkBytes, vector + (inside ? channel : 0), present && inside);
    }
}

// The first `count` vectors of a list into the rows of a tile of `kRows`; `base` has the job's shift. Threads that take
// part call it with their number of kThreads; the copies belong to the group that the caller commits, but for those of
// single channels and on sm_75, which are ordinary stores.
template <class Channels, class Tile, int kRows, int kThreads, class Entries>
DEVICE void gather(unsigned tile, const T* base, Entries entries, int count, int thread) {
    if constexpr (Channels::kWholeChunks) {
        // kTurned neighbouring lanes take a vector, so that its turned chunks stay among them and a lane's further
        // chunks lie at constant distances.
        constexpr int kLanes = Tile::kTurned;
        constexpr int kPass = kThreads / kLanes;
        constexpr int kPasses = ceil_div(kRows, kPass);
        // So many entries are read before the first copy waits for its entry.
        constexpr int kBatch = kPasses < 4 ? kPasses : 4;
        const unsigned lane = thread % kLanes;
        const auto copy_batch = [&](int first) {
            int entry[kBatch];
#pragma unroll
            for (int i = 0; i < kBatch; ++i) {
                entry[i] = first + i * kPass < count ? entries(first + i * kPass) : -1;
            }
            const unsigned place = tile + Tile::offset(first, lane);
#pragma unroll
            for (int i = 0; i < kBatch; ++i) {
                if (first + i * kPass < count) {
                    const unsigned row = kPass % 8 == 0 ? place + i * kPass * Tile::kPitch
                                                        : tile + Tile::offset(first + i * kPass, lane);
                    copy_vector<Channels, Tile>(row, base, entry[i], lane);
                }
            }
        };
        const int first = static_cast<unsigned>(thread) / kLanes;
        if constexpr (kPasses <= kBatch) {
            copy_batch(first);
        } else {
#pragma unroll 1
            for (int row = first; row < count; row += kBatch * kPass) copy_batch(row);
        }
    } else {
        // With channels first neighbouring vectors are neighbours in memory, so neighbouring lanes take them.
        constexpr bool kAlongRows = Channels::kStride != 1;
        // One chunk at a time: each has an address and a register for every element.
#pragma unroll 1
        for (int number = thread; number < kRows * Tile::kChunks; number += kThreads) {
            const int row = kAlongRows ? number % kRows : number / Tile::kChunks;
            const int chunk = kAlongRows ? number / kRows : number % Tile::kChunks;
            if (row < count) {
                const int entry = entries(row);
                const int first = chunk * (kChunkBytes / static_cast<int>(sizeof(T)));
                store_chunk(tile + Tile::offset(row, chunk),
                            gathered_chunk<Channels>(base + (entry < 0 ? 0 : entry), first, entry >= 0));
            }
        }
    }
}

}  // namespace attention
