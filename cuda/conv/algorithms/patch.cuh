// A rectangle of output positions for which a block holds the patch of x that it needs, and sums in registers.
//
// Each warp has kOwnOutputs channels of kOwnPositions positions a lane; weights of one tap lie kBlockOutputs in a row.
#pragma once

#include "conv/algorithms/geometry.cuh"

namespace algorithms {

constexpr int kBlockOutputs = BLOCK_OUTPUTS;
constexpr int kOwnOutputs = OWN_OUTPUTS;
constexpr int kOwnPositions = OWN_POSITIONS;
constexpr int kTileHeight = TILE_HEIGHT;
constexpr int kTileWidth = TILE_WIDTH;
// Warps beside each other share channels and divide the rectangle.
constexpr int kPositionWarps = POSITION_WARPS;
constexpr int kWarps = kBlockOutputs / kOwnOutputs * kPositionWarps;
constexpr int kThreads = 32 * kWarps;

constexpr int kTilePositions = kTileHeight * kTileWidth;
constexpr unsigned kTilesHigh = ceil_div(kOutput.h, kTileHeight);
constexpr unsigned kTilesWide = ceil_div(kOutput.w, kTileWidth);
constexpr unsigned kTiles = kOutput.d * kTilesHigh * kTilesWide;

constexpr int reach(int count, int stride, int taps, int dilation) {
    return (count - 1) * stride + (taps - 1) * dilation + 1;
}
// Along the depth a rectangle is one position, and only the taps' planes are held.
constexpr Size kPatch{kKernel.d, reach(kTileHeight, kStrides.h, kKernel.h, kDilations.h),
                      reach(kTileWidth, kStrides.w, kKernel.w, kDilations.w)};
constexpr int kPatchFloats = kPatch.count();

static_assert(kBlockOutputs % kOwnOutputs == 0, "warps have equal numbers of channels");
static_assert(kTilePositions <= 32 * kOwnPositions * kPositionWarps, "lanes have all positions of a rectangle");

DEVICE Size tile_begin(unsigned tile) {
    const unsigned across = tile % (kTilesHigh * kTilesWide);
    return {static_cast<int>(tile / (kTilesHigh * kTilesWide)), static_cast<int>(across / kTilesWide) * kTileHeight,
            static_cast<int>(across % kTilesWide) * kTileWidth};
}

// The patches of `count` channels from `x` on, of at most kMost, as floats; zeros outside of x.
template <int kMost>
DEVICE void load_patches(float* patches, const T* x, int count, const Size& begin) {
    const Size corner = read_place(begin, {0, 0, 0});
#pragma unroll 2
    for (int number = threadIdx.x; number < kMost * kPatchFloats; number += kThreads) {
        const int channel = number / kPatchFloats;
        const Size in_patch = place_in(kPatch, number % kPatchFloats);
        const Size at{corner.d + in_patch.d * kDilations.d, corner.h + in_patch.h, corner.w + in_patch.w};
        const T* plane = x + static_cast<size_t>(channel) * kInputPositions;
        const bool read = channel < count && inside(at);
        patches[number] = read ? to_float(__ldg(plane + offset_in(kInput, at))) : 0.0f;
    }
}

// `rows` rows of kBlockOutputs weights, of at most kMost, from rows of `pitch`; zeros beyond.
template <int kMost>
DEVICE void load_weights(float* weights, const T* w, int rows, int pitch) {
#pragma unroll 2
    for (int number = threadIdx.x; number < kMost * kBlockOutputs; number += kThreads) {
        const int row = number / kBlockOutputs;
        const T* from = w + static_cast<size_t>(row) * pitch + number % kBlockOutputs;
        weights[number] = row < rows ? to_float(__ldg(from)) : 0.0f;
    }
}

// What one lane computes.
class RegisterTile {
public:
    DEVICE RegisterTile() {
        const int warp = threadIdx.x / 32;
        first_output_ = warp / kPositionWarps * kOwnOutputs;
        first_position_ = warp % kPositionWarps * (32 * kOwnPositions) + threadIdx.x % 32;
#pragma unroll
        for (int i = 0; i < kOwnPositions; ++i) {
            // Lanes beyond the rectangle compute its first position, and store nothing.
            const int position = exists(i) ? first_position_ + 32 * i : 0;
            origins_[i] = position / kTileWidth * kStrides.h * kPatch.w + position % kTileWidth * kStrides.w;
        }
    }

    // sums += every tap's weights * the patch of one channel; `weights` are taps x kBlockOutputs.
    DEVICE void add_channel(const float* patch, const float* weights) {
#pragma unroll 1
        for (int row = 0; row < kKernel.d * kKernel.h; ++row) {
            const int step = (row / kKernel.h * kPatch.h + row % kKernel.h * kDilations.h) * kPatch.w;
            const float* own = weights + row * kKernel.w * kBlockOutputs + first_output_;
#pragma unroll
            for (int tap = 0; tap < kKernel.w; ++tap) {
                float values[kOwnPositions];
#pragma unroll
                for (int i = 0; i < kOwnPositions; ++i) values[i] = patch[origins_[i] + step + tap * kDilations.w];
                float of_tap[kOwnOutputs];
                load_own(of_tap, own + tap * kBlockOutputs);
#pragma unroll
                for (int i = 0; i < kOwnOutputs * kOwnPositions; ++i) {
                    float& sum = sums_[i / kOwnPositions][i % kOwnPositions];
                    sum = fmaf(of_tap[i / kOwnPositions], values[i % kOwnPositions], sum);
                }
            }
        }
    }

    // Hands every sum to `store(output of the block, position of y, sum)`.
    template <class Store>
    DEVICE void store(const Size& begin, const Store& store) const {
#pragma unroll
        for (int i = 0; i < kOwnPositions; ++i) {
            const int position = first_position_ + 32 * i;
            const Size at{begin.d, begin.h + position / kTileWidth, begin.w + position % kTileWidth};
            if (!exists(i) || at.h >= kOutput.h || at.w >= kOutput.w) continue;
#pragma unroll
            for (int output = 0; output < kOwnOutputs; ++output) {
                store(first_output_ + output, offset_in(kOutput, at), sums_[output][i]);
            }
        }
    }

private:
    // Weights of this lane's channels, the same for the whole warp.
    DEVICE static void load_own(float (&weights)[kOwnOutputs], const float* from) {
        if constexpr (kOwnOutputs % 4 == 0) {
#pragma unroll
            for (int i = 0; i < kOwnOutputs; i += 4) {
                const float4 four = *reinterpret_cast<const float4*>(from + i);
                weights[i] = four.x;
                weights[i + 1] = four.y;
                weights[i + 2] = four.z;
                weights[i + 3] = four.w;
            }
        } else {
#pragma unroll
            for (int i = 0; i < kOwnOutputs; ++i) weights[i] = from[i];
        }
    }

    DEVICE bool exists(int i) const { return first_position_ + 32 * i < kTilePositions; }

    int first_output_, first_position_;
    int origins_[kOwnPositions];
    float sums_[kOwnOutputs][kOwnPositions] = {};
};

}  // namespace algorithms
