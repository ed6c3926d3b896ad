// Shared memory of a wgmma strip with its keys on the M side.
#pragma once

#include "attention/store.cuh"
#include "attention/wgmma_columns.cuh"

namespace attention {

// The M side of the second product is 64 channels.
constexpr int kPanels = ceil_div(kValueWidth, 64);

// Offsets: queries first, and results in their place; then the probabilities of each warpgroup, its largest scores, and
// what all of them agree on at the end.
struct WgmmaSwappedMemory {
    int probabilities, largest, whole, bytes;
    TileMemory tiles;
};

constexpr int swapped_tiles_begin(Shape shape) {
    const int queries = round_up(shape.rows * larger(kPaddedWidth, kPaddedValueWidth) * 2, kTileAlignment);
    return queries + shape.keys * shape.rows * 2;
}

constexpr WgmmaSwappedMemory wgmma_swapped_memory(Shape shape) {
    WgmmaSwappedMemory memory{};
    memory.probabilities = swapped_tiles_begin(shape) - shape.keys * shape.rows * 2;
    memory.tiles = tile_memory(swapped_tiles_begin(shape), shape, 64 * kPanels);
    memory.largest = memory.tiles.end;
    memory.whole = memory.largest + kGroups * shape.rows * 8;
    memory.bytes = memory.whole + shape.rows * 8;
    return memory;
}

constexpr int wgmma_swapped_shared_bytes(Shape shape) { return wgmma_swapped_memory(shape).bytes; }

// Where the parts of it are that consumers share.
template <int kShape>
class SwappedPlaces {
    static constexpr WgmmaSwappedMemory kMemory = wgmma_swapped_memory(kShapes[kShape]);
    static constexpr int kRows = kShapes[kShape].rows;

public:
    using Probabilities = MatrixTile<64, kRows>;
    using Largest = LargestScores<kRows>;

    DEVICE explicit SwappedPlaces(unsigned char* shared) : shared_(shared) {}

    DEVICE MatrixTile<kRows, kPaddedWidth> queries() const { return {shared_address(shared_)}; }
    DEVICE Probabilities probabilities(int group) const {
        return {shared_address(shared_) + kMemory.probabilities + group * Probabilities::kBytes};
    }
    DEVICE Largest largest(int group) const {
        return {reinterpret_cast<int*>(shared_ + kMemory.largest + group * Largest::kBytes)};
    }
    // Of a query, over all keys: the largest score, and the sum of the weights relative to it.
    DEVICE float& whole_largest(int query) const { return floats(kMemory.whole)[query]; }
    DEVICE float& whole_sum(int query) const { return floats(kMemory.whole)[kRows + query]; }

    // Once no product reads them: a sum of each query from each warp, in place of the probabilities, and sums of a
    // warpgroup's products, in place of the tiles.
    DEVICE float& warp_sum(int warp, int query) const { return floats(kMemory.probabilities)[warp * kRows + query]; }
    DEVICE float& product_sum(int number, int thread) const {
        static_assert(kGroups == 1 || kMemory.tiles.weights - kMemory.tiles.keys >= kPanels * 64 * kRows * 4,
                      "the sums of a warpgroup fit in the tiles' place");
        return floats(kMemory.tiles.keys)[number * kWarpgroupThreads + thread];
    }
    DEVICE T& result(int row, int channel) const {
        const int place = ResultTile<>::offset(row, channel / 8) + channel % 8 * 2;
        return *reinterpret_cast<T*>(shared_ + place);
    }
    DEVICE unsigned results() const { return shared_address(shared_); }

private:
    DEVICE float* floats(int offset) const { return reinterpret_cast<float*>(shared_ + offset); }

    unsigned char* shared_;
};

}  // namespace attention
