// The end of a wgmma strip with its keys on the M side: its warpgroups' sums become results.
#pragma once

#include "attention/wgmma_marks.cuh"
#include "attention/wgmma_swapped_memory.cuh"

namespace attention {

template <int kShape>
class SwappedResults {
    static constexpr int kRows = kShapes[kShape].rows, kBlocks = kRows / 8;

public:
    using Sums = float[kPanels][kBlocks][4];

    DEVICE SwappedResults(const Operands& operands, const Job& job, unsigned char* shared, ColumnLane lane)
        : operands_(operands), job_(job), places_(shared), lane_(lane) {}

    // All consumers agree on the largest score of every query and on the sum of its weights; `sum` is this lane's part
    // of its warpgroup's. No product may be unfinished after the barrier that comes first.
    DEVICE void agree(PerQuery<kRows>& sum, float unit) const {
        consumer_barrier().wait();
#pragma unroll
        for (int i = 0; i < kRows / 4; ++i) {
#pragma unroll
            for (int bit = 4; bit < 32; bit *= 2) sum[i] += __shfl_xor_sync(~0u, sum[i], bit);
            if (lane_.lane < 4) places_.warp_sum(lane_.warp(), lane_.query(i / 2, i)) = sum[i];
        }
        consumer_barrier().wait();
        if (lane_.group == 0 && lane_.thread < kRows) add_parts(lane_.thread, unit);
        consumer_barrier().wait();
    }

    // What a query's sums are multiplied with: the warpgroup's share of the whole, over the sum of all weights.
    DEVICE float factor(int query, float unit) const {
        const float base = softmax_base(places_.whole_largest(query), unit), sum = places_.whole_sum(query);
        const float share = exp2_unit(fmaf(places_.largest(lane_.group).now(query), unit, -base));
        return share * (kSplit && sum == 0.f ? 0.f : reciprocal(sum));
    }

    // Sums that are multiplied with their factors, to where the tables send them.
    DEVICE void finish(Sums& sums, float unit) const {
        add_groups(sums);
        if (lane_.group == 0) {
            if constexpr (kSplit) {
                store_partial(sums, unit);
            } else {
                store(sums);
            }
        }
    }

    template <class Action>
    static DEVICE void for_all(Sums& sums, const Action& action) {
#pragma unroll
        for (int panel = 0; panel < kPanels; ++panel) {
#pragma unroll
            for (int block = 0; block < kBlocks; ++block) {
#pragma unroll
                for (int i = 0; i < 4; ++i) action(sums[panel][block][i], panel, block, i);
            }
        }
    }

private:
    DEVICE void add_parts(int query, float unit) const {
        float largest = -kInfinity, sum = 0.f;
        for (int group = 0; group < kGroups; ++group) largest = fmaxf(largest, places_.largest(group).now(query));
        const float base = softmax_base(largest, unit);
        for (int warp = 0; warp < kWarps; ++warp) {
            const float share = exp2_unit(fmaf(places_.largest(warp / 4).now(query), unit, -base));
            sum = fmaf(share, places_.warp_sum(warp, query), sum);
        }
        places_.whole_largest(query) = largest;
        // The exponentials of -inf may be not quite 0.
        places_.whole_sum(query) = largest == -kInfinity ? 0.f : sum;
    }

    // To the first warpgroup, in an order that never changes.
    DEVICE void add_groups(Sums& sums) const {
        for (int group = kGroups - 1; group > 0; --group) {
            if (lane_.group == group) {
                for_all(sums, [&](float& sum, int panel, int block, int i) {
                    places_.product_sum(number_of(panel, block, i), lane_.thread) = sum;
                });
            }
            consumer_barrier().wait();
            if (lane_.group == group - 1) {
                for_all(sums, [&](float& sum, int panel, int block, int i) {
                    sum += places_.product_sum(number_of(panel, block, i), lane_.thread);
                });
            }
        }
    }
    static DEVICE int number_of(int panel, int block, int i) { return (panel * kBlocks + block) * 4 + i; }

    DEVICE void store(Sums& sums) const {
        for_all(sums, [&](float& sum, int panel, int block, int i) {
            const int channel = lane_.channel(panel, i);
            if (channel < kPaddedValueWidth) places_.result(lane_.query(block, i), channel) = converted<T>(sum);
        });
        warpgroup_barrier(0).wait();
        store_rows<ResultChannels, ResultTile<>, kWarpgroupThreads>(operands_, job_, places_.results(), 0,
                                                                    job_.row_count, lane_.thread);
        if constexpr (kExtras) {
            store_extras<ResultChannels, ResultTile<>, kWarpgroupThreads>(operands_, job_, places_.results(),
                                                                          lane_.thread);
        }
    }

    DEVICE void store_partial(Sums& sums, float unit) const {
        for_all(sums, [&](float& sum, int panel, int block, int i) {
            const int query = lane_.query(block, i), channel = lane_.channel(panel, i);
            const int slot = query < job_.row_count ? partial_slot(operands_, job_, query) : -1;
            if (slot >= 0 && channel < kValueWidth) {
                operands_.partial[static_cast<ptrdiff_t>(slot) * kValueWidth + channel] = sum;
            }
        });
        if (lane_.thread < job_.row_count) {
            const int query = lane_.thread, slot = partial_slot(operands_, job_, query);
            if (slot >= 0) {
                operands_.lse[slot] = log_sum(places_.whole_largest(query), unit, places_.whole_sum(query));
            }
        }
    }

    const Operands& operands_;
    const Job& job_;
    const SwappedPlaces<kShape> places_;
    const ColumnLane lane_;
};

}  // namespace attention
