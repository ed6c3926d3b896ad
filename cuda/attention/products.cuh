// The two products of a tile by the matrix instruction, with queries on the M side: a warp's granules of 16 queries.
#pragma once

#include "attention/key_tiles.cuh"
#include "attention/tile.cuh"
#include "common/matrix.cuh"

namespace attention {

constexpr int kGranule = 16;
// sm_75 multiplies fp32 in the ordinary lanes.
constexpr bool kLaneProducts = __CUDA_ARCH__ < 800 && !kHalfPrecision<kElement>;

constexpr int kMostQueryRegisters = 32;

// The queries of a warp's granules, 16 * kWarps rows apart: in registers where they are few and nothing else needs
// these, else read again for every tile.
template <int kGranules>
class Queries {
public:
    static constexpr int kSteps = kPaddedWidth * static_cast<int>(sizeof(T)) / kStepBytes;
    static constexpr int kRegisters = 4 * kGranules * kSteps;
    static constexpr bool kStay = !kLaneProducts && !kWeights && kRegisters <= kMostQueryRegisters;

    // `tile` holds the queries of the strip, this warp's `granules` from `row` on.
    DEVICE void begin(unsigned tile, int row, int granules, int lane) {
        const LanePlace place = rows_place(lane);
        cursor_ = cursor<KeyTile>(tile, row + place.row, place.chunk);
        if constexpr (kStay) {
#pragma unroll
            for (int granule = 0; granule < kGranules; ++granule) {
                if (granule < granules) {
#pragma unroll
                    for (int step = 0; step < kSteps; ++step) rows_[granule][step] = load(granule, step);
                }
            }
        }
    }

    DEVICE Rows operator()(int granule, int step) const {
        if constexpr (kStay) {
            Rows rows = rows_[granule][step];
            // Else the compiler splits all of fp32's queries once, into twice as many registers.
            if constexpr (kElement == Element::fp32) {
#pragma unroll
                for (int i = 0; i < 4; ++i) rows.word[i] = renewed(rows.word[i]);
            }
            return rows;
        } else {
            return load(granule, step);
        }
    }

private:
    DEVICE Rows load(int granule, int step) const {
        return load_rows(cursor_.at(granule * kGranule * kWarps, 2 * step));
    }

    Cursor<KeyTile> cursor_;
    Rows rows_[kStay ? kGranules : 1][kStay ? kSteps : 1];
};

// How much of a tile a warp computes. `All` is known to the compiler: every granule of the warp's queries and of the
// tile's keys; otherwise parts beyond the last are passed over.
struct All {
    DEVICE bool queries(int) const { return true; }
    DEVICE bool keys(int) const { return true; }
    DEVICE int blocks(int all) const { return all; }
};
struct Some {
    int query_granules, key_granules;
    DEVICE bool queries(int granule) const { return granule < query_granules; }
    DEVICE bool keys(int granule) const { return granule < key_granules; }
    // Blocks of 8 keys.
    DEVICE int blocks(int) const { return 2 * key_granules; }
};

// scores = queries * keys, for 16 keys and one step of channels.
template <int kGranules, int kBlocks, class Extent>
DEVICE void multiply_keys(float (&scores)[kGranules][kBlocks][4], const Operand<kElement, 4> (&queries)[kGranules],
                          const Cursor<KeyTile>& keys, int granule, int step, const Extent& extent) {
    const ColumnPair pair = load_columns(keys.at(kGranule * granule, 2 * step));
    const auto first = prepared<kElement>(pair.first), second = prepared<kElement>(pair.second);
#pragma unroll
    for (int i = 0; i < kGranules; ++i) {
        if (extent.queries(i)) {
            multiply<kElement>(scores[i][2 * granule], queries[i], first);
            multiply<kElement>(scores[i][2 * granule + 1], queries[i], second);
        }
    }
}

template <int kGranules, class Extent>
DEVICE void prepare_queries(Operand<kElement, 4> (&operands)[kGranules], const Queries<kGranules>& queries, int step,
                            const Extent& extent) {
#pragma unroll
    for (int i = 0; i < kGranules; ++i) {
        if (extent.queries(i)) operands[i] = prepared<kElement>(queries(i, step));
    }
}

// Adds to `scores`. Where all is computed, neighbouring products go to different sums, and a step's queries are read
// once; where parts are passed over, one branch skips all that a granule of keys needs.
template <int kGranules, int kBlocks>
DEVICE void score_product(float (&scores)[kGranules][kBlocks][4], const Queries<kGranules>& queries, unsigned tile,
                          int lane, const All& extent) {
    const LanePlace place = columns_place(lane);
    const auto keys = cursor<KeyTile>(tile, place.row, place.chunk);
#pragma unroll
    for (int step = 0; step < Queries<kGranules>::kSteps; ++step) {
        Operand<kElement, 4> operands[kGranules];
        prepare_queries(operands, queries, step, extent);
#pragma unroll
        for (int granule = 0; granule < kBlocks / 2; ++granule) {
            multiply_keys(scores, operands, keys, granule, step, extent);
        }
    }
}
template <int kGranules, int kBlocks>
DEVICE void score_product(float (&scores)[kGranules][kBlocks][4], const Queries<kGranules>& queries, unsigned tile,
                          int lane, const Some& extent) {
    const LanePlace place = columns_place(lane);
    const auto keys = cursor<KeyTile>(tile, place.row, place.chunk);
#pragma unroll
    for (int granule = 0; granule < kBlocks / 2; ++granule) {
        if (extent.keys(granule)) {
#pragma unroll
            for (int step = 0; step < Queries<kGranules>::kSteps; ++step) {
                Operand<kElement, 4> operands[kGranules];
                prepare_queries(operands, queries, step, extent);
                multiply_keys(scores, operands, keys, granule, step, extent);
            }
        }
    }
}

// A granule of queries' weights of the keys of one depth of the second product: 16 keys of 16-bit elements, of others
// 8. The sums of the first product lie as its operand does, if of 8 keys of 32 bits the even ones come first.
// `weight(granule, block, i)` is number i of what a lane has of a block of 8 keys.
template <class Weight>
DEVICE Operand<kElement, 4> weight_rows(const Weight& weight, int granule, int depth) {
    Rows rows;
    if constexpr (kHalfPrecision<kElement>) {
        const auto pair = [&](int block, int i) {
            return packed<kElement>(weight(granule, block, i), weight(granule, block, i + 1));
        };
        rows = {{pair(2 * depth, 0), pair(2 * depth, 2), pair(2 * depth + 1, 0), pair(2 * depth + 1, 2)}};
    } else {
        const auto word = [&](int i) { return __float_as_uint(weight(granule, depth, i)); };
        rows = {{word(0), word(2), word(1), word(3)}};
    }
    return prepared<kElement>(rows);
}

// Values as columns of the second product.
template <class Tile>
class ValueColumns {
public:
    // Keys that one product takes.
    static constexpr int kDepth = kHalfPrecision<kElement> ? 16 : 8;

