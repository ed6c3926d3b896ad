// The types that tensors hold and that matrix instructions take.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#define DEVICE __device__ __forceinline__

// tf32 and fp32 are both stored as float; fp32 keeps all digits in its products.
enum class Element { fp16, bf16, tf32, fp32 };

template <Element kElement>
struct StorageOf {
    using type = float;
};
template <>
struct StorageOf<Element::fp16> {
    using type = __half;
};
template <>
struct StorageOf<Element::bf16> {
    using type = __nv_bfloat16;
};
template <Element kElement>
using Storage = typename StorageOf<kElement>::type;

DEVICE void from_float(float value, float& result) { result = value; }
DEVICE void from_float(float value, __half& result) { result = __float2half_rn(value); }
DEVICE void from_float(float value, __nv_bfloat16& result) { result = __float2bfloat16_rn(value); }

template <class T>
DEVICE T converted(float value) {
    T result;
    from_float(value, result);
    return result;
}

DEVICE float to_float(float value) { return value; }
DEVICE float to_float(__half value) { return __half2float(value); }
DEVICE float to_float(__nv_bfloat16 value) { return __bfloat162float(value); }

constexpr int ceil_div(int value, int divisor) { return (value + divisor - 1) / divisor; }
constexpr int round_up(int value, int multiple) { return ceil_div(value, multiple) * multiple; }
constexpr int larger(int first, int second) { return first > second ? first : second; }
