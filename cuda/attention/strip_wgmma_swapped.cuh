// A strip with its keys on the M side of wgmma: S^T = K Q^T, then O^T = V^T P^T, so that few queries fill the matrix
// unit. Each consumer warpgroup takes 64 keys of every tile and meets the others only at the end.
//
// P^T passes through shared memory, from the sums of the first product to the right operand of the second; the warps
// of a warpgroup agree on the largest score of every query before.
#pragma once

#include "attention/wgmma_swapped_results.cuh"
#include "common/matrix.cuh"

namespace attention {

// What a consumer warpgroup does, as one of its lanes sees it.
template <int kShape>
class WgmmaColumns {
    static constexpr Shape kStrip = kShapes[kShape];
    static constexpr int kRows = kStrip.rows, kKeys = kStrip.keys, kBlocks = kRows / 8;
    using Places = SwappedPlaces<kShape>;
    using Results = SwappedResults<kShape>;
    using Product = WarpgroupProduct<kRows>;
    using Scores = float[kBlocks][4];
    using Marks = TileMarks<kRows>;
    using Largest = typename Places::Largest;

public:
    using Tiles = WgmmaTiles<kShape, swapped_tiles_begin(kStrip), 64 * kPanels, 64>;

    DEVICE WgmmaColumns(const Operands& operands, const Job& job, const Tiles& tiles, unsigned char* shared)
        : operands_(operands),
          job_(job),
          tiles_(tiles),
          lane_(ColumnLane::own()),
          places_(shared),
          results_(operands, job, shared, lane_),
          scale_(score_scale(__ldg(operands.scales + job.head))),
          unit_(softmax_unit(scale_)),
          // The last tile may have no keys for this warpgroup.
          own_tiles_(ceil_div(job.key_count - 64 * lane_.group, kKeys)) {}

    DEVICE void compute() {
        load_queries();
        if constexpr (kWeights) {
            weighted_walks();
        } else {
            if (own_tiles_ > 0) walk();
            results_.agree(sum_, unit_);
            PerQuery<kRows> factor;
#pragma unroll
            for (int n = 0; n < kRows / 4; ++n) factor[n] = results_.factor(lane_.query(n / 2, n), unit_);
            scale_sums(factor);
        }
        results_.finish(sums_, unit_);
    }

private:
    DEVICE void load_queries() const {
        if (lane_.group == 0) {
            gather_matrix<QueryChannels>(places_.queries(), operands_.q + job_.q_shift,
                                         operands_.rows + job_.row_begin, job_.row_count, kRows, lane_.thread);
            commit_copies();
            wait_copies<0>();
            fence_before_matrix_reads();
        }
        places_.largest(lane_.group).clear(lane_.thread);
        consumer_barrier().wait();
    }

    DEVICE void walk() {
        Scores scores;
        compute_scores(scores, 0);
        tiles_.ring.release(0);
        find_largest(scores, [&](const Largest& largest) {
            PerQuery<kRows> rescale;
            PackedWeights<kRows> words;
            softmax(scores, rescale, largest);
            pack<kRows>(words, scores);
            store_probabilities<kRows>(words, places_.probabilities(lane_.group), lane_);
        });
        for (int tile = 1; tile < own_tiles_; ++tile) {
            start_scores(scores, tile);
            start_sums(tile - 1);
            const Marks marks = tile_marks(tile);
            wait_for_products<1>();
            pin(scores);
            tiles_.ring.release(2 * tile);
            apply_marks(scores, marks, tile);
            find_largest(scores, [&](const Largest& largest) {
                PerQuery<kRows> rescale;
                PackedWeights<kRows> words;
                softmax(scores, rescale, largest);
                pack<kRows>(words, scores);
                wait_for_sums();
                tiles_.ring.release(2 * tile - 1);
                scale_sums(rescale);
                // The products of every warp read the probabilities of all.
                own_barrier().wait();
                store_probabilities<kRows>(words, places_.probabilities(lane_.group), lane_);
            });
        }
        start_sums(own_tiles_ - 1);
        wait_for_sums();
    }

