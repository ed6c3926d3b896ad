// Inputs of a 1 x 1 convolution with channels first, as they lie in x: a row is a channel, pixels side by side. The
// matrix load turns them over, so nothing has to pass through registers. Only for 16-bit elements, which it knows how
// to turn, and where no tap shifts pixels out of their pieces.
#pragma once

#include "conv/input_plan.cuh"
#include "conv/input_rows.cuh"
#include "conv/job.cuh"
#include "conv/prologue.cuh"

namespace conv {

// Copies of 4, 8 or 16 bytes, as copy_chunk.
template <int kBytes>
DEVICE void copy_piece(unsigned shared, const void* global, bool present) {
    static_assert(kAsynchronousCopies && (kBytes == 4 || kBytes == 8), "wider pieces are chunks");
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(shared), "l"(__cvta_generic_to_global(global)),
                 "n"(kBytes), "r"(present ? kBytes : 0)
                 : "memory");
#endif
}
template <class Piece>
DEVICE void store_piece(unsigned shared, const Piece& piece) {
    if constexpr (sizeof(Piece) == 16) {
        store_chunk(shared, reinterpret_cast<const uint4&>(piece));
    } else if constexpr (sizeof(Piece) == 8) {
        const uint2 words = reinterpret_cast<const uint2&>(piece);
        asm volatile("st.shared.v2.b32 [%0], {%1, %2};" ::"r"(shared), "r"(words.x), "r"(words.y) : "memory");
    } else if constexpr (sizeof(Piece) == 4) {
        asm volatile("st.shared.b32 [%0], %1;" ::"r"(shared), "r"(reinterpret_cast<const unsigned&>(piece)) : "memory");
    } else {
        asm volatile("st.shared.b16 [%0], %1;" ::"r"(shared), "h"(reinterpret_cast<const unsigned short&>(piece))
                     : "memory");
    }
}

// kCount pixels of a channel, at a multiple of their number, into their place in a row, past scale and activation.
template <int kCount>
DEVICE void load_piece(unsigned shared, const T* global, bool present, const InputChannel& channel, bool inside) {
    constexpr int kBytes = kCount * static_cast<int>(sizeof(T));
    if constexpr (!kPrologue && kBytes == kChunkBytes) {
        copy_chunk(shared, global, present);
    } else if constexpr (!kPrologue && kBytes >= 4 && kAsynchronousCopies) {
        copy_piece<kBytes>(shared, global, present);
    } else {
        struct alignas(kBytes) Piece {
            T value[kCount];
        };
        Piece piece;
#pragma unroll
        for (int i = 0; i < kCount; ++i) piece.value[i] = converted<T>(0.f);
        if (present) piece = *reinterpret_cast<const Piece*>(global);
        if constexpr (kPrologue) {
#pragma unroll
            for (int i = 0; i < kCount; ++i) {
                const float value = prologue(to_float(piece.value[i]), channel.scale, channel.shift);
                piece.value[i] = converted<T>(inside ? value : 0.f);
            }
        }
        store_piece(shared, piece);
    }
}

// Threads take the pieces of a channel in turn, then further channels.
template <class Rows, int kCount>
DEVICE void load_channels(unsigned rows, const Operands& operands, const Job& job, int input, int inputs) {
    constexpr unsigned kPieces = Rows::kInputs / kCount;
    const int filled = round_up(job.pixel_count, kMultiplied);
#pragma unroll 1
    for (unsigned n = loader_number(); n < inputs * kPieces; n += kLoaders) {
        const int row = n / kPieces, pixel = n % kPieces * kCount;
        if (pixel < filled) {
            const InputChannel channel = load_input(operands, job, input + row);
            const bool inside = pixel < job.pixel_count, present = inside && channel.channel >= 0;
            const Pixel place = pixel_of(job.pixel_begin + pixel);
            const T* global = operands.x + (present ? Input::offset(place.image, channel.channel, place.position) : 0);
            const unsigned byte = pixel * sizeof(T), place_in_row = Rows::offset(row, byte / kChunkBytes);
            load_piece<kCount>(rows + place_in_row + byte % kChunkBytes, global, present, channel, inside);
        }
    }
}

template <class Rows>
DEVICE void load_channels(unsigned rows, const Operands& operands, const Job& job, int input, int inputs) {
    const bool whole = (job.pixel_begin | job.pixel_count) % static_cast<unsigned>(kPiece) == 0;
    if (whole) {
        load_channels<Rows, kPiece>(rows, operands, job, input, inputs);
    } else {
        load_channels<Rows, 1>(rows, operands, job, input, inputs);
    }
}

}  // namespace conv
