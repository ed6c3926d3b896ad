// A strip with its queries on the M side of wgmma: each consumer warpgroup has 64 of them, each of its warps 16.
//
// While the products of one tile's weights and values run, the weights of the next tile are computed; warpgroups take
// turns at starting their products, so that one's products run beside the others' exponentials.
#pragma once

#include "attention/store.cuh"
#include "attention/wgmma_marks.cuh"
#include "attention/wgmma_tiles.cuh"
#include "common/matrix.cuh"

namespace attention {

// Queries of a consumer warpgroup and, in their place, its results.
constexpr int kGroupBytes = 64 * larger(kPaddedWidth, kPaddedValueWidth) * 2;

constexpr int wgmma_shared_bytes(Shape shape) {
    return tile_memory(kGroupBytes * (shape.rows / 64), shape, kPaddedValueWidth).end;
}

// A tile that has at most half of its keys is computed by half; no width in between is known to the compiler, which a
// product must be.
constexpr int half_tile(Shape shape) { return round_up(shape.keys / 2, 16); }

// What a consumer warpgroup does, as one of its lanes sees it.
template <int kShape>
class WgmmaRows {
    static constexpr Shape kStrip = kShapes[kShape];
    static constexpr int kKeys = kStrip.keys, kHalf = half_tile(kStrip);
    static constexpr int kValueBlocks = kPaddedValueWidth / 8;
    using QueryTile = MatrixTile<64, kPaddedWidth>;
    using Results = ResultTile<>;

public:
    // Run-time weights have no halves.
    using Tiles = WgmmaTiles<kShape, kGroupBytes * (kStrip.rows / 64), kPaddedValueWidth, kWeights ? kKeys : kHalf>;

    DEVICE WgmmaRows(const Operands& operands, const Job& job, const Tiles& tiles, unsigned shared, Turns turns)
        : operands_(operands),
          job_(job),
          tiles_(tiles),
          turns_(turns),
          place_(shared + turns.group * kGroupBytes),
          lane_(threadIdx.x % 32),
          row_(16 * (threadIdx.x / 32)),
          scale_(score_scale(__ldg(operands.scales + job.head))) {}

    DEVICE void compute() {
        load_queries();
        if constexpr (kWeights) {
            weighted_walks();
        } else {
            walk();
        }
    }

private:
    DEVICE void load_queries() const {
        const int first = 64 * turns_.group;
        gather_matrix<QueryChannels>(QueryTile{place_}, operands_.q + job_.q_shift,
                                     operands_.rows + job_.row_begin + first, job_.row_count - first, 64,
                                     threadIdx.x % kWarpgroupThreads);
        commit_copies();
        wait_copies<0>();
        fence_before_matrix_reads();
        warpgroup_barrier(turns_.group).wait();
    }

    DEVICE void walk() {
        const int last = tiles_.count() - 1;
        const bool half = tiles_.keys_from(last) <= kHalf;
        if (last == 0 && half) {
            first_tile<kHalf>();
            finish<kHalf>();
            return;
        }
        first_tile<kKeys>();
        for (int tile = 1; tile < last + !half; ++tile) next_tile<kKeys>(tile);
        if (half) {
            next_tile<kHalf>(last);
            finish<kHalf>();
        } else {
            finish<kKeys>();
        }
    }

    template <int kColumns>
    DEVICE void first_tile() {
        float scores[kColumns / 8][4];
        turns_.wait(true);
        start_scores(scores, 0);
        turns_.pass(tiles_.count() == 1);
        const TileMarks<kKeys> marks = tile_marks(0);
        wait_for_products<0>();
        pin(scores);
        tiles_.ring.release(0);
        softmax(scores, marks);
        pack(scores);
    }

