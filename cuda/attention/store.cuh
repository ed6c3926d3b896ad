// Results from registers to where the tables send them: through a tile in shared memory, so that global memory is
// written in whole vectors, or straight to the partial results.
#pragma once

#include "attention/gather.cuh"
#include "attention/job.cuh"
#include "attention/tile.cuh"
#include "common/math.cuh"

namespace attention {

// Results of `kWidth` channels on their way out.
template <int kWidth = kPaddedValueWidth>
using ResultTile = Tile<kWidth, sizeof(T) == 2 ? Access::whole_chunks : Access::word_pairs>;

DEVICE void store_pair(unsigned shared, __half2 pair) {
    asm volatile("st.shared.b32 [%0], %1;" ::"r"(shared), "r"(reinterpret_cast<const unsigned&>(pair)) : "memory");
}
DEVICE void store_pair(unsigned shared, __nv_bfloat162 pair) {
    asm volatile("st.shared.b32 [%0], %1;" ::"r"(shared), "r"(reinterpret_cast<const unsigned&>(pair)) : "memory");
}
DEVICE void store_pair(unsigned shared, float2 pair) {
    asm volatile("st.shared.v2.f32 [%0], {%1, %2};" ::"r"(shared), "f"(pair.x), "f"(pair.y) : "memory");
}
DEVICE uint4 load_chunk(unsigned shared) {
    uint4 chunk;
    asm volatile("ld.shared.v4.b32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(chunk.x), "=r"(chunk.y), "=r"(chunk.z), "=r"(chunk.w)
                 : "r"(shared)
                 : "memory");
    return chunk;
}

// A granule's sums, as the matrix instruction leaves them, times `factor` of each of the lane's rows, into 16 rows of a
// ResultTile from `row` on.
template <class Tile, int kBlocks>
DEVICE void stage_granule(unsigned tile, int row, const float (&sums)[kBlocks][4], const float (&factor)[2], int lane) {
    constexpr int kBlockChunks = 8 * sizeof(T) / kChunkBytes;
    const int word = lane % 4, bytes = 2 * word * static_cast<int>(sizeof(T));
    const auto place = cursor<Tile>(tile, row + lane / 4, bytes / kChunkBytes, bytes % kChunkBytes);
#pragma unroll
    for (int block = 0; block < kBlocks; ++block) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const float first = sums[block][2 * half] * factor[half];
            const float second = sums[block][2 * half + 1] * factor[half];
            const unsigned address = place.at(8 * half, kBlockChunks * block);
            if constexpr (sizeof(T) == 4) {
                store_pair(address, float2{first, second});
            } else if constexpr (kElement == Element::fp16) {
                store_pair(address, __floats2half2_rn(first, second));
            } else {
                store_pair(address, __floats2bfloat162_rn(first, second));
            }
        }
    }
}

// Where a vector of the output begins; negative: nowhere.
struct Destination {
    int row, place;
};

DEVICE Destination result_destination(const Operands& operands, const Job& job, int row) {
    const int place = __ldg(operands.results + job.row_begin + row);
    return {row, place < 0 ? -1 : job.y_shift + place};
}

// `count` vectors of the output by the calling threads; `destination(n)` says which row of the tile goes where, and
// `vector(row, chunk)` gives 16 bytes of it.
template <class Channels, class Tile, int kThreads, class Destinations, class Vector>
DEVICE void store_vectors(T* y, int count, int thread, const Destinations& destination, const Vector& vector) {
    constexpr int kElements = kChunkBytes / sizeof(T);
    // With channels first neighbouring rows are neighbours in memory, and neighbouring lanes take them.
    constexpr bool kAlongRows = !Channels::kWholeChunks && Channels::kStride != 1;
    constexpr int kLanes = kAlongRows ? kThreads / 16 : Tile::kTurned;
    const int lane = kAlongRows ? thread / 16 : thread % kLanes;
    for (int n = kAlongRows ? thread % 16 : thread / kLanes; n < count; n += kThreads / kLanes) {
        const Destination to = destination(n);
        if (to.place < 0) continue;
        for (int chunk = lane; chunk < Tile::kChunks; chunk += kLanes) {
            const int channel = chunk * kElements;
            if (channel >= Channels::kCount) break;
            const uint4 values = vector(to.row, chunk);
            if constexpr (Channels::kWholeChunks) {
                *reinterpret_cast<uint4*>(y + to.place + channel) = values;
            } else {
                const T* elements = reinterpret_cast<const T*>(&values);
#pragma unroll
                for (int i = 0; i < kElements; ++i) {
                    if (channel + i < Channels::kCount) {
                        y[to.place + static_cast<ptrdiff_t>(channel + i) * Channels::kStride] = elements[i];
                    }
                }
            }
        }
    }
}

