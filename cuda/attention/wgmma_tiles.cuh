// The tiles of keys and values of a wgmma strip, as the producer fills them and the consumers find them.
#pragma once

#include "attention/gather_matrix.cuh"
#include "attention/job.cuh"
#include "attention/wgmma_pipeline.cuh"

namespace attention {

// A key's column of the run-time weights, and its weight.
struct WeighedColumn {
    int column;
    float weight;
};

// With run-time weights the tiles come twice, since an epsilon that is added to a weight counts from the row's largest
// score of all: the first walk finds that and the sum of the weights, the second one sums up values.
constexpr int kWalks = kWeights ? 2 : 1;

// Offsets in shared memory.
struct TileMemory {
    int keys, values, weights, ring, end;
};
constexpr TileMemory tile_memory(int begin, Shape shape, int value_columns) {
    TileMemory memory{};
    memory.keys = round_up(begin, kTileAlignment);
    memory.values = round_up(memory.keys + shape.stages * shape.keys * kPaddedWidth * 2, kTileAlignment);
    memory.weights = memory.values + shape.stages * shape.keys * value_columns * 2;
    memory.ring = memory.weights + (kWeights ? shape.stages * shape.keys * sizeof(WeighedColumn) : 0);
    memory.end = memory.ring + ring_bytes(shape.stages);
    return memory;
}

// Steps count the tiles of all walks. Of the last tile only whole units of kUnit keys are filled.
template <int kShape, int kBegin, int kValueColumns, int kUnit>
class WgmmaTiles {
    static constexpr Shape kStrip = kShapes[kShape];
    static constexpr TileMemory kMemory = tile_memory(kBegin, kStrip, kValueColumns);

public:
    static constexpr int kKeys = kStrip.keys;
    using KeyTile = MatrixTile<kKeys, kPaddedWidth>;
    using ValueTile = MatrixTile<kKeys, kValueColumns>;

    DEVICE WgmmaTiles(const Operands& operands, const Job& job, unsigned char* shared)
        : ring{shared_address(shared) + kMemory.ring},
          operands_(operands),
          job_(job),
          shared_(shared),
          count_(ceil_div(job.key_count, kKeys)) {}

    DEVICE int count() const { return count_; }
    DEVICE int tile_of(int step) const { return kWalks == 1 || step < count_ ? step : step - count_; }
    // Keys of the strip from a tile on.
    DEVICE int keys_from(int tile) const { return job_.key_count - tile * kKeys; }

    DEVICE KeyTile keys(int step) const {
        return {shared_address(shared_) + kMemory.keys + stage_of<kStrip.stages>(step) * KeyTile::kBytes};
    }
    DEVICE ValueTile values(int step) const {
        return {shared_address(shared_) + kMemory.values + stage_of<kStrip.stages>(step) * ValueTile::kBytes};
    }
    DEVICE WeighedColumn* weights(int step) const {
        return reinterpret_cast<WeighedColumn*>(shared_ + kMemory.weights) + stage_of<kStrip.stages>(step) * kKeys;
    }

    // By the producer.
    DEVICE void produce() const {
        const int thread = threadIdx.x % kWarpgroupThreads;
        Producer<kStrip.stages> producer(ring);
        for (int step = 0; step < kWalks * count_; ++step) {
            const int first = tile_of(step) * kKeys, count = job_.key_count - first;
            const int filled = min(round_up(count, kUnit), kKeys);
            producer.begin_item();
            gather_matrix<KeyChannels>(keys(step), operands_.k + job_.k_shift,
                                       operands_.keys + job_.key_begin + first, count, filled, thread);
            if constexpr (kWeights) fill_weights(step, job_.key_begin + first, count, thread);
            producer.end_item();
            producer.begin_item();
            if (kWalks == 1 || step >= count_) {
                gather_matrix<ValueChannels>(values(step), operands_.v + job_.v_shift,
                                             operands_.values + job_.value_begin + first, count, filled, thread);
            }
            producer.end_item();
        }
        producer.finish();
    }

    // Both items of a step that has nothing more to give to this warp.
    DEVICE void pass_over(int step) const {
        for (int item = 2 * step; item < 2 * step + 2; ++item) {
            ring.wait_until_filled(item);
            ring.release(item);
        }
    }

    const Ring<kStrip.stages> ring;

private:
    DEVICE void fill_weights(int step, int first, int count, int thread) const {
        WeighedColumn* tile = weights(step);
        for (int key = thread; key < kKeys; key += kWarpgroupThreads) {
            const int column = key < count ? __ldg(operands_.columns + first + key) : -1;
            tile[key] = {column, column < 0 ? 0.f : __ldg(operands_.weight + column)};
        }
    }

    const Operands& operands_;
    const Job& job_;
    unsigned char* shared_;
    int count_;
};

}  // namespace attention
