// The transformed input of Winograd: overlapping tiles of x, B^T d B, each entry a matrix of channels x tiles.
#include "common/entry.cuh"
#include "conv/algorithms/block.cuh"
#include "conv/algorithms/geometry.cuh"
#include "conv/algorithms/winograd.cuh"

namespace algorithms {

constexpr int kThreads = THREADS;
constexpr unsigned kTilesAcross = ceil_div(kOutput.w, kTile);
constexpr unsigned kTiles = kTilesAcross * ceil_div(kOutput.h, kTile);
// A row of a matrix is padded with zeros to whole 16-byte pieces.
constexpr unsigned kPitch = PITCH;
constexpr unsigned kMatrix = kInputs * kPitch;
constexpr int kEntries = kTransformed * kTransformed;
static_assert(kPitch >= kTiles, "a row holds all tiles");

DEVICE void load_tile(float (&d)[kEntries], const T* plane, unsigned tile) {
    const int top = static_cast<int>(tile / kTilesAcross) * kTile - kPads.h;
    const int left = static_cast<int>(tile % kTilesAcross) * kTile - kPads.w;
#pragma unroll
    for (int i = 0; i < kEntries; ++i) {
        const Size at{0, top + i / kTransformed, left + i % kTransformed};
        d[i] = tile < kTiles && inside(at) ? to_float(__ldg(plane + offset_in(kInput, at))) : 0.0f;
    }
}

}  // namespace algorithms

// What a launch must give as dynamic shared memory; read from the compiled module.
extern "C" __device__ const int onnxopt_shared_bytes = 0;

// A thread transforms one tile of one channel.
extern "C" __global__ void __launch_bounds__(algorithms::kThreads, algorithms::kLeastBlocks)
    winograd_input(const algorithms::T* __restrict__ x, OTHER_TABLES(OTHERS_BEFORE)
                   OTHER_TABLES(OTHERS_AFTER) int batch, algorithms::T* __restrict__ transformed) {
    using namespace algorithms;
    const BlockWork work = block_work(batch);
    const unsigned number = work.job * kThreads + threadIdx.x;
    if (number >= kMatrix) return;
    const T* plane = of_element(x, work.element, kInputs * kInputPositions) + number / kPitch * kInputPositions;
    float d[kEntries];
    load_tile(d, plane, number % kPitch);
#pragma unroll
    for (int i = 0; i < kTransformed; ++i) transform_input<kTransformed>(d + i);
#pragma unroll
    for (int i = 0; i < kTransformed; ++i) transform_input<1>(d + i * kTransformed);
    T* own = of_element(transformed, work.element, kEntries * kMatrix) + number;
#pragma unroll
    for (int i = 0; i < kEntries; ++i) own[static_cast<size_t>(i) * kMatrix] = converted<T>(d[i]);
}
