// The two products of a tile in the ordinary lanes, for fp32 where the matrix unit takes no 32-bit operands. Sums lie
// as the matrix instruction would leave them, so all else is the same.
#pragma once

#include "attention/key_tiles.cuh"
#include "attention/tile.cuh"

namespace attention {

DEVICE float4 load_floats(unsigned address) {
    float4 floats;
    asm volatile("ld.shared.v4.f32 {%0, %1, %2, %3}, [%4];"
                 : "=f"(floats.x), "=f"(floats.y), "=f"(floats.z), "=f"(floats.w)
                 : "r"(address)
                 : "memory");
    return floats;
}
DEVICE float2 load_two_floats(unsigned address) {
    float2 floats;
    asm volatile("ld.shared.v2.f32 {%0, %1}, [%2];" : "=f"(floats.x), "=f"(floats.y) : "r"(address) : "memory");
    return floats;
}

DEVICE float dot(float4 a, float4 b, float sum) {
    return fmaf(a.w, b.w, fmaf(a.z, b.z, fmaf(a.y, b.y, fmaf(a.x, b.x, sum))));
}

// Adds to `scores`: queries stand in `query_tile` from `row` on, granules `distance` rows apart. Eight lanes read equal
// chunks of different rows, four of even or odd ones; both differ in their places.
template <int kGranules, int kBlocks, class Extent>
DEVICE void lane_score_product(float (&scores)[kGranules][kBlocks][4], unsigned query_tile, int row, int distance,
                               unsigned key_tile, int lane, const Extent& extent) {
#pragma unroll 1
    for (int chunk = 0; chunk < KeyTile::kChunks; ++chunk) {
        float4 queries[kGranules][2];
#pragma unroll
        for (int i = 0; i < 2 * kGranules; ++i) {
            const int at = row + i / 2 * distance + lane / 4 + i % 2 * 8;
            if (extent.queries(i / 2)) queries[i / 2][i % 2] = load_floats(query_tile + KeyTile::offset(at, chunk));
        }
#pragma unroll
        for (int block = 0; block < kBlocks; ++block) {
            if (extent.keys(block / 2)) {
                const int key = 8 * block + 2 * (lane % 4);
                const float4 first = load_floats(key_tile + KeyTile::offset(key, chunk));
                const float4 second = load_floats(key_tile + KeyTile::offset(key + 1, chunk));
#pragma unroll
                for (int i = 0; i < 2 * kGranules; ++i) {
                    if (extent.queries(i / 2)) {
                        float(&sums)[4] = scores[i / 2][block];
                        sums[i % 2 * 2] = dot(queries[i / 2][i % 2], first, sums[i % 2 * 2]);
                        sums[i % 2 * 2 + 1] = dot(queries[i / 2][i % 2], second, sums[i % 2 * 2 + 1]);
                    }
                }
            }
        }
    }
}

// sums += weights * values, for the first `blocks` of kKeyBlocks blocks of 8 keys; `weight` as in weight_rows. A key's
// weights are with one of the four lanes of a row; all lanes read the same 32 bytes of its value at a time. Weights
// move up a block at a time, so that the loop need not be unrolled although registers have no numbers.
template <class Tile, int kKeyBlocks, int kGranules, int kBlocks, class Weight>
DEVICE void lane_value_product(float (&sums)[kGranules][kBlocks][4], unsigned tile, int lane, int blocks,
                               const Weight& weight) {
    float weights[kGranules][kKeyBlocks][4];
#pragma unroll
    for (int i = 0; i < 4 * kGranules * kKeyBlocks; ++i) {
        const int granule = i / (4 * kKeyBlocks), block = i / 4 % kKeyBlocks;
        weights[granule][block][i % 4] = weight(granule, block, i % 4);
    }
#pragma unroll 1
    for (int block = 0; block < blocks; ++block) {
        // A pair of channels is half a chunk; turning leaves pairs of chunks together.
        const unsigned keys = tile + Tile::bytes(8 * block) + lane % 4 * 8;
#pragma unroll
        for (int key = 0; key < 8; ++key) {
            float of_key[kGranules][2];
#pragma unroll
            for (int i = 0; i < 2 * kGranules; ++i) {
                of_key[i / 2][i % 2] = __shfl_sync(~0u, weights[i / 2][0][i % 2 * 2 + key % 2], key / 2, 4);
            }
#pragma unroll
            for (int channels = 0; channels < kBlocks; ++channels) {
                const float2 value = load_two_floats(keys + Tile::offset(key, 2 * channels));
#pragma unroll
                for (int i = 0; i < 2 * kGranules; ++i) {
                    float(&sum)[4] = sums[i / 2][channels];
                    sum[i % 2 * 2] = fmaf(of_key[i / 2][i % 2], value.x, sum[i % 2 * 2]);
                    sum[i % 2 * 2 + 1] = fmaf(of_key[i / 2][i % 2], value.y, sum[i % 2 * 2 + 1]);
                }
            }
        }
#pragma unroll
        for (int i = 0; i < 4 * kGranules * (kKeyBlocks - 1); ++i) {
            float(&own)[kKeyBlocks][4] = weights[i / 4 / (kKeyBlocks - 1)];
            const int number = i / 4 % (kKeyBlocks - 1);
            own[number][i % 4] = own[number + 1][i % 4];
        }
    }
}

}  // namespace attention
