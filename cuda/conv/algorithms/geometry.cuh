// The convolution that an algorithm's step belongs to: constants of the compiler's command line, checked and named.
#pragma once

#include "common/element.cuh"

namespace algorithms {

constexpr Element kElement = Element::ELEMENT;
using T = Storage<kElement>;

// Numbers along the axes depth, height, width.
struct Size {
    int d, h, w;
    constexpr int count() const { return d * h * w; }
};

constexpr int kInputs = INPUT_CHANNELS;
constexpr int kOutputs = OUTPUT_CHANNELS;
constexpr Size kInput{INPUT_SIZE}, kOutput{OUTPUT_SIZE}, kKernel{KERNEL};
constexpr Size kStrides{STRIDES}, kDilations{DILATIONS}, kPads{PADS};
constexpr int kTaps = kKernel.count();
constexpr int kInputPositions = kInput.count();
constexpr int kOutputPositions = kOutput.count();

// Numbers are unsigned, so that divisions by constants are short.
DEVICE Size place_in(const Size& size, unsigned number) {
    const unsigned w = size.w, h = size.h;
    return {static_cast<int>(number / (w * h)), static_cast<int>(number / w % h), static_cast<int>(number % w)};
}

DEVICE bool inside(const Size& place) {
    return static_cast<unsigned>(place.d) < static_cast<unsigned>(kInput.d) &&
           static_cast<unsigned>(place.h) < static_cast<unsigned>(kInput.h) &&
           static_cast<unsigned>(place.w) < static_cast<unsigned>(kInput.w);
}

DEVICE int offset_in(const Size& size, const Size& place) { return (place.d * size.h + place.h) * size.w + place.w; }

// Where in `x` the tap reads for a position of `y`, perhaps outside.
DEVICE Size read_place(const Size& position, const Size& tap) {
    return {position.d * kStrides.d - kPads.d + tap.d * kDilations.d,
            position.h * kStrides.h - kPads.h + tap.h * kDilations.h,
            position.w * kStrides.w - kPads.w + tap.w * kDilations.w};
}

}  // namespace algorithms
