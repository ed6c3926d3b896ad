// A strip with its keys on the M side of wgmma: S^T = K Q^T, then O^T = V^T P^T, so that few queries fill the matrix
// unit. Each consumer warpgroup takes 64 keys of every tile and meets the others only at the end.
//
// P^T passes through shared memory, from the sums of the first product to the right operand of the second; the warps
// of a warpgroup agree on the largest score of every query before.
#pragma once

#include "attention/gather_matrix.cuh"
#include "attention/store.cuh"
#include "attention/wgmma_columns.cuh"
#include "attention/wgmma_pipeline.cuh"
#include "attention/wgmma_weights.cuh"
#include "common/matrix.cuh"

namespace attention {

// The M side of the second product is 64 channels.
constexpr int kPanels = ceil_div(kValueWidth, 64);

// Offsets in shared memory. Results take the place of the queries; what the warpgroups exchange at the end, that of
// keys and values.
struct WgmmaSwappedMemory {
    int keys, values, probabilities, largest, whole, weights, ring, bytes;
};

constexpr WgmmaSwappedMemory wgmma_swapped_memory(Shape shape) {
    WgmmaSwappedMemory memory{};
    memory.keys = round_up(shape.rows * larger(kPaddedWidth, kPaddedValueWidth) * 2, kTileAlignment);
    memory.values = round_up(memory.keys + shape.stages * shape.keys * kPaddedWidth * 2, kTileAlignment);
    memory.probabilities = memory.values + shape.stages * shape.keys * kPanels * 128;
    memory.largest = memory.probabilities + shape.keys * shape.rows * 2;
    memory.whole = memory.largest + kGroups * shape.rows * 8;
    memory.weights = memory.whole + shape.rows * 8;
    memory.ring = memory.weights + (kWeights ? shape.stages * shape.keys * sizeof(WeighedColumn) : 0);
    memory.bytes = memory.ring + ring_bytes(shape.stages);
    return memory;
}

constexpr int wgmma_swapped_shared_bytes(Shape shape) { return wgmma_swapped_memory(shape).bytes; }

template <int kShape>
class WgmmaSwappedStrip {
    static constexpr Shape kStrip = kShapes[kShape];
    static constexpr WgmmaSwappedMemory kMemory = wgmma_swapped_memory(kStrip);
    static constexpr int kRows = kStrip.rows, kKeys = kStrip.keys;
    static constexpr int kWalks = kWeights ? 2 : 1;
    using QueryTile = MatrixTile<kRows, kPaddedWidth>;
    using KeyTile = MatrixTile<kKeys, kPaddedWidth>;
    using ValueTile = MatrixTile<kKeys, 64 * kPanels>;
    using ProbabilityTile = MatrixTile<64, kRows>;
    using Largest = LargestScores<kRows>;
    using Marks = TileMarks<kRows>;
    using Results = ResultTile<>;
    using Product = WarpgroupProduct<kRows>;
    using Scores = float[kRows / 8][4];

public:
    DEVICE WgmmaSwappedStrip(const Operands& operands, const Job& job, unsigned char* shared)
        : operands_(operands),
          job_(job),
          shared_(shared),
          base_(shared_address(shared)),
          ring_{base_ + kMemory.ring},
          tiles_(ceil_div(job.key_count, kKeys)),
          group_(warpgroup_number()),
          thread_(threadIdx.x % kWarpgroupThreads),
          lane_(threadIdx.x % 32) {}

