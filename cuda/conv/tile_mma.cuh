// A tile by mma.sync: pixels on the M side, outputs on the N side, inputs times taps the depth. Each warp has granules
// of 16 pixels and all outputs, so that it reads each of its pixels once a tap.
//
// The tile is walked in steps of inputs, each in batches of taps: a batch is what comes between two barriers. While
// one is computed, the weights of the next `stages` - 1 are under way, and the inputs of the next group of taps.
#pragma once

#include "conv/batch.cuh"
#include "conv/load_inputs.cuh"
#include "conv/mma_store.cuh"
#include "conv/products.cuh"

namespace conv {

// Where everything lies, in bytes from the begin of shared memory. Results take the place of what was multiplied.
struct MmaLayout {
    // One for each remainder modulo 8 of the row that it stands for, so that it shares that row's banks.
    static constexpr int kZeroRows = 8;

    int inputs, weights, zeros, end;
    int input_slot, weight_slot, input_slots;

    // Pixels of a warp, and what the instruction computes of the outputs, in blocks of 8.
    static constexpr int pixels(Shape shape) { return shape.pixels / kWarps; }
    static constexpr int blocks(Shape shape) { return shape.outputs == 8 ? 1 : round_up(shape.outputs, 16) / 8; }

    static constexpr MmaLayout of(Shape shape) {
        const InputPlan plan = InputPlan::of(shape);
        const int pitch = shape.inputs * static_cast<int>(sizeof(T));
        MmaLayout layout{};
        layout.input_slot = plan.rows * pitch;
        layout.weight_slot = plan.batch * 8 * blocks(shape) * pitch;
        // The groups of `stages` batches in a row.
        layout.input_slots = 1 + ceil_div(shape.stages - 1, plan.batches_in_group());
        layout.weights = layout.inputs + layout.input_slots * layout.input_slot;
        layout.zeros = layout.weights + shape.stages * layout.weight_slot;
        layout.end = layout.zeros + (plan.run ? kZeroRows * pitch : 0);
        return layout;
    }

    static constexpr int stage_bytes(Shape shape) {
        const int outputs = blocks(shape) == 1 ? 8 : 16;
        return 4 * (kLast ? pixels(shape) * (outputs == 8 ? 8 : 24) : outputs * (pixels(shape) + 4));
    }
};

constexpr int mma_shared_bytes(Shape shape) {
    return larger(MmaLayout::of(shape).end, kWarps * MmaLayout::stage_bytes(shape));
}

template <int kNumber>
class MmaTile {
    static constexpr Shape kShape = kShapes[kNumber];
    static constexpr InputPlan kPlan = InputPlan::of(kShape);
    static constexpr MmaLayout kLayout = MmaLayout::of(kShape);
    static constexpr int kPixels = MmaLayout::pixels(kShape);
    static constexpr int kGranules = kPixels / kGranule;
    static constexpr int kBlocks = MmaLayout::blocks(kShape);
    static constexpr int kPairsOfBlocks = ceil_div(kBlocks, 2);
    static constexpr int kInputGranules = kShape.inputs / kGranule;
    static_assert(kShape.pixels % (kGranule * kWarps) == 0 && kPixels <= 32, "each warp has one or two granules");
    static_assert(kShape.outputs % 8 == 0, "outputs are computed eight at a time");
    static_assert(MmaLayout::stage_bytes(kShape) == Stage<kPixels, kBlocks>::kBytes, "results fit their place");

    using Rows = InputRows<kShape.inputs>;
    using Sums = typename Products<Rows, kGranules, kBlocks>::Sums;
    using Channels = InputRows<kPlan.channels ? kShape.pixels : 64>;
    using Pixels = typename Choice<kPlan.channels, ChannelPixels<Channels>, PositionPixels<Rows>>::type;

public:
    DEVICE MmaTile(const Operands& operands, const Job& job, unsigned char* shared)
        : operands_(operands), job_(job), shared_(shared), base_(shared_address(shared)), loader_(operands, job),
          warp_(threadIdx.x / 32), lane_(threadIdx.x % 32),
          granules_(max(0, min(kGranules, (job.pixel_count - warp_ * kPixels + kGranule - 1) / kGranule))),
          outputs_(round_up(job.output_count, 8)), inputs_(round_up(job.input_count, kGranule)),
          count_(ceil_div(job.input_count, kShape.inputs) * kPlan.batches()) {}

