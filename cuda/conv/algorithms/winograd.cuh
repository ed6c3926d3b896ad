// The transforms of Winograd's minimal filtering F(m x m, 3 x 3), m = 2 or 4, one axis at a time.
//
// y = A^T [(G g G^T) . (B^T d B)] A. The points are 0, 1, -1 and infinity, for m = 4 also 2 and -2.
#pragma once

#include "common/element.cuh"

namespace algorithms {

constexpr int kTile = TILE;
constexpr int kTransformed = kTile + 2;
static_assert(kTile == 2 || kTile == 4, "the transforms are written for tiles of 2 and 4");

// B^T times the values, in place; `kStride` lies between neighbours.
template <int kStride>
DEVICE void transform_input(float* d) {
    if constexpr (kTile == 2) {
        const float d0 = d[0], d1 = d[kStride], d2 = d[2 * kStride], d3 = d[3 * kStride];
        d[0] = d0 - d2;
        d[kStride] = d1 + d2;
        d[2 * kStride] = d2 - d1;
        d[3 * kStride] = d1 - d3;
    } else {
        const float d0 = d[0], d1 = d[kStride], d2 = d[2 * kStride];
        const float d3 = d[3 * kStride], d4 = d[4 * kStride], d5 = d[5 * kStride];
        const float even = fmaf(-4.0f, d2, d4), odd = fmaf(-4.0f, d1, d3);
        const float outer = d4 - d2, inner = 2.0f * (d3 - d1);
        d[0] = fmaf(4.0f, d0, fmaf(-5.0f, d2, d4));
        d[kStride] = even + odd;
        d[2 * kStride] = even - odd;
        d[3 * kStride] = outer + inner;
        d[4 * kStride] = outer - inner;
        d[5 * kStride] = fmaf(4.0f, d1, fmaf(-5.0f, d3, d5));
    }
}

// A^T times the values: the first kTile of them are the result.
template <int kStride>
DEVICE void transform_output(float* s) {
    if constexpr (kTile == 2) {
        const float s0 = s[0], s1 = s[kStride], s2 = s[2 * kStride], s3 = s[3 * kStride];
        s[0] = s0 + s1 + s2;
        s[kStride] = s1 - s2 - s3;
    } else {
        const float s0 = s[0], s5 = s[5 * kStride];
        const float near = s[kStride] + s[2 * kStride], near_difference = s[kStride] - s[2 * kStride];
        const float far = s[3 * kStride] + s[4 * kStride], far_difference = s[3 * kStride] - s[4 * kStride];
        s[0] = s0 + near + far;
        s[kStride] = fmaf(2.0f, far_difference, near_difference);
        s[2 * kStride] = fmaf(4.0f, far, near);
        s[3 * kStride] = fmaf(8.0f, far_difference, near_difference) + s5;
    }
}

}  // namespace algorithms
