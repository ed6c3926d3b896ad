// A part's outputs at a tile of positions by multiply-adds in the ordinary lanes, in fp32 whatever the operands' type:
// for depthwise convolutions and parts that are too small for the matrix unit.
//
// A thread has some neighbouring positions and all outputs of the part. It reads of each input and row what all taps
// need of it at once; the weights are the same for all lanes.
#pragma once

#include "common/copy.cuh"
#include "conv/geometry.cuh"
#include "conv/lanes_store.cuh"
#include "conv/lanes_weights.cuh"
#include "conv/lanes_window.cuh"

namespace conv {

constexpr int lanes_shared_bytes(Shape shape) { return lanes_weight_bytes(shape.outputs, shape.inputs); }

// A run of neighbouring positions in one row of y: the number of the first among the tile's.
template <class Shape>
DEVICE int first_of_run(int number) {
    return (number * kThreads + static_cast<int>(threadIdx.x)) * Shape::kRun;
}

// What a run's window reads: its first element in memory, and on the axes.
struct Source {
    const T* x;
    Place corner;
};
DEVICE Source source_of(const Operands& operands, Pixel pixel) {
    const Place corner = place_of(pixel.position);
    const T* x = operands.x + static_cast<ptrdiff_t>(pixel.image) * Input::kElements +
                 static_cast<ptrdiff_t>(corner.position()) * Input::kPositionStride;
    return {x, corner};
}

template <class Window, class Weights, int kOutputs>
DEVICE void multiply(const float (&values)[Window::kColumns], const Weights& weights, int input, int row, int first_tap,
                     float (&sums)[kOutputs][Window::kRun]) {
#pragma unroll
    for (int tap = 0; tap < Window::kTaps; ++tap) {
#pragma unroll
        for (int output = 0; output < kOutputs; ++output) {
            const float weight = weights.at(input, row, first_tap + tap, output);
#pragma unroll
            for (int i = 0; i < Window::kRun; ++i) {
                const float value = values[i * kStrides.w + tap * kDilations.w];
                sums[output][i] = fmaf(value, weight, sums[output][i]);
            }
        }
    }
}

// Inputs that are read together: one, or, channels last, several that are neighbouring channels of x. `number` is that
// of the first among the weights.
template <int kCount>
struct Together {
    int number;
    InputChannel inputs[kCount];
};

// Taps of one row from `first_tap` on; `source` is what the first tap of the first row reads.
template <class Window, class Weights, int kCount, int kOutputs>
DEVICE void add_taps(const T* source, const Place& corner, const Together<kCount>& together, const Weights& weights,
                     int row_number, int first_tap, float (&sums)[kOutputs][Window::kRun]) {
    const TapRow row = tap_row(row_number);
    const bool inside = row.is_inside(corner);
    const int column = first_tap * kDilations.w;
    source += static_cast<ptrdiff_t>(row.distance() + column) * Input::kPositionStride;
    float values[kCount][Window::kColumns];
    if constexpr (kLast) {
        load_windows<Window>(source, corner.w + column, inside, together.inputs, values);
    } else {
        load_window<Window>(source, corner.w + column, inside, together.inputs[0], values[0]);
    }
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
        multiply<Window>(values[i], weights, together.number + i, row_number, first_tap, sums);
    }
}

template <class Shape, class Weights, int kCount, int kOutputs>
DEVICE void add_rows(const Source& run, const Together<kCount>& together, const Weights& weights,
                     float (&sums)[kOutputs][Shape::kRun]) {
    // Which loads lie in x is found out for each input anew: kept for all of them it would take many registers.
    const Place corner{renewed(run.corner.d), renewed(run.corner.h), renewed(run.corner.w)};
    // All loads stand at constant distances from here.
    const T* source = held(run.x + static_cast<ptrdiff_t>(together.inputs[0].channel) * Input::kChannelStride);
#pragma unroll Shape::kRowsAtOnce
    for (int row = 0; row < kRows; ++row) {
        if constexpr (kKernel.w <= kMostTaps) {
            add_taps<Window<Shape::kRun, kKernel.w>>(source, corner, together, weights, row, 0, sums);
        } else {
            constexpr int kRest = kKernel.w % kMostTaps;
#pragma unroll 1
            for (int tap = 0; tap < kKernel.w - kRest; tap += kMostTaps) {
                add_taps<Window<Shape::kRun, kMostTaps>>(source, corner, together, weights, row, tap, sums);
            }
            if constexpr (kRest > 0) {
                constexpr int kFirst = kKernel.w - kRest;
                add_taps<Window<Shape::kRun, kRest>>(source, corner, together, weights, row, kFirst, sums);
            }
        }
    }
}

// kCount inputs of the part from `input` on; `number` is that of the first among the weights.
template <class Shape, int kCount, class Weights, int kOutputs>
DEVICE void add_inputs(const Operands& operands, const Job& job, const Source& run, int input, int number,
                       const Weights& weights, float (&sums)[kOutputs][Shape::kRun]) {
    Together<kCount> together;
    together.number = number;
#pragma unroll
    for (int i = 0; i < kCount; ++i) together.inputs[i] = load_input(operands, job, input + i);
    add_rows<Shape>(run, together, weights, sums);
}

