// A strip by mma.sync with its queries on the M side: each warp has granules of 16 queries and sees every tile of keys.
#pragma once

#include "attention/gather.cuh"
#include "attention/job.cuh"
#include "attention/key_tiles.cuh"
#include "attention/lane_products.cuh"
#include "attention/mask.cuh"
#include "attention/products.cuh"
#include "attention/softmax.cuh"
#include "attention/store.cuh"

namespace attention {

constexpr int mma_shared_bytes(Shape shape) { return KeyTilesLayout::of(shape, kPaddedValueWidth).end; }

constexpr int mma_granules(Shape shape) { return shape.rows / (kGranule * kWarps); }

// Those that are left for sums beside run-time weights. This and the limits below are what the compiler was seen to
// take; granules of one warp are computed side by side, which costs it more than twice what one does.
constexpr int mma_spare_registers(Shape shape) {
    const int granules = mma_granules(shape), marks = 2 * granules * (1 + mask_words(shape.keys));
    return kThreadRegisters - (80 + 24 * granules) - marks - granules * shape.keys / 2;
}

// Run-time weights sum up the values twice. Where registers do not hold both sums, the channels are computed in parts,
// one after the other, each with all the keys.
constexpr int mma_value_part(Shape shape) {
    const int channels = mma_spare_registers(shape) / mma_granules(shape) / 16 * 16;
    const int parts = kWeights ? ceil_div(kValueWidth, larger(channels, 16)) : 1;
    return parts == 1 ? kValueWidth : round_up(ceil_div(kValueWidth, parts), 16);
}

// Whether whole tiles have code of their own, without a branch for each granule. The compiler overlaps more there, for
// which biases, run-time weights, and two granules whose queries are read anew do not always leave it the registers.
constexpr bool mma_whole_tiles(Shape shape) {
    const int granules = mma_granules(shape);
    const int sums = granules * (shape.keys + kPaddedValueWidth) / 2, queries = Queries<1>::kRegisters * granules;
    const int left = kThreadRegisters - sums - (queries > kMostQueryRegisters ? 0 : queries);
    if (kLaneProducts || (granules > 1 && queries > kMostQueryRegisters)) return false;
    if (kWeights) {
        const int spare = mma_spare_registers(shape);
        return shape.keys <= 64 && spare >= 48 * granules - 24 && spare - granules * mma_value_part(shape) >= 24;
    }
    if (!kAsynchronousCopies && kMasks && granules > 1 && left < 60) return false;
    return !kBiases || left > 40 + shape.keys * shape.keys / 200;
}

// The part of a strip that gives `ValueChannels` of its results.
template <int kNumber, class ValueChannels>
class MmaStrip {
    static constexpr Shape kShape = kShapes[kNumber];
    static constexpr int kGranules = mma_granules(kShape);
    static constexpr int kKeyBlocks = kShape.keys / 8;
    static constexpr int kValueWidth16 = round_up(ValueChannels::kCount, 16);
    static constexpr int kValueBlocks = kValueWidth16 / 8;
    static_assert(kShape.rows % (kGranule * kWarps) == 0, "each warp has whole granules of queries");

    using Tiles = KeyTiles<kNumber, ValueChannels>;
    using Values = ValueTile<kValueWidth16>;
    using Results = ResultTile<kValueWidth16>;
    using Scores = float[kGranules][kKeyBlocks][4];
    using Sums = float[kGranules][kValueBlocks][4];

public:
    DEVICE MmaStrip(const Operands& operands, const Job& job, unsigned char* shared)
        : operands_(operands), job_(job), row_block_(shared_address(shared)), tiles_(operands, job, shared),
          warp_(threadIdx.x / 32), lane_(threadIdx.x % 32),
          granules_(min(kGranules, (ceil_div(job.row_count, kGranule) - warp_ + kWarps - 1) / kWarps)) {
        const float scale = __ldg(operands.scales + job.head);
        scale_ = score_scale(scale);
        factor_ = scale * kLog2E;
        if constexpr (kWeights) {
#pragma unroll
            for (int i = 0; i < 2 * kGranules; ++i) {
                const int row = row_of(i / 2) + lane_ / 4 + i % 2 * 8;
                diagonal_[i / 2][i % 2] = row < job.row_count ? __ldg(operands.diagonals + job.row_begin + row) : -1;
            }
        }
    }

