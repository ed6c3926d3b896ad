// Products of 16 x 8 sums by the warp's matrix instruction, and how its operands come from shared memory.
//
// A step is 32 bytes deep: 16 channels of fp16 or bf16, 8 of tf32 or fp32. Lane 4 g + t holds of an operand
//   Rows      rows g and g + 8, words t and t + 4:  {(g, t), (g + 8, t), (g, t + 4), (g + 8, t + 4)}
//   Columns   column g, words t and t + 4
// where a word is two neighbouring 16-bit channels or one of 32 bits, and of the sums {(g, 2 t), (g, 2 t + 1),
// (g + 8, 2 t), (g + 8, 2 t + 1)}.
#pragma once

#include "common/element.cuh"

constexpr int kStepBytes = 32;

template <Element kElement>
constexpr bool kHalfPrecision = kElement == Element::fp16 || kElement == Element::bf16;

struct Rows {
    unsigned word[4];
};
struct Columns {
    unsigned word[2];
};

// The address that a lane gives for four 8 x 16-byte matrices: of 16 rows x 32 bytes they are {top left, bottom left,
// top right, bottom right}, which is the order of Rows, or, with `across`, {top left, top right, bottom left, bottom
// right}, the order of two Columns.
struct LanePlace {
    int row, chunk;
};
DEVICE LanePlace rows_place(int lane) { return {lane % 16, lane / 16}; }
DEVICE LanePlace columns_place(int lane) { return {lane % 8 + lane / 16 * 8, lane / 8 % 2}; }

DEVICE void load_matrices(unsigned (&word)[4], unsigned address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(word[0]), "=r"(word[1]), "=r"(word[2]), "=r"(word[3])
                 : "r"(address)
                 : "memory");
}

// Each matrix of 16-bit elements is turned over.
DEVICE void load_matrices_transposed(unsigned (&word)[4], unsigned address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(word[0]), "=r"(word[1]), "=r"(word[2]), "=r"(word[3])
                 : "r"(address)
                 : "memory");
}

DEVICE Rows load_rows(unsigned address) {
    Rows rows;
    load_matrices(rows.word, address);
    return rows;
}

struct ColumnPair {
    Columns first, second;
};
DEVICE ColumnPair paired(const unsigned (&word)[4]) { return {{word[0], word[1]}, {word[2], word[3]}}; }

// 16 columns that lie as rows in shared memory; the lane's address is that of columns_place.
DEVICE ColumnPair load_columns(unsigned address) {
    unsigned word[4];
    load_matrices(word, address);
    return paired(word);
}

// 16 columns of 16-bit elements that lie across 16 rows in shared memory; the lane's address is that of rows_place.
DEVICE ColumnPair load_columns_across(unsigned address) {
    unsigned word[4];
    load_matrices_transposed(word, address);
    return paired(word);
}

DEVICE unsigned load_word(unsigned address) {
    unsigned word;
    asm volatile("ld.shared.b32 %0, [%1];" : "=r"(word) : "r"(address) : "memory");
    return word;
}

// Two values in the compute type, the first in the low half.
template <Element kElement>
DEVICE unsigned packed(float first, float second) {
    unsigned word;
    if constexpr (kElement == Element::fp16) {
        const __half2 pair = __floats2half2_rn(first, second);
        word = reinterpret_cast<const unsigned&>(pair);
    } else {
        const __nv_bfloat162 pair = __floats2bfloat162_rn(first, second);
        word = reinterpret_cast<const unsigned&>(pair);
    }
    return word;
}

// To the nearest tf32, ties away from 0: the conversion instruction's result by two of the integer lanes.
DEVICE unsigned rounded_tf32(unsigned word) { return (word + 0x1000u) & 0xffffe000u; }

// An operand as the matrix instruction takes it. fp32 is the sum of two tf32 values, of which the second holds the
// digits that the first lacks; their product leaves out what is below 2^-22 of the whole.
template <Element kElement, int kWords>
struct Operand {
    unsigned word[kWords];
};
template <int kWords>
struct Operand<Element::fp32, kWords> {
    unsigned word[kWords], rest[kWords];
};

template <Element kElement, class Fragment>
DEVICE auto prepared(const Fragment& fragment) {
    constexpr int kWords = sizeof(Fragment) / 4;
    Operand<kElement, kWords> operand;
#pragma unroll
    for (int i = 0; i < kWords; ++i) {
        const unsigned word = fragment.word[i];
        if constexpr (kHalfPrecision<kElement>) {
            operand.word[i] = word;
        } else {
            operand.word[i] = rounded_tf32(word);
        }
        if constexpr (kElement == Element::fp32) {
            operand.rest[i] = __float_as_uint(__uint_as_float(word) - __uint_as_float(operand.word[i])) & 0xffffe000u;
        }
    }
    return operand;
}

#if __CUDA_ARCH__ >= 800
DEVICE void multiply_tf32(float (&sum)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
    asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
#endif

// sum += a b
template <Element kElement>
DEVICE void multiply(float (&sum)[4], const Operand<kElement, 4>& a, const Operand<kElement, 2>& b) {
#if __CUDA_ARCH__ >= 800
    if constexpr (kElement == Element::fp16) {
        asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
            "{%0, %1, %2, %3};"
            : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
            : "r"(a.word[0]), "r"(a.word[1]), "r"(a.word[2]), "r"(a.word[3]), "r"(b.word[0]), "r"(b.word[1]));
    } else if constexpr (kElement == Element::bf16) {
        asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
            "{%0, %1, %2, %3};"
            : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
            : "r"(a.word[0]), "r"(a.word[1]), "r"(a.word[2]), "r"(a.word[3]), "r"(b.word[0]), "r"(b.word[1]));
    } else if constexpr (kElement == Element::tf32) {
        multiply_tf32(sum, a.word, b.word);
    } else {
        // The small terms first, so that they are not rounded off one by one.
        multiply_tf32(sum, a.rest, b.word);
        multiply_tf32(sum, a.word, b.rest);
        multiply_tf32(sum, a.word, b.word);
    }
#else
    static_assert(kElement == Element::fp16, "before sm_80 the matrix instruction takes fp16");
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        asm("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
            : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
            : "r"(a.word[2 * half]), "r"(a.word[2 * half + 1]), "r"(b.word[half]));
    }
#endif
}
