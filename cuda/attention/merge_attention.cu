// y = softmax-weighted sum of the partial results of split key lists, by MergeAttention of docs/tables.md.
#include "common/element.cuh"
#include "common/entry.cuh"
#include "common/vectors.cuh"

namespace merge {

constexpr Element kElement = Element::ELEMENT;
using T = Storage<kElement>;

constexpr int kWidth = VALUE_WIDTH;
constexpr int kThreads = 128;
// Each block of the output is the place of exactly one line.
constexpr unsigned kLines = Y_ELEMENTS / kWidth;

// A team of lanes reads one partial result, neighbours reading neighbours, and the teams of a warp take turns.
constexpr int kVector = kWidth % 4 == 0 ? 4 : 1;
constexpr int kPieces = kWidth / kVector;

constexpr int kTeam = kPieces > 16 ? 32 : kPieces > 8 ? 16 : kPieces > 4 ? 8 : kPieces > 2 ? 4 : kPieces;
constexpr int kTeams = 32 / kTeam;
constexpr int kOwn = ceil_div(kPieces, kTeam);

struct Sums {
    float channels[kOwn * kVector];
    float weights;
};

DEVICE void add_piece(float* sums, float weight, const float* partial) {
    if constexpr (kVector == 4) {
        const float4 piece = __ldg(reinterpret_cast<const float4*>(partial));
        sums[0] += weight * piece.x;
        sums[1] += weight * piece.y;
        sums[2] += weight * piece.z;
        sums[3] += weight * piece.w;
    } else {
        sums[0] += weight * __ldg(partial);
    }
}

DEVICE void store_piece(T* y, const float* values) {
    if constexpr (kVector == 4 && Y_STRIDE == 1) {
        T piece[kVector];
#pragma unroll
        for (int i = 0; i < kVector; ++i) piece[i] = converted<T>(values[i]);
        store_vector(y, piece);
    } else {
#pragma unroll
        for (int i = 0; i < kVector; ++i) y[static_cast<size_t>(i) * Y_STRIDE] = converted<T>(values[i]);
    }
}

// -inf without slots, or where no slot has a key.
DEVICE float largest_lse(const float* lse, int count, int lane) {
    float largest = __int_as_float(static_cast<int>(0xff800000u));
    for (int slot = lane; slot < count; slot += 32) largest = fmaxf(largest, __ldg(lse + slot));
#pragma unroll
    for (int distance = 16; distance > 0; distance /= 2) {
        largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, distance));
    }
    return largest;
}

// What this lane's team has seen of its pieces: channels times weights, and the weights themselves.
DEVICE Sums sum_slots(const float* partial, const float* lse, int count, float largest, int lane) {
    Sums sums{};
#pragma unroll 4
    for (int slot = lane / kTeam; slot < count; slot += kTeams) {
        const float weight = expf(__ldg(lse + slot) - largest);
        sums.weights += weight;
#pragma unroll
        for (int i = 0; i < kOwn; ++i) {
            const int piece = lane % kTeam + i * kTeam;
            if (piece < kPieces) {
                const float* channels = partial + static_cast<size_t>(slot) * kWidth + piece * kVector;
                add_piece(sums.channels + i * kVector, weight, channels);
            }
        }
    }
    return sums;
}

DEVICE void add_teams(Sums& sums) {
#pragma unroll
    for (int distance = kTeam; distance < 32; distance *= 2) {
        sums.weights += __shfl_xor_sync(~0u, sums.weights, distance);
#pragma unroll
        for (int i = 0; i < kOwn * kVector; ++i) sums.channels[i] += __shfl_xor_sync(~0u, sums.channels[i], distance);
    }
}

// A line that no slot belongs to gives zeros; one whose slots have no key gives NaN, by -inf - -inf.
DEVICE void merge_line(const float* partial, const float* lse, int count, T* y, int lane) {
    const float largest = largest_lse(lse, count, lane);
    Sums sums = sum_slots(partial, lse, count, largest, lane);
    add_teams(sums);
    if (lane >= kTeam) return;
    const float share = count == 0 ? 0.0f : 1.0f / sums.weights;
#pragma unroll
    for (int i = 0; i < kOwn; ++i) {
        const int piece = lane + i * kTeam;
        if (piece >= kPieces) continue;
        float values[kVector];
#pragma unroll
        for (int c = 0; c < kVector; ++c) values[c] = sums.channels[i * kVector + c] * share;
        store_piece(y + static_cast<size_t>(piece) * kVector * Y_STRIDE, values);
    }
}

}  // namespace merge

// What a launch must give as dynamic shared memory; read from the compiled module.
extern "C" __device__ const int onnxopt_shared_bytes = 0;

// One warp computes one line of `merges` for one batch element.
extern "C" __global__ void __launch_bounds__(merge::kThreads) merge_attention(
    const float* __restrict__ partial, const float* __restrict__ lse, OTHER_TABLES(OTHERS_BEFORE)
    const int* __restrict__ merges, OTHER_TABLES(OTHERS_AFTER) int batch, merge::T* __restrict__ y) {
    const unsigned number = blockIdx.x * (merge::kThreads / 32) + threadIdx.x / 32;
    const unsigned line = number / static_cast<unsigned>(batch);
    if (line >= merge::kLines) return;
    const size_t element = number % static_cast<unsigned>(batch);
    // First slot, number of slots, offset in `y`.
    const int4 merge = __ldg(reinterpret_cast<const int4*>(merges) + line);
    const size_t first = element * SLOTS + merge.x;
    merge::merge_line(partial + first * merge::kWidth, lse + first, merge.y, y + element * Y_ELEMENTS + merge.z,
                      threadIdx.x % 32);
}
