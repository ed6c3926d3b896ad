// Which input positions a step brings to shared memory, and in which row each of them lies.
//
// Output positions are numbered in memory order, and so are input positions. Where a tile's inputs, over all taps or
// over a row of the kernel, lie close together, the run of positions from the first to the last is brought once: every
// tap of every pixel is then a row of it, at the pixel's row plus a distance that all pixels share. Nothing of a
// convolution's border is stored: a tap outside of the image reads a row of zeros. Otherwise each tap brings a row for
// each pixel. Where output and input positions are the same, channels may come as they lie in x instead.
#pragma once

#include "conv/geometry.cuh"

namespace conv {

// The distance in memory order of places that differ by so much on each axis.
constexpr int distance(int d, int h, int w) { return (d * kInputSize.h + h) * kInputSize.w + w; }

constexpr int lesser(int first, int second) { return first < second ? first : second; }
constexpr int common_divisor(int a, int b) { return b == 0 ? a : common_divisor(b, a % b); }

// From one output to the next one the input moves by this; beyond the end of an axis by these further distances.
constexpr int kAdvance = kOutputSize.w > 1 ? kStrides.w : 1;
constexpr int kNextRow = distance(0, kStrides.h, -kOutputSize.w * kAdvance);
constexpr int kNextArea = distance(kStrides.d, -kOutputSize.h * kStrides.h, 0);
constexpr int kNextImage = distance(kInputSize.d - kOutputSize.d * kStrides.d, 0, 0);

// How often `pixels` neighbouring ones cross a boundary between parts of `size`, of which there are `parts`.
constexpr int crossings(int pixels, int size, int parts) { return lesser((pixels + size - 2) / size, parts - 1); }

// What all pixels of a tile have in common modulo is by what rows of a run are sorted, so that neighbouring pixels have
// neighbouring rows: stride 2 skips every other position.
constexpr int kSorted = [] {
    int divisor = kAdvance;
    if (kOutputSize.d * kOutputSize.h * kImages > 1) divisor = common_divisor(divisor, distance(0, kStrides.h, 0));
    if (kOutputSize.d * kImages > 1) divisor = common_divisor(divisor, distance(kStrides.d, 0, 0));
    if (kImages > 1) divisor = common_divisor(divisor, kInputPositions);
    return divisor;
}();

// With channels first, 16-bit elements are read in pairs of neighbouring positions where no pair is torn.
constexpr int kPairs = !kLast && sizeof(T) == 2 && kInputPositions % 2 == 0 ? 2 : 1;

// Whether pixels are the positions of x, and so many neighbouring ones of a channel lie in one image.
constexpr bool kSamePositions = kTaps == 1 && kPads.d == 0 && kPads.h == 0 && kPads.w == 0 &&
                                kInputSize.d == kOutputSize.d && kInputSize.h == kOutputSize.h &&
                                kInputSize.w == kOutputSize.w;
constexpr int kPiece = power_in(kInputPositions, 16 / static_cast<int>(sizeof(T)));

struct InputPlan {
    // Whether channels come as they lie in x; else whether a run is brought, or a row for each pixel and tap.
    bool channels, run;
    // Taps that share what is brought at once, and those whose weights are brought at once.
    int group, batch;
    // Rows that are brought at once, and those that lie between places of different remainders.
    int rows, part;

    // The positions from a tile's first to its last, but for how far the taps reach; -1 where they are not in order.
    static constexpr int span(int pixels) {
        const int rows = crossings(pixels, kOutputSize.w, kOutputSize.d * kOutputSize.h * kImages);
        const int areas = crossings(pixels, kOutputSize.h * kOutputSize.w, kOutputSize.d * kImages);
        const int images = crossings(pixels, kPositions, kImages);
        const bool ordered =
            (rows == 0 || kNextRow >= 0) && (areas == 0 || kNextArea >= 0) && (images == 0 || kNextImage >= 0);
        if (!ordered) return -1;
        const long long all = 1ll + (pixels - 1ll) * kAdvance + 1ll * rows * kNextRow + 1ll * areas * kNextArea +
                              1ll * images * kNextImage;
        return all < 1 << 20 ? static_cast<int>(all) : -1;
    }

    // Rows between places of different remainders, of a run of `positions`.
    static constexpr int part_of(int positions) { return round_up(ceil_div(positions + kPairs - 1, kSorted), 8); }

    static constexpr InputPlan of(Shape shape) {
        // So many rows for each pixel are still brought at once; beyond that, taps are brought a kernel row at a time.
        constexpr int kMostRows = 2;
        // So many bytes of weights are worth a barrier of their own.
        constexpr int kBatchBytes = 8 << 10;
        const int own = span(shape.pixels), most = kMostRows * shape.pixels + 16, each = kTaps * shape.pixels;
        const int row = own + (kKernel.w - 1) * kDilations.w;
        const int whole = row + distance((kKernel.d - 1) * kDilations.d, (kKernel.h - 1) * kDilations.h, 0);
        const bool whole_fits = own > 0 && part_of(whole) * kSorted <= most && whole <= each;
        const bool row_fits = own > 0 && part_of(row) * kSorted <= most && row * (kTaps / kKernel.w) <= each;
        const int chunks = shape.pixels * static_cast<int>(sizeof(T)) / 16;
        InputPlan plan{};
        plan.channels = !kLast && kSamePositions && sizeof(T) == 2 && kPiece > 1 &&
                        (chunks == 2 || chunks == 4 || chunks % 8 == 0);
        // Rows of pixels in their order need no registers on their way to wgmma.
        const bool ordered = kWarpgroups && kTaps == 1;
        plan.run = !plan.channels && !ordered && (whole_fits || row_fits);
        plan.group = !plan.run ? 1 : whole_fits ? kTaps : kKernel.w;
        const int tap_bytes = shape.outputs * shape.inputs * static_cast<int>(sizeof(T));
        const int fitting = lesser(plan.group, larger(1, kBatchBytes / tap_bytes));
        plan.batch = ceil_div(plan.group, ceil_div(plan.group, fitting));
        plan.part = plan.run ? part_of(whole_fits ? whole : row) : shape.pixels;
        plan.rows = plan.run ? plan.part * kSorted : shape.pixels;
        return plan;
    }

    constexpr int batches_in_group() const { return ceil_div(group, batch); }
    constexpr int groups() const { return kTaps / group; }
    constexpr int batches() const { return groups() * batches_in_group(); }
};

// The row of a position that lies so far behind the first one of a run.
template <int kPart>
DEVICE unsigned row_of(unsigned position) {
    if constexpr (kSorted == 1) {
        return position;
    } else {
        return position % kSorted * kPart + position / kSorted;
    }
}

}  // namespace conv
