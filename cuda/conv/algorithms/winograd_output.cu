// y of Winograd: A^T [products] A of every tile, with what follows the sum.
#include "common/entry.cuh"
#include "conv/algorithms/block.cuh"
#include "conv/algorithms/epilogue.cuh"
#include "conv/algorithms/geometry.cuh"
#include "conv/algorithms/winograd.cuh"

namespace algorithms {

constexpr int kThreads = THREADS;
constexpr unsigned kTilesAcross = ceil_div(kOutput.w, kTile);
constexpr unsigned kTiles = kTilesAcross * ceil_div(kOutput.h, kTile);
constexpr unsigned kMatrix = kOutputs * kTiles;
constexpr int kEntries = kTransformed * kTransformed;

}  // namespace algorithms

// What a launch must give as dynamic shared memory; read from the compiled module.
extern "C" __device__ const int onnxopt_shared_bytes = 0;

// A thread makes one tile of one channel; products are entries x channels x tiles.
extern "C" __global__ void __launch_bounds__(algorithms::kThreads, algorithms::kLeastBlocks)
    winograd_output(const float* __restrict__ products, RESIDUAL_PARAMETER(algorithms::T) OTHER_TABLES(OTHERS_BEFORE)
                    const float* __restrict__ b, OTHER_TABLES(OTHERS_AFTER) int batch, algorithms::T* __restrict__ y) {
    using namespace algorithms;
    const BlockWork work = block_work(batch);
    const unsigned number = work.job * kThreads + threadIdx.x;
    if (number >= kMatrix) return;
    const float* own = of_element(products, work.element, kEntries * kMatrix) + number;
    float sums[kEntries];
#pragma unroll
    for (int i = 0; i < kEntries; ++i) sums[i] = __ldg(own + static_cast<size_t>(i) * kMatrix);
#pragma unroll
    for (int i = 0; i < kTransformed; ++i) transform_output<kTransformed>(sums + i);
#pragma unroll
    for (int i = 0; i < kTile; ++i) transform_output<1>(sums + i * kTransformed);
    const auto target = target_of(y, RESIDUAL_POINTER, b, work.element, kOutputs * kOutputPositions);
    const int output = number / kTiles, tile = number % kTiles;
    const int top = tile / kTilesAcross * kTile, left = tile % kTilesAcross * kTile;
#pragma unroll
    for (int i = 0; i < kTile * kTile; ++i) {
        const int row = top + i / kTile, column = left + i % kTile;
        if (row < kOutput.h && column < kOutput.w) {
            const float sum = sums[i / kTile * kTransformed + i % kTile];
            target.store(output, (output * kOutput.h + row) * kOutput.w + column, sum);
        }
    }
}
