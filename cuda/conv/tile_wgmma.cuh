// A tile by wgmma: pixels on the M side, 64 a consumer warpgroup, outputs on the N side, inputs times taps the depth.
// Weights are read in shared memory. So are pixels where a batch brings them in their order, a tap at a time; where
// several taps share a run of positions, each warp loads its pixels' rows to registers, so that a tap is only another
// address, while the products of the tap before run.
#pragma once

#include "conv/wgmma_memory.cuh"

namespace conv {

DEVICE NamedBarrier consumer_barrier(int groups) { return {1, groups * kWarpgroupThreads}; }

// What a consumer warpgroup does, as one of its lanes sees it.
template <int kNumber>
class WgmmaTile {
    using Memory = WgmmaMemory<kNumber>;
    static constexpr Shape kShape = kShapes[kNumber];
    static constexpr InputPlan kPlan = Memory::kPlan;
    static constexpr int kBlocks = kShape.outputs / 8;
    static constexpr int kGranules = kShape.inputs / kGranule;
    using Rows = typename Memory::Rows;
    // Pixels of so many granules of inputs are in registers for one group of products.
    static constexpr int kLoaded = 2;
    using Fragments = unsigned[kLoaded][4];
    static_assert(kShape.pixels == 64 * kGroups, "each consumer warpgroup has 64 pixels");
    static_assert(kShape.outputs % 16 == 0 && kShape.inputs % 32 == 0 && kShape.inputs <= 64, "shapes of the plan");

public:
    DEVICE WgmmaTile(const Operands& operands, const Job& job, const Memory& memory, int group)
        : operands_(operands), job_(job), memory_(memory), loader_(operands, job), group_(group),
          warp_(threadIdx.x / 32), lane_(threadIdx.x % 32), count_(memory.count()) {}

    DEVICE void compute() {
        if constexpr (kPlan.run) find_pixel();
        walk<kShape.outputs>();
        pin(sums_[0]);
    }

    // `stage` is the warp's own.
    DEVICE void store(float* stage) {
        const int first = kWarpPixels * warp_;
        if (first < job_.pixel_count) {
            WarpStore<kWarpPixels, kBlocks>(operands_, job_, stage, first, lane_).store(sums_);
        }
    }

private:
    template <int kWidth>
    DEVICE void walk() {
        constexpr int kNarrower = kWidth - Memory::kWidthStep;
        if constexpr (kNarrower > 0) {
            if (job_.output_count <= kNarrower) {
                walk<kNarrower>();
                return;
            }
        }
        if constexpr (kPlan.run) {
            walk_taps<kWidth>();
        } else {
            walk_batches<kWidth>();
        }
        wait_for_products<0>();
    }

    // The sums of the first kWidth outputs.
    template <int kWidth>
    DEVICE auto sums() -> float (&)[kWidth / 8][4] {
        return reinterpret_cast<float(&)[kWidth / 8][4]>(sums_[0]);
    }

    // Both operands in shared memory, a tap a batch. The products of one batch run while the next is waited for.
    template <int kWidth>
    DEVICE void walk_batches() {
#pragma unroll 1
        for (int i = 0; i < count_; ++i) {
            const Batch batch = memory_.batch(i);
            const unsigned rows = memory_.inputs(batch);
            const auto weights = memory_.weights(i, 0);
            memory_.ring.wait_until_filled(i);
            of_granules<kGranules>(batch.inputs, [&](auto granules) {
                begin_products();
#pragma unroll
                for (int n = 0; n < granules.count; ++n) {
                    WarpgroupProduct<kWidth>::template shared<kElement, kPlan.channels, false>(
                        sums<kWidth>(), pixels(rows, n), weights.along(n), true);
                }
                commit_products();
            });
            wait_for_products<1>();
            if (i > 0) memory_.ring.release(i - 1);
        }
    }
    DEVICE unsigned long long pixels(unsigned rows, int granule) const {
        if constexpr (kPlan.channels) {
            return typename Memory::ChannelTile{rows}.across(granule, 64 * group_);
        } else {
            return typename Memory::PixelTile{rows}.along(granule, 64 * group_);
        }
    }

    // Pixels in registers, kLoaded granules a part. Those of one part are loaded while the products of the part before
    // run.
    template <int kWidth>
    DEVICE void walk_taps() {
        Fragments even, odd;
        At at{0, 0, 0, memory_.batch(0)};
#pragma unroll 1
        while (at.i < count_) {
            start_part<kWidth>(even, at);
            if (at.i == count_) break;
            start_part<kWidth>(odd, at);
        }
    }