    DEVICE void compute() {
        if constexpr (kPlan.run) {
            write_zeros();
            find_pixels();
        }
#pragma unroll
        for (int i = 0; i < kShape.stages - 1; ++i) load(i);
#pragma unroll 1
        for (int i = 0; i < count_; ++i) {
            if constexpr (kShape.stages == 1) {
                if (i > 0) __syncthreads();
                load(i);
            }
            wait_copies<larger(kShape.stages - 2, 0)>();
            __syncthreads();
            if constexpr (kShape.stages > 1) load(i + kShape.stages - 1);
            if (granules_ > 0) multiply(i);
        }
        __syncthreads();
        if (granules_ > 0) {
            float* stage = reinterpret_cast<float*>(shared_ + warp_ * MmaLayout::stage_bytes(kShape));
            WarpStore<kPixels, kBlocks>(operands_, job_, stage, warp_ * kPixels, lane_).store(sums_);
        }
    }

private:
    DEVICE Batch batch_of(unsigned i) const { return conv::batch_of<kNumber>(i, inputs_); }

    DEVICE unsigned input_rows(const Batch& batch) const {
        const unsigned slot = batch.group_number % static_cast<unsigned>(kLayout.input_slots);
        return base_ + kLayout.inputs + slot * kLayout.input_slot;
    }
    DEVICE unsigned weight_rows(unsigned i) const {
        return base_ + kLayout.weights + i % kShape.stages * kLayout.weight_slot;
    }

    // Starts the copies of a batch, as a group of this thread's, and does what cannot be copied as it is.
    DEVICE void load(int i) const {
        if (i < count_) {
            const Batch batch = batch_of(i);
            load_weights(weight_rows(i), batch);
            if (batch.first) loader_.load(input_rows(batch), batch.input, batch.inputs, batch.group);
        }
        commit_copies();
    }

    // Pairs of blocks are read at once, so rows behind an odd last block are zeros.
    DEVICE void load_weights(unsigned rows, const Batch& batch) const {
        constexpr int kRows = 8 * kBlocks, kPass = kThreads / Rows::kChunks;
        const int chunk = threadIdx.x % Rows::kChunks;
        if (chunk >= filled_chunks(batch.inputs)) return;
        const int filled = kBlocks == 1 ? 8 : round_up(outputs_, 16);
        const T* piece = operands_.w + job_.weight_begin + batch.input + chunk * kChunkInputs;
#pragma unroll 1
        for (unsigned n = threadIdx.x / Rows::kChunks; n < batch.taps * kRows; n += kPass) {
            const int output = n % kRows, tap = n / kRows;
            if (output < filled) {
                const bool present = output < outputs_;
                const ptrdiff_t row = static_cast<ptrdiff_t>((batch.tap + tap) * outputs_ + output) * inputs_;
                copy_chunk(rows + Rows::offset(n, chunk), piece + (present ? row : 0), present);
            }
        }
    }

    DEVICE void write_zeros() const {
        constexpr int kChunks = MmaLayout::kZeroRows * Rows::kChunks;
        for (int chunk = threadIdx.x; chunk < kChunks; chunk += kThreads) {
            store_chunk(base_ + kLayout.zeros + chunk * kChunkBytes, uint4{0, 0, 0, 0});
        }
    }

    // The tile's number of the pixel that is the lane's number `i` of a granule.
    DEVICE int pixel_number(int granule, int i) const {
        return warp_ * kPixels + granule * kGranule + own_pixel(lane_, i);
    }