// Rows `first` to `first + count` of a strip whose results stand in a tile, each in the row of its number.
template <class Channels, class Tile, int kThreads>
DEVICE void store_rows(const Operands& operands, const Job& job, unsigned tile, int first, int count, int thread) {
    store_vectors<Channels, Tile, kThreads>(
        operands.y, count, thread, [&](int n) { return result_destination(operands, job, first + n); },
        [&](int row, int chunk) { return load_chunk(tile + Tile::offset(row, chunk)); });
}

// The further places of results; all rows of the strip stand in the tile.
template <class Channels, class Tile, int kThreads>
DEVICE void store_extras(const Operands& operands, const Job& job, unsigned tile, int thread) {
    const int2* lines = reinterpret_cast<const int2*>(operands.extras) + job.extra_begin;
    const auto destination = [&](int n) {
        const int2 line = __ldg(lines + n);
        return Destination{line.x, line.y};
    };
    store_vectors<Channels, Tile, kThreads>(
        operands.y, job.extra_count, thread, destination,
        [&](int row, int chunk) { return load_chunk(tile + Tile::offset(row, chunk)); });
}

// A job without keys, by the whole block.
DEVICE void store_zeros(const Operands& operands, const Job& job) {
    if constexpr (!kSplit) {
        store_vectors<ResultChannels, ResultTile<>, kThreads>(
            operands.y, job.row_count, threadIdx.x, [&](int n) { return result_destination(operands, job, n); },
            [](int, int) { return uint4{0, 0, 0, 0}; });
    }
}

// Where the partial result of a row goes: the number of its slot, or -1.
DEVICE int partial_slot(const Operands& operands, const Job& job, int row) {
    return result_destination(operands, job, row).place;
}

DEVICE void store_partial_pair(const Operands& operands, int slot, int channel, float first, float second) {
    float* place = operands.partial + static_cast<ptrdiff_t>(slot) * kValueWidth + channel;
    if constexpr (kValueWidth % 2 == 0) {
        if (channel < kValueWidth) *reinterpret_cast<float2*>(place) = float2{first, second};
    } else {
        if (channel < kValueWidth) place[0] = first;
        if (channel + 1 < kValueWidth) place[1] = second;
    }
}

// A granule's partial results: sums times `factor`, and the logarithm of the sum of each row. Four lanes write 32
// neighbouring bytes, a whole sector, so nothing is gained by a tile in between.
template <int kBlocks>
DEVICE void store_partial_granule(const Operands& operands, const Job& job, int row, const float (&sums)[kBlocks][4],
                                  const float (&factor)[2], const float (&log_sums)[2], int lane) {
    const int word = lane % 4;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        const int slot = partial_slot(operands, job, row + lane / 4 + 8 * half);
        if (slot < 0) continue;
#pragma unroll
        for (int block = 0; block < kBlocks; ++block) {
            store_partial_pair(operands, slot, 8 * block + 2 * word, sums[block][2 * half] * factor[half],
                               sums[block][2 * half + 1] * factor[half]);
        }
        if (word == 0) operands.lse[slot] = log_sums[half];
    }
}

}  // namespace attention