    DEVICE ValueColumns(unsigned tile, int lane) {
        if constexpr (kHalfPrecision<kElement>) {
            const LanePlace place = rows_place(lane);
            cursor_ = cursor<Tile>(tile, place.row, place.chunk);
        } else {
            const int channel = lane / 4;
            cursor_ = cursor<Tile>(tile, 2 * (lane % 4), channel / 4, channel % 4 * 4);
        }
    }

    // 16 channels of the keys of one depth.
    DEVICE ColumnPair operator()(int depth, int channels) const {
        const int row = depth * kDepth;
        if constexpr (kHalfPrecision<kElement>) {
            return load_columns_across(cursor_.at(row, 2 * channels));
        } else {
            // Odd keys lie four rows behind the even ones.
            return {{load_word(cursor_.at(row, 4 * channels)), load_word(cursor_.at(row + 4, 4 * channels))},
                    {load_word(cursor_.at(row, 4 * channels + 2)), load_word(cursor_.at(row + 4, 4 * channels + 2))}};
        }
    }

private:
    Cursor<Tile> cursor_;
};

// Sums of values: what each key's value is multiplied with, and where the products go. `weight` as in weight_rows.
template <int kGranules, int kBlocks, class Weight>
struct WeightedSum {
    float (&sums)[kGranules][kBlocks][4];
    const Weight& weight;
    Operand<kElement, 4> operands[kGranules];

    template <class Extent>
    DEVICE void prepare(int depth, const Extent& extent) {
#pragma unroll
        for (int i = 0; i < kGranules; ++i) {
            if (extent.queries(i)) operands[i] = weight_rows(weight, i, depth);
        }
    }

    template <class Extent>
    DEVICE void add(int channels, const Operand<kElement, 2>& first, const Operand<kElement, 2>& second,
                    const Extent& extent) {
#pragma unroll
        for (int i = 0; i < kGranules; ++i) {
            if (extent.queries(i)) {
                multiply<kElement>(sums[i][2 * channels], operands[i], first);
                multiply<kElement>(sums[i][2 * channels + 1], operands[i], second);
            }
        }
    }
};
template <int kGranules, int kBlocks, class Weight>
DEVICE WeightedSum<kGranules, kBlocks, Weight> weighted_sum(float (&sums)[kGranules][kBlocks][4],
                                                            const Weight& weight) {
    return {sums, weight, {}};
}

// Adds the values of a tile of kKeys to each of the weighted sums, reading them once.
template <class Tile, int kKeys, class Extent, class... WeightedSums>
DEVICE void value_product(unsigned tile, int lane, const Extent& extent, WeightedSums... to) {
    using Values = ValueColumns<Tile>;
    const Values values(tile, lane);
#pragma unroll
    for (int depth = 0; depth < kKeys / Values::kDepth; ++depth) {
        if (extent.keys(depth * Values::kDepth / kGranule)) {
            (to.prepare(depth, extent), ...);
#pragma unroll
            for (int channels = 0; channels < Tile::kWidth / 16; ++channels) {
                const ColumnPair pair = values(depth, channels);
                const auto first = prepared<kElement>(pair.first), second = prepared<kElement>(pair.second);
                (to.add(channels, first, second, extent), ...);
            }
        }
    }
}

}  // namespace attention