    // See kWalks.
    DEVICE void weighted_walks() {
        const float epsilon = __ldg(operands_.epsilons), sum_epsilon = __ldg(operands_.epsilons + 1);
        Scores scores;
        for (int step = 0; step < tiles_.count(); ++step) {
            if (step < own_tiles_) {
                compute_scores(scores, step);
                find_largest(scores, [&](const Largest& largest) { add_weights(scores, step, largest); });
            }
            tiles_.pass_over(step);
        }
        results_.agree(sum_, unit_);
        for (int step = tiles_.count(); step < 2 * tiles_.count(); ++step) {
            if (tiles_.tile_of(step) < own_tiles_) {
                compute_scores(scores, step);
                finish_weights(scores, step, epsilon, sum_epsilon);
                PackedWeights<kRows> words;
                pack<kRows>(words, scores);
                store_probabilities<kRows>(words, places_.probabilities(lane_.group), lane_);
                own_barrier().wait();
                start_sums(step);
                wait_for_sums();
                own_barrier().wait();
            }
            tiles_.pass_over(step);
        }
        // By 1, or by NaN where the weights and their epsilon are all 0, even if no key is needed.
        PerQuery<kRows> factor;
#pragma unroll
        for (int n = 0; n < kRows / 4; ++n) {
            const float inverse = reciprocal(places_.whole_sum(lane_.query(n / 2, n)) + sum_epsilon);
            factor[n] = inverse - inverse + 1.f;
        }
        scale_sums(factor);
        consumer_barrier().wait();
    }

    DEVICE NamedBarrier own_barrier() const { return warpgroup_barrier(lane_.group); }

    DEVICE void start_scores(Scores& scores, int step) const {
        const auto keys = tiles_.keys(step);
        const auto queries = places_.queries();
        tiles_.ring.wait_until_filled(2 * step);
        begin_products();
#pragma unroll
        for (int depth = 0; depth < kPaddedWidth / 16; ++depth) {
            Product::template shared<kElement, false, false>(scores, keys.along(depth, 64 * lane_.group),
                                                             queries.along(depth), depth > 0);
        }
        commit_products();
    }

    DEVICE void start_sums(int step) {
        const auto values = tiles_.values(step);
        const auto probabilities = places_.probabilities(lane_.group);
        tiles_.ring.wait_until_filled(2 * step + 1);
        begin_products();
#pragma unroll
        for (int panel = 0; panel < kPanels; ++panel) {
#pragma unroll
            for (int depth = 0; depth < 4; ++depth) {
                Product::template shared<kElement, true, true>(sums_[panel],
                                                               values.across(4 * lane_.group + depth, 64 * panel),
                                                               probabilities.across(depth), true);
            }
        }
        commit_products();
    }

    DEVICE void scale_sums(const PerQuery<kRows>& factor) {
        Results::for_all(sums_, [&](float& sum, int, int block, int i) { sum *= factor[2 * block + i % 2]; });
    }

    DEVICE void wait_for_sums() {
        wait_for_products<0>();
#pragma unroll
        for (int panel = 0; panel < kPanels; ++panel) pin(sums_[panel]);
    }

    DEVICE void compute_scores(Scores& scores, int step) const {
        start_scores(scores, step);
        const Marks marks = tile_marks(tiles_.tile_of(step));
        wait_for_products<0>();
        pin(scores);
        apply_marks(scores, marks, tiles_.tile_of(step));
    }

    DEVICE Marks tile_marks(int tile) const { return {operands_, job_, tile, lane_.key(), kRows, lane_.lane}; }

    // Keys beyond the last have no weight.
    DEVICE void apply_marks(Scores& scores, const Marks& marks, int tile) const {
        marks.apply(scores, scale_);
        const int left = tiles_.keys_from(tile) - lane_.key();
        if (left <= 8) {
#pragma unroll
            for (int i = 0; i < 4 * kBlocks; ++i) {
                if (left <= i % 4 / 2 * 8) scores[i / 4][i % 4] = -kInfinity;
            }
        }
    }