    // Calls `action` with the number of granules that `inputs` are, as a constant: between the begin of products and
    // the last of them there must be no branch.
    template <int kCount>
    struct Count {
        static constexpr int count = kCount;
    };
    template <int kCount, class Action>
    DEVICE static void of_granules(int inputs, const Action& action) {
        if constexpr (kCount > 1) {
            if (inputs <= kGranule * (kCount - 1)) {
                of_granules<kCount - 1>(inputs, action);
                return;
            }
        }
        action(Count<kCount>{});
    }

    // A part of the walk: its batch, and in this the number of its tap and its first granule.
    struct At {
        int i, tap, granule;
        Batch batch;
    };

    template <int kWidth>
    DEVICE void start_part(Fragments& fragments, At& at) {
        const bool first = at.tap == 0 && at.granule == 0;
        if (first) memory_.ring.wait_until_filled(at.i);
        const auto rows = pixel_row(at.batch, at.batch.tap + at.tap);
        const auto weights = memory_.weights(at.i, at.tap);
        const int released = first ? at.i - 1 : -1;
        of_granules<kLoaded>(at.batch.inputs - at.granule * kGranule, [&](auto granules) {
#pragma unroll
            for (int n = 0; n < granules.count; ++n) load_matrices(fragments[n], rows.at(0, 2 * (at.granule + n)));
            begin_products();
#pragma unroll
            for (int n = 0; n < granules.count; ++n) {
                WarpgroupProduct<kWidth>::template fragment<kElement, false>(sums<kWidth>(), fragments[n],
                                                                             weights.along(at.granule + n), true);
            }
            commit_products();
        });
        wait_for_products<1>();
        if (released >= 0) memory_.ring.release(released);
        advance(at);
    }
    DEVICE void advance(At& at) const {
        at.granule += kLoaded;
        if (at.granule * kGranule < at.batch.inputs) return;
        at.granule = 0;
        if (++at.tap < at.batch.taps) return;
        at.tap = 0;
        at.batch = memory_.batch(++at.i);
    }

    // The pixel whose row the lane names to the matrix load.
    DEVICE void find_pixel() {
        const int number = kWarpPixels * warp_ + own_pixel(lane_, 0);
        const Pixel pixel = pixel_of(job_.pixel_begin + number);
        place_ = place_of(pixel.position);
        image_ = pixel.image;
        // Pixels that do not exist are outside, whatever the tap.
        if (number >= job_.pixel_count) place_.w = kOutside;
    }
    DEVICE Cursor<Rows> pixel_row(const Batch& batch, int tap) const {
        const Place shift = tap_shift(tap);
        const int ahead = shift.position() - loader_.run_begin(batch.group);
        unsigned own = memory_.inputs(batch);
        unsigned row = row_of<kPlan.part>(image_ * kInputPositions + place_.position() + ahead);
        if (place_.w == kOutside || !(place_ + shift).inside()) {
            own = memory_.zeros();
            row %= WgmmaLayout::kZeroRows;
        }
        return cursor<Rows>(own, row, own_chunk(lane_));
    }

    static constexpr int kOutside = 1 << 30;

    const Operands& operands_;
    const Job& job_;
    const Memory& memory_;
    InputLoader<kNumber> loader_;
    int group_, warp_, lane_, count_;
    Place place_;
    int image_;
    float sums_[1][kBlocks][4] = {};
};

template <int kNumber>
DEVICE void compute_wgmma(const Operands& operands, const Job& job, unsigned char* shared) {
    const WgmmaMemory<kNumber> memory(operands, job, shared);
    const int groups = ceil_div(job.pixel_count, 64), group = warpgroup_number();
    if (threadIdx.x == 0) memory.ring.initialize(4 * groups);
    memory.write_zeros();
    __syncthreads();
    if (group == kGroups) {
        become_producer();
        memory.produce();
    } else {
        become_consumer();
        // Nobody waits for a warpgroup without pixels.
        if (group < groups) {
            WgmmaTile<kNumber> tile(operands, job, memory, group);
            tile.compute();
            // Other warpgroups' products may still read where results go.
            consumer_barrier(groups).wait();
            tile.store(reinterpret_cast<float*>(shared + threadIdx.x / 32 * wgmma_stage_bytes(kShapes[kNumber])));
        }
    }
}

}  // namespace conv