    // The products of the tile before with its values run during the softmax of this one.
    template <int kColumns>
    DEVICE void next_tile(int tile) {
        float scores[kColumns / 8][4];
        turns_.wait(false);
        start_scores(scores, tile);
        start_sums<kKeys>(tile - 1);
        turns_.pass(tile == tiles_.count() - 1);
        const TileMarks<kKeys> marks = tile_marks(tile);
        wait_for_products<1>();
        pin(scores);
        tiles_.ring.release(2 * tile);
        softmax(scores, marks);
        wait_for_products<0>();
        pin(sums_);
        tiles_.ring.release(2 * tile - 1);
#pragma unroll
        for (int i = 0; i < 4 * kValueBlocks; ++i) sums_[i / 4][i % 4] *= rescale_[i % 4 / 2];
        pack(scores);
    }

    template <int kColumns>
    DEVICE void finish() {
        start_sums<kColumns>(tiles_.count() - 1);
        wait_for_products<0>();
        pin(sums_);
        float factor[2], log_sums[2];
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            const float whole = quad_sum(rows_.sum[i]);
            // The exponentials of -inf may be not quite 0.
            const float sum = rows_.largest[i] == -kInfinity ? 0.f : whole;
            factor[i] = kSplit && sum == 0.f ? 0.f : reciprocal(sum);
            log_sums[i] = log_sum(rows_.largest[i], softmax_unit(scale_), sum);
        }
        if constexpr (kSplit) {
            store_partial_granule(operands_, job_, row_, sums_, factor, log_sums, lane_);
        } else {
            store(factor);
        }
    }

    // A step's scores, of its first kBlocks blocks of keys.
    template <int kBlocks>
    DEVICE void start_scores(float (&scores)[kBlocks][4], int step) const {
        const QueryTile queries{place_};
        const auto keys = tiles_.keys(step);
        tiles_.ring.wait_until_filled(2 * step);
        begin_products();
#pragma unroll
        for (int depth = 0; depth < kPaddedWidth / 16; ++depth) {
            WarpgroupProduct<8 * kBlocks>::template shared<kElement, false, false>(scores, queries.along(depth),
                                                                                   keys.along(depth), depth > 0);
        }
        commit_products();
    }

    template <int kColumns>
    DEVICE void start_sums(int step) {
        const auto values = tiles_.values(step);
        tiles_.ring.wait_until_filled(2 * step + 1);
        begin_products();
#pragma unroll
        for (int depth = 0; depth < kColumns / 16; ++depth) {
            WarpgroupProduct<kPaddedValueWidth>::template fragment<kElement, true>(sums_, weights_[depth],
                                                                                   values.across(depth), true);
        }
        commit_products();
    }

    DEVICE TileMarks<kKeys> tile_marks(int tile) const {
        return {operands_, job_, tile, row_ + lane_ / 4, tiles_.keys_from(tile), lane_};
    }

    template <int kBlocks>
    DEVICE void softmax(float (&scores)[kBlocks][4], const TileMarks<kKeys>& marks) {
        marks.apply(scores, scale_);
        softmax_step(scores, rows_, rescale_, softmax_unit(scale_));
    }

    template <int kBlocks>
    DEVICE void pack(const float (&scores)[kBlocks][4]) {
#pragma unroll
        for (int i = 0; i < 2 * kBlocks; ++i) {
            weights_[i / 4][i % 4] = packed<kElement>(scores[i / 2][i % 2 * 2], scores[i / 2][i % 2 * 2 + 1]);
        }
    }

