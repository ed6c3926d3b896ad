// The batches of a wgmma tile in shared memory: as the producer fills them and the consumers find them.
#pragma once

#include "conv/batch.cuh"
#include "conv/load_inputs.cuh"
#include "conv/mma_store.cuh"
#include "conv/wgmma_pipeline.cuh"

namespace conv {

// Where everything lies, in bytes from the begin of shared memory. Results take the place of what was multiplied.
struct WgmmaLayout {
    // One for each remainder modulo 8 of the row that it stands for, so that it shares that row's banks.
    static constexpr int kZeroRows = 8;

    int weights, zeros, ring, end;
    int input_slot, weight_slot, input_slots;

    static constexpr WgmmaLayout of(Shape shape) {
        const InputPlan plan = InputPlan::of(shape);
        const int pitch = shape.inputs * static_cast<int>(sizeof(T));
        WgmmaLayout layout{};
        layout.input_slot = plan.rows * pitch;
        layout.weight_slot = plan.batch * shape.outputs * pitch;
        // The groups of `stages` batches in a row.
        layout.input_slots = 1 + ceil_div(shape.stages - 1, plan.batches_in_group());
        layout.weights = layout.input_slots * layout.input_slot;
        layout.zeros = layout.weights + shape.stages * layout.weight_slot;
        layout.ring = layout.zeros + (plan.run ? kZeroRows * pitch : 0);
        layout.end = layout.ring + 2 * shape.stages * ArrivalBarrier::kBytes;
        return layout;
    }
};

// A warp has 16 pixels, and stores its sums past a piece of shared memory of its own.
constexpr int kWarpPixels = 16;
constexpr int wgmma_stage_bytes(Shape shape) {
    return shape.outputs == 8 ? Stage<kWarpPixels, 1>::kBytes : Stage<kWarpPixels, 2>::kBytes;
}

constexpr int wgmma_shared_bytes(Shape shape) {
    return larger(WgmmaLayout::of(shape).end, kWarps * wgmma_stage_bytes(shape));
}

template <int kNumber>
class WgmmaMemory {
public:
    static constexpr Shape kShape = kShapes[kNumber];
    static constexpr InputPlan kPlan = InputPlan::of(kShape);
    static constexpr WgmmaLayout kLayout = WgmmaLayout::of(kShape);
    // The products' instructions have widths that the compiler must know: a tile of few outputs is computed in the least
    // that holds them, in quarters of the shape's outputs.
    static constexpr int kWidthStep = kShape.outputs % 64 == 0 ? kShape.outputs / 4 : kShape.outputs / 2;
    using Rows = InputRows<kShape.inputs>;
    using WeightTile = MatrixTile<kShape.outputs, kShape.inputs>;
    // Inputs that come as they lie in x, or as a row for each pixel.
    using ChannelTile = MatrixTile<kShape.inputs, kShape.pixels>;
    using PixelTile = MatrixTile<kShape.pixels, kShape.inputs>;
    static_assert(WeightTile::kPitch == Rows::kPitch && PixelTile::kPitch == Rows::kPitch, "a row is one block");
    static_assert(kLayout.weights % WeightTile::kAlignment == 0 && WeightTile::kBytes % WeightTile::kAlignment == 0 &&
                      kLayout.input_slot % WeightTile::kAlignment == 0,
                  "chunks are exchanged by address bits");

    DEVICE WgmmaMemory(const Operands& operands, const Job& job, unsigned char* shared)
        : ring{shared_address(shared) + kLayout.ring}, operands_(operands), job_(job), base_(shared_address(shared)),
          outputs_(round_up(job.output_count, 8)), inputs_(round_up(job.input_count, 16)) {}

    // Batches of the whole walk.
    DEVICE int count() const { return ceil_div(job_.input_count, kShape.inputs) * kPlan.batches(); }
    DEVICE Batch batch(int i) const { return batch_of<kNumber>(i, inputs_); }

    DEVICE unsigned inputs(const Batch& batch) const {
        return base_ + batch.group_number % static_cast<unsigned>(kLayout.input_slots) * kLayout.input_slot;
    }
    // Of a tap, by its number in the batch.
    DEVICE WeightTile weights(unsigned i, int tap) const {
        return {base_ + kLayout.weights + i % kShape.stages * kLayout.weight_slot + tap * WeightTile::kBytes};
    }
    DEVICE unsigned zeros() const { return base_ + kLayout.zeros; }

    // By the whole block.
    DEVICE void write_zeros() const {
        constexpr int kChunks = WgmmaLayout::kZeroRows * Rows::kChunks;
        if (kPlan.run && threadIdx.x < kChunks) store_chunk(zeros() + threadIdx.x * kChunkBytes, uint4{0, 0, 0, 0});
    }

    // By the producer.
    DEVICE void produce() const {
        const InputLoader<kNumber> loader(operands_, job_);
        Producer<kShape.stages> producer(ring);
#pragma unroll 1
        for (int i = 0; i < count(); ++i) {
            const Batch own = batch(i);
            producer.begin_item();
            load_weights(i, own);
            if (own.first) loader.load(inputs(own), own.input, own.inputs, own.group);
            producer.end_item();
        }
        producer.finish();
    }

    const Ring<kShape.stages> ring;

private:
    // Outputs that are multiplied and that the part does not have are zeros.
    DEVICE void load_weights(int i, const Batch& batch) const {
        constexpr int kPass = kLoaders / Rows::kChunks;
        const int chunk = loader_number() % Rows::kChunks, first = loader_number() / Rows::kChunks;
        if (chunk >= filled_chunks(batch.inputs)) return;
        const int multiplied = round_up(outputs_, kWidthStep);
        const T* piece = operands_.w + job_.weight_begin + batch.input + chunk * kChunkInputs;
#pragma unroll 1
        for (int tap = 0; tap < batch.taps; ++tap) {
            const unsigned rows = weights(i, tap).address;
            const T* rows_in_w = piece + static_cast<ptrdiff_t>(batch.tap + tap) * outputs_ * inputs_;
#pragma unroll 1
            for (int output = first; output < multiplied; output += kPass) {
                const bool present = output < outputs_;
                copy_chunk(rows + Rows::offset(output, chunk), rows_in_w + (present ? output * inputs_ : 0), present);
            }
        }
    }

    const Operands& operands_;
    const Job& job_;
    unsigned base_;
    int outputs_, inputs_;
};

}  // namespace conv
