// Where keys are on the M side of wgmma: what a lane has of a warpgroup's sums, and the softmax down their columns.
#pragma once

#include "attention/wgmma_tiles.cuh"
#include "common/copy.cuh"
#include "common/math.cuh"
#include "common/matrix.cuh"

namespace attention {

// A lane of a consumer warpgroup. Of the products with the queries it has two keys, `key` and 8 behind it, and of every
// block of 8 queries two neighbours; of the products with the weights the same queries, and of every panel of 64
// channels two, 8 apart.
struct ColumnLane {
    int group, thread, lane;

    DEVICE static ColumnLane own() {
        return {warpgroup_number(), static_cast<int>(threadIdx.x) % kWarpgroupThreads,
                static_cast<int>(threadIdx.x) % 32};
    }
    DEVICE int warp() const { return 4 * group + thread / 32; }
    // In the tile, and among the keys of the warpgroup.
    DEVICE int key() const { return 64 * group + own_key(); }
    DEVICE int own_key() const { return thread / 32 * 16 + lane / 4; }
    DEVICE int query(int block, int element) const { return 8 * block + 2 * (lane % 4) + element % 2; }
    DEVICE int channel(int panel, int element) const { return 64 * panel + own_key() + element / 2 * 8; }
};

// A lane's values of its queries: number 2 * block + e.
template <int kRows>
using PerQuery = float[kRows / 4];

// Integers in the order of the floats whose bits they hold: the largest can be found by an atomic operation, whose
// result does not depend on the order of the threads.
DEVICE int ordered(float value) {
    const int bits = __float_as_int(value);
    return bits ^ (bits >> 31 & 0x7fffffff);
}
DEVICE float unordered(int number) { return __int_as_float(number ^ (number >> 31 & 0x7fffffff)); }

// Maxima over the lanes that differ in kLaneBit and the bits below it down to 4. Where a lane has an even number of
// values it gives half of them to the other and keeps the other half. Gives the number of the first one kept.
template <int kLaneBit, int kCount, int kRows>
DEVICE int scatter_maxima(PerQuery<kRows>& values, int lane) {
    constexpr bool kHalve = kCount % 2 == 0;
    constexpr int kKept = kHalve ? kCount / 2 : kCount, kOther = kHalve ? kKept : 0;
    const bool upper = kHalve && (lane & kLaneBit) != 0;
#pragma unroll
    for (int i = 0; i < kKept; ++i) {
        const float kept = upper ? values[i + kOther] : values[i];
        const float given = upper ? values[i] : values[i + kOther];
        values[i] = fmaxf(kept, __shfl_xor_sync(~0u, given, kLaneBit));
    }
    const int first = upper ? kKept : 0;
    if constexpr (kLaneBit > 4) {
        return first + scatter_maxima<kLaneBit / 2, kKept, kRows>(values, lane);
    } else {
        return first;
    }
}
constexpr int kept_by(int count, int steps) {
    return steps == 0 ? count : kept_by(count % 2 == 0 ? count / 2 : count, steps - 1);
}

// What a warpgroup's warps know together of each query, in shared memory: the largest score so far, and the one before
// the current step.
template <int kRows>
struct LargestScores {
    static constexpr int kBytes = 2 * kRows * 4;
    int* place;

    DEVICE void clear(int thread) const {
        for (int i = thread; i < 2 * kRows; i += kWarpgroupThreads) place[i] = ordered(-kInfinity);
    }

    // Takes a warp's scores; a barrier makes it those of all.
    DEVICE void take(const float (&scores)[kRows / 8][4], ColumnLane lane) const {
        // Or the compiler keeps registers for the places below, all the way through the products.
        lane.lane = renewed(lane.lane);
        PerQuery<kRows> values;
#pragma unroll
        for (int i = 0; i < kRows / 4; ++i) values[i] = fmaxf(scores[i / 2][i % 2], scores[i / 2][2 + i % 2]);
        const int first = scatter_maxima<16, kRows / 4, kRows>(values, lane.lane);
#pragma unroll
        for (int i = 0; i < kept_by(kRows / 4, 3); ++i) {
            const int number = first + i;
            atomicMax(place + lane.query(number / 2, number), ordered(values[i]));
        }
    }

    DEVICE float now(int query) const { return unordered(place[query]); }
    DEVICE float before(int query) const { return unordered(place[kRows + query]); }
    // Of the lane's two neighbours in a block of queries.
    DEVICE float2 now_pair(int query) const { return pair(place + query); }
    DEVICE float2 before_pair(int query) const { return pair(place + kRows + query); }

    // Ends a step, between two barriers that no reader crosses: `current` is what `now` gave to the query's thread.
    DEVICE void keep(int query, float current) const { place[kRows + query] = ordered(current); }

private:
    static DEVICE float2 pair(const int* numbers) {
        const int2 both = *reinterpret_cast<const int2*>(numbers);
        return {unordered(both.x), unordered(both.y)};
    }
};

// Weights in the compute type: of each key, two neighbouring queries of every block.
template <int kRows>
using PackedWeights = unsigned[kRows / 8][2];

template <int kRows>
DEVICE void pack(PackedWeights<kRows>& words, const float (&weights)[kRows / 8][4]) {
#pragma unroll
    for (int i = 0; i < kRows / 4; ++i) {
        words[i / 2][i % 2] = packed<kElement>(weights[i / 2][i % 2 * 2], weights[i / 2][i % 2 * 2 + 1]);
    }
}

// Eight rows of the tile and four neighbouring lanes take different banks, as its chunks are exchanged. A barrier of
// the warpgroup lets its products read them.
template <int kRows>
DEVICE void store_probabilities(const PackedWeights<kRows>& words, MatrixTile<64, kRows> tile, ColumnLane lane) {
#pragma unroll
    for (int i = 0; i < kRows / 4; ++i) {
        store_word(tile.chunk(lane.own_key() + i % 2 * 8, i / 2) + 4 * (lane.lane % 4), words[i / 2][i % 2]);
    }
    fence_before_matrix_reads();
}

// What the weights of a lane's two keys are multiplied with; `keys` begins at the lane's first one.
class KeyWeights {
public:
    DEVICE KeyWeights(const Operands& operands, const Job& job, const WeighedColumn* keys)
        : diagonals_(operands.diagonals + job.row_begin), rows_(job.row_count), keys_{keys[0], keys[8]} {}

    DEVICE float operator()(float weight, int key, int query) const {
        const bool own = query < rows_ && keys_[key].column == __ldg(diagonals_ + query);
        return own ? weight : weight * keys_[key].weight;
    }

private:
    const int* diagonals_;
    int rows_;
    WeighedColumn keys_[2];
};

}  // namespace attention