    DEVICE void find_pixels() {
#pragma unroll
        for (int n = 0; n < kGranules * kOwnPixels; ++n) {
            const int number = pixel_number(n / kOwnPixels, n % kOwnPixels);
            const Pixel pixel = pixel_of(job_.pixel_begin + number);
            Place& place = places_[n / kOwnPixels][n % kOwnPixels];
            place = place_of(pixel.position);
            images_[n / kOwnPixels][n % kOwnPixels] = pixel.image;
            // Pixels that do not exist are outside, whatever the tap.
            if (number >= job_.pixel_count) place.w = kOutside;
        }
    }

    // Where the inputs of the lane's pixels begin, at a tap.
    DEVICE void find_rows(ChannelPixels<Channels> (&pixels)[kGranules], unsigned rows, const Batch&, int) const {
        const LanePlace place = columns_place(lane_);
#pragma unroll
        for (int i = 0; i < kGranules; ++i) {
            const int chunk = (warp_ * kPixels + i * kGranule) * static_cast<int>(sizeof(T)) / kChunkBytes;
            pixels[i].rows = cursor<Channels>(rows, place.row, chunk + place.chunk);
        }
    }
    DEVICE void find_rows(PositionPixels<Rows> (&pixels)[kGranules], unsigned rows, const Batch& batch, int tap) const {
        const Place shift = tap_shift(tap);
        const int ahead = kPlan.run ? shift.position() - loader_.run_begin(batch.group) : 0;
#pragma unroll
        for (int n = 0; n < kGranules * kOwnPixels; ++n) {
            const int granule = n / kOwnPixels, i = n % kOwnPixels;
            unsigned own = rows, row = pixel_number(granule, i);
            if constexpr (kPlan.run) {
                row = row_of<kPlan.part>(images_[granule][i] * kInputPositions + places_[granule][i].position() +
                                          ahead);
                if (!inside(places_[granule][i], shift)) {
                    own = base_ + kLayout.zeros;
                    row %= MmaLayout::kZeroRows;
                }
            }
            pixels[granule].rows[i] = cursor<Rows>(own, row, own_chunk(lane_));
        }
    }

    DEVICE static bool inside(Place place, Place shift) { return place.w < kOutside && (place + shift).inside(); }

    DEVICE void multiply(int i) {
        const Batch batch = batch_of(i);
        const int pairs = ceil_div(outputs_, 16), granules = batch.inputs / kGranule;
        if (kWholeTiles && granules_ == kGranules && pairs == kPairsOfBlocks && granules == kInputGranules) {
            multiply(i, batch, All{});
        } else {
            multiply(i, batch, Some{granules_, pairs, granules});
        }
    }

    template <class Extent>
    DEVICE void multiply(int i, const Batch& batch, const Extent& extent) {
        const unsigned rows = input_rows(batch);
        unsigned weights = weight_rows(i);
#pragma unroll 1
        for (int tap = batch.tap; tap < batch.tap + batch.taps; ++tap) {
            Pixels pixels[kGranules];
            find_rows(pixels, rows, batch, tap);
            Products<Rows, kGranules, kBlocks>::add(sums_, pixels, weights, lane_, extent);
            weights += Rows::bytes(8 * kBlocks);
        }
    }

    static constexpr int kOutside = 1 << 30;
    // Whether whole tiles have code of their own, without a branch for each pair of blocks. The compiler overlaps more
    // there, for which it lacks registers beside 128 sums, and beside 64 where operands take twice as many.
    static constexpr bool kWholeTiles = 2 * kGranules * kBlocks * static_cast<int>(sizeof(T)) < 128;

    const Operands& operands_;
    const Job& job_;
    unsigned char* shared_;
    unsigned base_;
    InputLoader<kNumber> loader_;
    int warp_, lane_, granules_, outputs_, inputs_, count_;
    Place places_[kPlan.run ? kGranules : 1][kOwnPixels];
    int images_[kPlan.run ? kGranules : 1][kOwnPixels];
    Sums sums_ = {};
};

template <int kNumber>
DEVICE void compute_mma(const Operands& operands, const Job& job, unsigned char* shared) {
    MmaTile<kNumber>(operands, job, shared).compute();
}

}  // namespace conv