    DEVICE void compute() {
        if (threadIdx.x == 0) ring_.initialize(kWarps);
        __syncthreads();
        if (group_ == kGroups) {
            become_producer();
            produce();
        } else {
            become_consumer();
            if constexpr (kWeights) {
                consume_weighted();
            } else {
                consume();
            }
        }
    }

private:
    DEVICE KeyTile key_tile(int step) const { return {base_ + kMemory.keys + ring_.stage(step) * KeyTile::kBytes}; }
    DEVICE ValueTile value_tile(int step) const {
        return {base_ + kMemory.values + ring_.stage(step) * ValueTile::kBytes};
    }
    DEVICE QueryTile query_tile() const { return {base_}; }
    DEVICE ProbabilityTile probability_tile() const {
        return {base_ + kMemory.probabilities + group_ * ProbabilityTile::kBytes};
    }
    DEVICE Largest largest_of(int group) const {
        return {reinterpret_cast<int*>(shared_ + kMemory.largest + group * Largest::kBytes)};
    }
    DEVICE WeighedColumn* weights(int step) const {
        return reinterpret_cast<WeighedColumn*>(shared_ + kMemory.weights) + ring_.stage(step) * kKeys;
    }
    // The lane's first key of a tile.
    DEVICE int key() const { return 16 * static_cast<int>(threadIdx.x / 32) + lane_ / 4; }
    // The lane's first query of a block.
    DEVICE int query(int block) const { return 8 * block + 2 * (lane_ % 4); }

    DEVICE void produce() {
        Producer producer(ring_);
        for (int step = 0; step < kWalks * tiles_; ++step) {
            const int tile = step < tiles_ ? step : step - tiles_;
            const int first = tile * kKeys, count = job_.key_count - first;
            producer.begin_item();
            gather_matrix<KeyChannels>(key_tile(step), operands_.k + job_.k_shift,
                                       operands_.keys + job_.key_begin + first, count, thread_);
            if constexpr (kWeights) {
                load_weighed_columns<kKeys>(weights(step), operands_, job_.key_begin + first, count, thread_);
            }
            producer.end_item();
            producer.begin_item();
            if (kWalks == 1 || step >= tiles_) {
                gather_matrix<ValueChannels>(value_tile(step), operands_.v + job_.v_shift,
                                             operands_.values + job_.value_begin + first, count, thread_);
            }
            producer.end_item();
        }
        producer.finish();
    }

    DEVICE void load_queries() {
        if (group_ == 0) {
            gather_matrix<QueryChannels>(query_tile(), operands_.q + job_.q_shift, operands_.rows + job_.row_begin,
                                         job_.row_count, thread_);
            commit_copies();
            wait_copies<0>();
            fence_before_matrix_reads();
        }
        largest_of(group_).clear(thread_);
        consumer_barrier().wait();
    }

    DEVICE void start_scores(Scores& scores, int step) {
        const KeyTile keys = key_tile(step);
        const QueryTile queries = query_tile();
        ring_.wait_until_filled(2 * step);
        begin_products();
#pragma unroll
        for (int depth = 0; depth < kPaddedWidth / 16; ++depth) {
            Product::template shared<kElement, false, false>(scores, keys.along(depth, 64 * group_),
                                                             queries.along(depth), depth > 0);
        }
        commit_products();
    }

    DEVICE void start_sums(Scores (&sums)[kPanels], int step) {
        const ValueTile values = value_tile(step);
        const ProbabilityTile probabilities = probability_tile();
        ring_.wait_until_filled(2 * step + 1);
        begin_products();
#pragma unroll
        for (int panel = 0; panel < kPanels; ++panel) {
#pragma unroll
            for (int depth = 0; depth < 4; ++depth) {
                Product::template shared<kElement, true, true>(
                    sums[panel], values.across(4 * group_ + depth, 64 * panel), probabilities.across(depth), true);
            }
        }
        commit_products();
    }

    DEVICE void pin_sums(Scores (&sums)[kPanels]) {
#pragma unroll
        for (int panel = 0; panel < kPanels; ++panel) pin(sums[panel]);
    }

    DEVICE Marks tile_marks(int tile) const {
        const TileLine line = load_tile_line(operands_, job_.tile_begin + tile);
        return Marks(operands_, line, key(), kRows, lane_);
    }

