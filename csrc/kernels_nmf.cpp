// Itakura-Saito NMF. Ranks up to 8 are compiled one by one.
#include <utility>

#include "kernel_rows.hpp"

namespace udse {
namespace UDSE_ISA {
namespace {

typedef float Vector __attribute__((vector_size(4 * lanes)));  // the sums of small ranks stay in registers
typedef int32_t Indices __attribute__((vector_size(4 * lanes)));
constexpr int max_rank = 32;
constexpr float least_divisor = 1e-30f;      // keeps 0/0 away
constexpr float least_scale = 1e-28f;        // of d, which may be zero: far below floor^2
#define UDSE_UNROLL _Pragma("GCC unroll 8")  // loops over a known rank

inline Vector load(const float* p) {
  Vector v;
  __builtin_memcpy(&v, p, sizeof v);
  return v;
}

inline Vector load(const float* p, int64_t n) {
  if (n >= lanes) return load(p);
  Vector v = {};
  for (int64_t i = 0; i < n; ++i) v[i] = p[i];
  return v;
}

inline Vector above(const Vector& v, const Vector& least) { return v > least ? v : least; }

// Sums of neighbours: of a in the lower half, of b in the upper one
template <int... I>
inline Vector fold(const Vector& a, const Vector& b, std::integer_sequence<int, I...>) {
#ifdef __clang__
  return __builtin_shufflevector(a, b, (2 * I)...) + __builtin_shufflevector(a, b, (2 * I + 1)...);
#else
  return __builtin_shuffle(a, b, Indices{(2 * I)...}) + __builtin_shuffle(a, b, Indices{(2 * I + 1)...});
#endif
}

// The sum of a[i] in lane i < N
template <int N, int Width = lanes>
__attribute__((always_inline)) inline Vector sums(const Vector* a) {
  if constexpr (Width == 1) {
    return a[0];
  } else {
    Vector halves[(N + 1) / 2];
    for (int i = 0; i < N; i += 2)
      halves[i / 2] = fold(a[i], a[i + 1 < N ? i + 1 : i], std::make_integer_sequence<int, lanes>{});
    return sums<(N + 1) / 2, Width / 2>(halves);
  }
}

// Entries of W from their sums
inline void update_w(const NMFPass& nmf, int64_t begin, int64_t end) {
  float *const W = nmf.W, *const A = nmf.A, *const B = nmf.B;
  const float *const a = nmf.weighted, *const b = nmf.inverse, floor = nmf.floor, rho = nmf.forgetting;
  const auto quotient = [](float x, float y) { return x / (y > least_divisor ? y : least_divisor); };
  if (A) {
    UDSE_VECTORISE
    for (int64_t i = begin; i < end; ++i) {
      const float numerator = A[i] = rho * A[i] + W[i] * W[i] * a[i], divisor = B[i] = rho * B[i] + b[i];
      const float w = __builtin_sqrtf(quotient(numerator, divisor));
      W[i] = w > floor ? w : floor;
    }
  } else {
    UDSE_VECTORISE
    for (int64_t i = begin; i < end; ++i) {
      const float w = W[i] * quotient(a[i], b[i]);
      W[i] = w > floor ? w : floor;
    }
  }
}

// scaled_h of frames
void nmf_scale_h(const NMFPass& nmf, Range frames) {
  float* const scaled = nmf.scaled_h;
  UDSE_VECTORISE
  for (int64_t t = frames.begin; t < frames.end; ++t) {
    const float inverse = 1 / (nmf.H[t] > least_scale ? nmf.H[t] : least_scale);
    scaled[t] = inverse;
    scaled[nmf.rank * nmf.stride + t] = nmf.floor * inverse;
  }
  for (int64_t k = 1; k < nmf.rank; ++k) {
    const float* const h = nmf.H + k * nmf.stride;
    float* const row = scaled + k * nmf.stride;
    UDSE_VECTORISE
    for (int64_t t = frames.begin; t < frames.end; ++t) row[t] = h[t] * scaled[t];
  }
}

// W <- max(W * ((P V^-2) H^T) / (V^-1 H^T), floor) of bins, or the online form. R is the rank where that is known at
// compile time, else 0.
template <int R>
void nmf_w(const NMFPass& nmf, Range bins) {
  constexpr int most = R ? R : max_rank, group = most < lanes ? most : lanes;  // sums that make a vector
  const int rank = R ? R : static_cast<int>(nmf.rank);
  const int64_t whole = nmf.frames / lanes * lanes;
  const Vector one = 1 - Vector{};
  Vector present = {};
  for (int i = 0; i < nmf.frames - whole; ++i) present[i] = 1;
  for (int64_t f = bins.begin; f < bins.end; ++f) {
    const float *const w = nmf.W + f * rank, *const power = nmf.power + f * nmf.frames;
    Vector a[most + group], b[most + group];  // P V^-2 H^T and V^-1 H^T
    UDSE_UNROLL
    for (int k = 0; k < (R ? R : rank + group); ++k) a[k] = b[k] = Vector{};
    const auto add = [&](const Vector& p, const float* h, const Vector& numerator) {
      Vector v = w[0] - Vector{};
      UDSE_UNROLL
      for (int k = 1; k < rank; ++k) v += w[k] * load(h + k * nmf.stride);
      const Vector inverse = numerator / above(v, load(h + rank * nmf.stride));
      const Vector weighted = p * load(h) * inverse * inverse;
      a[0] += weighted;
      b[0] += inverse;
      UDSE_UNROLL
      for (int k = 1; k < rank; ++k) {
        const Vector row = load(h + k * nmf.stride);
        a[k] += row * weighted;
        b[k] += row * inverse;
      }
    };
    for (int64_t t = 0; t < whole; t += lanes) add(load(power + t), nmf.scaled_h + t, one);
    // what is loaded from the next bin counts zero times
    if (whole < nmf.frames)
      add(load(power + whole, (nmf.bins - f) * nmf.frames - whole), nmf.scaled_h + whole, present);
    for (int k = 0; k < rank; k += group) {
      const Vector weighted = sums<group>(a + k), inverse = sums<group>(b + k);
      const auto bytes = static_cast<std::size_t>(R == group || rank - k > group ? group : rank - k) * sizeof(float);
      __builtin_memcpy(nmf.weighted + f * rank + k, &weighted, bytes);
      __builtin_memcpy(nmf.inverse + f * rank + k, &inverse, bytes);
    }
  }
  update_w(nmf, bins.begin * rank, bins.end * rank);
}

// scaled_w of bins
template <int R>
void nmf_scale_w(const NMFPass& nmf, Range bins) {
  const int rank = R ? R : static_cast<int>(nmf.rank);
  for (int64_t f = bins.begin; f < bins.end; ++f) {
    const float* const w = nmf.W + f * rank;
    float* const scaled = nmf.scaled_w + f * (rank + 1);
    const float inverse = 1 / (w[0] > least_scale ? w[0] : least_scale);
    scaled[0] = inverse;
    UDSE_VECTORISE
    for (int k = 1; k < rank; ++k) scaled[k] = w[k] * inverse;
    scaled[rank] = nmf.floor * inverse;
  }
}

// Columns of W to sum 1, their sums into H and into the statistics of the online form.
template <int R>
void nmf_normalise(const NMFPass& nmf, Range bins) {
  const int rank = R ? R : static_cast<int>(nmf.rank);
  double total[R ? R : max_rank] = {};
  float scale[R ? R : max_rank], inverse[R ? R : max_rank];
  for (int64_t f = bins.begin; f < bins.end; ++f) {
    const float* const w = nmf.W + f * rank;
    for (int k = 0; k < rank; ++k) total[k] += w[k];
  }
  for (int k = 0; k < rank; ++k) {
    scale[k] = static_cast<float>(total[k]);
    inverse[k] = 1 / scale[k];
    float* const h = nmf.H + k * nmf.stride;
    UDSE_VECTORISE
    for (int64_t t = 0; t < nmf.frames; ++t) h[t] *= scale[k];
  }
  const auto multiply = [&](float* rows, const float* by) {
    for (int64_t f = bins.begin; f < bins.end; ++f) {
      float* const row = rows + f * rank;
      UDSE_VECTORISE
      for (int k = 0; k < rank; ++k) row[k] *= by[k];
    }
  };
  multiply(nmf.W, inverse);
  if (nmf.A) {
    multiply(nmf.A, inverse);
    multiply(nmf.B, scale);
  }
}

// H <- max(H * (W^T (P V^-2)) / (W^T V^-1), floor) of items of frames
template <int R>
void nmf_h(const NMFPass& nmf, Range items) {
  const int rank = R ? R : static_cast<int>(nmf.rank);
  const Vector floor = nmf.floor - Vector{}, least = least_divisor - Vector{};
  for (int64_t t = items.begin * nmf_frames; t < items.end * nmf_frames && t < nmf.frames; t += lanes) {
    Vector h[R ? R : max_rank], a[R ? R : max_rank], b[R ? R : max_rank];
    UDSE_UNROLL
    for (int k = 0; k < rank; ++k) {
      h[k] = load(nmf.H + k * nmf.stride + t);
      a[k] = b[k] = Vector{};
    }
    for (int64_t f = 0; f < nmf.bins; ++f) {
      const float* const w = nmf.scaled_w + f * (rank + 1);
      const int64_t at = f * nmf.frames + t;
      Vector v = h[0];
      UDSE_UNROLL
      for (int k = 1; k < rank; ++k) v += w[k] * h[k];
      const Vector inverse = 1 / above(v, w[rank] - Vector{});
      const Vector weighted = w[0] * load(nmf.power + at, nmf.bins * nmf.frames - at) * inverse * inverse;
      a[0] += weighted;
      b[0] += inverse;
      UDSE_UNROLL
      for (int k = 1; k < rank; ++k) {
        a[k] += w[k] * weighted;
        b[k] += w[k] * inverse;
      }
    }
    UDSE_UNROLL
    for (int k = 0; k < rank; ++k) {
      const Vector next = above(h[k] * a[k] / above(b[k], least), floor);
      __builtin_memcpy(nmf.H + k * nmf.stride + t, &next, sizeof next);
    }
  }
}

// The instance for the rank of this call.
#define UDSE_FOR_RANK(function)         \
  [](const NMFPass& nmf, Range range) { \
    switch (nmf.rank) {                 \
      case 1:                           \
        return function<1>(nmf, range); \
      case 2:                           \
        return function<2>(nmf, range); \
      case 3:                           \
        return function<3>(nmf, range); \
      case 4:                           \
        return function<4>(nmf, range); \
      case 5:                           \
        return function<5>(nmf, range); \
      case 6:                           \
        return function<6>(nmf, range); \
      case 7:                           \
        return function<7>(nmf, range); \
      case 8:                           \
        return function<8>(nmf, range); \
      default:                          \
        return function<0>(nmf, range); \
    }                                   \
  }

}  // namespace

const NMFKernels nmf_kernels = {nmf_scale_h, UDSE_FOR_RANK(nmf_scale_w), UDSE_FOR_RANK(nmf_w), UDSE_FOR_RANK(nmf_h),
                                UDSE_FOR_RANK(nmf_normalise)};

}  // namespace UDSE_ISA
}  // namespace udse
