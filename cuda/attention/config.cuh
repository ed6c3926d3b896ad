// What the attention kernel is specialised for: constants given on the compiler's command line, checked and named.
#pragma once

#include "common/element.cuh"

namespace attention {

constexpr Element kElement = Element::ELEMENT;
using T = Storage<kElement>;

// A block computes up to `rows` queries and walks its keys `keys` at a time, `stages` tiles in flight. `swapped` puts
// the keys on the M side of the matrix instruction.
struct Shape {
    int rows, keys, stages;
    bool swapped;
};

#define VARIANT(rows, keys, stages, swapped) Shape{rows, keys, stages, (swapped) != 0},
constexpr Shape kShapes[] = {VARIANTS};
#undef VARIANT
constexpr int kShapeCount = sizeof(kShapes) / sizeof(Shape);

constexpr bool kWarpgroups = PATH_WGMMA != 0;
constexpr int kWarps = WARPS;
constexpr int kProducers = kWarpgroups ? 128 : 0;
constexpr int kThreads = 32 * kWarps + kProducers;

// The most registers with which `RESIDENT` blocks share a multiprocessor: warps are spread over its quarters, each of
// which gives 16,384 in eights for every thread.
constexpr int kQuarterWarps = ceil_div(RESIDENT * kThreads / 32, 4);
constexpr int kRegisterShare = 16384 / 32 / kQuarterWarps / 8 * 8;
constexpr int kThreadRegisters = kRegisterShare < 255 ? kRegisterShare : 255;

constexpr int kHeads = HEADS;
constexpr int kWidth = WIDTH;
constexpr int kValueWidth = VALUE_WIDTH;
// Products pad widths to the depth of a 16-bit matrix instruction.
constexpr int kPaddedWidth = round_up(kWidth, 16);
constexpr int kPaddedValueWidth = round_up(kValueWidth, 16);

constexpr bool kOwnValues = OWN_VALUES != 0;
constexpr bool kMasks = MASKS != 0;
constexpr bool kBiases = BIASES != 0;
constexpr bool kTiles = kMasks || kBiases;
constexpr bool kExtras = EXTRAS != 0;
constexpr bool kSplit = SPLIT != 0;
constexpr bool kWeights = WEIGHTS != 0;
constexpr int kColumns = COLUMNS;

static_assert(!(kSplit && kWeights), "run-time weights cannot be split");
static_assert(!(kSplit && kExtras), "a partial result has one place");

// Where the vectors of a tensor lie: elements of one batch element, and the distance of neighbouring channels.
struct TensorLayout {
    int elements, stride;

    // Whether a vector of `width` channels is whole 16-byte pieces, each at a multiple of 16 bytes.
    constexpr bool whole_chunks(int width) const { return stride == 1 && width * sizeof(T) % 16 == 0; }
};
constexpr TensorLayout kQ{Q_ELEMENTS, Q_STRIDE}, kK{K_ELEMENTS, K_STRIDE}, kV{V_ELEMENTS, V_STRIDE};
constexpr TensorLayout kY{Y_ELEMENTS, Y_STRIDE};

}  // namespace attention
