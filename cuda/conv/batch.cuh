// The order in which a tile is walked: steps of inputs, each in groups of taps that share their inputs, each group in
// batches of taps whose weights come together.
#pragma once

#include "conv/input_plan.cuh"

namespace conv {

struct Batch {
    // The step's first input, and how many it has, in whole granules.
    int input, inputs;
    // The group's first tap, and its number in the whole walk; its first batch brings its inputs.
    int group, group_number;
    bool first;
    int tap, taps;
};

// Batch `i` of the walk over `inputs` inputs.
template <int kNumber>
DEVICE Batch batch_of(unsigned i, int inputs) {
    constexpr Shape kShape = kShapes[kNumber];
    constexpr InputPlan kPlan = InputPlan::of(kShape);
    constexpr unsigned kBatches = kPlan.batches(), kInGroup = kPlan.batches_in_group();
    const unsigned step = i / kBatches, own = i % kBatches, group = own / kInGroup, number = own % kInGroup;
    Batch batch;
    batch.input = step * kShape.inputs;
    batch.inputs = min(kShape.inputs, inputs - batch.input);
    batch.group = group * kPlan.group;
    batch.group_number = step * kPlan.groups() + group;
    batch.first = number == 0;
    batch.tap = batch.group + number * kPlan.batch;
    batch.taps = min(kPlan.batch, kPlan.group - static_cast<int>(number) * kPlan.batch);
    return batch;
}

}  // namespace conv