    // The warps agree on the largest scores so far, and `action` uses them.
    template <class Action>
    DEVICE void find_largest(const Scores& scores, const Action& action) const {
        const Largest largest = places_.largest(lane_.group);
        largest.take(scores, lane_);
        own_barrier().wait();
        const float current = lane_.thread < kRows ? largest.now(lane_.thread) : 0.f;
        action(largest);
        own_barrier().wait();
        if (lane_.thread < kRows) largest.keep(lane_.thread, current);
    }

    // Scores to weights relative to the largest score so far; `rescale` is what all before shrink by.
    DEVICE void softmax(Scores& scores, PerQuery<kRows>& rescale, const Largest& largest) {
#pragma unroll
        for (int block = 0; block < kBlocks; ++block) {
            const int query = lane_.query(block, 0);
            const float2 now = largest.now_pair(query), before = largest.before_pair(query);
            const float base[2] = {softmax_base(now.x, unit_), softmax_base(now.y, unit_)};
            rescale[2 * block] = exp2_unit(fmaf(before.x, unit_, -base[0]));
            rescale[2 * block + 1] = exp2_unit(fmaf(before.y, unit_, -base[1]));
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                scores[block][i] = weight_of(fmaf(scores[block][i], unit_, -base[i % 2]), 4 * block + i);
            }
#pragma unroll
            for (int i = 0; i < 2; ++i) {
                float& sum = sum_[2 * block + i];
                sum = fmaf(sum, rescale[2 * block + i], scores[block][i] + scores[block][2 + i]);
            }
        }
    }

    DEVICE void add_weights(const Scores& scores, int step, const Largest& largest) {
        const KeyWeights weigh(operands_, job_, tiles_.weights(step) + lane_.key());
#pragma unroll
        for (int n = 0; n < kRows / 4; ++n) {
            const int query = lane_.query(n / 2, n);
            const float base = softmax_base(largest.now(query), unit_);
            sum_[n] *= exp2_unit(fmaf(largest.before(query), unit_, -base));
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                const float weight = exp2_unit(fmaf(scores[n / 2][2 * half + n % 2], unit_, -base));
                sum_[n] += weigh(weight, half, query);
            }
        }
    }

    DEVICE void finish_weights(Scores& scores, int step, float epsilon, float sum_epsilon) const {
        const KeyWeights weigh(operands_, job_, tiles_.weights(step) + lane_.key());
#pragma unroll
        for (int n = 0; n < kRows / 4; ++n) {
            const int query = lane_.query(n / 2, n);
            const float base = softmax_base(places_.whole_largest(query), unit_);
            const float inverse = reciprocal(places_.whole_sum(query) + sum_epsilon);
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                float& score = scores[n / 2][2 * half + n % 2];
                const float weight = weigh(exp2_unit(fmaf(score, unit_, -base)), half, query);
                score = score == -kInfinity ? 0.f : (weight + epsilon) * inverse;
            }
        }
    }

    const Operands& operands_;
    const Job& job_;
    const Tiles& tiles_;
    const ColumnLane lane_;
    const Places places_;
    const Results results_;
    const ScoreScale scale_;
    const float unit_;
    const int own_tiles_;
    typename Results::Sums sums_ = {};
    PerQuery<kRows> sum_ = {};
};

template <int kShape>
DEVICE void compute_wgmma_swapped(const Operands& operands, const Job& job, unsigned char* shared) {
    using Columns = WgmmaColumns<kShape>;
    const typename Columns::Tiles tiles(operands, job, shared);
    if (threadIdx.x == 0) tiles.ring.initialize(kWarps);
    __syncthreads();
    if (warpgroup_number() == kGroups) {
        become_producer<true>();
        tiles.produce();
    } else {
        become_consumer<true>();
        Columns(operands, job, tiles, shared).compute();
    }
}

}  // namespace attention
