// What the ordinary lanes read of x, in fp32: the columns of a row that some neighbouring positions need.
#pragma once

#include "common/vectors.cuh"
#include "conv/geometry.cuh"
#include "conv/lanes_shape.cuh"
#include "conv/prologue.cuh"

namespace conv {

// An element of x as the products take it: zero outside, after the prologue. What was not read is zero.
DEVICE float prepared(float value, bool inside, const InputChannel& input) {
    if constexpr (kPrologue) {
        return inside ? prologue(value, input.scale, input.shift) : 0.0f;
    } else {
        return value;
    }
}

// Neighbouring elements in fp32; zeros, and nothing is read, where they are not `present`.
template <int kCount>
DEVICE void load_floats(const T* source, bool present, float (&values)[kCount]) {
    T elements[kCount];
    load_vector(source, elements, present);
#pragma unroll
    for (int i = 0; i < kCount; ++i) values[i] = to_float(elements[i]);
}

// A row of taps, counted over depth and height.
struct TapRow {
    int d, h;

    // Distance of the row that it reads from the first one, in positions.
    DEVICE int distance() const { return (d * kDilations.d * kInputSize.h + h * kDilations.h) * kInputSize.w; }

    // Whether it lies in x. What holds for every position of y costs nothing where the row is a constant.
    DEVICE bool is_inside(const Place& corner) const {
        return lies_in<kInputSize.d, kOutputSize.d, kStrides.d, kPads.d>(corner.d, d * kDilations.d) &&
               lies_in<kInputSize.h, kOutputSize.h, kStrides.h, kPads.h>(corner.h, h * kDilations.h);
    }

private:
    template <int kSize, int kPositions, int kStride, int kPad>
    DEVICE static bool lies_in(int first, int distance) {
        const bool after_begin = distance >= kPad || first + distance >= 0;
        const bool before_end = (kPositions - 1) * kStride - kPad + distance < kSize || first + distance < kSize;
        return after_begin && before_end;
    }
};

DEVICE TapRow tap_row(int number) { return {number / kKernel.h, number % kKernel.h}; }

// Whether anything of a row is read; a channel of zeros has its shift in it, if there is a prologue.
DEVICE bool reads_row(bool row_inside, const InputChannel& input) { return row_inside && input.channel >= 0; }

// Channels first: the window of one channel in one row, by the widest loads that its alignment allows.
template <class Window>
DEVICE void load_window(const T* source, int first, bool row_inside, const InputChannel& input,
                        float (&values)[Window::kColumns]) {
    const bool read = reads_row(row_inside, input);
    unrolled<Window::kLoads>([&](auto load) {
        constexpr auto kPiece = Window::piece(decltype(load)::value);
        if constexpr (kPiece.size > 0) {
            const bool inside = Window::template is_inside<kPiece.column, kPiece.size>(first);
            float loaded[kPiece.size];
            load_floats(source + kPiece.column, read && inside, loaded);
#pragma unroll
            for (int i = 0; i < kPiece.size; ++i) {
                const int column = kPiece.column + i;
                if (column >= 0 && column < Window::kColumns) {
                    values[column] = prepared(loaded[i], row_inside && inside, input);
                }
            }
        }
    });
}

// Channels last: the windows of kChannels neighbouring channels, which begin at a multiple of their number.
template <class Window, int kChannels>
DEVICE void load_windows(const T* source, int first, bool row_inside, const InputChannel (&inputs)[kChannels],
                         float (&values)[kChannels][Window::kColumns]) {
    const bool read = reads_row(row_inside, inputs[0]);
    unrolled<Window::kColumns>([&](auto number) {
        constexpr int kColumn = decltype(number)::value;
        if constexpr (Window::is_read(kColumn)) {
            const bool inside = Window::template is_inside<kColumn, 1>(first);
            float loaded[kChannels];
            load_floats(source + kColumn * Input::kPositionStride, read && inside, loaded);
#pragma unroll
            for (int i = 0; i < kChannels; ++i) {
                values[i][kColumn] = prepared(loaded[i], row_inside && inside, inputs[i]);
            }
        }
    });
}

}  // namespace conv
