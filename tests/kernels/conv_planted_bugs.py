"""Bugs to plant into the sources of the convolution kernels, one at a time, for ``tests/kernels/planted_bugs.py``."""

from __future__ import annotations

from tests.kernels.planted_bugs import Bug

_TILE = "conv/tile_mma.cuh"
_LOADS = "conv/load_inputs.cuh"
_CHANNELS = "conv/load_channels.cuh"
_STORE = "conv/mma_store.cuh"
_EPILOGUE = "conv/epilogue.cuh"
_GEOMETRY = "conv/geometry.cuh"
_JOB = "conv/job.cuh"
_ENTRY = "conv/group_conv.cu"
_LANES = "conv/tile_lanes.cuh"
_WINDOW = "conv/lanes_window.cuh"
_LANES_STORE = "conv/lanes_store.cuh"
_SUM = "conv/sum_conv.cu"
_WGMMA = "conv/tile_wgmma.cuh"
_RING = "common/ring.cuh"

MMA_BUGS = (
    Bug(
        "dropped barrier behind the copies",
        "mma run",
        _TILE,
        "            wait_copies<larger(kShape.stages - 2, 0)>();\n            __syncthreads();",
        "            wait_copies<larger(kShape.stages - 2, 0)>();",
    ),
    Bug(
        "copies are not waited for",
        "mma run",
        _TILE,
        "wait_copies<larger(kShape.stages - 2, 0)>();",
        "wait_copies<kShape.stages>();",
    ),
    Bug(
        "results overwrite what others multiply",
        "mma run",
        _TILE,
        "        __syncthreads();\n        if (granules_ > 0) {\n            float* stage",
        "        if (granules_ > 0) {\n            float* stage",
    ),
    Bug(
        "chunks are not turned on the way along a row",
        "mma channels",
        "conv/input_rows.cuh",
        "return (address ^ turned * kChunkBytes)",
        "return (address + turned * kChunkBytes)",
    ),
    Bug(
        "one slot of inputs too few",
        "mma batches of taps",
        _TILE,
        "layout.input_slots = 1 + ceil_div(shape.stages - 1, plan.batches_in_group());",
        "layout.input_slots = 1 + (shape.stages - 1) / plan.batches_in_group();",
    ),
    Bug(
        "weights of the taps in reverse",
        "mma run",
        _TILE,
        "(batch.tap + tap) * outputs_ + output",
        "(batch.tap + batch.taps - 1 - tap) * outputs_ + output",
    ),
    Bug(
        "dilation of a tap is left out",
        "mma dilated",
        _GEOMETRY,
        "return {d * kDilations.d, h * kDilations.h, w * kDilations.w};",
        "return {d * kDilations.d, h * kDilations.h, w};",
    ),
    Bug(
        "border in front is no border",
        "mma run",
        _GEOMETRY,
        "static_cast<unsigned>(at) < static_cast<unsigned>(of_axis(kInputSize, kAxis))",
        "at < of_axis(kInputSize, kAxis)",
    ),
    Bug("rows of zeros are not written", "mma run", _TILE, "            write_zeros();\n", ""),
    Bug(
        "last granule of pixels left out",
        "mma run",
        _TILE,
        "(job.pixel_count - warp_ * kPixels + kGranule - 1) / kGranule",
        "(job.pixel_count - warp_ * kPixels) / kGranule",
    ),
    Bug(
        "run of positions one too short",
        "mma run, channels last",
        _LOADS,
        "tap_shift(tap + kPlan.group - 1).position() - begin + 1;",
        "tap_shift(tap + kPlan.group - 1).position() - begin;",
    ),
    Bug(
        "pairs of positions in the wrong order",
        "mma run",
        _LOADS,
        "const unsigned half = (second ^ j) != 0 ? high : low;",
        "const unsigned half = j != 0 ? high : low;",
    ),
    Bug(
        "padding goes through the prologue",
        "mma positions, prologue",
        _LOADS,
        "return converted<T>(inside ? prologue(to_float(value), scale, shift) : 0.f);",
        "return converted<T>(prologue(to_float(value), scale, shift));",
    ),
    Bug(
        "channels of zeros are read",
        "mma positions, prologue",
        _LOADS,
        "const bool present = source.inside && channel_[i] >= 0;",
        "const bool present = source.inside;",
    ),
    Bug(
        "pixels of the neighbouring piece",
        "mma channels",
        _CHANNELS,
        "Input::offset(place.image, channel.channel, place.position)",
        "Input::offset(place.image, channel.channel, place.position ^ kCount)",
    ),
    Bug(
        "missing bias of every other output",
        "mma run",
        _STORE,
        "output + 8 * i + 1 < job_.output_count ? output_bias",
        "false ? output_bias",
    ),
    Bug(
        "residual behind the activation",
        "mma run",
        _EPILOGUE,
        "        if constexpr (kResidual) value += to_float(residual[i]);\n"
        "        results[i] = converted<Result>(activated<kActivation>(value));",
        "        value = activated<kActivation>(value);\n"
        "        if constexpr (kResidual) value += to_float(residual[i]);\n"
        "        results[i] = converted<Result>(value);",
    ),
    Bug(
        "residual of the first batch element",
        "mma run",
        _ENTRY,
        "operands.residual = residual + static_cast<size_t>(first) * Output::kElements;",
        "operands.residual = residual;",
    ),
    Bug(
        "further places of a block's first output are left out",
        "mma extras",
        _EPILOGUE,
        "line.x >= first && line.x < first + count;",
        "line.x > first && line.x < first + count;",
    ),
    Bug(
        "channels that are no neighbours are stored as such",
        "mma run, channels last",
        _STORE,
        "whole = whole && own && channel[i] == channel[0] + i;",
        "whole = whole && own;",
    ),
    Bug(
        "all pixels of a folded tile in the first image",
        "mma folded",
        _TILE,
        "images_[n / kOwnPixels][n % kOwnPixels] = pixel.image;",
        "images_[n / kOwnPixels][n % kOwnPixels] = 0;",
    ),
    Bug(
        "pixels of images that do not exist",
        "mma folded",
        _JOB,
        "pixels = min(pixels, images * kPositions - b.z);",
        "pixels = min(pixels, kImages * kPositions - b.z);",
    ),
    Bug(
        "partial rows change places",
        "split",
        _EPILOGUE,
        "return __ldg(operands.outputs + job.output_begin + output);",
        "return __ldg(operands.outputs + job.output_begin + output) ^ (kSplit && output < 2);",
    ),
)

