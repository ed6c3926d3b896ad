// What follows a sum: bias, residual and activation, and the store into `y`.
#pragma once

#include "common/activation.cuh"

namespace algorithms {

constexpr Activation kActivation = Activation::ACTIVATION;
constexpr bool kResidual = RESIDUAL != 0;

// The output of one batch element; without a residual its pointer is null and never read.
template <class T>
struct Target {
    T* y;
    const T* residual;
    const float* bias;

    DEVICE void store(int channel, int offset, float sum) const {
        const float residue = kResidual ? to_float(__ldg(residual + offset)) : 0.0f;
        y[offset] = converted<T>(finished(__ldg(bias + channel), residue, sum));
    }

    // Of two neighbours of one channel, the first at an even offset.
    DEVICE void store_pair(int channel, int offset, float first, float second) const {
        const float added = __ldg(bias + channel);
        Pair residue{converted<T>(0.0f), converted<T>(0.0f)};
        if constexpr (kResidual) residue = *reinterpret_cast<const Pair*>(residual + offset);
        *reinterpret_cast<Pair*>(y + offset) = {converted<T>(finished(added, to_float(residue.first), first)),
                                                converted<T>(finished(added, to_float(residue.second), second))};
    }

private:
    struct alignas(2 * sizeof(T)) Pair {
        T first, second;
    };

    DEVICE static float finished(float added, float residue, float sum) {
        return activated<kActivation>(kResidual ? sum + added + residue : sum + added);
    }
};

template <class T>
DEVICE Target<T> target_of(T* y, const T* residual, const float* bias, size_t element, int elements) {
    const size_t first = element * elements;
    return {y + first, kResidual ? residual + first : nullptr, bias};
}

}  // namespace algorithms

// The parameter of a residual where there is one, and its value.
#if RESIDUAL
#define RESIDUAL_PARAMETER(T) const T* __restrict__ residual,
#define RESIDUAL_POINTER residual
#else
#define RESIDUAL_PARAMETER(T)
#define RESIDUAL_POINTER static_cast<const algorithms::T*>(nullptr)
#endif
