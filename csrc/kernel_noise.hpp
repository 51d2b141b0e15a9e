// Rows of counter-based noise, for the sources that are compiled once per instruction set.
#pragma once

#include "kernel_rows.hpp"
#include "philox_normal.hpp"
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

template <int N>
inline void normal_row(Width<N> L, const uint32_t* x0, const uint32_t* x1, ComplexRow& z) {
  each(L, [&](int i) { complex_normal(x0[i], x1[i], z[0][i], z[1][i]); });
}

// The rows of an even and the next odd bin: one counter serves both. Compiled once with all that it calls: where the
// compiler gives up inlining, which any further kernel may bring about, nothing is vectorised and this takes ten times
// as long.
template <int N>
__attribute__((noinline, flatten)) void draw(Width<N> L, const NoiseKey& key, int64_t sample, int64_t pair, int64_t t0,
                                             ComplexRow z[2]) {
  alignas(64) uint32_t x[4][N];
  philox(L, static_cast<uint32_t>(key.first_frame) + static_cast<uint32_t>(t0),
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
