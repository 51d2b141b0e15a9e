// Blocks of frames, which every kernel is written in; for the sources that are compiled once per instruction set.
//
// Plain loops over blocks of a fixed number of frames L, which the compiler vectorises: a short last block is padded,
// so that a frame is computed the same way wherever it lies in a block. All of it is in the anonymous namespace of the
// source that includes it: an inline function shared between sources could be kept by the linker in the version of the
// wrong instruction set.
#pragma once

#include <math.h>

#include <type_traits>

#include "kernels.hpp"

#if defined(__clang__)
#define UDSE_VECTORISE _Pragma("clang loop vectorize(assume_safety)")
#elif defined(__GNUC__)
#define UDSE_VECTORISE _Pragma("GCC ivdep")
#else
#define UDSE_VECTORISE
#endif

namespace udse {
namespace UDSE_ISA {
namespace {

#if defined(__AVX512F__)
constexpr int lanes = 16;
#elif defined(__AVX2__)
constexpr int lanes = 8;
#else
constexpr int lanes = 4;  // floats of a vector
#endif
using std::int32_t;
using std::int64_t;
using std::uint32_t;

template <int N>
using Width = std::integral_constant<int, N>;  // frames of a block

struct alignas(64) Row {
  float v[block_frames];
  float& operator[](int i) { return v[i]; }
  float operator[](int i) const { return v[i]; }
};

struct ComplexRow {
  Row part[2];  // real, imaginary
  Row& operator[](int k) { return part[k]; }
  const Row& operator[](int k) const { return part[k]; }
};

template <int N, class F>
inline void each(Width<N>, F f) {
  UDSE_VECTORISE
  for (int i = 0; i < N; ++i) f(i);
}

template <int N, class F>
inline void each_part(Width<N>, F f) {
  for (int k = 0; k < 2; ++k) {
    UDSE_VECTORISE
    for (int i = 0; i < N; ++i) f(k, i);
  }
}

template <int N>
inline int block_length(Width<N> L, int64_t frames, int64_t t0) {
  return frames - t0 < L ? static_cast<int>(frames - t0) : N;
}

template <int N>
inline void load(Width<N> L, const float* p, int n, Row& row) {
  if (n == L) return each(L, [&](int i) { row[i] = p[i]; });
  for (int i = 0; i < L; ++i) row[i] = i < n ? p[i] : 0;
}

template <int N>
inline void store(Width<N> L, const Row& row, int n, float* p) {
  if (n == L) return each(L, [&](int i) { p[i] = row[i]; });
  for (int i = 0; i < n; ++i) p[i] = row[i];
}

template <int N>
inline void load(Width<N> L, const cfloat* z, int n, ComplexRow& row) {
  const float* p = reinterpret_cast<const float*>(z);
  if (n == L) return each(L, [&](int i) { row[0][i] = p[2 * i], row[1][i] = p[2 * i + 1]; });
  for (int i = 0; i < L; ++i) row[0][i] = i < n ? p[2 * i] : 0, row[1][i] = i < n ? p[2 * i + 1] : 0;
}

template <int N>
inline void store(Width<N> L, const ComplexRow& row, int n, cfloat* z) {
  float* p = reinterpret_cast<float*>(z);
  if (n == L) return each(L, [&](int i) { p[2 * i] = row[0][i], p[2 * i + 1] = row[1][i]; });
  for (int i = 0; i < n; ++i) p[2 * i] = row[0][i], p[2 * i + 1] = row[1][i];
}

template <int N>
inline void load(Width<N> L, const PerFrame& number, int64_t t0, int n, Row& row) {
  if (number.values) return load(L, number.values + t0, n, row);
  each(L, [&](int i) { row[i] = number.value; });
}

inline float square(float x) { return x * x; }

}  // namespace
}  // namespace UDSE_ISA
}  // namespace udse