    // Keys beyond the last have no weight.
    DEVICE void apply_marks(Scores& scores, const Marks& marks, ScoreScale scale, int tile) const {
        marks.apply(scores, scale);
        const int left = job_.key_count - tile * kKeys - key();
        if (left <= 8) {
#pragma unroll
            for (int block = 0; block < kRows / 8; ++block) {
#pragma unroll
                for (int i = 0; i < 4; ++i) {
                    if (left <= 8 * (i / 2)) scores[block][i] = -kInfinity;
                }
            }
        }
    }

    DEVICE void store_probabilities(const Scores& scores) {
        const ProbabilityTile tile = probability_tile();
        const int row = key() % 64;
#pragma unroll
        for (int block = 0; block < kRows / 8; ++block) {
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                store_word(tile.chunk(row + 8 * half, block) + 4 * (lane_ % 4),
                           packed<kElement>(scores[block][2 * half], scores[block][2 * half + 1]));
            }
        }
        fence_before_matrix_reads();
    }

    // A step's scores to weights relative to the largest score so far; `rescale` is what all before shrink by.
    DEVICE void weigh(Scores& scores, PerQuery<kRows>& sum, PerQuery<kRows>& rescale, const Largest& largest,
                      float unit) {
#pragma unroll
        for (int block = 0; block < kRows / 8; ++block) {
            const float2 now = largest.now_pair(query(block)), before = largest.before_pair(query(block));
            const float base[2] = {softmax_base(now.x, unit), softmax_base(now.y, unit)};
            rescale[2 * block] = exp2_unit(fmaf(before.x, unit, -base[0]));
            rescale[2 * block + 1] = exp2_unit(fmaf(before.y, unit, -base[1]));
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                scores[block][i] = weight_of(fmaf(scores[block][i], unit, -base[i % 2]), 4 * block + i);
            }
#pragma unroll
            for (int i = 0; i < 2; ++i) {
                float& own = sum[2 * block + i];
                own = fmaf(own, rescale[2 * block + i], scores[block][i] + scores[block][2 + i]);
            }
        }
    }

    static DEVICE void scale_sums(Scores (&sums)[kPanels], const PerQuery<kRows>& factor) {
#pragma unroll
        for (int panel = 0; panel < kPanels; ++panel) {
#pragma unroll
            for (int block = 0; block < kRows / 8; ++block) {
#pragma unroll
                for (int i = 0; i < 4; ++i) sums[panel][block][i] *= factor[2 * block + i % 2];
            }
        }
    }

    // The warps agree on the largest scores so far, and `action` uses them.
    template <class Action>
    DEVICE void find_largest(const Scores& scores, const Action& action) {
        const Largest largest = largest_of(group_);
        largest.take(scores, lane_);
        warpgroup_barrier(group_).wait();
        const float current = thread_ < kRows ? largest.now(thread_) : 0.f;
        action(largest);
        warpgroup_barrier(group_).wait();
        if (thread_ < kRows) largest.keep(thread_, current);
    }

    // From the scores of a tile to its probabilities in shared memory; `before_store` waits for the products that read
    // those of the tile before, and brings their sums down.
    template <class BeforeStore>
    DEVICE void compute_probabilities(Scores& scores, PerQuery<kRows>& sum, float unit, const BeforeStore& before_store) {
        find_largest(scores, [&](const Largest& largest) {
            PerQuery<kRows> rescale;
            weigh(scores, sum, rescale, largest, unit);
            before_store(rescale);
            store_probabilities(scores);
        });
    }

    DEVICE void consume() {
        const ScoreScale scale = score_scale(__ldg(operands_.scales + job_.head));
        const float unit = softmax_unit(scale);
        // The last tile may have no keys for this warpgroup.
        const int tiles = ceil_div(job_.key_count - 64 * group_, kKeys);
        Scores sums[kPanels] = {};
        Scores scores;
        PerQuery<kRows> sum = {};

        load_queries();
        if (tiles > 0) {
            start_scores(scores, 0);
            const Marks first_marks = tile_marks(0);
            wait_for_products<0>();
            pin(scores);
            ring_.release(0);
            apply_marks(scores, first_marks, scale, 0);
            compute_probabilities(scores, sum, unit, [](const PerQuery<kRows>&) {});
            for (int tile = 1; tile < tiles; ++tile) {
                start_scores(scores, tile);
                start_sums(sums, tile - 1);
                const Marks marks = tile_marks(tile);
                wait_for_products<1>();
                pin(scores);
                ring_.release(2 * tile);
                apply_marks(scores, marks, scale, tile);
                compute_probabilities(scores, sum, unit, [&](const PerQuery<kRows>& rescale) {
                    wait_for_products<0>();
                    pin_sums(sums);
                    ring_.release(2 * tile - 1);
                    scale_sums(sums, rescale);
                    // The products of every warp read the probabilities of all.
                    warpgroup_barrier(group_).wait();
                });
            }
            start_sums(sums, tiles - 1);
            wait_for_products<0>();
            pin_sums(sums);
        }
        finish(sums, sum, unit);
    }

    // The first walk over the tiles finds every query's largest score and the sum of its weights, the second sums up
    // values by finished weights: an epsilon that is added to a weight counts from the largest score of all.
    DEVICE void consume_weighted() {
        const ScoreScale scale = score_scale(__ldg(operands_.scales + job_.head));
        const float unit = softmax_unit(scale), epsilon = __ldg(operands_.epsilons);
        const int tiles = ceil_div(job_.key_count - 64 * group_, kKeys);
        Scores sums[kPanels] = {};
        Scores scores;
        PerQuery<kRows> sum = {};

        load_queries();
        for (int step = 0; step < tiles_; ++step) {
            if (step < tiles) {
                compute_scores(scores, scale, step, step);
                find_largest(scores, [&](const Largest& largest) {
                    const KeyWeights weigh = key_weights(step);
                    add_weights(scores, sum, largest, weigh, unit);
                });
            }
            release(step);
        }
        agree(sum, unit);
        for (int step = tiles_; step < 2 * tiles_; ++step) {
            if (step - tiles_ < tiles) {
                compute_scores(scores, scale, step, step - tiles_);
                finish_weights(scores, key_weights(step), unit, epsilon);
                store_probabilities(scores);
                warpgroup_barrier(group_).wait();
                start_sums(sums, step);
                wait_for_products<0>();
                pin_sums(sums);
                warpgroup_barrier(group_).wait();
            }
            release(step);
        }
        PerQuery<kRows> factor;
#pragma unroll
        for (int i = 0; i < kRows / 4; ++i) {
            // NaN where the weights and their epsilon are all 0, even if no key is needed.
            const float inverse = reciprocal(whole_sum(query(i / 2) + i % 2));
            factor[i] = inverse - inverse + 1.f;
        }
        scale_sums(sums, factor);
        consumer_barrier().wait();
        gather_sums(sums);
        if (group_ == 0) store(sums);
    }

    DEVICE float whole_sum(int query) const { return whole().sum[query] + __ldg(operands_.epsilons + 1); }

    DEVICE void release(int step) {
        for (int item = 2 * step; item < 2 * step + 2; ++item) {
            ring_.wait_until_filled(item);
            ring_.release(item);
        }
    }

    DEVICE void compute_scores(Scores& scores, ScoreScale scale, int step, int tile) {
        start_scores(scores, step);
        const Marks marks = tile_marks(tile);
        wait_for_products<0>();
        pin(scores);
        apply_marks(scores, marks, scale, tile);
    }

    // What the weights of a lane's two keys are multiplied with.
    struct KeyWeights {
        WeighedColumn key[2];
    };
    DEVICE KeyWeights key_weights(int step) const {
        const WeighedColumn* tile = weights(step) + key();
        return {{tile[0], tile[8]}};
    }
    DEVICE float weighed(float weight, const WeighedColumn& key, int query) const {
        const bool own = query < job_.row_count && key.column == __ldg(operands_.diagonals + job_.row_begin + query);
        return own ? weight : weight * key.weight;
    }

    DEVICE void add_weights(Scores& scores, PerQuery<kRows>& sum, const Largest& largest, const KeyWeights& keys,
                            float unit) {
#pragma unroll
        for (int i = 0; i < kRows / 4; ++i) {
            const int block = i / 2, e = i % 2, query = this->query(block) + e;
            const float base = softmax_base(largest.now(query), unit);
            sum[i] *= exp2_unit(fmaf(largest.before(query), unit, -base));
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                const float weight = exp2_unit(fmaf(scores[block][2 * half + e], unit, -base));
                sum[i] += weighed(weight, keys.key[half], query);
            }
        }
    }

    DEVICE void finish_weights(Scores& scores, const KeyWeights& keys, float unit, float epsilon) {
#pragma unroll
        for (int i = 0; i < kRows / 4; ++i) {
            const int block = i / 2, e = i % 2, query = this->query(block) + e;
            const float base = softmax_base(whole().largest[query], unit), inverse = reciprocal(whole_sum(query));
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                float& score = scores[block][2 * half + e];
                const float weight = weighed(exp2_unit(fmaf(score, unit, -base)), keys.key[half], query);
                score = score == -kInfinity ? 0.f : (weight + epsilon) * inverse;
            }
        }
    }

    // Of each query, over all keys of the strip: the largest score, and the sum of the weights relative to it. Ends with
    // both in shared memory for all consumers; probabilities are overwritten.
    struct Whole {
        float *largest, *sum;
    };
    DEVICE Whole whole() const {
        float* begin = reinterpret_cast<float*>(shared_ + kMemory.whole);
        return {begin, begin + kRows};
    }
    DEVICE void agree(PerQuery<kRows>& sum, float unit) {
        float* sums = reinterpret_cast<float*>(shared_ + kMemory.probabilities);
        consumer_barrier().wait();
#pragma unroll
        for (int i = 0; i < kRows / 4; ++i) {
            sum[i] += __shfl_xor_sync(~0u, sum[i], 4);
            sum[i] += __shfl_xor_sync(~0u, sum[i], 8);
            sum[i] += __shfl_xor_sync(~0u, sum[i], 16);
            if (lane_ < 4) sums[threadIdx.x / 32 * kRows + query(i / 2) + i % 2] = sum[i];
        }
        consumer_barrier().wait();
        if (static_cast<int>(threadIdx.x) < kRows) {
            const int query = threadIdx.x;
            float largest = -kInfinity, total = 0.f;
            for (int group = 0; group < kGroups; ++group) largest = fmaxf(largest, largest_of(group).now(query));
            const float base = softmax_base(largest, unit);
            for (int warp = 0; warp < kWarps; ++warp) {
                total = fmaf(exp2_unit(fmaf(largest_of(warp / 4).now(query), unit, -base)), sums[warp * kRows + query],
                             total);
            }
            // The exponentials of -inf may be not quite 0.
            whole().sum[query] = largest == -kInfinity ? 0.f : total;
            whole().largest[query] = largest;
        }
        consumer_barrier().wait();
    }

    DEVICE void finish(Scores (&sums)[kPanels], PerQuery<kRows>& sum, float unit) {
        agree(sum, unit);
        PerQuery<kRows> factor;
#pragma unroll
        for (int i = 0; i < kRows / 4; ++i) {
            const int query = this->query(i / 2) + i % 2;
            const float base = softmax_base(whole().largest[query], unit), total = whole().sum[query];
            const float share = exp2_unit(fmaf(largest_of(group_).now(query), unit, -base));
            factor[i] = share * (kSplit && total == 0.f ? 0.f : reciprocal(total));
        }
        scale_sums(sums, factor);
        gather_sums(sums);
        if (group_ == 0) {
            if constexpr (kSplit) {
                store_partial(sums, unit);
            } else {
                store(sums);
            }
        }
    }

    // The sums of all warpgroups to the first one's, in an order that never changes.
    DEVICE void gather_sums(Scores (&sums)[kPanels]) {
        static_assert(kGroups == 1 || kMemory.probabilities - kMemory.keys >= kPanels * 64 * kRows * 4,
                      "sums take the place of the tiles");
        float* place = reinterpret_cast<float*>(shared_ + kMemory.keys) + thread_;
        for (int group = kGroups - 1; group > 0; --group) {
            if (group_ == group) {
                for_all_sums(sums, [&](float& sum, int number) { place[number * kWarpgroupThreads] = sum; });
            }
            consumer_barrier().wait();
            if (group_ == group - 1) {
                for_all_sums(sums, [&](float& sum, int number) { sum += place[number * kWarpgroupThreads]; });
            }
        }
    }

    template <class Action>
    static DEVICE void for_all_sums(Scores (&sums)[kPanels], const Action& action) {
#pragma unroll
        for (int panel = 0; panel < kPanels; ++panel) {
#pragma unroll
            for (int block = 0; block < kRows / 8; ++block) {
#pragma unroll
                for (int i = 0; i < 4; ++i) action(sums[panel][block][i], (panel * kRows / 8 + block) * 4 + i);
            }
        }
    }

    // The lane's channel of an element of the sums.
    DEVICE int channel(int panel, int element) const {
        return 64 * panel + 16 * (thread_ / 32) + lane_ / 4 + 8 * (element / 2);
    }

    DEVICE void store(Scores (&sums)[kPanels]) {
#pragma unroll
        for (int panel = 0; panel < kPanels; ++panel) {
#pragma unroll
            for (int block = 0; block < kRows / 8; ++block) {
#pragma unroll
                for (int i = 0; i < 4; ++i) {
                    const int channel = this->channel(panel, i), row = query(block) + i % 2;
                    if (channel < kPaddedValueWidth) {
                        const int place = Results::offset(row, channel / 8) + channel % 8 * 2;
                        *reinterpret_cast<T*>(shared_ + place) = converted<T>(sums[panel][block][i]);
                    }
                }
            }
        }
        warpgroup_barrier(0).wait();
        store_rows<ResultChannels, Results, kWarpgroupThreads>(operands_, job_, base_, 0, job_.row_count, thread_);
        if constexpr (kExtras) {
            store_extras<ResultChannels, Results, kWarpgroupThreads>(operands_, job_, base_, thread_);
        }
    }

    DEVICE void store_partial(Scores (&sums)[kPanels], float unit) {
#pragma unroll
        for (int block = 0; block < kRows / 8; ++block) {
#pragma unroll
            for (int e = 0; e < 2; ++e) {
                const int row = query(block) + e;
                const int slot = row < job_.row_count ? partial_slot(operands_, job_, row) : -1;
#pragma unroll
                for (int i = 0; i < 2 * kPanels; ++i) {
                    const int channel = this->channel(i / 2, i % 2 * 2);
                    if (slot >= 0 && channel < kValueWidth) {
                        operands_.partial[static_cast<ptrdiff_t>(slot) * kValueWidth + channel] =
                            sums[i / 2][block][i % 2 * 2 + e];
                    }
                }
            }
        }
        if (thread_ < job_.row_count) {
            const int slot = partial_slot(operands_, job_, thread_);
            if (slot >= 0) operands_.lse[slot] = log_sum(whole().largest[thread_], unit, whole().sum[thread_]);
        }
    }

    const Operands& operands_;
    const Job& job_;
    unsigned char* shared_;
    unsigned base_;
    Ring<kStrip.stages> ring_;
    int tiles_, group_, thread_, lane_;
};

template <int kShape>
DEVICE void compute_wgmma_swapped(const Operands& operands, const Job& job, unsigned char* shared) {
    WgmmaSwappedStrip<kShape>(operands, job, shared).compute();
}

}  // namespace attention
