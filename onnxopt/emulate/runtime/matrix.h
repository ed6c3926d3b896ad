// Matrix instructions of one warp: mma.sync, ldmatrix, stmatrix, movmatrix.
//
// Pure functions of what the 32 lanes hand in and of the shared memory behind the call. Which element of a matrix a
// register of a lane holds follows the fragment layouts of the PTX ISA ("Matrix Fragments for mma...").
//
// Sums. The hardware's order of additions and what it drops on the way are not documented and differ between
// architectures. Here the products of one instruction, each exact, are added in double precision by rising k, then the
// accumulator is added, and the sum is rounded once to the accumulator's type. That is within one rounding of the exact
// result whatever the order, so a result never depends on a guess about hardware, and a kernel's own errors stand out.
#pragma once

#include <cmath>
#include <cstdint>

#include "bits.h"
#include "half.h"
#include "warp_call.h"

namespace emu {

constexpr int kLanes = 32;

// Every NaN becomes the one that the hardware writes, so that results do not depend on the host.
inline uint32_t double_to_float_bits(double value) {
    return std::isnan(value) ? 0x7fffffffu : bit_cast<uint32_t>(static_cast<float>(value));
}

// Element types: how many bits of a register one takes, and the number that those bits stand for.
struct F16 {
    using Value = double;
    static constexpr int bits = 16;
    // Without branches, since this is where most of a product's time would go: 2^112 moves the exponent to where a
    // float has it and normalises subnormal numbers; infinities and NaN take the float's largest exponent.
    static Value value(uint32_t raw) {
        const float scaled = bit_cast<float>((raw & 0x7fffu) << 13) * 0x1p112f;
        const uint32_t special = -static_cast<uint32_t>((raw & 0x7c00u) == 0x7c00u) & 0x7f800000u;
        return bit_cast<float>(bit_cast<uint32_t>(scaled) | special | (raw & 0x8000u) << 16);
    }
};

struct BF16 {
    using Value = double;
    static constexpr int bits = 16;
    static Value value(uint32_t raw) { return widen(bf16{static_cast<uint16_t>(raw)}); }
};

// The unit does not read the low 13 bits: operands that a kernel did not round are truncated.
struct TF32 {
    using Value = double;
    static constexpr int bits = 32;
    static Value value(uint32_t raw) { return bit_cast<float>(raw & 0xffffe000u); }
};

struct S8 {
    using Value = int32_t;
    static constexpr int bits = 8;
    static Value value(uint32_t raw) { return static_cast<int8_t>(raw & 0xffu); }
};

struct U8 {
    using Value = int32_t;
    static constexpr int bits = 8;
    static Value value(uint32_t raw) { return static_cast<int32_t>(raw & 0xffu); }
};

template <class Element>
constexpr int packed = 32 / Element::bits;

template <class Element, int K>
constexpr int a_registers = 16 * K / kLanes / packed<Element>;

template <class Element, int K>
constexpr int b_registers = 8 * K / kLanes / packed<Element>;

// Of the 16 x K matrix A, lane 4 g + t holds rows g and g + 8; even registers row g, odd ones row g + 8. A register
// holds `packed` neighbours along k, lanes t = 0..3 follow one another, and each pair of registers is one such run on.
// `register_of(lane, r)` is the lane's r-th register.
template <class Element, int K, class RegisterOf>
void unpack_a(typename Element::Value (&a)[16][K], RegisterOf register_of) {
    constexpr int run = packed<Element>;
    for (int lane = 0; lane < kLanes; ++lane)
        for (int r = 0; r < a_registers<Element, K>; ++r) {
            const uint32_t raw = register_of(lane, r);
            for (int i = 0; i < run; ++i)
                a[lane / 4 + 8 * (r % 2)][4 * run * (r / 2) + run * (lane % 4) + i] =
                    Element::value(raw >> i * (Element::bits % 32));
        }
}

// Of the K x 8 matrix B, lane 4 g + t holds column g, along k as in A.
template <class Element, int K, class RegisterOf>
void unpack_b(typename Element::Value (&b)[K][8], RegisterOf register_of) {
    constexpr int run = packed<Element>;
    for (int lane = 0; lane < kLanes; ++lane)
        for (int r = 0; r < b_registers<Element, K>; ++r) {
            const uint32_t raw = register_of(lane, r);
            for (int i = 0; i < run; ++i)
                b[4 * run * r + run * (lane % 4) + i][lane / 4] = Element::value(raw >> i * (Element::bits % 32));
        }
}

// The i-th of a lane's four elements of a 16 x 8 accumulator.
template <class Value>
Value& element(Value (&matrix)[16][8], int lane, int i) {
    return matrix[lane / 4 + 8 * (i / 2)][2 * (lane % 4) + i % 2];
}

// A 16 x K times a K x 8 matrix, each sum by rising k. Pairs of columns, because two doubles are what any x86-64 and any
// 64-bit Arm multiplies at once, and sums of their own, so that they stay in registers.
template <int K>
void multiply_16x8(double (&sum)[16][8], const double (&a)[16][K], const double (&b)[K][8]) {
    typedef double Pair __attribute__((vector_size(16)));
    for (int m = 0; m < 16; m += 2) {
        Pair total[2][4] = {};
        for (int k = 0; k < K; ++k) {
            Pair right[4];
            std::memcpy(right, b[k], sizeof right);
#pragma GCC unroll 2
            for (int row = 0; row < 2; ++row)
#pragma GCC unroll 4
                for (int pair = 0; pair < 4; ++pair) total[row][pair] += a[m + row][k] * right[pair];
        }
        std::memcpy(sum[m], total, sizeof total);
    }
}

// The fragment layouts have no meaning for a part of a warp.
inline void require_whole_warp(const WarpCall& call) {
    if (call.lanes == 0xffffffffu) return;
    int lane = 0;
    while (!(call.lanes >> lane & 1u)) ++lane;
    call.fail(lane, "a matrix instruction needs all 32 lanes of the warp");
}

// The operands a and b, which begin the input words of each lane, multiplied.
template <class Element, int K>
void multiply(double (&sum)[16][8], const WarpCall& call) {
    require_whole_warp(call);
    double a[16][K], b[K][8];
    unpack_a<Element, K>(a, [&](int lane, int r) { return call.in[lane][r]; });
    unpack_b<Element, K>(b, [&](int lane, int r) { return call.in[lane][a_registers<Element, K> + r]; });
    multiply_16x8<K>(sum, a, b);
}

// mma.sync.aligned.m16n8kK.row.col.f32.<Element>.<Element>.f32: d = a b + c
template <class Element, int K>
void mma_f32(WarpCall& call) {
    constexpr int c = a_registers<Element, K> + b_registers<Element, K>;
    double sum[16][8];
    multiply<Element, K>(sum, call);
    for (int lane = 0; lane < kLanes; ++lane)
        for (int i = 0; i < 4; ++i) element(sum, lane, i) += bit_cast<float>(call.in[lane][c + i]);
    for (int lane = 0; lane < kLanes; ++lane)
        for (int i = 0; i < 4; ++i) call.out[lane][i] = double_to_float_bits(element(sum, lane, i));
}

// mma.sync.aligned.m16n8kK.row.col.f16.f16.f16.f16: two accumulator elements a register
template <int K>
void mma_f16(WarpCall& call) {
    constexpr int c = a_registers<F16, K> + b_registers<F16, K>;
    double sum[16][8];
    multiply<F16, K>(sum, call);
    for (int lane = 0; lane < kLanes; ++lane)
        for (int i = 0; i < 4; ++i) element(sum, lane, i) += F16::value(call.in[lane][c + i / 2] >> 16 * (i % 2));
    for (int lane = 0; lane < kLanes; ++lane)
        for (int r = 0; r < 2; ++r) {
            const uint32_t low = from_double<f16>(element(sum, lane, 2 * r)).bits;
            const uint32_t high = from_double<f16>(element(sum, lane, 2 * r + 1)).bits;
            call.out[lane][r] = low | high << 16;
        }
}

// mma.sync.aligned.m16n8kK.row.col{.satfinite}.s32.<ElementA>.<ElementB>.s32
template <class ElementA, class ElementB, int K, bool Saturate>
void mma_s32(WarpCall& call) {
    constexpr int first_b = a_registers<ElementA, K>, c = first_b + b_registers<ElementB, K>;
    require_whole_warp(call);
    int32_t a[16][K], b[K][8];
    unpack_a<ElementA, K>(a, [&](int lane, int r) { return call.in[lane][r]; });
    unpack_b<ElementB, K>(b, [&](int lane, int r) { return call.in[lane][first_b + r]; });
    int64_t sum[16][8] = {};
    for (int m = 0; m < 16; ++m)
        for (int k = 0; k < K; ++k)
            for (int n = 0; n < 8; ++n) sum[m][n] += a[m][k] * b[k][n];
    for (int lane = 0; lane < kLanes; ++lane)
        for (int i = 0; i < 4; ++i) element(sum, lane, i) += static_cast<int32_t>(call.in[lane][c + i]);
    for (int lane = 0; lane < kLanes; ++lane)
        for (int i = 0; i < 4; ++i) {
            const int64_t exact = element(sum, lane, i);
            const int64_t bounded = exact < INT32_MIN ? INT32_MIN : exact > INT32_MAX ? INT32_MAX : exact;
            call.out[lane][i] = static_cast<uint32_t>(Saturate ? bounded : exact);
        }
}

// An 8 x 8 matrix of 16-bit elements: lane l holds elements 2 (l % 4) and 2 (l % 4) + 1 of row l / 4, or of column
// l / 4 where it is transposed.
struct Tile {
    uint16_t rows[8][8];

