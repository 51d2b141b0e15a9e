// Rows of counter-based noise, for the sources that are compiled once per instruction set.
#pragma once

#include "kernel_rows.hpp"
#ifdef __SSE2__
#include <immintrin.h>
#endif

namespace udse {
namespace UDSE_ISA {
namespace {

// Words of 32 bits in lanes of 64; what is in the upper halves is never read.
typedef std::uint64_t Words __attribute__((vector_size(4 * lanes)));
typedef uint32_t HalfWords __attribute__((vector_size(2 * lanes)));

inline Words product(const Words& a, const Words& b) {
#if defined(__AVX512F__)
  return (Words)_mm512_maskz_mul_epu32(0xff, (__m512i)a, (__m512i)b);  // GCC 12 warns of the plain one
#elif defined(__AVX2__)
  return (Words)_mm256_mul_epu32((__m256i)a, (__m256i)b);
#elif defined(__SSE2__)
  return (Words)_mm_mul_epu32((__m128i)a, (__m128i)b);
#else
  return (a & 0xffffffff) * (b & 0xffffffff);
#endif
}

inline Words all(uint32_t word) { return Words{} + word; }

// Philox 4x32-10 of the counters (frame + i, bin, step, role), i < L
template <int N>
inline void philox(Width<N> L, uint32_t frame, uint32_t bin, const NoiseKey& key, uint32_t x[4][N]) {
  const uint32_t k0 = static_cast<uint32_t>(key.seed), k1 = static_cast<uint32_t>(key.seed >> 32);
  Words index;
  for (int i = 0; i < lanes / 2; ++i) index[i] = static_cast<std::uint64_t>(i);
  for (int i = 0; i < L; i += lanes / 2) {
    Words c[4] = {index + all(frame + static_cast<uint32_t>(i)), all(bin), all(key.step), all(key.role)};
#pragma GCC unroll 10
    for (uint32_t round = 0; round < 10; ++round) {
      const Words p0 = product(c[0], all(0xD2511F53)), p1 = product(c[2], all(0xCD9E8D57));
      c[0] = (p1 >> 32) ^ c[1] ^ all(k0 + round * 0x9E3779B9);
      c[1] = p1;
      c[2] = (p0 >> 32) ^ c[3] ^ all(k1 + round * 0xBB67AE85);
      c[3] = p0;
    }
    for (int word = 0; word < 4; ++word) {
      const HalfWords low = __builtin_convertvector(c[word], HalfWords);
      __builtin_memcpy(x[word] + i, &low, sizeof low);
    }
  }
}

// ln((k + 1/2) / 2^24) for k < 2^24, relative error 1.5e-7. The upper half is taken from the distance to 1, which is
// exact.
inline float log_uniform(int32_t k) {
  const bool upper = k >= 1 << 23;
  const float v = (static_cast<float>(upper ? 0xffffff - k : k) + 0.5f) * 0x1p-24f;  // the uniform number, or 1 less it
  const int32_t exponent = (bits(v) - 0x3f2aaaab) >> 23;  // v = (1 + f) 2^exponent, 1 + f in [2/3, 4/3)
  const float lower_f = from_bits(bits(v) - exponent * (1 << 23)) - 1;
  const bool near_one = v <= 1.f / 3;
  const float f = upper ? (near_one ? -v : 1 - 2 * v) : lower_f;
  const float e = upper ? (near_one ? 0.f : -1.f) : static_cast<float>(exponent);
  float p = -0.121255808f;
  p = p * f + 0.134257495f;
  p = p * f - 0.123461902f;
  p = p * f + 0.141183093f;
  p = p * f - 0.166701406f;
  p = p * f + 0.200037807f;
  p = p * f - 0.249999881f;
  p = p * f + 0.333333194f;
  return e * 0.693147181f + (f + f * f * (p * f - 0.5f));
}

// bit 1 of a quadrant, where the sign of a float is
inline int32_t sign_bit(int32_t quadrant) { return static_cast<int32_t>(static_cast<uint32_t>(quadrant & 2) << 30); }

// sqrt(-ln u_0) exp(2 pi j u_1), u = ((x >> 8) + 1/2) / 2^24; absolute error below 1e-6
template <int N>
inline void normal_row(Width<N> L, const uint32_t* x0, const uint32_t* x1, ComplexRow& z) {
  each(L, [&](int i) {
    const float modulus = __builtin_sqrtf(-log_uniform(static_cast<int32_t>(x0[i] >> 8)));
    const int32_t k = static_cast<int32_t>(x1[i] >> 8), quadrant = (k + (1 << 21)) >> 22;
    const float d = (static_cast<float>(k - quadrant * (1 << 22)) + 0.5f) * 0x1p-24f,
                u = d * d;  // turns, in [-1/8, 1/8]
    const float sine = d * (6.28318548f + u * (-41.3416634f + u * (81.5925446f - u * 75.4016113f)));
    const float cosine = 1 + u * (-19.7392082f + u * (64.9393158f + u * (-85.4428482f + u * 59.2201691f)));
    const bool odd = quadrant & 1;
    z[0][i] = modulus * from_bits(bits(odd ? sine : cosine) ^ sign_bit(quadrant + 1));
    z[1][i] = modulus * from_bits(bits(odd ? cosine : sine) ^ sign_bit(quadrant));
  });
}

// The rows of an even and the next odd bin: one counter serves both. Compiled once with all that it calls: where the
// compiler gives up inlining, which any further kernel may bring about, nothing is vectorised and this takes ten times
// as long.
template <int N>
__attribute__((noinline, flatten)) void draw(Width<N> L, const NoiseKey& key, int64_t sample, int64_t pair, int64_t t0,
                                             ComplexRow z[2]) {
  alignas(64) uint32_t x[4][N];
  philox(L, static_cast<uint32_t>(key.first_frame + t0),
         static_cast<uint32_t>(pair) | static_cast<uint32_t>(key.first_sample + sample) << 16, key, x);
  normal_row(L, x[0], x[1], z[0]);
  normal_row(L, x[2], x[3], z[1]);
}

// f(L): blocks that are no longer than need be
template <class F>
inline void with_width(int64_t frames, F f) {
  if (frames <= short_block_frames) return f(Width<short_block_frames>{});
  f(Width<block_frames>{});
}

}  // namespace
}  // namespace UDSE_ISA
}  // namespace udse
