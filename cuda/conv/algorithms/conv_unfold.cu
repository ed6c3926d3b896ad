// columns of im2col: for every input channel and tap the positions of x that it meets, in the order of y's.
#include "common/entry.cuh"
#include "conv/algorithms/block.cuh"
#include "conv/algorithms/geometry.cuh"

namespace algorithms {

constexpr int kThreads = THREADS;
// A row of columns is padded with zeros to whole 16-byte pieces, and a thread writes one piece.
constexpr int kPiece = 16 / sizeof(T);
constexpr unsigned kPieces = PITCH / kPiece;
constexpr unsigned kRows = kInputs * kTaps;
static_assert(PITCH % kPiece == 0 && PITCH >= kOutputPositions, "rows are whole pieces");

struct alignas(16) Piece {
    T values[kPiece];
};

DEVICE Piece unfolded(const T* x, unsigned row, unsigned first) {
    const T* plane = x + row / kTaps * static_cast<unsigned>(kInputPositions);
    const Size tap = place_in(kKernel, row % kTaps);
    Piece piece;
#pragma unroll
    for (int i = 0; i < kPiece; ++i) {
        const unsigned position = first + i;
        const Size at = read_place(place_in(kOutput, position), tap);
        const bool read = position < kOutputPositions && inside(at);
        piece.values[i] = read ? __ldg(plane + offset_in(kInput, at)) : converted<T>(0.0f);
    }
    return piece;
}

}  // namespace algorithms

// What a launch must give as dynamic shared memory; read from the compiled module.
extern "C" __device__ const int onnxopt_shared_bytes = 0;

extern "C" __global__ void __launch_bounds__(algorithms::kThreads, algorithms::kLeastBlocks)
    conv_unfold(const algorithms::T* __restrict__ x, OTHER_TABLES(OTHERS_BEFORE) OTHER_TABLES(OTHERS_AFTER) int batch,
                algorithms::T* __restrict__ columns) {
    using namespace algorithms;
    const BlockWork work = block_work(batch);
    const unsigned number = work.job * kThreads + threadIdx.x;
    const unsigned row = number / kPieces, first = number % kPieces * kPiece;
    if (row >= kRows) return;
    const Piece piece = unfolded(of_element(x, work.element, kInputs * kInputPositions), row, first);
    *reinterpret_cast<Piece*>(of_element(columns, work.element, kRows * PITCH) + row * PITCH + first) = piece;
}