// Whether kCount inputs of the part from `input` on are neighbouring channels that one aligned load reads.
template <int kCount>
DEVICE bool are_neighbours(const Operands& operands, const Job& job, int input) {
    const int* channels = operands.inputs + job.input_begin + input;
    const int first = __ldg(channels);
    bool neighbours = first >= 0 && first % kCount == 0;
#pragma unroll
    for (int i = 1; i < kCount; ++i) neighbours &= __ldg(channels + i) == first + i;
    return neighbours;
}

// `count` inputs of the part from `first` on, which is number 0 among the weights.
template <class Shape, class Weights, int kOutputs>
DEVICE void add_step(const Operands& operands, const Job& job, const Source& run, int first, int count,
                     const Weights& weights, float (&sums)[kOutputs][Shape::kRun]) {
    constexpr int kTogether = kLast ? power_in(Input::kChannels, power_in(Shape::kInputsAtOnce, kChunkElements)) : 1;
    constexpr int kAtOnce = kLast ? 1 : Shape::kInputsAtOnce;
    int number = 0;
    if constexpr (kTogether > 1) {
#pragma unroll 1
        while (number + kTogether <= count && are_neighbours<kTogether>(operands, job, first + number)) {
            add_inputs<Shape, kTogether>(operands, job, run, first + number, number, weights, sums);
            number += kTogether;
        }
    }
#pragma unroll kAtOnce
    for (; number < count; ++number) {
        add_inputs<Shape, 1>(operands, job, run, first + number, number, weights, sums);
    }
}

// Parts of one output whose inputs come one at a time: no thread waits for another.
template <class Shape>
DEVICE void add_alone(const Operands& operands, const Job& job, const Source& run, float (&sums)[1][Shape::kRun]) {
    const T* piece = operands.w + job.weight_begin;
    if constexpr (OwnWeights::kFit && Shape::kAllRows) {
        if (job.input_count == 1) {
            add_inputs<Shape, 1>(operands, job, run, 0, 0, OwnWeights(piece), sums);
            return;
        }
    }
    add_step<Shape>(operands, job, run, 0, job.input_count, FarWeights{piece, job.input_count}, sums);
}

// All inputs of the part; `brought` says whether the block has those of the only step in shared memory.
template <class Shape, int kOutputs>
DEVICE void add_steps(const Operands& operands, const Job& job, const Source& run, bool active, bool brought,
                      float* shared, float (&sums)[kOutputs][Shape::kRun]) {
#pragma unroll 1
    for (int first = 0; first < job.input_count; first += Shape::kInputs) {
        const int count = min(Shape::kInputs, job.input_count - first);
        if (!brought) {
            __syncthreads();
            SharedWeights<Shape>::bring(operands, job, first, count, shared);
            __syncthreads();
        }
        if (active) add_step<Shape>(operands, job, run, first, count, SharedWeights<Shape>{shared}, sums);
    }
}

// Run `number` of this thread, of a part of up to kOutputs outputs.
template <class Shape, int kOutputs>
DEVICE void compute_run(const Operands& operands, const Job& job, int number, float* shared) {
    const int place = first_of_run<Shape>(number);
    const bool active = place < job.pixel_count;
    const Source run = source_of(operands, pixel_of(job.pixel_begin + place));
    float sums[kOutputs][Shape::kRun];
#pragma unroll
    for (int output = 0; output < kOutputs; ++output) {
        const float bias = output < job.output_count ? output_bias(operands, job, output) : 0.0f;
#pragma unroll
        for (int i = 0; i < Shape::kRun; ++i) sums[output][i] = bias;
    }
    if constexpr (Shape::kAlone) {
        if (!active) return;
        add_alone<Shape>(operands, job, run, sums);
    } else {
        add_steps<Shape>(operands, job, run, active, number > 0 && job.input_count <= Shape::kInputs, shared, sums);
        if (!active) return;
    }
    // Computed anew rather than kept in registers.
    const Pixel pixel = pixel_of(renewed(job.pixel_begin) + first_of_run<Shape>(number));
    const Output::Offset at = Output::offset(pixel.image, 0, pixel.position);
    store_first_places(operands, job, at, sums);
    if constexpr (kExtras) store_extras(operands, job, at, sums);
}

template <class Shape, int kOutputs>
DEVICE void compute_runs(const Operands& operands, const Job& job, float* shared) {
#pragma unroll 1
    for (int number = 0; number < Shape::kRuns; ++number) compute_run<Shape, kOutputs>(operands, job, number, shared);
}

template <int kShape>
DEVICE void compute_lanes(const Operands& operands, const Job& job, unsigned char* shared) {
    using Shape = LanesShape<kShape>;
    float* weights = reinterpret_cast<float*>(shared);
    constexpr int kHalf = Shape::kOutputs / 2;
    if constexpr (kHalf >= 2) {
        if (job.output_count <= kHalf) {
            compute_runs<Shape, kHalf>(operands, job, weights);
            return;
        }
    }
    compute_runs<Shape, Shape::kOutputs>(operands, job, weights);
}

}  // namespace conv
