// wgmma.mma_async: the matrix multiplication of a warpgroup, one warp's share at a time.
//
// Fragment layouts, matrix descriptors and the layouts of matrices in shared memory follow the PTX ISA ("Asynchronous
// Warpgroup Level Matrix Multiply-Accumulate Instructions"); CUTLASS's canonical layouts say the same. Sums are formed
// as in matrix.h, so that a product computed by mma.sync in steps of the same k has the same bits.
#pragma once

#include "matrix.h"

namespace emu {

// A matrix in shared memory, in chunks of 16 bytes along the dimension that is contiguous there. Outer is the other
// dimension. All offsets are bytes.
struct SharedMatrix {
    uint32_t start;
    uint32_t leading;
    uint32_t stride;
    uint32_t row_chunks;  // 16-byte chunks in a row of the swizzle pattern: 1 (none), 2, 4 or 8

    // Chunk along k of a row or column of the matrix whose elements are contiguous along k (K-major): eight rows to a
    // pattern, `stride` from a pattern to the next. Without swizzle a pattern is one chunk wide and `leading` separates
    // them; with it, chunks follow one another and the leading offset is not used.
    uint32_t along_k(uint32_t outer, uint32_t chunk) const {
        const uint32_t row = start + outer / 8 * stride + outer % 8 * (16 * row_chunks);
        return swizzled(row + chunk * (row_chunks == 1 ? leading : 16));
    }

    // Chunk along m or n at a k (MN-major): a pattern is `row_chunks` chunks wide and eight k tall. Without swizzle
    // `stride` separates neighbours along m or n and `leading` those along k; with it, the reverse.
    uint32_t along_mn(uint32_t k, uint32_t chunk) const {
        const uint32_t next_mn = row_chunks == 1 ? stride : leading, next_k = row_chunks == 1 ? leading : stride;
        const uint32_t pattern = start + chunk / row_chunks * next_mn + k / 8 * next_k;
        return swizzled(pattern + k % 8 * (16 * row_chunks) + chunk % row_chunks * 16);
    }

    // The bits of an address that number the 16-byte chunk, XOR those that number the 128-byte line.
    uint32_t swizzled(uint32_t address) const { return address ^ ((address >> 7 & (row_chunks - 1)) << 4); }
};

// Fields of a matrix descriptor: bits 0-13 start, 16-29 leading and 32-45 stride byte offset, each divided by 16; 49-51
// base offset; 62-63 swizzle (0 none, 1 128 bytes, 2 64 bytes, 3 32 bytes).
inline SharedMatrix decode_descriptor(const WarpgroupCall& call, uint64_t descriptor) {
    constexpr uint32_t row_chunks[4] = {1, 8, 4, 2};
    const auto field = [&](int bit) { return static_cast<uint32_t>(descriptor >> bit & 0x3fffu) << 4; };
    const SharedMatrix matrix = {field(0), field(16), field(32), row_chunks[descriptor >> 62]};
    // The ISA gives the formula of a base offset but not what the hardware does with one.
    if (matrix.row_chunks != 1 && (descriptor >> 49 & 7u) != 0)
        call.fail(
            "wgmma: a matrix descriptor has a base offset other than 0, which is not emulated: "
            "let the swizzle pattern start at a multiple of 1024 bytes (512 and 256 for swizzles of 64 and 32 bytes)");
    return matrix;
}

// Elements of one 16-byte chunk as numbers.
template <class Element>
void read_chunk(double (&values)[128 / Element::bits], const WarpgroupCall& call, uint32_t address) {
    uint32_t words[4];
    call.read_shared(address, words, sizeof words);
    for (int i = 0; i < 128 / Element::bits; ++i)
        values[i] = Element::value(words[i / packed<Element>] >> i % packed<Element> * (Element::bits % 32));
}

// Rows first to first + Rows - 1 of a matrix with K elements a row; `store(row, k, value)` takes them.
template <class Element, int Rows, int K, class Store>
void read_matrix(const WarpgroupCall& call, const SharedMatrix& matrix, bool mn_major, int first, Store store) {
    constexpr int per_chunk = 128 / Element::bits;
    double values[per_chunk];
    if (mn_major) {
        for (int k = 0; k < K; ++k)
            for (int row = 0; row < Rows; row += per_chunk) {
                read_chunk<Element>(values, call, matrix.along_mn(k, (first + row) / per_chunk));
                for (int i = 0; i < per_chunk; ++i) store(row + i, k, values[i]);
            }
    } else {
        for (int row = 0; row < Rows; ++row)
            for (int k = 0; k < K; k += per_chunk) {
                read_chunk<Element>(values, call, matrix.along_k(first + row, k / per_chunk));
                for (int i = 0; i < per_chunk; ++i) store(row, k + i, values[i]);
            }
    }
}

// The work of wgmma_f32, compiled once for all N.
template <class Element, bool AInRegisters>
void multiply_panels(WarpgroupCall& call, int panels) {
    constexpr int K = 256 / Element::bits;
    constexpr bool transposable = Element::bits == 16;
    const bool a_mn_major = transposable && !AInRegisters && call.immediates[2] != 0;
    const bool b_mn_major = transposable && call.immediates[AInRegisters ? 2 : 3] != 0;
    const double sign = call.immediates[0] == call.immediates[1] ? 1.0 : -1.0;

    double a[16][K], b[K][8], sum[16][8];
    if (AInRegisters) {
        unpack_a<Element, K>(a, [&](int lane, int r) { return call.a[r][lane]; });
    } else {
        read_matrix<Element, 16, K>(call, decode_descriptor(call, call.a_descriptor), a_mn_major, 16 * call.rank,
                                    [&](int row, int k, double value) { a[row][k] = value; });
    }
    for (int m = 0; m < 16; ++m)
        for (int k = 0; k < K; ++k) a[m][k] *= sign;

    // Accumulators are those of neighbouring 16 x 8 matrices of mma.sync: four words of each.
    const SharedMatrix right = decode_descriptor(call, call.b_descriptor);
    for (int panel = 0; panel < panels; ++panel) {
        read_matrix<Element, 8, K>(call, right, b_mn_major, 8 * panel,
                                   [&](int n, int k, double value) { b[k][n] = value; });
        multiply_16x8<K>(sum, a, b);
        for (int i = 0; i < 4; ++i)
            for (int lane = 0; lane < kLanes; ++lane) {
                uint32_t& d = call.d[4 * panel + i][lane];
                const double before = call.scale_d ? bit_cast<float>(d) : 0.0;
                d = double_to_float_bits(element(sum, lane, i) + before);
            }
    }
}

// wgmma.mma_async.sync.aligned.m64nNkK.f32.<Element>.<Element>, K being 256 bits of elements: rows 16 rank to 16 rank +
// 15 of d = a b + d, or a b. Immediates: signs of a and b, then, for 16-bit elements, whether a (where it is in shared
// memory) and b are MN-major.
template <class Element, int N, bool AInRegisters>
void wgmma_f32(WarpgroupCall& call) {
    multiply_panels<Element, AInRegisters>(call, N / 8);
}

}  // namespace emu
