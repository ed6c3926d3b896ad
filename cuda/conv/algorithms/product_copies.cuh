// How the tiles of a product come to shared memory: asynchronously in the largest pieces that rows of columns allow.
#pragma once

#include "common/copy.cuh"
#include "conv/algorithms/product_config.cuh"

namespace algorithms {

// A row of columns begins at a multiple of the pitch, so pieces may be as large as divides it.
constexpr int kPieceBytes = kPitch * kBytes % 16 == 0  ? 16
                            : kPitch * kBytes % 8 == 0 ? 8
                            : kPitch * kBytes % 4 == 0 ? 4
                                                       : 2;
constexpr int kPiece = kPieceBytes / kBytes;

// As copy_chunk, of 4 or 8 bytes.
template <int kCopied>
DEVICE void copy_words(unsigned shared, const void* global, bool present) {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(shared), "l"(__cvta_generic_to_global(global)),
                 "n"(kCopied), "r"(present ? kCopied : 0)
                 : "memory");
#else
#pragma unroll
    for (int i = 0; i < kCopied / 4; ++i) {
        const unsigned word = present ? __ldg(static_cast<const unsigned*>(global) + i) : 0;
        asm volatile("st.shared.b32 [%0], %1;" ::"r"(shared + 4 * i), "r"(word) : "memory");
    }
#endif
}

// One piece; what is not `present` becomes zeros. No copy is shorter than 4 bytes: single 16-bit elements pass through
// a register.
DEVICE void copy_piece(unsigned shared, const T* global, bool present) {
    if constexpr (kPieceBytes == 16) {
        copy_chunk(shared, global, present);
    } else if constexpr (kPieceBytes > 2) {
        copy_words<kPieceBytes>(shared, global, present);
    } else {
        const unsigned short bits = present ? __ldg(reinterpret_cast<const unsigned short*>(global)) : 0;
        asm volatile("st.shared.b16 [%0], %1;" ::"r"(shared), "h"(bits) : "memory");
    }
}

// The tiles of one block: where its rows of w and its columns lie, and how many of each there are.
struct Tiles {
    const T *weights, *columns;
    int rows, positions;

    DEVICE void load(unsigned stage, int step) const {
        load_weights(stage, step);
        load_columns(stage + kColumnsBegin, step);
    }

private:
    DEVICE void load_weights(unsigned stage, int step) const {
        constexpr int kChunks = kDepthBytes / 16;
#pragma unroll
        for (int first = 0; first < kBlockRows * kChunks; first += kThreads) {
            const int number = first + threadIdx.x, row = number / kChunks, chunk = number % kChunks;
            if (kBlockRows * kChunks % kThreads != 0 && row >= kBlockRows) break;
            const bool present = row < rows;
            const int depth = step * kBlockDepth + chunk * (16 / kBytes);
            const T* from = weights + static_cast<size_t>(row) * kWeightPitch + depth;
            copy_chunk(stage + row * kWeightRow + chunk * 16, present ? from : weights, present);
        }
    }

    DEVICE void load_columns(unsigned tile, int step) const {
        constexpr int kPieces = kBlockPositions / kPiece;
#pragma unroll 4
        for (int first = 0; first < kBlockDepth * kPieces; first += kThreads) {
            const int number = first + threadIdx.x, row = number / kPieces, piece = number % kPieces;
            if (kBlockDepth * kPieces % kThreads != 0 && row >= kBlockDepth) break;
            const int depth = step * kBlockDepth + row;
            const bool present = depth < kDepth && piece * kPiece < positions;
            const T* from = columns + static_cast<size_t>(depth) * kPitch + piece * kPiece;
            copy_piece(tile + row * kColumnRow + piece * kPieceBytes, present ? from : columns, present);
        }
    }
};

}  // namespace algorithms
