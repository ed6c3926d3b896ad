// Integer and bit instructions whose C++ is more than an operator. Shifts clamp, as PTX says; nothing here is undefined.
#pragma once

#include <cstdint>
#include <limits>
#include <type_traits>

#include "bits.h"

namespace emu {

template <class T>
using Unsigned = typename std::make_unsigned<T>::type;
template <class T>
constexpr int kBits = static_cast<int>(sizeof(T) * 8);

// Wrapping arithmetic: signed overflow is defined in PTX and undefined in C++.
template <class T>
inline T wrap_add(T a, T b) { return static_cast<T>(static_cast<Unsigned<T>>(a) + static_cast<Unsigned<T>>(b)); }
template <class T>
inline T wrap_sub(T a, T b) { return static_cast<T>(static_cast<Unsigned<T>>(a) - static_cast<Unsigned<T>>(b)); }
template <class T>
inline T wrap_mul(T a, T b) {
    return static_cast<T>(static_cast<uint64_t>(static_cast<Unsigned<T>>(a)) * static_cast<Unsigned<T>>(b));
}
template <class T>
inline T wrap_neg(T a) { return wrap_sub(T{0}, a); }

template <class T>
inline T mul_high(T a, T b) {
    if constexpr (sizeof(T) == 8) {
        using Wide = typename std::conditional<std::is_signed<T>::value, __int128, unsigned __int128>::type;
        return static_cast<T>((static_cast<Wide>(a) * static_cast<Wide>(b)) >> 64);
    } else {
        using Wide = typename std::conditional<std::is_signed<T>::value, int64_t, uint64_t>::type;
        return static_cast<T>((static_cast<Wide>(a) * static_cast<Wide>(b)) >> kBits<T>);
    }
}

template <class T>
inline T mul_24(T a, T b) {
    if constexpr (std::is_signed<T>::value) {
        const int64_t left = static_cast<int32_t>(static_cast<uint32_t>(a) << 8) >> 8;
        const int64_t right = static_cast<int32_t>(static_cast<uint32_t>(b) << 8) >> 8;
        return static_cast<T>(left * right);
    } else {
        return static_cast<T>(uint64_t{a & 0xFFFFFFu} * (b & 0xFFFFFFu));
    }
}

template <class Wide, class T>
inline Wide mul_wide(T a, T b) { return static_cast<Wide>(static_cast<Wide>(a) * static_cast<Wide>(b)); }

// PTX leaves division by zero open; hardware gives all ones. The smallest number over -1 wraps.
template <class T>
inline T divide(T a, T b) {
    if (b == 0) return static_cast<T>(~T{0});
    if constexpr (std::is_signed<T>::value) {
        if (b == -1) return wrap_neg(a);
    }
    return static_cast<T>(a / b);
}
template <class T>
inline T remainder(T a, T b) {
    if (b == 0) return a;
    if constexpr (std::is_signed<T>::value) {
        if (b == -1) return 0;
    }
    return static_cast<T>(a % b);
}

template <class T>
inline T int_min(T a, T b) { return a < b ? a : b; }
template <class T>
inline T int_max(T a, T b) { return a > b ? a : b; }
template <class T>
inline T int_abs(T a) { return a < 0 ? wrap_neg(a) : a; }

template <class T>
inline T add_saturated(T a, T b) {
    const int64_t sum = int64_t{a} + b;
    const int64_t low = std::numeric_limits<T>::min(), high = std::numeric_limits<T>::max();
    return static_cast<T>(sum < low ? low : sum > high ? high : sum);
}
template <class T>
inline T sub_saturated(T a, T b) {
    const int64_t difference = int64_t{a} - b;
    const int64_t low = std::numeric_limits<T>::min(), high = std::numeric_limits<T>::max();
    return static_cast<T>(difference < low ? low : difference > high ? high : difference);
}

template <class T>
inline T sum_of_differences(T a, T b, T c) {
    const Unsigned<T> distance = a < b ? static_cast<Unsigned<T>>(b) - static_cast<Unsigned<T>>(a)
                                       : static_cast<Unsigned<T>>(a) - static_cast<Unsigned<T>>(b);
    return static_cast<T>(static_cast<Unsigned<T>>(c) + distance);
}

template <class T>
inline T shift_left(T a, uint32_t count) {
    return count >= kBits<T> ? T{0} : static_cast<T>(static_cast<Unsigned<T>>(a) << count);
}
template <class T>
inline T shift_right(T a, uint32_t count) {
    if (count >= kBits<T>) return std::is_signed<T>::value && a < 0 ? static_cast<T>(~T{0}) : T{0};
    return static_cast<T>(a >> count);
}

template <bool Left, bool Wrap>
inline uint32_t funnel_shift(uint32_t low, uint32_t high, uint32_t count) {
    const uint32_t n = Wrap ? count & 31 : (count > 32 ? 32 : count);
    const uint64_t pair = (static_cast<uint64_t>(high) << 32) | low;
    return static_cast<uint32_t>(Left ? (pair << n) >> 32 : pair >> n);
}

template <class T>
inline uint32_t population(T a) { return static_cast<uint32_t>(__builtin_popcountll(a)); }
template <class T>
inline uint32_t leading_zeros(T a) {
    return a == 0 ? kBits<T> : static_cast<uint32_t>(__builtin_clzll(a)) - (64 - kBits<T>);
}

// The place of the highest bit that differs from the sign, or that place counted from the top.
template <class T, bool ShiftAmount>
inline uint32_t find_bit(T a) {
    const auto magnitude = static_cast<Unsigned<T>>(std::is_signed<T>::value && a < 0 ? ~a : a);
    if (magnitude == 0) return 0xFFFFFFFFu;
    const uint32_t place = kBits<T> - 1 - leading_zeros(magnitude);
    return ShiftAmount ? kBits<T> - 1 - place : place;
}

template <class T>
inline T reverse_bits(T a) {
    T result = 0;
    for (int i = 0; i < kBits<T>; ++i) result = static_cast<T>(result | (((a >> i) & T{1}) << (kBits<T> - 1 - i)));
    return result;
}

template <class T>
inline T extract_field(T a, uint32_t position, uint32_t length) {
    position &= 0xFF;
    length &= 0xFF;
    const uint32_t top = kBits<T> - 1;
    const auto bits = static_cast<Unsigned<T>>(a);
    const uint32_t last = position + length - 1 < top ? position + length - 1 : top;
    const bool negative = std::is_signed<T>::value && length != 0 && ((bits >> last) & 1);
    const auto filled = static_cast<Unsigned<T>>(negative ? ~Unsigned<T>{0} : Unsigned<T>{0});
    if (length == 0 || position > top) return static_cast<T>(filled);
    const uint32_t width = last - position + 1;
    const auto mask = static_cast<Unsigned<T>>(width > top ? ~Unsigned<T>{0} : (Unsigned<T>{1} << width) - 1);
    return static_cast<T>((filled & static_cast<Unsigned<T>>(~mask)) | ((bits >> position) & mask));
}

template <class T>
inline T insert_field(T field, T into, uint32_t position, uint32_t length) {
    position &= 0xFF;
    length &= 0xFF;
    if (length == 0 || position >= kBits<T>) return into;
    const T ones = length >= kBits<T> ? static_cast<T>(~T{0}) : static_cast<T>((T{1} << length) - 1);
    const T mask = static_cast<T>(ones << position);
    return static_cast<T>((into & ~mask) | ((field << position) & mask));
}

inline uint32_t permute_bytes(uint32_t a, uint32_t b, uint32_t selector) {
    const uint64_t bytes = (static_cast<uint64_t>(b) << 32) | a;
    uint32_t result = 0;
    for (int i = 0; i < 4; ++i) {
        const uint32_t choice = (selector >> (4 * i)) & 0xF;
        uint32_t byte = static_cast<uint32_t>(bytes >> (8 * (choice & 7))) & 0xFF;
        if (choice & 8) byte = byte & 0x80 ? 0xFF : 0;
        result |= byte << (8 * i);
    }
    return result;
}

// The modes of prmt, as the selectors of its general form for each value of the two low bits of c.
inline uint32_t permute_selector(const char* mode, uint32_t c) {
    static const uint16_t kForward[4] = {0x3210, 0x4321, 0x5432, 0x6543};
    static const uint16_t kBackward[4] = {0x5670, 0x6701, 0x7012, 0x0123};
    static const uint16_t kReplicate[4] = {0x0000, 0x1111, 0x2222, 0x3333};
    static const uint16_t kEdgeLeft[4] = {0x3210, 0x3211, 0x3222, 0x3333};
    static const uint16_t kEdgeRight[4] = {0x0000, 0x1110, 0x2210, 0x3210};
    static const uint16_t kHalf[4] = {0x1010, 0x3232, 0x1010, 0x3232};
    const uint32_t i = c & 3;
    switch (mode[0]) {
        case 'f': return kForward[i];
        case 'b': return kBackward[i];
        case 'e': return mode[2] == 'l' ? kEdgeLeft[i] : kEdgeRight[i];
        default: return mode[2] == '8' ? kReplicate[i] : kHalf[i];
    }
}

template <uint32_t Table>
inline uint32_t logic3(uint32_t a, uint32_t b, uint32_t c) {
    uint32_t result = 0;
    if constexpr (Table & 0x01) result |= ~a & ~b & ~c;
    if constexpr (Table & 0x02) result |= ~a & ~b & c;
    if constexpr (Table & 0x04) result |= ~a & b & ~c;
    if constexpr (Table & 0x08) result |= ~a & b & c;
    if constexpr (Table & 0x10) result |= a & ~b & ~c;
    if constexpr (Table & 0x20) result |= a & ~b & c;
    if constexpr (Table & 0x40) result |= a & b & ~c;
    if constexpr (Table & 0x80) result |= a & b & c;
    return result;
}

template <class A, class B>
inline uint32_t dot4(uint32_t a, uint32_t b, uint32_t c) {
    for (int i = 0; i < 4; ++i) {
        c += static_cast<uint32_t>(static_cast<int32_t>(static_cast<A>(a >> (8 * i))) *
                                   static_cast<int32_t>(static_cast<B>(b >> (8 * i))));
    }
    return c;
}

// Sum or difference with a carry in and out; `carry` is the condition-code register.
inline uint32_t add_carry(uint32_t a, uint32_t b, bool in, bool& out) {
    const uint64_t sum = uint64_t{a} + b + in;
    out = sum >> 32;
    return static_cast<uint32_t>(sum);
}
inline uint64_t add_carry(uint64_t a, uint64_t b, bool in, bool& out) {
    const unsigned __int128 sum = static_cast<unsigned __int128>(a) + b + in;
    out = static_cast<bool>(sum >> 64);
    return static_cast<uint64_t>(sum);
}
template <class T>
inline T sub_borrow(T a, T b, bool in, bool& out) {
    out = a < b || (a == b && in);
    return static_cast<T>(a - b - in);
}

}  // namespace emu
