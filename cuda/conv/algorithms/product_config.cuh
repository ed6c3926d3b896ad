// What a matrix product of an algorithm is specialised for: matrices, and the tile of a block.
//
// results = w columns: of every matrix kRows x kPositions sums over kDepth rows of columns.
#pragma once

#include "common/element.cuh"

namespace algorithms {

constexpr Element kElement = Element::ELEMENT;
using T = Storage<kElement>;
constexpr int kBytes = sizeof(T);

constexpr int kMatrices = MATRICES;
constexpr int kRows = ROWS;
constexpr int kDepth = DEPTH;
constexpr int kPositions = POSITIONS;
// Elements between neighbouring rows of columns.
constexpr int kPitch = PITCH;
// float32 sums without what follows them.
constexpr bool kRaw = RAW != 0;

// A block makes kBlockRows x kBlockPositions sums and walks kBlockDepth rows of columns a step.
constexpr int kBlockRows = BLOCK_ROWS;
constexpr int kBlockPositions = BLOCK_POSITIONS;
constexpr int kDepthBytes = 64;
constexpr int kBlockDepth = kDepthBytes / kBytes;
constexpr int kStages = STAGES;
constexpr int kRowWarps = ROW_WARPS;
constexpr int kWarps = WARPS;
constexpr int kPositionWarps = kWarps / kRowWarps;
constexpr int kThreads = 32 * kWarps;

// Rows of w are padded with zeros to whole steps.
constexpr int kWeightPitch = round_up(kDepth, kBlockDepth);
constexpr int kSteps = kWeightPitch / kBlockDepth;
constexpr unsigned kRowTiles = ceil_div(kRows, kBlockRows);
constexpr unsigned kPositionTiles = ceil_div(kPositions, kBlockPositions);

// What one warp computes, in granules of 16 rows and blocks of 8 positions.
constexpr int kGranules = kBlockRows / kRowWarps / 16;
constexpr int kBlocks = kBlockPositions / kPositionWarps / 8;

static_assert(kBlockRows % (16 * kRowWarps) == 0, "a warp has whole granules of rows");
static_assert(kBlockPositions % (16 * kPositionWarps) == 0, "a warp has whole pairs of blocks of positions");
static_assert(kPitch >= kPositions && kStages >= 2, "rows of columns hold all positions, and one step is in flight");

// Where the tiles lie in shared memory. Eight rows of w differ by an odd number of 16-byte chunks, and so do eight rows
// of columns of 16-bit elements: ldmatrix reads eight different ones. Of 32-bit elements four rows of columns differ by
// a quarter of the banks, for the eight neighbours of each.
constexpr int kWeightRow = kDepthBytes + 16;
constexpr int kColumnRow = kBlockPositions * kBytes + (kBytes == 2 ? 16 : 32);
constexpr int kColumnsBegin = kBlockRows * kWeightRow;
constexpr int kStageBytes = kColumnsBegin + kBlockDepth * kColumnRow;
constexpr int kSharedBytes = kStages * kStageBytes;

}  // namespace algorithms
