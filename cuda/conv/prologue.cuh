// Inputs on their way to the products: scale, shift and activation, in fp32.
#pragma once

#include "conv/job.cuh"

namespace conv {

// An entry of `inputs`: the channel of x, -1 a channel of zeros, and its scale and shift.
struct InputChannel {
    int channel;
    float scale, shift;
};
DEVICE InputChannel load_input(const Operands& operands, const Job& job, int input) {
    InputChannel own{__ldg(operands.inputs + job.input_begin + input), 1.0f, 0.0f};
    if constexpr (kPrologue) {
        own.scale = __ldg(operands.input_scales + job.input_begin + input);
        own.shift = __ldg(operands.input_shifts + job.input_begin + input);
    }
    return own;
}

// What the products take for a value of x; positions outside of x are 0 behind this.
DEVICE float prologue(float value, float scale, float shift) {
    if constexpr (kPrologue) {
        return activated<kInputActivation>(fmaf(scale, value, shift));
    } else {
        return value;
    }
}

}  // namespace conv
