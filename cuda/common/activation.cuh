// The activations that are fused into convolutions, in fp32. NaN stays NaN.
#pragma once

#include "common/math.cuh"

// Enumerators are named as in a configuration, so that a constant on the compiler's command line names one.
enum class Activation { none, relu, hardswish, silu };

DEVICE float relu(float x) {
#if __CUDA_ARCH__ >= 800
    float result;
    asm("max.NaN.f32 %0, %1, 0f00000000;" : "=f"(result) : "f"(x));
    return result;
#else
    return x < 0.0f ? 0.0f : x;
#endif
}

template <Activation kActivation>
DEVICE float activated(float x) {
    if constexpr (kActivation == Activation::relu) {
        return relu(x);
    } else if constexpr (kActivation == Activation::hardswish) {
        return x * __saturatef(fmaf(x, 1.0f / 6.0f, 0.5f));
    } else if constexpr (kActivation == Activation::silu) {
        // Both units are off by 2 in the last place at most, and so is what follows. A power that overflows makes 0.
        return x * reciprocal(1.0f + exp2_unit(-kLog2E * x));
    } else {
        return x;
    }
}
