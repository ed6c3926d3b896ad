// Products of pixels and outputs over a tile's inputs: by the matrix instruction, or in the ordinary lanes.
#pragma once

#include "common/matrix.cuh"
#include "conv/input_rows.cuh"

namespace conv {

constexpr int kGranule = 16;
// sm_75 multiplies fp32 in the ordinary lanes.
constexpr bool kLaneProducts = __CUDA_ARCH__ < 800 && !kHalfPrecision<kElement>;

// Steps of the matrix instruction in a granule of inputs.
constexpr int kGranuleSteps = kGranule * static_cast<int>(sizeof(T)) / kStepBytes;

// How much of a tile a warp computes. `All` is known to the compiler; otherwise what lies beyond the last granule of
// pixels, pair of 8 outputs or granule of inputs is passed over.
struct All {
    DEVICE bool pixels(int) const { return true; }
    DEVICE bool outputs(int) const { return true; }
    DEVICE bool inputs(int) const { return true; }
};
struct Some {
    int pixel_granules, output_pairs, input_granules;
    DEVICE bool pixels(int granule) const { return granule < pixel_granules; }
    DEVICE bool outputs(int pair) const { return pair < output_pairs; }
    DEVICE bool inputs(int granule) const { return granule < input_granules; }
};

// Which pixel of a granule a lane's number `i` of kOwn is: those whose rows it names to the instruction, or, in the
// ordinary lanes, those whose sums it has.
constexpr int kOwnPixels = kLaneProducts ? 2 : 1;
DEVICE int own_pixel(int lane, int i) { return kLaneProducts ? lane / 4 + 8 * i : rows_place(lane).row; }
DEVICE int own_chunk(int lane) { return kLaneProducts ? 0 : rows_place(lane).chunk; }

// Where a lane reads the pixels of a granule: in the rows of their positions, or across rows of channels.
template <class Rows>
struct PositionPixels {
    Cursor<Rows> rows[kOwnPixels];
    DEVICE ::Rows operator()(int step) const { return load_rows(rows[0].at(0, 2 * step)); }
};
template <class Rows>
struct ChannelPixels {
    Cursor<Rows> rows;
    DEVICE ::Rows operator()(int step) const {
        ::Rows turned;
        load_matrices_transposed(turned.word, rows.at(kGranule * step, 0));
        return turned;
    }
};

DEVICE float4 load_floats(unsigned address) {
    float4 floats;
    asm volatile("ld.shared.v4.f32 {%0, %1, %2, %3}, [%4];"
                 : "=f"(floats.x), "=f"(floats.y), "=f"(floats.z), "=f"(floats.w)
                 : "r"(address)
                 : "memory");
    return floats;
}
DEVICE float dot(float4 a, float4 b, float sum) {
    return fmaf(a.w, b.w, fmaf(a.z, b.z, fmaf(a.y, b.y, fmaf(a.x, b.x, sum))));
}

template <class Rows, int kGranules, int kBlocks>
struct Products {
    using Sums = float[kGranules][kBlocks][4];

    // Adds to `sums` the products of one tap: `pixels` are those of each granule, `weights` the tap's outputs.
    template <class Pixels, class Extent>
    DEVICE static void add(Sums& sums, const Pixels (&pixels)[kGranules], unsigned weights, int lane,
                           const Extent& extent) {
        if constexpr (kLaneProducts) {
            add_lanes(sums, pixels, weights, lane, extent);
        } else {
            add_matrix(sums, pixels, weights, lane, extent);
        }
    }

private:
    template <class Pixels, class Extent>
    DEVICE static void add_matrix(Sums& sums, const Pixels (&pixels)[kGranules], unsigned weights, int lane,
                                  const Extent& extent) {
        // With a single block of outputs, its words are read one by one.
        constexpr bool kPaired = kBlocks % 2 == 0;
        static_assert(kPaired || kBlocks == 1, "outputs come in pairs of 8");
        const LanePlace place = kPaired ? columns_place(lane) : LanePlace{lane / 4, 0};
        const auto columns = cursor<Rows>(weights, place.row, place.chunk);
#pragma unroll
        for (int granule = 0; granule < Rows::kInputs / kGranule; ++granule) {
            if (!extent.inputs(granule)) break;
#pragma unroll
            for (int step = granule * kGranuleSteps; step < (granule + 1) * kGranuleSteps; ++step) {
                Operand<kElement, 4> operands[kGranules];
#pragma unroll
                for (int i = 0; i < kGranules; ++i) {
                    if (extent.pixels(i)) operands[i] = prepared<kElement>(pixels[i](step));
                }
                if constexpr (kPaired) {
#pragma unroll
                    for (int pair = 0; pair < kBlocks / 2; ++pair) {
                        if (extent.outputs(pair)) {
                            const ColumnPair two = load_columns(columns.at(kGranule * pair, 2 * step));
                            multiply_block(sums, 2 * pair, operands, prepared<kElement>(two.first), extent);
                            multiply_block(sums, 2 * pair + 1, operands, prepared<kElement>(two.second), extent);
                        }
                    }
                } else {
                    const unsigned word = lane % 4 * 4;
                    const Columns one{{load_word(columns.at(0, 2 * step) + word),
                                       load_word(columns.at(0, 2 * step + 1) + word)}};
                    multiply_block(sums, 0, operands, prepared<kElement>(one), extent);
                }
            }
        }
    }

    template <class Extent>
    DEVICE static void multiply_block(Sums& sums, int block, const Operand<kElement, 4> (&pixels)[kGranules],
                                      const Operand<kElement, 2>& outputs, const Extent& extent) {
#pragma unroll
        for (int i = 0; i < kGranules; ++i) {
            if (extent.pixels(i)) multiply<kElement>(sums[i][block], pixels[i], outputs);
        }
    }

    // A lane's four sums of a block are of two pixels and two outputs.
    template <class Pixels, class Extent>
    DEVICE static void add_lanes(Sums& sums, const Pixels (&pixels)[kGranules], unsigned weights, int lane,
                                 const Extent& extent) {
        const unsigned output = lane % 4 * 2;
#pragma unroll 1
        for (int chunk = 0; chunk < Rows::kChunks; ++chunk) {
            if (!extent.inputs(chunk * kChunkBytes / (kGranule * static_cast<int>(sizeof(T))))) break;
            float4 own[kGranules][2];
#pragma unroll
            for (int i = 0; i < 2 * kGranules; ++i) {
                // Turning is an exclusive or of the chunk, which the lane's address has for chunk 0.
                const unsigned row = pixels[i / 2].rows[i % 2].address;
                const unsigned turned = chunk % Rows::kTurned, far = chunk - turned;
                if (extent.pixels(i / 2)) {
                    own[i / 2][i % 2] = load_floats((row ^ turned * kChunkBytes) + far * kChunkBytes);
                }
            }
#pragma unroll
            for (int block = 0; block < kBlocks; ++block) {
                if (extent.outputs(block / 2)) {
                    const float4 first = load_floats(weights + Rows::offset(8 * block + output, chunk));
                    const float4 second = load_floats(weights + Rows::offset(8 * block + output + 1, chunk));
#pragma unroll
                    for (int i = 0; i < 2 * kGranules; ++i) {
                        if (extent.pixels(i / 2)) {
                            float(&sum)[4] = sums[i / 2][block];
                            sum[i % 2 * 2] = dot(own[i / 2][i % 2], first, sum[i % 2 * 2]);
                            sum[i % 2 * 2 + 1] = dot(own[i / 2][i % 2], second, sum[i % 2 * 2 + 1]);
                        }
                    }
                }
            }
        }
    }
};

}  // namespace conv
