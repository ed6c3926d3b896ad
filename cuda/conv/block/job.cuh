// What a block of threads is told: its line of `jobs`, its lines of `parts`, and the tensors of its batch element.
#pragma once

#include "common/copy.cuh"
#include "conv/block/config.cuh"

namespace fused {

struct Operands {
    const T* x;
    const T* w;
    const float* b;
    const T* residual;
    const int *parts, *outputs, *inputs;
    const float *input_scales, *input_shifts;
    T* y;
};

struct Job {
    int row_begin, row_count, part_begin;
    int part_counts[3];

    DEVICE int first_part(int stage) const {
        return (stage > 0 ? part_counts[0] : 0) + (stage > 1 ? part_counts[1] : 0);
    }
    DEVICE int parts() const { return part_counts[0] + part_counts[1] + part_counts[2]; }
};

DEVICE Job load_job(const int* jobs, unsigned number) {
    const int4* line = reinterpret_cast<const int4*>(jobs) + 2 * static_cast<size_t>(number);
    const int4 a = __ldg(line), b = __ldg(line + 1);
    return {a.x, a.y, a.z, {a.w, b.x, b.y}};
}

// Outputs of a stage with the inputs that they need. `input_begin` is an entry of `inputs` in the first stage and a slot
// of the stage before in the others.
struct Part {
    int output_begin, output_count, input_begin, input_count, weight_begin;
};
constexpr int kPartBytes = 32;

DEVICE Part load_part(const int4* parts, int number) {
    const int4 a = parts[2 * number];
    return {a.x, a.y, a.z, a.w, reinterpret_cast<const int*>(parts)[8 * number + 4]};
}

// Rows of a stage that a job needs: `begin` may lie in front of the image, and the last behind it.
struct RowRange {
    int begin, count;
    // The first row within the image, and the one behind the last.
    DEVICE int first() const { return max(begin, 0); }
    DEVICE int end(int height) const { return min(begin + count, height); }
};

template <int kStage>
DEVICE RowRange rows_of(const Job& job) {
    if constexpr (kStage == kLast) {
        return {job.row_begin, job.row_count};
    } else {
        constexpr Stage kNext = kStages[kStage + 1];
        const RowRange next = rows_of<kStage + 1>(job);
        return {next.begin * kNext.strides.h - kNext.pads.h,
                (next.count - 1) * kNext.strides.h + (kNext.kernel.h - 1) * kNext.dilations.h + 1};
    }
}

// Output positions of a stage within the image that a job computes, row by row.
template <int kStage>
struct Positions {
    static constexpr int kWidth = kStages[kStage].output.w;
    int begin, end;

    DEVICE explicit Positions(const Job& job) {
        const RowRange rows = rows_of<kStage>(job);
        begin = rows.first() * kWidth;
        end = rows.end(kStages[kStage].output.h) * kWidth;
    }
};

}  // namespace fused
