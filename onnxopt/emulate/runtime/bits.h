// Registers are plain unsigned integers; these read them as a PTX type and write a value back.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

namespace emu {

template <class To, class From>
inline To bit_cast(const From& from) {
    static_assert(sizeof(To) == sizeof(From), "bits can only be read as a type of their size");
    To to;
    std::memcpy(&to, &from, sizeof to);
    return to;
}

template <int Bytes>
struct UnsignedOf;
template <>
struct UnsignedOf<1> { using type = uint8_t; };
template <>
struct UnsignedOf<2> { using type = uint16_t; };
template <>
struct UnsignedOf<4> { using type = uint32_t; };
template <>
struct UnsignedOf<8> { using type = uint64_t; };

template <class T>
inline T fetch(const uint8_t* memory) {
    T value;
    std::memcpy(&value, memory, sizeof value);
    return value;
}

template <class T>
inline void keep(uint8_t* memory, T value) {
    std::memcpy(memory, &value, sizeof value);
}

// The same without templates, by the names of PTX types: translated code calls them thousands of times.
#define EMU_MEMORY_TYPE(name, type)                                       \
    inline type fetch_##name(const uint8_t* memory) { return fetch<type>(memory); } \
    inline void keep_##name(uint8_t* memory, type value) { keep<type>(memory, value); }
EMU_MEMORY_TYPE(b8, uint8_t)
EMU_MEMORY_TYPE(b16, uint16_t)
EMU_MEMORY_TYPE(b32, uint32_t)
EMU_MEMORY_TYPE(b64, uint64_t)
EMU_MEMORY_TYPE(s8, int8_t)
EMU_MEMORY_TYPE(s16, int16_t)
EMU_MEMORY_TYPE(s32, int32_t)
EMU_MEMORY_TYPE(s64, int64_t)
#undef EMU_MEMORY_TYPE

}  // namespace emu
