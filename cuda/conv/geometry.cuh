// From the number of a pixel to where it stands, and to the inputs that it needs. Sizes are constants and numbers are
// unsigned, so that divisions become multiplications.
#pragma once

#include "conv/config.cuh"

namespace conv {

// Position `position` of batch element `image` of the group.
struct Pixel {
    int image, position;
};
DEVICE Pixel pixel_of(unsigned number) {
    if constexpr (kImages == 1) {
        return {0, static_cast<int>(number)};
    } else {
        return {static_cast<int>(number / kPositions), static_cast<int>(number % kPositions)};
    }
}

// Coordinates in the input; those outside of it may be negative.
struct Place {
    int d, h, w;

    // Axes that no pixel leaves cost nothing.
    DEVICE bool inside() const {
        return on_axis<0>(d) && on_axis<1>(h) && on_axis<2>(w);
    }
    DEVICE int position() const { return (d * kInputSize.h + h) * kInputSize.w + w; }
    DEVICE Place operator+(Place other) const { return {d + other.d, h + other.h, w + other.w}; }

private:
    static constexpr int of_axis(Axes axes, int axis) { return axis == 0 ? axes.d : axis == 1 ? axes.h : axes.w; }
    static constexpr bool axis_leaves(int axis) {
        const int last = (of_axis(kOutputSize, axis) - 1) * of_axis(kStrides, axis) - of_axis(kPads, axis) +
                         (of_axis(kKernel, axis) - 1) * of_axis(kDilations, axis);
        return of_axis(kPads, axis) > 0 || last >= of_axis(kInputSize, axis);
    }
    template <int kAxis>
    DEVICE static bool on_axis(int at) {
        constexpr bool kLeaves = axis_leaves(kAxis);
        return !kLeaves || static_cast<unsigned>(at) < static_cast<unsigned>(of_axis(kInputSize, kAxis));
    }
};

// Where the first tap of an output position stands.
DEVICE Place place_of(unsigned position) {
    constexpr unsigned kWidth = kOutputSize.w, kArea = kOutputSize.h * kOutputSize.w;
    const int d = position / kArea, h = position % kArea / kWidth, w = position % kWidth;
    return {d * kStrides.d - kPads.d, h * kStrides.h - kPads.h, w * kStrides.w - kPads.w};
}

// How far a tap stands from the first one; taps run through the kernel's axes in order.
DEVICE Place tap_shift(unsigned tap) {
    constexpr unsigned kWidth = kKernel.w, kArea = kKernel.h * kKernel.w;
    const int d = tap / kArea, h = tap % kArea / kWidth, w = tap % kWidth;
    return {d * kDilations.d, h * kDilations.h, w * kDilations.w};
}

}  // namespace conv
