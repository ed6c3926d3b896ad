// A strip with its keys on the M side of mma: S^T = K Q^T and O^T = V^T P^T, so that few queries fill the instruction.
//
// Granules of 16 keys go to the warps in turn. A warp copies, multiplies and sums up its own and meets the others only
// behind the last, where their partial softmaxes are merged. The sums of both products have the queries along the N
// side: a lane's totals are those of the queries whose sums it holds, two in each block of eight.
#pragma once

#include "attention/gather.cuh"
#include "attention/swapped_marks.cuh"
#include "attention/swapped_merge.cuh"
#include "attention/swapped_queries.cuh"
#include "common/math.cuh"
#include "common/matrix.cuh"

namespace attention {

// An 8 x 8 matrix of 16-bit elements, a row in every four lanes, turned over.
DEVICE unsigned transposed(unsigned word) {
    unsigned result;
    asm("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(result) : "r"(word));
    return result;
}

// The offset of each row's vector, which the lane of that number has read.
struct LaneEntries {
    int entry;
    DEVICE int operator()(int row) const { return __shfl_sync(~0u, entry, row); }
};

// What a walk over the keys is for. With run-time weights, whose epsilon counts from the row's true maximum, a first
// walk finds the maxima and a second one sums up.
enum class Walk { online, maxima, weighted };

template <int kShape>
struct SwappedStrip {
    using Of = SwappedShape<kShape>;
    static constexpr SwappedLayout kLayout = Of::kLayout;
    static constexpr int kBlocks = Of::kBlocks;
    static constexpr int kGroup = Of::kGroup;
    static constexpr int kSlots = Of::kSlots;
    using Scores = float[kGroup][4];

    const Operands& operands;
    const Job& job;
    const SwappedWarp<kShape>& warp;
    const SwappedQueries<kShape>& queries;
    SwappedSums<kShape>& sums;
    const unsigned ring;
    const float scale;
    // Entries of the next granule to be copied, and of the values whose keys are on their way.
    int next_key = -1, next_value = -1, value = -1;

    DEVICE unsigned slot(int step) const { return ring + step % kSlots * kLayout.slot_bytes; }

    // Lane by lane, the entries of a granule's keys.
    DEVICE void read_entries(int step) {
        // What follows from these is computed anew, as the walk has no registers to keep it in.
        const int lane = renewed(warp.lane), granules = renewed(warp.granules), begin = renewed(job.key_begin);
        const int key = 16 * warp.granule(step) + lane;
        const bool inside = lane < 16 && key < 16 * granules;
        next_key = inside ? __ldg(operands.keys + begin + key) : -1;
        next_value = kOwnValues && inside ? __ldg(operands.values + job.value_begin + key) : next_key;
    }

    DEVICE void copy_keys(int step) {
        if (warp.granule(step) < warp.granules) {
            gather<KeyChannels, SwappedVectors, 16, 32>(slot(step), operands.k + job.k_shift, LaneEntries{next_key},
                                                        16, warp.lane);
            value = next_value;
            read_entries(step + 1);
        }
        commit_copies();
    }

    DEVICE void copy_values(int step) const {
        if (warp.granule(step) < warp.granules) {
            gather<ValueChannels, SwappedValues, 16, 32>(slot(step) + kLayout.slot_keys, operands.v + job.v_shift,
                                                         LaneEntries{value}, 16, warp.lane);
        }
        commit_copies();
    }

    // Keys and values of a granule are groups of their own, and half a slot is filled again as soon as it has been
    // read: behind the group that is waited for there are always so many others.
    DEVICE static void wait_oldest() {
        wait_copies<2 * kSlots - 1>();
        __syncwarp();
    }

    template <Walk kWalk>
    DEVICE void fill_ring() {
        read_entries(0);
#pragma unroll
        for (int step = 0; step < kSlots; ++step) {
            copy_keys(step);
            kWalk == Walk::maxima ? commit_copies() : copy_values(step);
        }
    }

    // Lines of `tiles` are read a step ahead, since where masks and biases begin is not known before.
    template <Walk kWalk>
    DEVICE void walk() {
        TileLine line = load_tile_line(operands, job.tile_begin);
#pragma unroll 1
        for (int step = 0; step < warp.steps(); ++step) {
            const int next = step + 1 < warp.steps() ? step + 1 : step;
            const TileLine next_line = load_tile_line(operands, job.tile_begin + warp.tile(next));
            if constexpr (kWalk == Walk::maxima) {
                find_maxima(step, line);
            } else {
                sum_up<kWalk>(step, line);
            }
            line = next_line;
        }
    }

    DEVICE void find_maxima(int step, TileLine line) {
        const SwappedMarks<kShape> marks(operands, job, warp, step, line);
        wait_oldest();
#pragma unroll
        for (int group = 0; group < Of::kGroups; ++group) {
            const auto biases = marks.read_biases(group * kGroup, warp.blocks);
            Scores scores{};
            multiply_keys(slot(step), group, scores);
            const float factor = marks.apply(scores, biases, scale, group * kGroup);
            sums.note_maxima(scores, factor, group * kGroup);
        }
        __syncwarp();
        copy_keys(step + kSlots);
        commit_copies();
    }

    template <Walk kWalk>
    DEVICE void sum_up(int step, TileLine line) {
        const SwappedMarks<kShape> marks(operands, job, warp, step, line);
        Columns weights[kBlocks];
        wait_oldest();
#pragma unroll
        for (int group = 0; group < Of::kGroups; ++group) {
            const int first = group * kGroup;
            const auto biases = marks.read_biases(first, warp.blocks);
            Scores scores{};
            multiply_keys(slot(step), group, scores);
            if (group + 1 == Of::kGroups) {
                __syncwarp();
                copy_keys(step + kSlots);
            }
            const float factor = marks.apply(scores, biases, scale, first);
            if constexpr (kWalk == Walk::online) sums.follow_maxima(scores, factor, first, warp.blocks);
            weigh(scores, factor, marks, first);
            turn_over(scores, weights + first, warp.blocks - first);
        }
        wait_oldest();
        add_values(slot(step) + kLayout.slot_keys, weights);
        __syncwarp();
        copy_values(step + kSlots);
    }

    DEVICE void multiply_keys(unsigned tile, int group, Scores& scores) const {
        const LanePlace place = rows_place(warp.lane);
        const auto lane = cursor<SwappedVectors>(tile, place.row, place.chunk);
#pragma unroll
        for (int depth = 0; depth < Of::kDepth; ++depth) {
            const auto keys = prepared<kElement>(load_rows(lane.at(0, 2 * depth)));
            Columns columns[kGroup];
            queries.columns(depth, group, columns);
#pragma unroll
            for (int i = 0; i < kGroup; ++i) {
                if (group * kGroup + i < warp.blocks) {
                    multiply<kElement>(scores[i], keys, prepared<kElement>(columns[i]));
                }
            }
        }
    }

    // Scores become weights. A polynomial has no exact 0, which pairs that are not needed must have, and not the digits
    // that the logarithm of a sum is asked for.
    DEVICE void weigh(Scores& scores, float factor, const SwappedMarks<kShape>& marks, int first) {
        constexpr bool kExact = kWeights || kSplit || polynomial_period<kElement>(kWidth) == 0;
        if (kExact || marks.masked) {
            weigh(scores, factor, marks, first, [](float x, int) { return exp2_unit(x); });
        } else {
            weigh(scores, factor, marks, first, [](float x, int number) { return weight_of(x, number); });
        }
    }

    template <class Power>
    DEVICE void weigh(Scores& scores, float factor, const SwappedMarks<kShape>& marks, int first, const Power& power) {
#pragma unroll
        for (int i = 0; i < kGroup; ++i) {
            const int block = first + i;
            if (block < warp.blocks) {
                const int2 diagonals = read_diagonals(block);
#pragma unroll
                for (int element = 0; element < 4; ++element) {
                    float& weight = scores[i][element];
                    const float base = finite_base(sums.base[block][element % 2]);
                    weight = power(fmaf(weight, factor, -base), 4 * block + element);
                    if constexpr (kWeights) apply_weight(weight, marks, element, diagonals);
                    sums.totals[block][element % 2] += weight;
                    if constexpr (kWeights) add_epsilon(weight, marks, block, element);
                }
            }
        }
    }

    // The columns that this lane's rows of a block see with weight 1.
    DEVICE int2 read_diagonals(int block) const {
        if constexpr (!kWeights) return {-1, -1};
        const int row = job.row_begin + 8 * block + 2 * (warp.lane % 4);
        return __ldg(reinterpret_cast<const int2*>(operands.diagonals + row));
    }

    DEVICE static void apply_weight(float& weight, const SwappedMarks<kShape>& marks, int element, int2 diagonals) {
        const bool own = marks.column[element / 2] == (element % 2 == 0 ? diagonals.x : diagonals.y);
        if (!own) weight *= marks.weight[element / 2];
    }

    DEVICE void add_epsilon(float& weight, const SwappedMarks<kShape>& marks, int block, int element) const {
        const bool needed = !marks.masked || marks.needed.needed(block, element);
        weight = needed ? weight + __ldg(operands.epsilons) : 0.0f;
    }

    // The sums of the first product become the second operand of the next.
    DEVICE static void turn_over(const Scores& scores, Columns* weights, int blocks) {
#pragma unroll
        for (int i = 0; i < kGroup; ++i) {
            if (i < blocks) {
                weights[i].word[0] = transposed(packed<kElement>(scores[i][0], scores[i][1]));
                weights[i].word[1] = transposed(packed<kElement>(scores[i][2], scores[i][3]));
            }
        }
    }

    DEVICE void add_values(unsigned tile, const Columns (&weights)[kBlocks]) {
        const LanePlace place = columns_place(warp.lane);
        const auto lane = cursor<SwappedValues>(tile, place.row, place.chunk);
#pragma unroll
        for (int channel = 0; channel < Of::kChannels; ++channel) {
            Rows rows;
            load_matrices_transposed(rows.word, lane.at(0, 2 * channel));
            const auto values = prepared<kElement>(rows);
#pragma unroll
            for (int block = 0; block < kBlocks; ++block) {
                if (block < warp.blocks) {
                    multiply<kElement>(sums.values[channel][block], values, prepared<kElement>(weights[block]));
                }
            }
        }
    }
};

template <int kShape>
DEVICE void compute_mma_swapped(const Operands& operands, const Job& job, unsigned char* shared) {
    using Of = SwappedShape<kShape>;
    const SwappedWarp<kShape> warp(job);
    const ScoreScale scale = score_scale(__ldg(operands.scales + job.head));
    SwappedQueries<kShape> queries(shared_address(shared), warp);
    SwappedSums<kShape> sums;
    const unsigned ring = shared_address(shared) + Of::kLayout.query_bytes + warp.number * Of::kLayout.ring_bytes;
    SwappedStrip<kShape> strip{operands, job, warp, queries, sums, ring, scale.unit};
    const SwappedMerge<kShape> merge{operands, job, warp, shared};
    constexpr Walk kFirst = kWeights ? Walk::maxima : Walk::online;

    queries.copy(operands, job);
    strip.template fill_ring<kFirst>();
    wait_copies<2 * Of::kSlots>();
    __syncthreads();
    queries.take(scale.negative);
    strip.template walk<kFirst>();
    if constexpr (kWeights) {
        strip.template fill_ring<Walk::weighted>();
        merge.share_maxima(sums);
        strip.template walk<Walk::weighted>();
    }
    merge.finish(sums);
}

}  // namespace attention
