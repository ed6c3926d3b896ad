// A stage each of whose channels comes from one channel, slot by slot: eight slots of a position at a time, in fp32.
#pragma once

#include "common/vectors.cuh"
#include "conv/block/patch.cuh"

namespace fused {

constexpr int kVector = kChunkBytes / static_cast<int>(sizeof(T));

DEVICE void load_slots(const T* shared, float (&values)[kVector]) {
    const uint4 words = *reinterpret_cast<const uint4*>(shared);
    const T* elements = reinterpret_cast<const T*>(&words);
#pragma unroll
    for (int i = 0; i < kVector; ++i) values[i] = to_float(elements[i]);
}

DEVICE void load_weights(const T* weights, float (&values)[kVector]) {
    T elements[kVector];
    load_vector(weights, elements);
#pragma unroll
    for (int i = 0; i < kVector; ++i) values[i] = to_float(elements[i]);
}

template <int kStage>
DEVICE void compute_channelwise(const Operands& operands, const Job& job, const int4* parts,
                                const Patch<kStage - 1>& from, const Patch<kStage>& to) {
    constexpr Stage kOwn = kStages[kStage];
    constexpr int kTaps = kOwn.kernel.count();
    // So many taps' weights stay in registers.
    constexpr bool kHeld = kTaps <= 9;
    const Positions<kStage> positions(job);
    const int next_begin = rows_of<kStage>(job).begin;
    for (int number = 0; number < job.part_counts[kStage]; ++number) {
        const Part part = load_part(parts, job.first_part(kStage) + number);
        const int vectors = (part.output_count + kVector - 1) / kVector, pitch = vectors * kVector;
        const int vector = threadIdx.x % vectors, together = kThreads / vectors;
        if (static_cast<int>(threadIdx.x) >= together * vectors) continue;
        const T* weights = operands.w + part.weight_begin + vector * kVector;
        const int slot = __ldg(operands.outputs + part.output_begin) + vector * kVector;
        const float4* biases = reinterpret_cast<const float4*>(operands.b + part.output_begin) + 2 * vector;
        const float4 low = __ldg(biases), high = __ldg(biases + 1);
        const float bias[kVector] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
        float held[kHeld ? kTaps : 1][kVector];
        if constexpr (kHeld) {
#pragma unroll
            for (int tap = 0; tap < kTaps; ++tap) load_weights(weights + tap * pitch, held[tap]);
        }
#pragma unroll 1
        for (int position = positions.begin + threadIdx.x / vectors; position < positions.end; position += together) {
            constexpr unsigned kWidth = kOwn.output.w;
            const int row = static_cast<unsigned>(position) / kWidth, column = static_cast<unsigned>(position) % kWidth;
            const int place = to.place(row, column);
            if (place < 0) continue;
            const T* source = from.memory + from.first_tap(row, column, next_begin) + part.input_begin + vector * kVector;
            float sums[kVector];
#pragma unroll
            for (int i = 0; i < kVector; ++i) sums[i] = bias[i];
#pragma unroll(kHeld ? kTaps : 1)
            for (int tap = 0; tap < kTaps; ++tap) {
                float values[kVector];
                load_slots(source + from.tap_shift(tap), values);
                if constexpr (!kHeld) load_weights(weights + tap * pitch, held[0]);
#pragma unroll
                for (int i = 0; i < kVector; ++i) sums[i] = fmaf(held[kHeld ? tap : 0][i], values[i], sums[i]);
            }
            T results[kVector];
#pragma unroll
            for (int i = 0; i < kVector; ++i) results[i] = converted<T>(activated<kOwn.activation>(sums[i]));
            *reinterpret_cast<uint4*>(to.memory + place + slot) = reinterpret_cast<const uint4&>(results);
        }
    }
}

}  // namespace fused
