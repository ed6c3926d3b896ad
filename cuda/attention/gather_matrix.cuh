// Vectors from where they stand in a tensor into a tile that wgmma reads.
#pragma once

#include "attention/gather.cuh"
#include "common/warpgroup.cuh"

namespace attention {

// Whole chunks, as copies of the group that the caller commits. As many neighbouring lanes as a block has chunks take
// a vector, a chunk of each block; a pass is a multiple of eight rows, so a lane's chunks lie at constant distances.
template <class Channels, class Tile>
DEVICE void gather_chunks(Tile tile, const T* base, const int* entries, int count, int filled, int thread) {
    constexpr int kLanes = Tile::kBlock / 8, kBlocks = Tile::kColumns / Tile::kBlock;
    constexpr int kPass = kWarpgroupThreads / kLanes, kPasses = ceil_div(Tile::kRows, kPass);
    constexpr int kTogether = kPasses < 4 ? kPasses : 4;  // entries that are read before a copy waits for its own
    const int lane = thread % kLanes, first_row = thread / kLanes;
    const unsigned place = tile.chunk(first_row, lane);
#pragma unroll 1
    for (int pass = 0; pass < kPasses && pass * kPass < filled; pass += kTogether) {
        int entry[kTogether];
#pragma unroll
        for (int i = 0; i < kTogether; ++i) {
            const int row = first_row + (pass + i) * kPass;
            entry[i] = row < count && row < filled ? __ldg(entries + row) : -1;
        }
#pragma unroll
        for (int i = 0; i < kTogether; ++i) {
            const int row = first_row + (pass + i) * kPass;
            const bool present = entry[i] >= 0;
            const T* vector = base + (present ? entry[i] : 0);
            if (row < filled) {
#pragma unroll
                for (int block = 0; block < kBlocks; ++block) {
                    const int channel = block * Tile::kBlock + 8 * lane;
                    const bool inside = Tile::kColumns == Channels::kCount || channel < Channels::kCount;
                    copy_chunk(place + (pass + i) * kPass * Tile::kPitch + block * Tile::kBlockBytes,
                               vector + (inside ? channel : 0), present && inside);
                }
            }
        }
    }
}

// Single channels, by ordinary stores; where they come first, neighbouring lanes take neighbouring vectors.
template <class Channels, class Tile>
DEVICE void gather_elements(Tile tile, const T* base, const int* entries, int count, int filled, int thread) {
    constexpr int kChunks = Tile::kColumns / 8;
    constexpr bool kAlongRows = Channels::kStride != 1;
#pragma unroll 1
    for (int number = thread; number < Tile::kRows * kChunks; number += kWarpgroupThreads) {
        const int row = kAlongRows ? number % Tile::kRows : number / kChunks;
        const int chunk = kAlongRows ? number / Tile::kRows : number % kChunks;
        if (row < filled) {
            const int entry = row < count ? __ldg(entries + row) : -1;
            const T* vector = base + (entry < 0 ? 0 : entry);
            store_chunk(tile.chunk(row, chunk), gathered_chunk<Channels>(vector, 8 * chunk, entry >= 0));
        }
    }
}

// One warpgroup brings the first `count` vectors of a list to the rows of a tile and fills the rows behind them up to
// `filled`, and the columns behind the last channel, with zeros: what a tile held before may be anything, and a weight
// of 0 does not silence a NaN. `base` has the job's shift.
template <class Channels, class Tile>
DEVICE void gather_matrix(Tile tile, const T* base, const int* entries, int count, int filled, int thread) {
    if constexpr (Channels::kWholeChunks) {
        gather_chunks<Channels>(tile, base, entries, count, filled, thread);
    } else {
        gather_elements<Channels>(tile, base, entries, count, filled, thread);
    }
}

}  // namespace attention
