// Softmax down the columns of a warpgroup's sums: keys are on the M side, spread over its lanes and warps, and a lane
// has of every block of 8 queries 2 t and 2 t + 1.
#pragma once

#include "attention/softmax.cuh"
#include "common/barrier.cuh"
#include "common/warpgroup.cuh"

namespace attention {

// Integers in the order of the floats whose bits they are, but for the sign: the largest of both can be found by an
// atomic operation, whose result does not depend on the order of the threads.
DEVICE int ordered(float value) {
    const int bits = __float_as_int(value);
    return bits ^ (bits >> 31 & 0x7fffffff);
}
DEVICE float unordered(int number) { return __int_as_float(number ^ (number >> 31 & 0x7fffffff)); }

// A lane's values of its queries: number 2 * block + e.
template <int kRows>
using PerQuery = float[kRows / 4];

// Halves a lane's values: the lane whose bit `kLaneBit` is set keeps the upper half of each pair's maxima. Where their
// number is odd both lanes keep them all. Gives the number of the first one kept.
template <int kLaneBit, int kCount, int kRows>
DEVICE int scatter_maxima(PerQuery<kRows>& values, int lane) {
    int first = 0;
    constexpr bool kHalve = kCount % 2 == 0;
    constexpr int kKept = kHalve ? kCount / 2 : kCount;
    const bool upper = lane & kLaneBit;
#pragma unroll
    for (int i = 0; i < kKept; ++i) {
        const float kept = kHalve && upper ? values[i + (kHalve ? kKept : 0)] : values[i];
        const float given = kHalve && upper ? values[i] : values[i + (kHalve ? kKept : 0)];
        values[i] = fmaxf(kept, __shfl_xor_sync(~0u, given, kLaneBit));
    }
    if (kHalve && upper) first = kKept;
    if constexpr (kLaneBit > 4) {
        return first + scatter_maxima<kLaneBit / 2, kKept, kRows>(values, lane);
    } else {
        return first;
    }
}
template <int kCount>
constexpr int kept_of(int steps) {
    int count = kCount;
    for (int i = 0; i < steps; ++i) count = count % 2 == 0 ? count / 2 : count;
    return count;
}

DEVICE void store_word(unsigned shared, unsigned word) {
    asm volatile("st.shared.b32 [%0], %1;" ::"r"(shared), "r"(word) : "memory");
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

    // Takes this warp's scores; a barrier makes it those of all.
    DEVICE void take(const float (&scores)[kRows / 8][4], int lane) const {
        constexpr int kKept = kept_of<kRows / 4>(3);
        PerQuery<kRows> values;
#pragma unroll
        for (int i = 0; i < kRows / 4; ++i) values[i] = fmaxf(scores[i / 2][i % 2], scores[i / 2][2 + i % 2]);
        const int first = scatter_maxima<16, kRows / 4, kRows>(values, lane);
#pragma unroll
        for (int i = 0; i < kKept; ++i) {
            const int number = first + i;
            atomicMax(place + 8 * (number / 2) + 2 * (lane % 4) + number % 2, ordered(values[i]));
        }
    }

    DEVICE float now(int query) const { return unordered(place[query]); }
    DEVICE float before(int query) const { return unordered(place[kRows + query]); }
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

}  // namespace attention
