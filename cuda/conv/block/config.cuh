// What a block of convolutions is specialised for: constants given on the compiler's command line, checked and named.
#pragma once

#include "common/activation.cuh"
#include "common/matrix.cuh"

namespace fused {

constexpr Element kElement = Element::ELEMENT;
using T = Storage<kElement>;
static_assert(kHalfPrecision<kElement>, "the stages between hold 16-bit elements");

// How a stage computes: products on the matrix unit, or each channel by itself in the ordinary lanes.
enum class Path { products, channelwise };

struct Size {
    int h, w;
    constexpr int count() const { return h * w; }
};

// One convolution. `slots` is how far apart neighbouring positions of its results lie in shared memory, in elements; 0
// for the last stage. `pads` lie in front of each axis.
struct Stage {
    Path path;
    Activation activation;
    Size input, output, kernel, strides, dilations, pads;
    int slots;
};

#define STAGE(path, activation, ih, iw, oh, ow, kh, kw, sh, sw, dh, dw, ph, pw, slots)                           \
    Stage{Path::path, Activation::activation, {ih, iw}, {oh, ow}, {kh, kw}, {sh, sw}, {dh, dw}, {ph, pw}, slots},
constexpr Stage kStages[] = {STAGES};
#undef STAGE
constexpr int kStageCount = sizeof(kStages) / sizeof(Stage), kLast = kStageCount - 1;
static_assert(kStageCount == 2 || kStageCount == 3, "a block has 2 or 3 stages");
static_assert(kStages[0].path == Path::products && kStages[kLast].path == Path::products,
              "the first and the last stage are products");
static_assert(kStages[0].kernel.count() == 1 && kStages[0].strides.count() == 1 && kStages[0].pads.h == 0 &&
                  kStages[0].pads.w == 0,
              "the first stage is pointwise");

constexpr int kWarps = WARPS, kThreads = 32 * kWarps;
// Warps beside each other share the positions of the first stage and divide its outputs.
constexpr int kColumnWarps = COLUMN_WARPS, kRowWarps = kWarps / kColumnWarps;
static_assert(kWarps % kColumnWarps == 0, "warps form a rectangle");
// A warp computes so many granules of 16 positions by so many blocks of 8 outputs at a time.
constexpr int kGranule = 16, kGranules = GRANULES, kOutputBlock = 8, kBlocks = BLOCKS;
// The first stage brings so many inputs at a time.
constexpr int kStep = STEP;
static_assert(kStep % 32 == 0, "lanes hold the channels of a step");
// Output rows of the last stage, and lines of `parts`, that a job has at most.
constexpr int kRows = ROWS, kParts = PARTS;

constexpr int kInputChannels = INPUT_CHANNELS, kOutputChannels = OUTPUT_CHANNELS;
constexpr int kInputElements = kInputChannels * kStages[0].input.count();
constexpr int kOutputElements = kOutputChannels * kStages[kLast].output.count();
constexpr bool kPrologue = PROLOGUE != 0, kResidual = RESIDUAL != 0;
constexpr Activation kInputActivation = Activation::INPUT_ACTIVATION;

// The largest power of two, up to `most`, that divides a number.
constexpr int power_in(int number, int most) {
    return most == 1 || number % most == 0 ? most : power_in(number, most / 2);
}

// Rows of a stage's results that a job with `rows` rows of the last stage needs, those outside of the image among them.
constexpr int stage_rows(int stage, int rows) {
    if (stage == kLast) return rows;
    const Stage& next = kStages[stage + 1];
    return (stage_rows(stage + 1, rows) - 1) * next.strides.h + (next.kernel.h - 1) * next.dilations.h + 1;
}

// Columns of a stage's results that the next stage reads, those outside of the image among them.
constexpr int patch_width(int stage) {
    const Stage& next = kStages[stage + 1];
    return (next.output.w - 1) * next.strides.w + (next.kernel.w - 1) * next.dilations.w + 1;
}

constexpr int patch_bytes(int stage) {
    return stage_rows(stage, kRows) * patch_width(stage) * kStages[stage].slots * static_cast<int>(sizeof(T));
}

}  // namespace fused
