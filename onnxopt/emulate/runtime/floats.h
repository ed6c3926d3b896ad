// Floating-point instructions. float and double are the host's (built without contraction); 16-bit types compute in
// double and round once. The approximate functions are computed to nearest: hardware may differ in the last bits.
#pragma once

#include <cmath>
#include <cstdint>

#include "half.h"
#include "integers.h"

namespace emu {

template <class T>
struct FloatTraits;
template <>
struct FloatTraits<float> {
    static constexpr uint32_t nan = 0x7FFFFFFFu, sign = 0x80000000u, exponent = 0x7F800000u;
};
template <>
struct FloatTraits<double> {
    static constexpr uint64_t nan = 0x7FFFFFFFFFFFFFFFull, sign = 1ull << 63, exponent = 0x7FF0000000000000ull;
};
template <>
struct FloatTraits<f16> {
    static constexpr uint16_t nan = 0x7FFF, sign = 0x8000, exponent = 0x7C00;
};
template <>
struct FloatTraits<bf16> {
    static constexpr uint16_t nan = 0x7FFF, sign = 0x8000, exponent = 0x7F80;
};

template <class T>
using BitsOf = typename UnsignedOf<sizeof(T)>::type;
template <class T>
inline T of_bits(BitsOf<T> bits) { return bit_cast<T>(bits); }

inline double wide(float v) { return v; }
inline double wide(double v) { return v; }
inline double wide(f16 v) { return widen(v); }
inline double wide(bf16 v) { return widen(v); }

template <class T>
inline bool is_nan(T v) {
    return static_cast<BitsOf<T>>(bits_of(v) & ~FloatTraits<T>::sign) > FloatTraits<T>::exponent;
}
// NaN results carry no payload on the device.
template <class T>
inline T canonical(T v) { return is_nan(v) ? of_bits<T>(FloatTraits<T>::nan) : v; }

template <bool Ftz, class T>
inline T flush(T v) {
    if constexpr (Ftz) {
        const BitsOf<T> bits = bits_of(v);
        if ((bits & FloatTraits<T>::exponent) == 0) return of_bits<T>(static_cast<BitsOf<T>>(bits & FloatTraits<T>::sign));
    }
    return v;
}
template <bool Sat, class T>
inline T saturate(T v) {
    if constexpr (Sat) {
        const double value = wide(v);
        if (!(value > 0.0)) return from_double<T>(0.0);
        if (value > 1.0) return from_double<T>(1.0);
    }
    return v;
}

template <class T, Round R>
inline T float_add(T a, T b) {
    if constexpr ((std::is_same<T, float>::value || std::is_same<T, double>::value) && R == Round::nearest) {
        return canonical<T>(a + b);
    } else {
        return from_double<T>(add_to_odd(wide(a), wide(b)), R);
    }
}
template <class T, Round R>
inline T float_mul(T a, T b) {
    if constexpr ((std::is_same<T, float>::value || std::is_same<T, double>::value) && R == Round::nearest) {
        return canonical<T>(a * b);
    } else {
        return from_double<T>(wide(a) * wide(b), R);
    }
}
template <class T, Round R>
inline T float_fma(T a, T b, T c) {
    if constexpr (std::is_same<T, float>::value && R == Round::nearest) {
        return canonical<T>(__builtin_fmaf(a, b, c));
    } else if constexpr (std::is_same<T, double>::value) {
        return canonical<T>(__builtin_fma(a, b, c));
    } else {
        return from_double<T>(add_to_odd(wide(a) * wide(b), wide(c)), R);
    }
}

template <class T, Round R>
inline T float_sub(T a, T b) { return float_add<T, R>(a, of_bits<T>(static_cast<BitsOf<T>>(bits_of(b) ^ FloatTraits<T>::sign))); }
template <class T>
inline T float_fma_relu(T a, T b, T c) {
    const T result = float_fma<T, Round::nearest>(a, b, c);
    return !is_nan(result) && (bits_of(result) & FloatTraits<T>::sign) ? of_bits<T>(0) : result;
}

// A quotient with another rounding than the host's: the remainder says on which side of the nearest one it lies.
template <class T, Round R>
inline T float_div(T a, T b) {
    if constexpr (R == Round::nearest) return canonical<T>(a / b);
    const double quotient = static_cast<double>(a) / b;
    const double error = std::fma(-quotient, static_cast<double>(b), static_cast<double>(a));
    return from_double<T>(add_to_odd(quotient, error / b), R);
}

template <class T>
inline T float_neg(T a) { return of_bits<T>(static_cast<BitsOf<T>>(bits_of(a) ^ FloatTraits<T>::sign)); }
template <class T>
inline T float_abs(T a) { return of_bits<T>(static_cast<BitsOf<T>>(bits_of(a) & ~FloatTraits<T>::sign)); }
template <class T>
inline T float_copysign(T sign, T magnitude) {
    return of_bits<T>(static_cast<BitsOf<T>>((bits_of(sign) & FloatTraits<T>::sign) |
                                             (bits_of(magnitude) & ~FloatTraits<T>::sign)));
}

// Of two zeros the negative one is the smaller; NaN loses unless PropagateNan.
template <class T, bool PropagateNan>
inline T float_min(T a, T b) {
    if (is_nan(a) || is_nan(b)) {
        return PropagateNan || (is_nan(a) && is_nan(b)) ? of_bits<T>(FloatTraits<T>::nan) : is_nan(a) ? b : a;
    }
    const double x = wide(a), y = wide(b);
    if (x == y) return bits_of(a) & FloatTraits<T>::sign ? a : b;
    return x < y ? a : b;
}
template <class T, bool PropagateNan>
inline T float_max(T a, T b) {
    if (is_nan(a) || is_nan(b)) {
        return PropagateNan || (is_nan(a) && is_nan(b)) ? of_bits<T>(FloatTraits<T>::nan) : is_nan(a) ? b : a;
    }
    const double x = wide(a), y = wide(b);
    if (x == y) return bits_of(a) & FloatTraits<T>::sign ? b : a;
    return x > y ? a : b;
}

template <class T, bool PropagateNan>
inline T float_min3(T a, T b, T c) { return float_min<T, PropagateNan>(float_min<T, PropagateNan>(a, b), c); }
template <class T, bool PropagateNan>
inline T float_max3(T a, T b, T c) { return float_max<T, PropagateNan>(float_max<T, PropagateNan>(a, b), c); }

inline float ex2(float v) { return canonical(std::exp2(v)); }
inline float lg2(float v) { return canonical(std::log2(v)); }
inline float rcp(float v) { return canonical(1.0f / v); }
inline float sqrt_of(float v) { return canonical(std::sqrt(v)); }
inline float rsqrt(float v) { return canonical(static_cast<float>(1.0 / std::sqrt(static_cast<double>(v)))); }
inline float sin_of(float v) { return canonical(std::sin(v)); }
inline float cos_of(float v) { return canonical(std::cos(v)); }
inline float tanh_of(float v) { return canonical(std::tanh(v)); }
inline double rcp(double v) { return canonical(1.0 / v); }
inline double sqrt_of(double v) { return canonical(std::sqrt(v)); }
inline double rsqrt(double v) { return canonical(1.0 / std::sqrt(v)); }
template <class T>
inline T ex2(T v) { return from_double<T>(std::exp2(wide(v))); }
template <class T>
inline T tanh_of(T v) { return from_double<T>(std::tanh(wide(v))); }

template <class T>
inline bool test_finite(T v) { return std::isfinite(v); }
template <class T>
inline bool test_infinite(T v) { return std::isinf(v); }
template <class T>
inline bool test_number(T v) { return v == v; }
template <class T>
inline bool test_notanumber(T v) { return v != v; }
template <class T>
inline bool test_normal(T v) { return std::isnormal(v); }
template <class T>
inline bool test_subnormal(T v) { return std::fpclassify(v) == FP_SUBNORMAL; }

template <class T, class Function>
inline T each_half(T a, Function f) { return {f(a.low), f(a.high)}; }
template <class T, class Function>
inline T each_half(T a, T b, Function f) { return {f(a.low, b.low), f(a.high, b.high)}; }
template <class T, class Function>
inline T each_half(T a, T b, T c, Function f) { return {f(a.low, b.low, c.low), f(a.high, b.high, c.high)}; }

inline double to_integral(double v, Round round) {
    switch (round) {
        case Round::nearest: return std::nearbyint(v);
        case Round::zero: return std::trunc(v);
        case Round::down: return std::floor(v);
        case Round::up: return std::ceil(v);
        case Round::away: return std::round(v);
    }
    return v;
}

// Float to integer: NaN is 0, what lies outside is the nearest end.
template <class To>
inline To float_to_integer(double v, Round round) {
    if (v != v) return 0;
    const double integral = to_integral(v, round);
    // The largest 64-bit integers are no doubles, so the comparison is with the power of two above.
    const double above = std::ldexp(1.0, kBits<To> - (std::is_signed<To>::value ? 1 : 0));
    const double below = std::is_signed<To>::value ? -above : 0.0;
    if (integral >= above) return std::numeric_limits<To>::max();
    if (integral < below) return std::numeric_limits<To>::min();
    return static_cast<To>(integral);
}

template <class To, class From>
inline To integer_to_float(From v, Round round) {
    if constexpr (std::is_same<To, float>::value) {
        if (round == Round::nearest) return static_cast<float>(v);
    }
    return from_double<To>(static_cast<double>(v), round);
}

template <class To, class From>
inline To integer_saturated(From v) {
    using Wide = __int128;
    const Wide low = std::numeric_limits<To>::min(), high = std::numeric_limits<To>::max(), value = v;
    return static_cast<To>(value < low ? low : value > high ? high : value);
}

// `.relu` keeps NaN, `.satfinite` turns infinity into the largest finite number.
template <class T>
inline T narrowed(float v, Round round, bool relu, bool finite) {
    T result = from_double<T>(v, round);
    if (relu && !is_nan(result) && (bits_of(result) & FloatTraits<T>::sign)) return of_bits<T>(0);
    const BitsOf<T> magnitude = bits_of(result) & static_cast<BitsOf<T>>(~FloatTraits<T>::sign);
    if (finite && magnitude == FloatTraits<T>::exponent) return of_bits<T>(static_cast<BitsOf<T>>(bits_of(result) - 1));
    return result;
}
}  // namespace emu
