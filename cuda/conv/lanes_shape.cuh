// How the ordinary lanes share out a tile: which positions a thread computes, and which columns of x they read.
#pragma once

#include "conv/config.cuh"

namespace conv {

template <int kNumber>
struct Constant {
    static constexpr int value = kNumber;
};

// f(Constant<0>()) to f(Constant<kCount - 1>()): a loop whose counter is a constant of the language.
template <int kCount, int kFirst = 0, class F>
DEVICE void unrolled(const F& f) {
    if constexpr (kFirst < kCount) {
        f(Constant<kFirst>());
        unrolled<kCount, kFirst + 1>(f);
    }
}

// Rows of taps along the last axis, and how many elements of x are loaded at once.
constexpr int kRows = kKernel.d * kKernel.h;
constexpr int kChunkElements = 16 / sizeof(T);

// A part of one output and one input a step needs no weights in shared memory; else they lie there in fp32, input by
// input and row of taps by row of taps, output by output within a tap, in rows of whole vectors.
constexpr bool lanes_alone(int outputs, int inputs) { return outputs == 1 && inputs == 1; }
constexpr int lanes_row_weights(int outputs) { return round_up(kKernel.w * outputs, 4); }
constexpr int lanes_weight_bytes(int outputs, int inputs) {
    return lanes_alone(outputs, inputs) ? 0 : 4 * inputs * kRows * lanes_row_weights(outputs);
}

// Taps along the last axis are taken so many at a time: fewer where they, or the positions that they serve, stand far
// apart and share little.
constexpr int kMostTaps = kDilations.w > 32 ? 1 : kDilations.w > 4 || kStrides.w > 4 ? 4 : 16;

// The columns that kRun neighbouring positions read by kTaps neighbouring taps, counted from the first one. Channels
// first: loads of `kVector` columns begin at multiples of it and rows are whole vectors, so that each lies in x or
// outside of it as a whole. kWhole: these are all taps of a row, and it is known which columns may lie outside.
template <int kRun_, int kTaps_>
struct Window {
    static constexpr int kRun = kRun_;
    static constexpr int kTaps = kTaps_;
    static constexpr bool kWhole = kTaps == kKernel.w;
    static constexpr int kColumns = (kRun - 1) * kStrides.w + (kTaps - 1) * kDilations.w + 1;
    // Where taps are taken in several windows, all of them begin at the same place of a vector.
    static constexpr int kFurtherWindow = kKernel.w <= kMostTaps ? kChunkElements : kMostTaps * kDilations.w;
    static constexpr int kVector =
        kLast ? 1
              : power_in(kInputSize.w, power_in(kRun * kStrides.w, power_in(kFurtherWindow, kChunkElements)));
    // Columns of the first vector that lie in front of the window.
    static constexpr int kLead = (kVector - kPads.w % kVector) % kVector;
    static constexpr int kLoads = ceil_div(kLead + kColumns, kVector);

    static constexpr bool is_read(int column) {
        for (int position = 0; position < kRun; ++position) {
            const int rest = column - position * kStrides.w;
            if (rest >= 0 && rest % kDilations.w == 0 && rest / kDilations.w < kTaps) return true;
        }
        return false;
    }

    // The part of a load that holds all of its columns that are read: a power of two of them, aligned to their number.
    struct Piece {
        int column, size;
    };
    static constexpr Piece piece(int load) {
        const int begin = load * kVector - kLead;
        int first = kVector, last = -1;
        for (int i = 0; i < kVector; ++i) {
            if (begin + i < 0 || begin + i >= kColumns || !is_read(begin + i)) continue;
            first = first < i ? first : i;
            last = i;
        }
        if (last < 0) return {0, 0};
        int size = 1;
        while (first / size != last / size) size *= 2;
        return {begin + first / size * size, size};
    }

    // Registers that all pieces take.
    static constexpr int words() {
        int result = 0;
        for (int load = 0; load < kLoads; ++load) {
            result += ceil_div(piece(load).size * static_cast<int>(sizeof(T)), 4);
        }
        return result;
    }

    // Whether a piece lies in a row of x; `first` is the column of x where the window begins.
    template <int kColumn, int kSize>
    DEVICE static bool is_inside(int first) {
        constexpr int kFurthest = (kOutputSize.w - kRun) * kStrides.w - kPads.w + kColumn + kSize;
        constexpr bool kAfterBegin = kColumn >= kPads.w;
        constexpr bool kBeforeEnd = kWhole && kFurthest <= kInputSize.w;
        if constexpr (kAfterBegin && kBeforeEnd) {
            return true;
        } else if constexpr (kBeforeEnd) {
            return first + kColumn >= 0;
        } else {
            return static_cast<unsigned>(first + kColumn) < static_cast<unsigned>(kInputSize.w);
        }
    }
};

// A thread computes, one after the other, `runs` runs of `run` neighbouring positions of one row of y, so that what it
// reads of a row of x serves all taps, and vectors of x and y begin where they are aligned.
template <int kShape>
struct LanesShape {
    static constexpr int kOutputs = kShapes[kShape].outputs;
    static constexpr int kInputs = kShapes[kShape].inputs;
    static constexpr int kPixels = kShapes[kShape].pixels;
    static constexpr int kEach = kPixels / kThreads;
    static constexpr int kRun = power_in(kOutputSize.w, power_in(kEach, 64));
    static constexpr int kRuns = kEach / kRun;

    static_assert(kPixels % kThreads == 0, "every thread has as many positions");

    static constexpr bool kAlone = lanes_alone(kOutputs, kInputs);
    static constexpr int kRowWeights = lanes_row_weights(kOutputs);
    static constexpr int kInputWeights = kRows * kRowWeights;

    // What the loads of one input take of the registers decides how many of them may be in flight together.
    static constexpr bool kOneWindow = kKernel.w <= kMostTaps;
    static constexpr int kWords = kRows * Window<kRun, kOneWindow ? kKernel.w : kMostTaps>::words();
    static constexpr int kSums = kOutputs * kRun;
    static constexpr bool kAllRows = kOneWindow && kRows * kKernel.w * kSums <= 1024 && kWords <= 36;
    static constexpr int kRowsAtOnce = kAllRows ? kRows : 1;
    // Inputs whose loads may be in flight together.
    static constexpr bool at_once(int inputs) {
        return kInputs % inputs == 0 && kAllRows && inputs * kWords + kSums <= 36;
    }
    static constexpr int kInputsAtOnce = at_once(4) ? 4 : at_once(2) ? 2 : 1;
};

}  // namespace conv