    uint16_t& at(int row, int column, bool transposed) { return transposed ? rows[column][row] : rows[row][column]; }

    uint32_t packed_of(int lane, bool transposed) {
        const int row = lane / 4, column = 2 * (lane % 4);
        return at(row, column, transposed) | static_cast<uint32_t>(at(row, column + 1, transposed)) << 16;
    }

    void unpack(int lane, bool transposed, uint32_t word) {
        const int row = lane / 4, column = 2 * (lane % 4);
        at(row, column, transposed) = static_cast<uint16_t>(word);
        at(row, column + 1, transposed) = static_cast<uint16_t>(word >> 16);
    }
};

// ldmatrix.sync.aligned.m8n8.xCount{.trans}.shared.b16. Lane 8 j + i gives the 16-byte aligned address of row i of
// matrix j; addresses of further lanes are not looked at. Register j holds the lane's elements of matrix j.
template <int Count, bool Transposed>
void ldmatrix(WarpCall& call) {
    require_whole_warp(call);
    Tile tiles[Count];
    for (int lane = 0; lane < 8 * Count; ++lane)
        call.load_shared(lane, call.in[lane][0], tiles[lane / 8].rows[lane % 8], 16);
    for (int lane = 0; lane < kLanes; ++lane)
        for (int j = 0; j < Count; ++j) call.out[lane][j] = tiles[j].packed_of(lane, Transposed);
}

// stmatrix.sync.aligned.m8n8.xCount{.trans}.shared.b16: the inverse of ldmatrix; the address is the first input word.
template <int Count, bool Transposed>
void stmatrix(WarpCall& call) {
    require_whole_warp(call);
    Tile tiles[Count];
    for (int lane = 0; lane < kLanes; ++lane)
        for (int j = 0; j < Count; ++j) tiles[j].unpack(lane, Transposed, call.in[lane][1 + j]);
    for (int lane = 0; lane < 8 * Count; ++lane)
        call.store_shared(lane, call.in[lane][0], tiles[lane / 8].rows[lane % 8], 16);
}

// movmatrix.sync.aligned.m8n8.trans.b16
inline void movmatrix(WarpCall& call) {
    require_whole_warp(call);
    Tile tile;
    for (int lane = 0; lane < kLanes; ++lane) tile.unpack(lane, false, call.in[lane][0]);
    for (int lane = 0; lane < kLanes; ++lane) call.out[lane][0] = tile.packed_of(lane, true);
}

}  // namespace emu