    DEVICE void compute() {
        gather<QueryChannels, KeyTile, kShape.rows, kThreads>(
            row_block_, operands_.q + job_.q_shift, GlobalEntries{operands_.rows + job_.row_begin},
            round_up(job_.row_count, kGranule), threadIdx.x);
        tiles_.start();
        tiles_.wait();
        queries_.begin(row_block_, row_of(0), granules_, lane_);
        for (int tile = 0;;) {
            // Needed only behind the first product.
            const TileLine line = tiles_.line(tile);
            tiles_.refill_before(tile);
            const int keys = tiles_.keys_in(tile);
            if (mma_whole_tiles(kShape) && granules_ == kGranules && keys > kShape.keys - Tiles::kKeyGranule) {
                compute_tile(tile, line, keys, All{});
            } else if (granules_ > 0) {
                compute_tile(tile, line, keys, Some{granules_, ceil_div(keys, Tiles::kKeyGranule)});
            } else {
                tiles_.turn_to_values(tile);
            }
            if (tile + 1 == tiles_.count()) break;
            tiles_.refill_after(tile++);
            tiles_.wait();
        }
        store();
    }

private:
    // The strip's row at which a granule of this warp begins; the granules go to the warps in turn.
    DEVICE int row_of(int granule) const { return (granule * kWarps + warp_) * kGranule; }

    template <class Extent>
    DEVICE void compute_tile(int tile, TileLine line, int keys, const Extent& extent) {
        lane_ = renewed(lane_);
        Scores scores = {};
        if constexpr (kLaneProducts) {
            lane_score_product(scores, row_block_, row_of(0), kWarps * kGranule, tiles_.keys(tile), lane_, extent);
        } else {
            score_product(scores, queries_, tiles_.keys(tile), lane_, extent);
        }
        tiles_.turn_to_values(tile);
        MaskRows<kShape.keys> needed[kGranules];
#pragma unroll
        for (int i = 0; i < kGranules; ++i) {
            if (extent.queries(i)) {
                softmax(scores[i], i, tile, line, keys, extent, needed[i]);
            }
        }
        const auto weight = [&](int i, int block, int element) { return scores[i][block][element]; };
        const auto one = [&](int i, int block, int element) { return needed[i].one(block, element); };
        const unsigned values = tiles_.values(tile);
        if constexpr (kLaneProducts) {
            const int blocks = extent.blocks(kKeyBlocks);
            lane_value_product<Values, kKeyBlocks>(sums_, values, lane_, blocks, weight);
            if constexpr (kWeights) lane_value_product<Values, kKeyBlocks>(counted_, values, lane_, blocks, one);
        } else if constexpr (kWeights) {
            value_product<Values, kShape.keys>(values, lane_, extent, weighted_sum(sums_, weight),
                                               weighted_sum(counted_, one));
        } else {
            value_product<Values, kShape.keys>(values, lane_, extent, weighted_sum(sums_, weight));
        }
    }

    // From a granule's products to its weights; what was summed up before is brought down to the new largest score.
    template <class Extent>
    DEVICE void softmax(float (&scores)[kKeyBlocks][4], int granule, int tile, TileLine line, int keys,
                        const Extent& extent, MaskRows<kShape.keys>& needed) {
        const int row = row_of(granule) + lane_ / 4, word = lane_ % 4, blocks = extent.blocks(kKeyBlocks);
        if constexpr (kBiases) {
            add_bias<kShape.keys>(scores, factor_, line.bias < 0 ? nullptr : operands_.biases + line.bias, row, word,
                                  blocks);
        } else if (scale_.negative) {
#pragma unroll
            for (int i = 0; i < 4 * kKeyBlocks; ++i) scores[i / 4][i % 4] = -scores[i / 4][i % 4];
        }
        if (kWeights || line.mask >= 0 || keys < kShape.keys) {
            needed = load_mask_rows<kShape.keys>(line.mask < 0 ? nullptr : tiles_.mask(tile), row, keys, word);
            apply_mask(scores, needed, blocks);
        }
        float rescale[2];
        const float unit = kBiases ? 1.f : scale_.unit;
        if constexpr (kWeights) {
            const unsigned columns = tiles_.weights(tile) + 2 * word * sizeof(WeighedColumn);
            softmax_step(scores, rows_[granule], rescale, unit, blocks,
                         [&](float weight, int block, int element) {
                             const unsigned number = 8 * block + element % 2;
                             const auto column = load_weighed_column(columns + number * sizeof(WeighedColumn));
                             const bool own = column.column == diagonal_[granule][element / 2];
                             return own ? weight : weight * column.weight;
                         });
        } else {
            softmax_step(scores, rows_[granule], rescale, unit, blocks);
        }
#pragma unroll
        for (int i = 0; i < 4 * kValueBlocks; ++i) sums_[granule][i / 4][i % 4] *= rescale[i % 4 / 2];
    }

