// Neighbouring elements of memory in one access: they begin at a multiple of their bytes, which are 2 to 16.
#pragma once

#include "common/element.cuh"

// The words of so many bytes. Structures of elements will not do: the compiler takes them apart into single accesses.
template <int kBytes>
struct WordsOf;
template <>
struct WordsOf<2> {
    using type = unsigned short;
};
template <>
struct WordsOf<4> {
    using type = unsigned;
};
template <>
struct WordsOf<8> {
    using type = uint2;
};
template <>
struct WordsOf<16> {
    using type = uint4;
};
template <class T, int kCount>
using Words = typename WordsOf<kCount * static_cast<int>(sizeof(T))>::type;

// Of memory that nothing writes during the launch. Zeros where they are not `present`; then nothing is read.
template <class T, int kCount>
DEVICE void load_vector(const T* source, T (&values)[kCount], bool present = true) {
    Words<T, kCount> words{};
    if (present) words = __ldg(reinterpret_cast<const Words<T, kCount>*>(source));
    const T* elements = reinterpret_cast<const T*>(&words);
#pragma unroll
    for (int i = 0; i < kCount; ++i) values[i] = elements[i];
}

// In assembly, since the compiler would take words of 16-bit elements apart as well.
DEVICE void store_words(void* target, unsigned short word) { *static_cast<unsigned short*>(target) = word; }
DEVICE void store_words(void* target, unsigned word) {
    asm volatile("st.global.b32 [%0], %1;" ::"l"(__cvta_generic_to_global(target)), "r"(word) : "memory");
}
DEVICE void store_words(void* target, uint2 words) {
    asm volatile("st.global.v2.b32 [%0], {%1, %2};" ::"l"(__cvta_generic_to_global(target)), "r"(words.x),
                 "r"(words.y)
                 : "memory");
}
DEVICE void store_words(void* target, uint4 words) {
    asm volatile("st.global.v4.b32 [%0], {%1, %2, %3, %4};" ::"l"(__cvta_generic_to_global(target)), "r"(words.x),
                 "r"(words.y), "r"(words.z), "r"(words.w)
                 : "memory");
}

template <class T, int kCount>
DEVICE void store_vector(T* target, const T (&values)[kCount]) {
    Words<T, kCount> words;
    T* elements = reinterpret_cast<T*>(&words);
#pragma unroll
    for (int i = 0; i < kCount; ++i) elements[i] = values[i];
    store_words(target, words);
}
