// Powers of two, logarithms and reciprocals as the special-function unit makes them, and a power of two without it.
#pragma once

#include "common/element.cuh"

constexpr float kLog2E = 1.4426950408889634f;
constexpr float kLn2 = 0.6931471805599453f;
constexpr float kInfinity = __builtin_bit_cast(float, 0x7f800000);

DEVICE float exp2_unit(float x) {
    float result;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
    return result;
}

// -inf for 0.
DEVICE float log2_unit(float x) {
    float result;
    asm("lg2.approx.f32 %0, %1;" : "=f"(result) : "f"(x));
    return result;
}

// inf for 0.
DEVICE float reciprocal(float x) {
    float result;
    asm("rcp.approx.f32 %0, %1;" : "=f"(result) : "f"(x));
    return result;
}

// 2^x for x <= 0 in the ordinary lanes, to within 1.1e-4 of the result: a quarter of what rounding to fp16 takes off.
// Adding 1.5 * 2^23 rounds x to an integer in the low bits of the sum; the rest lies in [-0.5, 0.5], where a cubic
// that is fitted to the relative error gives its power, and the integer goes into the exponent. The power of 0 is 1, so
// that x at -127 or below, -inf among them, leaves an exponent and digits of 0: the result is 0.
DEVICE float exp2_polynomial(float x) {
    constexpr float kRound = 12582912.0f;
    const float clamped = fmaxf(x, -127.0f);
    const float rounded = clamped + kRound;
    const float rest = clamped - (rounded - kRound);
    float power = 0.0550089329f;
    power = fmaf(power, rest, 0.242210954f);
    power = fmaf(power, rest, 0.693282902f);
    power = fmaf(power, rest, 1.0f);
    return __int_as_float(__float_as_int(power) + (__float_as_int(rounded) << 23));
}

// Of every so many exponentials one is a polynomial; 0: none. The unit makes 16 a cycle and multiprocessor. Where the
// products of narrow heads are faster than that (sm_90 and sm_100, up to 64 channels) the ordinary lanes have time to
// spare for a fifth of them; elsewhere they, or the products, are the limit themselves.
template <Element kElement>
constexpr int polynomial_period(int width) {
    constexpr bool kFast = __CUDA_ARCH__ == 900 || __CUDA_ARCH__ == 1000;
    constexpr bool kHalf = kElement == Element::fp16 || kElement == Element::bf16;
    return kFast && kHalf && width <= 64 ? 5 : 0;
}