    // Results take the place of the warp's own queries, which nobody else reads, if both are equally wide.
    DEVICE void store() {
        if constexpr (kWeights) add_epsilon();
        if constexpr (kPaddedWidth != kValueWidth16) __syncthreads();
#pragma unroll
        for (int i = 0; i < kGranules; ++i) {
            if (i < granules_) {
                float factor[2], log_sums[2];
#pragma unroll
                for (int half = 0; half < 2; ++half) {
                    float sum = quad_sum(rows_[i].sum[half]);
                    if constexpr (kWeights) sum += __ldg(operands_.epsilons + 1);
                    factor[half] = kSplit && sum == 0.f ? 0.f : reciprocal(sum);
                    log_sums[half] = log_sum(rows_[i].largest[half], kBiases ? 1.f : scale_.unit, sum);
                }
                if constexpr (kSplit) {
                    store_partial_granule(operands_, job_, row_of(i), sums_[i], factor, log_sums, lane_);
                } else {
                    stage_granule<Results>(row_block_, row_of(i), sums_[i], factor, lane_);
                }
            }
        }
        if constexpr (!kSplit) {
            __syncwarp();
#pragma unroll
            for (int i = 0; i < kGranules; ++i) {
                if (i < granules_) {
                    store_rows<Outputs, Results, 32>(operands_, job_, row_block_, row_of(i), kGranule, lane_);
                }
            }
            if constexpr (kExtras) {
                __syncthreads();
                store_extras<Outputs, Results, kThreads>(operands_, job_, row_block_, threadIdx.x);
            }
        }
    }

    // Every needed key's weight is larger by epsilon, relative to the row's largest score of all.
    DEVICE void add_epsilon() {
        const float epsilon = __ldg(operands_.epsilons);
#pragma unroll
        for (int i = 0; i < 4 * kGranules * kValueBlocks; ++i) {
            float& sum = sums_[i / (4 * kValueBlocks)][i / 4 % kValueBlocks][i % 4];
            sum = fmaf(epsilon, counted_[i / (4 * kValueBlocks)][i / 4 % kValueBlocks][i % 4], sum);
        }
    }

    using Outputs = Channels<kY.stride, kValueWidth, ValueChannels::kCount>;

    const Operands& operands_;
    const Job& job_;
    unsigned row_block_;
    Tiles tiles_;
    int warp_, lane_, granules_;
    ScoreScale scale_;
    float factor_;
    Queries<kGranules> queries_;
    SoftmaxRows rows_[kGranules];
    Sums sums_ = {};
    float counted_[kWeights ? kGranules : 1][kWeights ? kValueBlocks : 1][4] = {};
    int diagonal_[kWeights ? kGranules : 1][2];
};

template <int kNumber>
DEVICE void compute_mma(const Operands& operands, const Job& job, unsigned char* shared) {
    constexpr int kPart = mma_value_part(kShapes[kNumber]), kRest = kValueWidth % kPart;
    Operands part = operands;
#pragma unroll 1
    for (int first = 0; first + kPart <= kValueWidth; first += kPart) {
        if (first > 0) __syncthreads();
        MmaStrip<kNumber, Channels<kV.stride, kValueWidth, kPart>>(part, job, shared).compute();
        part.v += kPart * kV.stride;
        part.y += kPart * kY.stride;
    }
    if constexpr (kRest != 0) {
        __syncthreads();
        MmaStrip<kNumber, Channels<kV.stride, kValueWidth, kRest>>(part, job, shared).compute();
    }
}

}  // namespace attention
