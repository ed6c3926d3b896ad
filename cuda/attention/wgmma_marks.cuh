// From the products of queries and keys to scores: sign, bias and mask of a tile, in a warpgroup's sums.
#pragma once

#include "attention/mask.cuh"
#include "attention/softmax.cuh"

namespace attention {

// What the tables say of a lane's part of a tile, loaded while the products run. `row` is the lane's first row on the M
// side of the tile, whose N side has kColumns; columns from `limit` on have no weight.
template <int kColumns>
class TileMarks {
public:
    DEVICE TileMarks(const Operands& operands, const Job& job, int tile, int row, int limit, int lane) {
        const TileLine line = load_tile_line(operands, job.tile_begin + tile);
        const int word = lane % 4;
        // At the lane's own place, so that all that it reads lies at constant distances.
        bias_ = line.bias < 0 ? nullptr : operands.biases + (line.bias + row * kColumns + 2 * word);
        masked_ = line.mask >= 0 || limit < kColumns;
        if (masked_) {
            const int* mask = line.mask < 0 ? nullptr : operands.masks + (line.mask + row * mask_words(kColumns));
            mask_ = load_mask_rows<kColumns>(reinterpret_cast<const unsigned*>(mask), 0, limit, word);
        }
    }

    // The scores of pairs that are not needed become -inf. May be fewer columns than the tile has.
    template <int kBlocks>
    DEVICE void apply(float (&scores)[kBlocks][4], ScoreScale scale) const {
        if constexpr (kBiases) {
            add_bias<kColumns>(scores, scale.negative ? -scale.unit : scale.unit, bias_, 0, 0);
        } else if (scale.negative) {
#pragma unroll
            for (int i = 0; i < 4 * kBlocks; ++i) scores[i / 4][i % 4] = -scores[i / 4][i % 4];
        }
        if (masked_) apply_mask(scores, mask_);
    }

private:
    const T* bias_;
    bool masked_;
    MaskRows<kColumns> mask_;
};

// Scores with a bias are in powers of two already.
DEVICE float softmax_unit(ScoreScale scale) { return kBiases ? 1.f : scale.unit; }

}  // namespace attention
