// Itakura-Saito NMF; the equations are those of reference.py. A block of threads owns a row of W or a column of H.
#include <type_traits>

#include "device.hpp"

namespace udse {
namespace gpu {

constexpr int max_rank = 32;
constexpr float tiny = 1e-30f;  // keeps 0/0 away

// P V^-2 and V^-1 at one bin and frame, V at the floor or above: V^-2 of digital silence must stay finite.
struct Weights {
  float weighted, inverse;
  UDSE_HD Weights(const NMF& nmf, int64_t f, int64_t t) {
    float v = 0;
    for (int64_t k = 0; k < nmf.rank; ++k) v += nmf.W[f * nmf.rank + k] * nmf.H[k * nmf.frames + t];
    inverse = 1 / above(v, nmf.floor);
    weighted = nmf.power[f * nmf.frames + t] * inverse * inverse;
  }
};

// (P V^-2) H^T and V^-1 H^T of bin f; K is the rank or more. Every index of `sums` is known to the compiler: they stay in
// registers.
template <int K>
struct Statistics {
  NMF nmf;
  UDSE_HD void term(int64_t f, int64_t t, float* sums) const {
    const Weights y(nmf, f, t);
    UDSE_UNROLL
    for (int k = 0; k < K; ++k) {
      if (k >= nmf.rank) continue;
      const float h = nmf.H[k * nmf.frames + t];
      sums[k] += h * y.weighted;
      sums[K + k] += h * y.inverse;
    }
  }
};

// W <- max(W * ((P V^-2) H^T) / (V^-1 H^T), floor)
template <int K>
struct UpdateW : Statistics<K> {
  UDSE_HD void finish(int64_t f, const float* sums, int part, int parts) const {
    const NMF& nmf = this->nmf;
    UDSE_UNROLL
    for (int k = 0; k < K; ++k) {
      if (k >= nmf.rank || k % parts != part) continue;
      float& w = nmf.W[f * nmf.rank + k];
      w = above(w * sums[k] / above(sums[K + k], tiny), nmf.floor);
    }
  }
};

// A <- rho A + W^2 ((P V^-2) H^T), B <- rho B + V^-1 H^T, W <- sqrt(A / B)
template <int K>
struct UpdateOnlineW : Statistics<K> {
  float *A, *B, forgetting;
  UDSE_HD void finish(int64_t f, const float* sums, int part, int parts) const {
    const NMF& nmf = this->nmf;
    UDSE_UNROLL
    for (int k = 0; k < K; ++k) {
      if (k >= nmf.rank || k % parts != part) continue;
      const int64_t at = f * nmf.rank + k;
      A[at] = forgetting * A[at] + square(nmf.W[at]) * sums[k];
      B[at] = forgetting * B[at] + sums[K + k];
      nmf.W[at] = above(sqrtf(A[at] / above(B[at], tiny)), nmf.floor);
    }
  }
};

// H <- max(H * (W^T (P V^-2)) / (W^T V^-1), floor)
template <int K>
struct UpdateH {
  NMF nmf;
  UDSE_HD void term(int64_t t, int64_t f, float* sums) const {
    const Weights y(nmf, f, t);
    UDSE_UNROLL
    for (int k = 0; k < K; ++k) {
      if (k >= nmf.rank) continue;
      const float w = nmf.W[f * nmf.rank + k];
      sums[k] += w * y.weighted;
      sums[K + k] += w * y.inverse;
    }
  }
  UDSE_HD void finish(int64_t t, const float* sums, int part, int parts) const {
    UDSE_UNROLL
    for (int k = 0; k < K; ++k) {
      if (k >= nmf.rank || k % parts != part) continue;
      float& h = nmf.H[k * nmf.frames + t];
      h = above(h * sums[k] / above(sums[K + k], tiny), nmf.floor);
    }
  }
};

// Column k of W to sum 1: W and A are divided by the sum, H and B multiplied.
struct Normalise {
  NMF nmf;
  float *A, *B;
  UDSE_HD void term(int64_t k, int64_t f, float* sums) const { sums[0] += nmf.W[f * nmf.rank + k]; }
  UDSE_HD void finish(int64_t k, const float* sums, int part, int parts) const {
    for (int64_t at = part * nmf.rank + k; at < nmf.bins * nmf.rank; at += parts * nmf.rank) {
      nmf.W[at] /= sums[0];
      if (A) A[at] /= sums[0];
      if (B) B[at] *= sums[0];
    }
    for (int64_t t = part; t < nmf.frames; t += parts) nmf.H[k * nmf.frames + t] *= sums[0];
  }
};

template <int K>
static const char* batch(const NMF& nmf, int iterations, Stream stream) {
  const char* error = nullptr;
  for (int i = 0; i < iterations && !error; ++i) {
    error = reduce<2 * K>(nmf.bins, nmf.frames, stream, UpdateW<K>{{nmf}});
    if (!error) error = reduce<2 * K>(nmf.frames, nmf.bins, stream, UpdateH<K>{nmf});
    if (!error) error = reduce<1>(nmf.rank, nmf.bins, stream, Normalise{nmf, nullptr, nullptr});
  }
  return error;
}

template <int K>
static const char* online(const NMF& nmf, float* A, float* B, float forgetting, int iterations, Stream stream) {
  const char* error = nullptr;
  for (int i = 0; i < iterations && !error; ++i) error = reduce<2 * K>(nmf.frames, nmf.bins, stream, UpdateH<K>{nmf});
  if (!error) error = reduce<2 * K>(nmf.bins, nmf.frames, stream, UpdateOnlineW<K>{{nmf}, A, B, forgetting});
  return error ? error : reduce<1>(nmf.rank, nmf.bins, stream, Normalise{nmf, A, B});
}

// call(the least K for the rank)
template <class Call>
static const char* of_rank(int64_t rank, const Call& call) {
  if (rank <= 4) return call(std::integral_constant<int, 4>{});
  if (rank <= 8) return call(std::integral_constant<int, 8>{});
  if (rank <= 16) return call(std::integral_constant<int, 16>{});
  if (rank <= max_rank) return call(std::integral_constant<int, max_rank>{});
  return "the rank must be in 1..32";
}

// W, H, A and B are updated in place.
UDSE_EXPORT const char* udse_cuda_nmf_update(const NMF* nmf, int iterations, Stream stream) {
  return of_rank(nmf->rank, [&](auto K) { return batch<K.value>(*nmf, iterations, stream); });
}

UDSE_EXPORT const char* udse_cuda_online_nmf_update(const NMF* nmf, float* A, float* B, float forgetting, int iterations,
                                                    Stream stream) {
  return of_rank(nmf->rank, [&](auto K) { return online<K.value>(*nmf, A, B, forgetting, iterations, stream); });
}

}  // namespace gpu
}  // namespace udse