LANES_BUGS = (
    Bug(
        "weights are overwritten while they are used",
        "lanes shared",
        _LANES,
        "            __syncthreads();\n            SharedWeights<Shape>::bring",
        "            SharedWeights<Shape>::bring",
    ),
    Bug(
        "weights are used before they are there",
        "lanes shared",
        _LANES,
        "first, count, shared);\n            __syncthreads();",
        "first, count, shared);",
    ),
    Bug(
        "weights of the last step for all",
        "lanes runs",
        _LANES,
        "number > 0 && job.input_count <= Shape::kInputs",
        "number > 0",
    ),
    Bug(
        "taps of a row in reverse",
        "lanes window",
        _LANES,
        "values[i * kStrides.w + tap * kDilations.w]",
        "values[i * kStrides.w + (Window::kTaps - 1 - tap) * kDilations.w]",
    ),
    Bug(
        "column in front of the row is read",
        "lanes window",
        "conv/lanes_shape.cuh",
        "            return first + kColumn >= 0;",
        "            return true;",
    ),
    Bug(
        "row below the image is read",
        "lanes window",
        _WINDOW,
        "distance < kSize || first + distance < kSize;",
        "distance < kSize || first + distance <= kSize;",
    ),
    Bug(
        "padding goes through the prologue of the lanes",
        "lanes prologue",
        _WINDOW,
        "return inside ? prologue(value, input.scale, input.shift) : 0.0f;",
        "return prologue(value, input.scale, input.shift);",
    ),
    Bug(
        "further places hold the next output",
        "lanes extras",
        _LANES_STORE,
        "values[i] = output == line.x ? sums[output][i] : values[i];",
        "values[i] = output == line.x + 1 ? sums[output][i] : values[i];",
    ),
    Bug(
        "an output more than half a tile has",
        "lanes shared",
        _LANES,
        "if (job.output_count <= kHalf) {",
        "if (job.output_count <= kHalf + 1) {",
    ),
    Bug(
        "missing bias of the last output",
        "lanes shared",
        _LANES,
        "output < job.output_count ? output_bias",
        "output + 1 < job.output_count ? output_bias",
    ),
    Bug(
        "weights of one output where a part has several inputs",
        "lanes alone",
        _LANES,
        "if (job.input_count == 1) {",
        "if (job.input_count >= 1) {",
    ),
)

SUM_BUGS = (
    Bug(
        "last partial row is left out",
        "sum",
        _SUM,
        "__ldg(sum_begin + channel + 1) - begin)",
        "__ldg(sum_begin + channel + 1) - begin - 1)",
    ),
    Bug(
        "partial rows of the next slot",
        "sum",
        _SUM,
        "sum_of_rows(rows, sum_rows + begin,",
        "sum_of_rows(rows + kSlotStride, sum_rows + begin,",
    ),
    Bug(
        "residual of the first batch element in a sum",
        "sum",
        _SUM,
        "__ldg(residual + target)",
        "__ldg(residual + place.element)",
    ),
    Bug("elements behind the last one", "sum", _SUM, "if (place.batch >= static_cast<unsigned>(batch)) return;", ""),
    Bug("bias of a sum is left out", "sum", _SUM, " + __ldg(b + channel);", ";"),
    Bug(
        "slots are no neighbours",
        "sum, channels last",
        _SUM,
        "kSlotStride = kLast ? 1 : kPositions;",
        "kSlotStride = kPositions;",
    ),
)

WGMMA_BUGS = (
    Bug(
        "missing fence before wgmma reads",
        "wgmma batches",
        _RING,
        "        fence_before_matrix_reads();\n        ring_.publish",
        "        ring_.publish",
    ),
    Bug(
        "batches are published before they are there",
        "wgmma batches",
        _RING,
        "            wait_copies<kInFlight>();",
        "            wait_copies<kInFlight + 1>();",
    ),
    Bug(
        "batch released before its products",
        "wgmma batches",
        _WGMMA,
        "            if (i > 0) memory_.ring.release(i - 1);",
        "            memory_.ring.release(i);",
    ),
    Bug("wrong parity of the ring", "wgmma batches", _RING, "return item / kSlots & 1;", "return item / kSlots & 0;"),
    Bug(
        "pixels of the first warpgroup for all",
        "wgmma batches",
        _WGMMA,
        "PixelTile{rows}.along(granule, 64 * group_);",
        "PixelTile{rows}.along(granule, 0);",
    ),
    Bug(
        "taps beyond the border read what lies there",
        "wgmma run",
        _WGMMA,
        "if (place_.w == kOutside || !(place_ + shift).inside()) {",
        "if (place_.w == kOutside) {",
    ),
    Bug(
        "results overwrite what another warpgroup multiplies",
        "wgmma run",
        _WGMMA,
        "            consumer_barrier(groups).wait();\n",
        "",
    ),
)

BUGS = (*MMA_BUGS, *LANES_BUGS, *SUM_BUGS, *WGMMA_BUGS)
