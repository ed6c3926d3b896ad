// The 16-bit floating-point types and tf32: conversions with every rounding, and arithmetic that rounds once.
#pragma once

#include <cmath>
#include <cstdint>

#include "bits.h"

namespace emu {

struct f16 { uint16_t bits; };
struct bf16 { uint16_t bits; };
struct f16x2 { f16 low, high; };
struct bf16x2 { bf16 low, high; };

// Bits as values, and back; plain functions because translated code calls them thousands of times.
inline float as_f32(uint32_t bits) { return bit_cast<float>(bits); }
inline double as_f64(uint64_t bits) { return bit_cast<double>(bits); }
inline f16 as_f16(uint32_t bits) { return {static_cast<uint16_t>(bits)}; }
inline bf16 as_bf16(uint32_t bits) { return {static_cast<uint16_t>(bits)}; }
inline f16x2 as_f16x2(uint32_t bits) { return bit_cast<f16x2>(bits); }
inline bf16x2 as_bf16x2(uint32_t bits) { return bit_cast<bf16x2>(bits); }
inline uint32_t bits_of(float value) { return bit_cast<uint32_t>(value); }
inline uint64_t bits_of(double value) { return bit_cast<uint64_t>(value); }
inline uint16_t bits_of(f16 value) { return value.bits; }
inline uint16_t bits_of(bf16 value) { return value.bits; }
inline uint32_t bits_of(f16x2 value) { return bit_cast<uint32_t>(value); }
inline uint32_t bits_of(bf16x2 value) { return bit_cast<uint32_t>(value); }

enum class Round { nearest, zero, down, up, away };

// The last bits of a value that has been split into an integer `magnitude` and its discarded low bits.
inline uint64_t round_off(uint64_t magnitude, int discarded, bool negative, Round round) {
    if (discarded <= 0) return magnitude;
    if (discarded > 62) discarded = 62;
    const uint64_t kept = magnitude >> discarded;
    const uint64_t rest = magnitude & ((uint64_t{1} << discarded) - 1);
    const uint64_t half = uint64_t{1} << (discarded - 1);
    bool increment = false;
    switch (round) {
        case Round::nearest: increment = rest > half || (rest == half && (kept & 1)); break;
        case Round::away: increment = rest >= half; break;
        case Round::zero: break;
        case Round::down: increment = rest != 0 && negative; break;
        case Round::up: increment = rest != 0 && !negative; break;
    }
    return kept + (increment ? 1 : 0);
}

// A double as a binary format with a sign, `exponent_bits` and `fraction_bits`; overflow gives infinity or, where the
// rounding points to zero, the largest finite number. NaN becomes the format's canonical one.
inline uint32_t narrow(double value, int exponent_bits, int fraction_bits, Round round, uint32_t canonical_nan) {
    const uint64_t bits = bit_cast<uint64_t>(value);
    const bool negative = bits >> 63;
    const uint32_t sign = static_cast<uint32_t>(negative) << (exponent_bits + fraction_bits);
    const int exponent = static_cast<int>((bits >> 52) & 0x7FF);
    const uint64_t fraction = bits & ((uint64_t{1} << 52) - 1);
    const uint32_t infinity = ((1u << exponent_bits) - 1) << fraction_bits;
    if (exponent == 0x7FF) return fraction ? canonical_nan : sign | infinity;
    if (exponent == 0 && fraction == 0) return sign;
    const int bias = (1 << (exponent_bits - 1)) - 1;
    int scaled = exponent - 1023 + bias;
    const uint64_t magnitude = exponent == 0 ? fraction : fraction | (uint64_t{1} << 52);
    int discarded = 52 - fraction_bits;
    if (scaled <= 0) {
        discarded += 1 - scaled;
        scaled = 1;
    }
    // The hidden bit carries into the exponent, which is why one less is added.
    const uint64_t rounded = round_off(magnitude, discarded, negative, round);
    const uint64_t result = rounded + (static_cast<uint64_t>(scaled - 1) << fraction_bits);
    if (result < infinity) return sign | static_cast<uint32_t>(result);
    const bool toward_zero =
        round == Round::zero || (round == Round::down && !negative) || (round == Round::up && negative);
    return sign | (toward_zero ? infinity - 1 : infinity);
}

// The common case, from float and to nearest, without the general path.
inline uint16_t narrow_f16(float value) {
    const uint32_t bits = bit_cast<uint32_t>(value);
    const uint16_t sign = static_cast<uint16_t>((bits >> 16) & 0x8000u);
    const uint32_t magnitude = bits & 0x7FFFFFFFu;
    if (magnitude > 0x7F800000u) return 0x7FFFu;
    if (magnitude >= 0x477FF000u) return sign | 0x7C00u;
    if (magnitude < 0x38800000u) {
        // Adding 0.5 leaves the subnormal's last place where a float's last place is.
        const float shifted = bit_cast<float>(magnitude) + 0.5f;
        return sign | static_cast<uint16_t>(bit_cast<uint32_t>(shifted) - 0x3F000000u);
    }
    return sign | static_cast<uint16_t>((magnitude - 0x38000000u + 0xFFFu + ((magnitude >> 13) & 1u)) >> 13);
}

inline uint16_t narrow_bf16(float value) {
    const uint32_t bits = bit_cast<uint32_t>(value);
    if ((bits & 0x7FFFFFFFu) > 0x7F800000u) return 0x7FFFu;
    return static_cast<uint16_t>((bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16);
}

inline float widen(f16 value) {
    const uint32_t sign = static_cast<uint32_t>(value.bits & 0x8000u) << 16;
    const uint32_t magnitude = value.bits & 0x7FFFu;
    if (magnitude >= 0x7C00u) return bit_cast<float>(sign | 0x7F800000u | ((magnitude & 0x3FFu) << 13));
    if (magnitude >= 0x0400u) return bit_cast<float>(sign | ((magnitude << 13) + 0x38000000u));
    const float subnormal = static_cast<float>(magnitude) * 0x1p-24f;
    return bit_cast<float>(sign | bit_cast<uint32_t>(subnormal));
}

inline float widen(bf16 value) { return bit_cast<float>(static_cast<uint32_t>(value.bits) << 16); }
inline float widen(float value) { return value; }

template <class T>
inline T from_double(double value, Round round = Round::nearest);
template <>
inline f16 from_double<f16>(double value, Round round) {
    return {static_cast<uint16_t>(narrow(value, 5, 10, round, 0x7FFF))};
}
template <>
inline bf16 from_double<bf16>(double value, Round round) {
    return {static_cast<uint16_t>(narrow(value, 8, 7, round, 0x7FFF))};
}
template <>
inline float from_double<float>(double value, Round round) {
    if (round == Round::nearest) return static_cast<float>(value);
    return bit_cast<float>(narrow(value, 8, 23, round, 0x7FFFFFFF));
}
template <>
inline double from_double<double>(double value, Round) { return value; }

// A float as tf32: the low 13 bits are zero. cvt.rna is Round::away.
inline uint32_t narrow_tf32(float value, Round round) {
    return narrow(static_cast<double>(value), 8, 10, round, 0x7FFFFFFF >> 13) << 13;
}

// a + b with the sum rounded to odd, so that rounding it once more to fewer bits is the same as rounding once.
inline double add_to_odd(double a, double b) {
    const double sum = a + b;
    const double b_part = sum - a;
    const double error = (a - (sum - b_part)) + (b - b_part);
    if (error == 0.0 || !std::isfinite(sum) || !std::isfinite(error)) return sum;
    const uint64_t bits = bit_cast<uint64_t>(sum);
    if (bits & 1) return sum;
    const bool outward = (error > 0.0) == (sum > 0.0);
    return bit_cast<double>(outward ? bits + 1 : bits - 1);
}

}  // namespace emu
