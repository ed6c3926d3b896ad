// Weights for the ordinary lanes, in fp32: every lane of a warp multiplies by the same one.
#pragma once

#include "conv/lanes_window.cuh"

namespace conv {

// The weights of `count` inputs of a part from `first` on, as the block brought them to shared memory: input by input,
// row of taps by row of taps. Outputs and inputs that the part lacks have zeros.
template <class Shape>
struct SharedWeights {
    const float* weights;

    DEVICE static void bring(const Operands& operands, const Job& job, int first, int count, float* shared) {
        const T* part = operands.w + job.weight_begin + first;
        for (int n = threadIdx.x; n < Shape::kInputs * Shape::kInputWeights; n += kThreads) {
            const int input = n % Shape::kInputs, place = n / Shape::kInputs;
            const int row = place / Shape::kRowWeights, in_row = place % Shape::kRowWeights;
            const int column = in_row / Shape::kOutputs, output = in_row % Shape::kOutputs;
            float weight = 0.0f;
            if (input < count && output < job.output_count && column < kKernel.w) {
                const int line = (row * kKernel.w + column) * job.output_count + output;
                weight = to_float(__ldg(part + static_cast<ptrdiff_t>(line) * job.input_count + input));
            }
            shared[input * Shape::kInputWeights + place] = weight;
        }
    }

    // Constant taps and outputs, so that the compiler reads each vector once.
    DEVICE float at(int input, int row, int tap, int output) const {
        const int place = tap * Shape::kOutputs + output;
        const float* vectors = weights + input * Shape::kInputWeights + row * Shape::kRowWeights;
        const float4 vector = reinterpret_cast<const float4*>(vectors)[place / 4];
        return place % 4 == 0 ? vector.x : place % 4 == 1 ? vector.y : place % 4 == 2 ? vector.z : vector.w;
    }
};

// All weights of one output and one input, in registers.
struct OwnWeights {
    static constexpr bool kFit = kTaps <= 32;

    float weights[kTaps];

    // The piece begins at 16 bytes, and its padding may be read.
    DEVICE explicit OwnWeights(const T* piece) {
        constexpr int kVectors = ceil_div(kTaps, kChunkElements);
        unrolled<kVectors>([&](auto vector) {
            constexpr int kFirst = decltype(vector)::value * kChunkElements;
            float loaded[kChunkElements];
            load_floats(piece + kFirst, true, loaded);
#pragma unroll
            for (int i = 0; i < kChunkElements && kFirst + i < kTaps; ++i) weights[kFirst + i] = loaded[i];
        });
    }

    DEVICE float at(int, int row, int tap, int) const { return weights[row * kKernel.w + tap]; }
};

// The weights of one output where they are needed: too many for registers, or apart in memory.
struct FarWeights {
    const T* weights;
    int inputs;

    DEVICE float at(int input, int row, int tap, int) const {
        return to_float(__ldg(weights + static_cast<ptrdiff_t>(row * kKernel.w + tap) * inputs + input));
    }
};

}  // namespace conv
