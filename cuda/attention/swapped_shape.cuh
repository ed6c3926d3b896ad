// How a swapped shape's keys are shared out among its warps, and where everything lies in shared memory.
#pragma once

#include "attention/job.cuh"
#include "attention/tile.cuh"

namespace attention {

// Queries and keys; values.
using SwappedVectors = Tile<kPaddedWidth>;
using SwappedValues = Tile<kPaddedValueWidth>;

// Bytes from the begin of shared memory. A warp has a ring of slots of its own, each with the keys and the values of a
// granule. Behind the last step they all make room for the merge: for every warp and row a maximum and a total, which
// become a factor; the finished rows; and, round by round, blocks of 8 channels of all warps' sums.
struct SwappedLayout {
    int granules, slots;
    int slot_keys, slot_bytes, ring_bytes, query_bytes;
    int maxima, totals, results, pieces, merged_blocks, piece_pitch, walk_maxima, end;

    static constexpr SwappedLayout of(Shape shape) {
        constexpr int kChannelBlocks = kPaddedValueWidth / 8;
        SwappedLayout layout{};
        // Of 16 keys: a warp's share of a tile.
        layout.granules = shape.keys / (16 * kWarps);
        layout.slots = shape.stages * layout.granules;
        layout.slot_keys = SwappedVectors::bytes(16);
        layout.slot_bytes = layout.slot_keys + SwappedValues::bytes(16);
        layout.ring_bytes = layout.slots * layout.slot_bytes;
        layout.query_bytes = SwappedVectors::bytes(shape.rows);
        layout.walk_maxima = layout.query_bytes + kWarps * layout.ring_bytes;
        const int walk_end = layout.walk_maxima + (kWeights ? 4 * kWarps * shape.rows : 0);

        layout.totals = layout.maxima + 4 * kWarps * shape.rows;
        layout.results = round_up(layout.totals + 4 * kWarps * shape.rows, 128);
        layout.pieces = layout.results + (kSplit ? 0 : SwappedValues::bytes(shape.rows));
        for (layout.merged_blocks = kChannelBlocks; layout.merged_blocks > 1; --layout.merged_blocks) {
            const bool fits = layout.pieces_end(shape) <= walk_end;
            if (kChannelBlocks % layout.merged_blocks == 0 && fits) break;
        }
        // An odd multiple of 4: see merge_sums.
        layout.piece_pitch = 8 * layout.merged_blocks + 4;
        layout.end = larger(walk_end, layout.pieces_end(shape));
        return layout;
    }

    constexpr int pieces_end(Shape shape) const { return pieces + 4 * kWarps * shape.rows * (8 * merged_blocks + 4); }
};

constexpr int mma_swapped_shared_bytes(Shape shape) { return SwappedLayout::of(shape).end; }

constexpr int largest_divisor(int number, int most) {
    return number % most == 0 ? most : largest_divisor(number, most - 1);
}

template <int kShape>
struct SwappedShape {
    static constexpr Shape kOf = kShapes[kShape];
    static constexpr SwappedLayout kLayout = SwappedLayout::of(kOf);
    static constexpr int kRows = kOf.rows;
    // Of eight queries: the N side of the instruction.
    static constexpr int kBlocks = kRows / 8;
    static constexpr int kGranules = kLayout.granules;
    static constexpr int kSlots = kLayout.slots;
    static constexpr int kDepth = kPaddedWidth / 16;
    static constexpr int kChannels = kPaddedValueWidth / 16;

    // Blocks whose scores a warp has at once: fewer where copies by way of registers, run-time weights, or entries of
    // the values' own, and the sums would otherwise not fit. Beside other shapes the compiler takes a few more.
    static constexpr int kSumRegisters = 4 * kBlocks * kChannels;
    static constexpr bool kMany = !kAsynchronousCopies || kWeights || kOwnValues;
    static constexpr bool kFewer = (kMany || kShapeCount > 1) && kSumRegisters >= 128;
    static constexpr int kMostBlocks = kMany && kThreadRegisters <= 80 ? 1 : kFewer ? 2 : 4;
    static constexpr int kGroup = largest_divisor(kBlocks, kMostBlocks);
    static constexpr int kGroups = kBlocks / kGroup;

    // Whether the queries stay in registers, or come from shared memory for each granule of keys.
    static constexpr int kHeldRegisters = 2 * kBlocks * kDepth;
    static constexpr int kOtherRegisters = kSumRegisters + 6 * kBlocks + 4 * kGroup + 72;
    static constexpr bool kHold = kHeldRegisters + kOtherRegisters <= kThreadRegisters;

    static_assert(!kOf.swapped || sizeof(T) == 2,
                  "swapped shapes take fp16 and bf16: only 16-bit weights can be turned over");
    static_assert(kOf.keys == 16 * kWarps * kGranules && kRows % 8 == 0, "whole granules for every warp");
};

// A warp's part of a job: the granules `number`, `number` + kWarps, ... of its keys, one a step.
template <int kShape>
struct SwappedWarp {
    using Of = SwappedShape<kShape>;
    const int number, lane;
    // Of the job: granules of keys and blocks of queries.
    const int granules, blocks;

    // The number comes from a shuffle so that the compiler knows all lanes to have the same.
    DEVICE explicit SwappedWarp(const Job& job)
        : number(__shfl_sync(~0u, static_cast<int>(threadIdx.x) / 32, 0)), lane(threadIdx.x % 32),
          granules(ceil_div(job.key_count, 16)), blocks(Of::kBlocks == 1 ? 1 : ceil_div(job.row_count, 8)) {}

    DEVICE int steps() const { return (granules - number + kWarps - 1) / kWarps; }
    DEVICE int granule(int step) const { return number + step * kWarps; }
    DEVICE int tile(int step) const { return step / Of::kGranules; }
    // Of the granule's first key, within its tile.
    DEVICE int tile_row(int step) const { return 16 * (step % Of::kGranules * kWarps + number); }
};

}  // namespace attention
