// Matrix products of im2col, kn2row and Winograd: w columns on the matrix unit, as float32 sums or finished as y.
#include "common/entry.cuh"
#include "conv/algorithms/block.cuh"
#include "conv/algorithms/epilogue.cuh"
#include "conv/algorithms/product_copies.cuh"
#include "conv/algorithms/product_sums.cuh"

namespace algorithms {

// Which matrix, and where its tile begins. Tiles of neighbouring rows follow each other: they share their columns.
struct TilePlace {
    int matrix, row, position;
};
DEVICE TilePlace tile_place(unsigned job) {
    const unsigned tile = job % (kRowTiles * kPositionTiles);
    return {static_cast<int>(job / (kRowTiles * kPositionTiles)), static_cast<int>(tile % kRowTiles) * kBlockRows,
            static_cast<int>(tile / kRowTiles) * kBlockPositions};
}

DEVICE void make_sums(Sums& sums, const Tiles& tiles, unsigned shared, const WarpPlace& place) {
#pragma unroll
    for (int step = 0; step < kStages - 1; ++step) {
        if (step < kSteps) tiles.load(shared + step * kStageBytes, step);
        commit_copies();
    }
#pragma unroll 1
    for (int step = 0; step < kSteps; ++step) {
        wait_copies<kStages - 2>();
        // Behind it every thread's copies have landed, and the stage that is loaded next has been read.
        __syncthreads();
        const int next = step + kStages - 1;
        if (next < kSteps) tiles.load(shared + next % kStages * kStageBytes, next);
        commit_copies();
        const unsigned stage = shared + step % kStages * kStageBytes;
        add_products<kLanes>(sums, stage, stage + kColumnsBegin, place);
    }
}

// Two neighbours at once where every row begins at an even place.
constexpr bool kPairs = kPositions % 2 == 0;

// Hands the sums of this lane that exist to `store(row, position, first, second)`, two neighbouring positions; the
// second does not exist where the first is the last of its row.
template <class Store>
DEVICE void store_sums(const Sums& sums, const TilePlace& tile, const WarpPlace& place, const Store& store) {
    const int row = tile.row + place.row + place.lane / 4;
    const int position = tile.position + place.position + place.lane % 4 * 2;
#pragma unroll
    for (int i = 0; i < kGranules * kBlocks * 2; ++i) {
        const int granule = i / (2 * kBlocks), block = i / 2 % kBlocks, half = i % 2;
        const int at_row = row + 16 * granule + 8 * half, at = position + 8 * block;
        const float(&own)[4] = sums[granule][block];
        if (at_row < kRows && at < kPositions) store(at_row, at, own[2 * half], own[2 * half + 1]);
    }
}

}  // namespace algorithms

// What a launch must give as dynamic shared memory; read from the compiled module.
extern "C" __device__ const int onnxopt_shared_bytes = algorithms::kSharedBytes;

#if RAW
#define BIAS_PARAMETER
#define OUTPUT float* __restrict__ products
#else
#define BIAS_PARAMETER const float* __restrict__ b,
#define OUTPUT algorithms::T* __restrict__ y
#endif

// `columns` are matrices x depth x pitch; `w` is matrices x rows x depth in whole steps; results are matrices x rows x
// positions.
extern "C" __global__ void __launch_bounds__(algorithms::kThreads, algorithms::kLeastBlocks)
    conv_product(const algorithms::T* __restrict__ columns, RESIDUAL_PARAMETER(algorithms::T)
                 OTHER_TABLES(OTHERS_BEFORE) const algorithms::T* __restrict__ w, BIAS_PARAMETER
                 OTHER_TABLES(OTHERS_AFTER) int batch, OUTPUT) {
    using namespace algorithms;
    extern __shared__ __align__(128) unsigned char shared[];
    const BlockWork work = block_work(batch);
    const TilePlace tile = tile_place(work.job);
    const WarpPlace place = warp_place();
    const T* matrix = of_element(columns, work.element, kMatrices * kDepth * kPitch) +
                      static_cast<size_t>(tile.matrix) * kDepth * kPitch + tile.position;
    const T* weights = w + (static_cast<size_t>(tile.matrix) * kRows + tile.row) * kWeightPitch;
    Sums sums = {};
    make_sums(sums, {weights, matrix, kRows - tile.row, kPositions - tile.position}, shared_address(shared), place);
#if RAW
    float* own = of_element(products, work.element, kMatrices * kRows * kPositions) +
                 static_cast<size_t>(tile.matrix) * kRows * kPositions;
    store_sums(sums, tile, place, [=](int row, int position, float first, float second) {
        float* at = own + row * kPositions + position;
        if constexpr (kPairs) {
            *reinterpret_cast<float2*>(at) = {first, second};
        } else {
            at[0] = first;
            if (position + 1 < kPositions) at[1] = second;
        }
    });
#else
    const auto target = target_of(y, RESIDUAL_POINTER, b, work.element, kRows * kPositions);
    store_sums(sums, tile, place, [=](int row, int position, float first, float second) {
        const int at = row * kPositions + position;
        if constexpr (kPairs) {
            target.store_pair(row, at, first, second);
        } else {
            target.store(row, at, first);
            if (position + 1 < kPositions) target.store(row, at + 1, second);
        }
    });
#endif
}