    // See kWalks. The second walk sums up by weights that are finished, as if each row were small enough for one tile.
    DEVICE void weighted_walks() {
        const float unit = softmax_unit(scale_), epsilon = __ldg(operands_.epsilons);
        int diagonal[2];
        float base[2], factor[2], scores[kKeys / 8][4];
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            diagonal[i] = __ldg(operands_.diagonals + job_.row_begin + row_ + lane_ / 4 + 8 * i);
        }
        const auto weigh = [&](int step) {
            return [&, columns = tiles_.weights(step) + 2 * (lane_ % 4)](float weight, int block, int i) {
                const WeighedColumn column = columns[8 * block + i % 2];
                return column.column == diagonal[i / 2] ? weight : weight * column.weight;
            };
        };
        for (int step = 0; step < tiles_.count(); ++step) {
            compute_scores(scores, step);
            softmax_step(scores, rows_, rescale_, unit, kKeys / 8, weigh(step));
            tiles_.pass_over(step);
        }
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            base[i] = softmax_base(rows_.largest[i], unit);
            factor[i] = reciprocal(quad_sum(rows_.sum[i]) + __ldg(operands_.epsilons + 1));
        }
        for (int step = tiles_.count(); step < 2 * tiles_.count(); ++step) {
            compute_scores(scores, step);
            const auto weigh_one = weigh(step);
#pragma unroll
            for (int i = 0; i < kKeys / 2; ++i) {
                float& score = scores[i / 4][i % 4];
                const int half = i % 4 / 2;
                const float weight = weigh_one(exp2_unit(fmaf(score, unit, -base[half])), i / 4, i % 4);
                score = score == -kInfinity ? 0.f : (weight + epsilon) * factor[half];
            }
            pack(scores);
            start_sums<kKeys>(step);
            wait_for_products<0>();
            pin(sums_);
            tiles_.pass_over(step);
        }
        // 1, or NaN where the weights and their epsilon are all 0, even if no key is needed.
        const float finished[2] = {factor[0] - factor[0] + 1.f, factor[1] - factor[1] + 1.f};
        store(finished);
    }

    DEVICE void compute_scores(float (&scores)[kKeys / 8][4], int step) const {
        start_scores(scores, step);
        const TileMarks<kKeys> marks = tile_marks(tiles_.tile_of(step));
        wait_for_products<0>();
        pin(scores);
        marks.apply(scores, scale_);
    }

    // Sums times a factor of each row, to where the tables send them. Rows of the strip keep their numbers in the tile
    // of results, which therefore begins before those of this warpgroup.
    DEVICE void store(const float (&factor)[2]) const {
        const unsigned results = place_ - 64 * turns_.group * Results::kPitch;
        // Queries of other warps may stand there, until their last products are done.
        warpgroup_barrier(turns_.group).wait();
        stage_granule<Results>(results, row_, sums_, factor, lane_);
        __syncwarp();
        store_rows<ResultChannels, Results, 32>(operands_, job_, results, row_, min(16, job_.row_count - row_), lane_);
        if constexpr (kExtras) {
            warpgroup_barrier(turns_.group).wait();
            store_own_extras(results);
        }
    }

    DEVICE void store_own_extras(unsigned results) const {
        const int2* lines = reinterpret_cast<const int2*>(operands_.extras) + job_.extra_begin;
        store_vectors<ResultChannels, Results, kWarpgroupThreads>(
            operands_.y, job_.extra_count, threadIdx.x % kWarpgroupThreads,
            [&](int n) {
                const int2 line = __ldg(lines + n);
                return Destination{line.x, line.x / 64 == turns_.group ? line.y : -1};
            },
            [&](int row, int chunk) { return load_chunk(results + Results::offset(row, chunk)); });
    }

    const Operands& operands_;
    const Job& job_;
    const Tiles& tiles_;
    const Turns turns_;
    const unsigned place_;
    const int lane_, row_;
    const ScoreScale scale_;
    float sums_[kValueBlocks][4] = {}, rescale_[2];
    unsigned weights_[kKeys / 16][4];
    SoftmaxRows rows_;
};

template <int kShape>
DEVICE void compute_wgmma(const Operands& operands, const Job& job, unsigned char* shared) {
    using Rows = WgmmaRows<kShape>;
    const typename Rows::Tiles tiles(operands, job, shared);
    const int groups = ceil_div(job.row_count, 64), group = warpgroup_number();
    if (threadIdx.x == 0) tiles.ring.initialize(4 * groups);
    __syncthreads();
    if (group == kGroups) {
        become_producer<false>();
        tiles.produce();
    } else {
        become_consumer<false>();
        // Nobody waits for a warpgroup whose rows are all padding.
        if (group < groups) Rows(operands, job, tiles, shared_address(shared), Turns{group, groups}).compute();
    }
}

}  // namespace attention
