// Numbers of 16 bits in kernels: read and written as float16 or bfloat16, computed with in float32.
#pragma once

#include "device.hpp"

#ifdef __CUDACC__
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#endif

namespace udse {
namespace gpu {

enum Dtype : std::int32_t { float32, float16, bfloat16 };

struct Half {
  std::uint16_t word;
};
struct BFloat16 {
  std::uint16_t word;
};

UDSE_HD inline float widened(float x) { return x; }

UDSE_HD inline float widened(BFloat16 x) { return from_bits(static_cast<std::int32_t>(std::uint32_t{x.word} << 16)); }

UDSE_HD inline float widened(Half x) {
#ifdef __CUDA_ARCH__
  return __half2float(__ushort_as_half(x.word));
#else
  const std::int32_t modulus = (x.word & 0x7fff) << 13,
                     sign = static_cast<std::int32_t>(std::uint32_t{x.word} >> 15 << 31);
  const bool finite = modulus < 0x7c00 << 13;
  return from_bits(sign | (finite ? bits(from_bits(modulus) * 0x1p112f) : modulus | 0x7f800000));
#endif
}

// To nearest, ties to even.
UDSE_HD inline void narrow(float x, float& y) { y = x; }

UDSE_HD inline void narrow(float x, BFloat16& y) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  y.word = __bfloat16_as_ushort(__float2bfloat16_rn(x));
#else
  const std::uint32_t b = static_cast<std::uint32_t>(bits(x));
  y.word = x == x ? static_cast<std::uint16_t>((b + 0x7fff + (b >> 16 & 1)) >> 16) : 0x7fc0;
#endif
}

UDSE_HD inline void narrow(float x, Half& y) {
#ifdef __CUDA_ARCH__
  y.word = __half_as_ushort(__float2half_rn(x));
#else
  const std::int32_t modulus = bits(x) & 0x7fffffff, sign = bits(x) < 0 ? 0x8000 : 0;
  std::int32_t word;
  if (modulus > 0x7f800000)
    word = 0x7e00;  // NaN
  else if (modulus >= 0x477ff000)
    word = 0x7c00;  // 65520 and more
  else if (modulus < 0x38800000)
    word = bits(from_bits(modulus) + 0.5f) - 0x3f000000;  // below 2^-14: multiples of 2^-24
  else
    word = (modulus - (112 << 23) + 0xfff + (modulus >> 13 & 1)) >> 13;
  y.word = static_cast<std::uint16_t>(sign | word);
#endif
}

template <class T>
UDSE_HD inline float rounded(float x) {
  T y;
  narrow(x, y);
  return widened(y);
}

// Within 2 units in the last place where the result is not close to 0.
UDSE_HD inline float silu(float x) {
#ifdef __CUDA_ARCH__
  return __fdividef(x, 1 + __expf(-x));
#else
  return x / (1 + expf(-x));
#endif
}

// V neighbouring channels, read and written at once
template <class T, int V>
struct alignas(sizeof(T) * V) Pack {
  T values[V];
};

template <class T, int V>
struct Values {
  float v[V];

  UDSE_HD Values() : v{} {}
  UDSE_HD Values(const void* __restrict__ from, int64_t at) {
    const Pack<T, V> pack = static_cast<const Pack<T, V>*>(from)[at];
    for (int k = 0; k < V; ++k) v[k] = widened(pack.values[k]);
  }
  UDSE_HD void to(void* target, int64_t at) const {
    Pack<T, V> pack;
    for (int k = 0; k < V; ++k) narrow(v[k], pack.values[k]);
    static_cast<Pack<T, V>*>(target)[at] = pack;
  }
};

template <class T>
UDSE_HD inline float element(const void* from, int64_t at) {
  return from ? widened(static_cast<const T*>(from)[at]) : 0.f;
}

}  // namespace gpu
}  // namespace udse
