// The kernels, compiled once per instruction set into the namespace UDSE_ISA.
//
// Plain loops over blocks of a fixed number of frames L, which the compiler vectorises: a short last block is padded,
// so that a frame is computed the same way wherever it lies in a block. Only code of this file's anonymous namespace is
// called: an inline function shared with other files could be kept by the linker in the version of the wrong
// instruction set.
#include "kernels.hpp"

#include <math.h>

#include <type_traits>
#include <utility>
#ifdef __SSE2__
#include <immintrin.h>
#endif

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

inline int32_t bits(float x) {
  int32_t b;
  __builtin_memcpy(&b, &x, 4);
  return b;
}

inline float from_bits(int32_t b) {
  float x;
  __builtin_memcpy(&x, &b, 4);
  return x;
}

inline float square(float x) { return x * x; }

// ---- noise ----------------------------------------------------------------------------------------------------------

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

void complex_normal(const NoiseKey& key, const Shape& shape, cfloat* out, Range pairs) {
  with_width(shape.frames, [&](auto L) {
    ComplexRow z[2];
    for (int64_t pair = pairs.begin; pair < pairs.end; ++pair)
      for (int64_t b = 0; b < shape.samples; ++b)
        for (int64_t t0 = 0; t0 < shape.frames; t0 += L) {
          draw(L, key, b, pair, t0, z);
          for (int64_t f = 2 * pair; f < shape.bins && f < 2 * pair + 2; ++f)
            store(L, z[f & 1], block_length(L, shape.frames, t0), out + (b * shape.bins + f) * shape.frames + t0);
        }
  });
}

// ---- fused updates --------------------------------------------------------------------------------------------------

// v += K rows of W H
template <int K, int N>
inline void add_products(Width<N> L, const float* w, const float* const* h, Row& v) {
  each(L, [&](int i) {
    float sum = v[i];
    for (int k = 0; k < K; ++k) sum += w[k] * h[k][i];
    v[i] = sum;
  });
}

// v = sum over k of w[k] h[k], h[k] being rows of `stride` floats
template <int N>
inline void product_row(Width<N> L, const float* w, const float* h, int64_t stride, int64_t rank, Row& v) {
  each(L, [&](int i) { v[i] = 0; });
  int64_t k = 0;
  for (; k + 4 <= rank; k += 4) {
    const float* rows[] = {h + k * stride, h + (k + 1) * stride, h + (k + 2) * stride, h + (k + 3) * stride};
    add_products<4>(L, w + k, rows, v);
  }
  for (; k < rank; ++k) {
    const float* row = h + k * stride;
    add_products<1>(L, w + k, &row, v);
  }
}

template <int N>
inline void variance_row(Width<N> L, const NoiseVariance& variance, int64_t bin, int64_t frames, int64_t t0, int n,
                         Row& v) {
  if (variance.values) return load(L, variance.values + bin * frames + t0, n, v);
  const float *w = variance.W + bin * variance.rank, *h = variance.H + t0;
  if (n == L) return product_row(L, w, h, frames, variance.rank, v);
  for (int i = 0; i < L; ++i) v[i] = 0;
  for (int64_t k = 0; k < variance.rank; ++k) {
    Row row;
    load(L, h + k * frames, n, row);
    const float* p = row.v;
    add_products<1>(L, w + k, &p, v);
  }
}

// What the equations of a step need, for each frame of a block.
struct Numbers {
  Row drift, score_step, spread;    // predictor: gamma dt, g^2 dt, g sqrt(dt)
  Row langevin_step, langevin;      // corrector: eps, sqrt(2 eps)
  Row delta, inverse_delta, sigma;  // of the perturbation kernel
  Row sigma2, a2;                   // sigma^2, (sigma / delta)^2
  Row pull;                         // lambda g^2 dt / delta
  Row next_delta, b;                // of the next step: delta', sigma' / delta'

  template <int N>
  void fill(Width<N> L, const Step& step, int64_t t0, int n) {
    const Coefficients& c = step.coefficients;
    Row gamma, g, dt, r, lambda;
    load(L, c.gamma, t0, n, gamma);
    load(L, c.delta, t0, n, delta);
    load(L, c.sigma, t0, n, sigma);
    load(L, c.g, t0, n, g);
    load(L, c.dt, t0, n, dt);
    load(L, c.corrector_snr, t0, n, r);
    load(L, step.guidance, t0, n, lambda);
    load(L, step.next_delta, t0, n, next_delta);
    load(L, step.next_sigma, t0, n, b);
    each(L, [&](int i) {
      drift[i] = gamma[i] * dt[i];
      score_step[i] = square(g[i]) * dt[i];
      spread[i] = g[i] * __builtin_sqrtf(dt[i]);
      langevin_step[i] = square(r[i] * sigma[i]);
      langevin[i] = __builtin_sqrtf(2 * langevin_step[i]);
      inverse_delta[i] = 1 / delta[i];
      sigma2[i] = square(sigma[i]);
      a2[i] = square(sigma[i] / delta[i]);
      pull[i] = lambda[i] * score_step[i] / delta[i];
      b[i] /= next_delta[i];
    });
  }
};

inline bool constant(const Step& step) {
  const Coefficients& c = step.coefficients;
  return !(c.gamma.values || c.delta.values || c.sigma.values || c.g.values || c.dt.values || c.corrector_snr.values ||
           step.guidance.values || step.next_delta.values || step.next_sigma.values);
}

// One source's rows of one bin and sample.
struct SourceRows {
  ComplexRow s, S;  // state and score; the update writes the next state to s
  Row C;            // posterior_variance
};

// What all samples of one bin share.
struct BinRows {
  ComplexRow x;  // mixture
  Row v;         // V, or what an update makes of it
  Row w1, w2;    // more weights that depend on V
  Row p;         // power, summed over the samples
};

template <int N>
inline void noise_rows(Width<N> L, const Noise& noise, const Shape& shape, int64_t b, int64_t pair, int64_t t0, int n,
                       ComplexRow z[2]) {
  if (noise.kind == Noise::drawn) return draw(L, noise.key, b, pair, t0, z);
  for (int64_t f = 2 * pair; f < shape.bins && f < 2 * pair + 2; ++f) {
    if (noise.kind == Noise::given)
      load(L, noise.values + (b * shape.bins + f) * shape.frames + t0, n, z[f & 1]);
    else
      each_part(L, [&](int k, int i) { z[f & 1][k][i] = 0; });
  }
}

// Runs an update over pairs of bins: `prepare` once per bin and block, `update` for each sample of it.
template <int N, class Prepare, class Update>
inline void sweep_blocks(Width<N> L, const Step& step, Range pairs, Prepare prepare, Update update) {
  const auto [B, F, T] = step.shape;
  const bool same_for_all = constant(step);
  const bool two_draws = step.noise.draw.kind != Noise::none;
  Numbers c;
  BinRows bins[2];
  SourceRows speech, noise;
  ComplexRow z[2], z2[2];
  each_part(L, [&](int k, int i) { z2[0][k][i] = z2[1][k][i] = 0; });
  if (same_for_all) c.fill(L, step, 0, L);

  for (int64_t pair = pairs.begin; pair < pairs.end; ++pair) {
    const int64_t first = 2 * pair, last = first + 2 < F ? first + 2 : F;
    for (int64_t t0 = 0; t0 < T; t0 += L) {
      const int n = block_length(L, T, t0);
      if (!same_for_all) c.fill(L, step, t0, n);
      for (int64_t f = first; f < last; ++f) {
        BinRows& bin = bins[f & 1];
        if (step.mixture) load(L, step.mixture + f * T + t0, n, bin.x);
        if (step.variance.values || step.variance.W) variance_row(L, step.variance, f, T, t0, n, bin.v);
        each(L, [&](int i) { bin.p[i] = 0; });
        prepare(L, c, bin);
      }
      for (int64_t b = 0; b < B; ++b) {
        noise_rows(L, step.speech.draw, step.shape, b, pair, t0, n, z);
        if (two_draws) noise_rows(L, step.noise.draw, step.shape, b, pair, t0, n, z2);
        for (int64_t f = first; f < last; ++f) {
          const int64_t at = (b * F + f) * T + t0;
          load(L, step.speech.state + at, n, speech.s);
          load(L, step.speech.score + at, n, speech.S);
          if (step.posterior_variance) load(L, step.posterior_variance + at, n, speech.C);
          if (step.noise.state) load(L, step.noise.state + at, n, noise.s);
          if (step.noise.score) load(L, step.noise.score + at, n, noise.S);
          update(L, c, bins[f & 1], speech, z[f & 1], noise, z2[f & 1]);
          if (step.speech.next) store(L, speech.s, n, step.speech.next + at);
          if (step.noise.next) store(L, noise.s, n, step.noise.next + at);
        }
      }
      if (step.power)
        for (int64_t f = first; f < last; ++f) {
          Row& p = bins[f & 1].p;
          each(L, [&](int i) { p[i] /= static_cast<float>(B); });
          store(L, p, n, step.power + f * T + t0);
        }
    }
  }
}

template <class Prepare, class Update>
inline void sweep(const Step& step, Range pairs, Prepare prepare, Update update) {
  with_width(step.shape.frames, [&](auto L) { sweep_blocks(L, step, pairs, prepare, update); });
}

const auto nothing = [](auto, const Numbers&, BinRows&) {};

inline float predicted(const Numbers& c, int i, float s, float S, float z) {
  return s + c.drift[i] * s + c.score_step[i] * S + c.spread[i] * z;
}

void corrector(const Step& step, Range pairs) {
  sweep(step, pairs, nothing,
        [](auto L, const Numbers& c, BinRows&, SourceRows& a, const ComplexRow& z, SourceRows&, const ComplexRow&) {
          each_part(L, [&](int k, int i) { a.s[k][i] += c.langevin_step[i] * a.S[k][i] + c.langevin[i] * z[k][i]; });
        });
}

void predictor(const Step& step, Range pairs) {
  sweep(step, pairs, nothing,
        [](auto L, const Numbers& c, BinRows&, SourceRows& a, const ComplexRow& z, SourceRows&, const ComplexRow&) {
          each_part(L, [&](int k, int i) { a.s[k][i] = predicted(c, i, a.s[k][i], a.S[k][i], z[k][i]); });
        });
}

// The residual's estimate of the clean signal is (s + with_score sigma^2 S) times 1 or 1/delta.
struct Estimate {
  bool divide;
  float with_score;
  float operator()(const Numbers& c, int i, float s, float S) const {
    return (s + with_score * c.sigma2[i] * S) * (divide ? c.inverse_delta[i] : 1.f);
  }
};

void marginal_guidance(const Step& step, Range pairs) {
  const Estimate estimate{step.divide_tweedie && !step.power_of_state, step.power_of_state ? 0.f : 1.f};
  const float apply = step.apply ? 1.f : 0.f;
  sweep(
      step, pairs,
      [apply](auto L, const Numbers& c, BinRows& bin) {
        each(L, [&](int i) { bin.w1[i] = apply * c.pull[i] / (c.a2[i] + bin.v[i]); });
      },
      [estimate](auto L, const Numbers& c, BinRows& bin, SourceRows& a, const ComplexRow& z, SourceRows&,
                 const ComplexRow&) {
        each_part(L, [&](int k, int i) {
          float s = predicted(c, i, a.s[k][i], a.S[k][i], z[k][i]);
          s += bin.w1[i] * (bin.x[k][i] - s * c.inverse_delta[i]);
          bin.p[i] += square(bin.x[k][i] - estimate(c, i, s, a.S[k][i]));
          a.s[k][i] = s;
        });
      });
}

void product_of_gaussians(const Step& step, Range pairs) {
  const Estimate estimate{step.divide_tweedie, 1.f};
  const float marginal = step.noise.draw.kind == Noise::none ? 1.f : 0.f;
  sweep(
      step, pairs,
      [marginal](auto L, const Numbers& c, BinRows& bin) {
        each(L, [&](int i) {
          const float R = square(c.delta[i]) * bin.v[i] + marginal * c.sigma2[i], q = c.score_step[i];
          bin.w1[i] = R / (R + q);
          bin.w2[i] = q / (R + q);
          bin.v[i] = __builtin_sqrtf(q * bin.w1[i]);
        });
      },
      [estimate](auto L, const Numbers& c, BinRows& bin, SourceRows& a, const ComplexRow& z, SourceRows&,
                 const ComplexRow& z2) {
        each_part(L, [&](int k, int i) {
          const float m = predicted(c, i, a.s[k][i], a.S[k][i], 0);
          const float y = c.delta[i] * bin.x[k][i] + c.sigma[i] * z2[k][i];
          const float s = bin.w1[i] * m + bin.w2[i] * y + bin.v[i] * z[k][i];
          bin.p[i] += square(bin.x[k][i] - estimate(c, i, s, a.S[k][i]));
          a.s[k][i] = s;
        });
      });
}

void noise_posterior_guidance(const Step& step, Range pairs) {
  const float w = step.observation_variance, samples = static_cast<float>(step.shape.samples);
  const float marginal = step.paper_posterior ? 0.f : 1.f;
  sweep(
      step, pairs,
      [=](auto L, const Numbers& c, BinRows& bin) {
        each(L, [&](int i) {
          const float V = bin.v[i], q = marginal * c.a2[i] + w;
          bin.w1[i] = V / (V + q);
          bin.w2[i] = c.pull[i] / (c.a2[i] + w);
          bin.p[i] = samples * q * bin.w1[i];  // the posterior variance, the same for every sample
        });
      },
      [](auto L, const Numbers& c, BinRows& bin, SourceRows& a, const ComplexRow& z, SourceRows& n, const ComplexRow&) {
        each_part(L, [&](int k, int i) {
          const float x = bin.x[k][i], s = predicted(c, i, a.s[k][i], a.S[k][i], z[k][i]);
          const float mu = bin.w1[i] * (x - (s + c.sigma2[i] * a.S[k][i]) * c.inverse_delta[i]);
          a.s[k][i] = s + bin.w2[i] * (x - s * c.inverse_delta[i] - mu);
          bin.p[i] += square(mu);
          n.s[k][i] = mu;
        });
      });
}

void predictor_residual(const Step& step, Range pairs) {
  sweep(step, pairs, nothing,
        [](auto L, const Numbers& c, BinRows& bin, SourceRows& a, const ComplexRow& z, SourceRows& n,
           const ComplexRow& z2) {
          each_part(L, [&](int k, int i) {
            const float s = predicted(c, i, a.s[k][i], a.S[k][i], z[k][i]);
            n.s[k][i] = bin.x[k][i] - (s - c.sigma[i] * z2[k][i]) * c.inverse_delta[i];
            a.s[k][i] = s;
          });
        });
}

void score_noise_guidance(const Step& step, Range pairs) {
  sweep(step, pairs, nothing,
        [](auto L, const Numbers& c, BinRows&, SourceRows& a, const ComplexRow&, SourceRows&, const ComplexRow&) {
          each_part(L, [&](int k, int i) { a.s[k][i] -= c.pull[i] * a.S[k][i]; });
        });
}

void joint_guidance(const Step& step, Range pairs) {
  const float w = step.observation_variance, apply = step.apply ? 1.f : 0.f;
  sweep(
      step, pairs,
      [=](auto L, const Numbers& c, BinRows& bin) {
        each(L, [&](int i) { bin.w1[i] = apply * c.pull[i] / (c.a2[i] + w); });
      },
      [](auto L, const Numbers& c, BinRows& bin, SourceRows& a, const ComplexRow& z, SourceRows& o,
         const ComplexRow& z2) {
        each_part(L, [&](int k, int i) {
          const float x = bin.x[k][i], to_clean = c.inverse_delta[i];
          const float s = predicted(c, i, a.s[k][i], a.S[k][i], z[k][i]);
          const float n = predicted(c, i, o.s[k][i], o.S[k][i], z2[k][i]);
          const float s0 = (s + c.sigma2[i] * a.S[k][i]) * to_clean, n0 = (n + c.sigma2[i] * o.S[k][i]) * to_clean;
          a.s[k][i] = s + bin.w1[i] * (x - s * to_clean - n0);
          o.s[k][i] = n + bin.w1[i] * (x - n * to_clean - s0);
        });
      });
}

inline float tweedie_mean(const Numbers& c, int i, float s, float S) {
  return (s + c.sigma2[i] * S) * c.inverse_delta[i];
}

void unexplained_power(const Step& step, Range pairs) {
  const float kappa = step.noise_bias;
  sweep(
      step, pairs,
      [](auto L, const Numbers& c, BinRows& bin) {
        each(L, [&](int i) {
          const float V = bin.v[i];
          const bool weaker = V < c.a2[i];
          bin.w1[i] = weaker ? 1 / V : 0.f;
          bin.w2[i] = weaker ? c.delta[i] : 0.f;
          bin.v[i] = weaker ? 1 / V - 1 / c.a2[i] : 0.f;
        });
      },
      [=](auto L, const Numbers& c, BinRows& bin, SourceRows& a, const ComplexRow&, SourceRows&, const ComplexRow&) {
        each(L, [&](int i) {
          a.C[i] /= 1 + bin.v[i] * a.C[i];
          bin.p[i] += kappa * a.C[i];
        });
        each_part(L, [&](int k, int i) {
          const float r = bin.x[k][i] - tweedie_mean(c, i, a.s[k][i], a.S[k][i]);
          bin.p[i] += kappa * square(r - a.C[i] * (bin.w1[i] * r + bin.w2[i] * a.S[k][i]));
        });
      });
}

void ddrm_step(const Step& step, Range pairs) {
  if (step.posterior_variance)
    return sweep(
        step, pairs, nothing,
        [](auto L, const Numbers& c, BinRows& bin, SourceRows& a, const ComplexRow&, SourceRows&, const ComplexRow&) {
          each(L, [&](int i) { a.C[i] /= a.C[i] + bin.v[i]; });
          each_part(L, [&](int k, int i) {
            const float s0 = tweedie_mean(c, i, a.s[k][i], a.S[k][i]);
            a.s[k][i] = s0 + a.C[i] * (bin.x[k][i] - s0);
          });
        });
  const float eta = step.eta, kept = __builtin_sqrtf(1 - eta * eta);
  sweep(
      step, pairs,
      [=](auto L, const Numbers& c, BinRows& bin) {
        each(L, [&](int i) {
          const float b = c.b[i], missing = b * b - bin.v[i];  // below 0 where the mixture's noise is the stronger
          const float root = __builtin_sqrtf(missing >= 0 ? missing : bin.v[i]), share = kept * b / root;
          bin.w1[i] = c.next_delta[i] * (missing >= 0 ? 1.f : share);
          bin.w2[i] = c.next_delta[i] - bin.w1[i];
          bin.v[i] = c.next_delta[i] * (missing >= 0 ? root : eta * b);
        });
      },
      [](auto L, const Numbers& c, BinRows& bin, SourceRows& a, const ComplexRow& z, SourceRows&, const ComplexRow&) {
        each_part(L, [&](int k, int i) {
          const float s0 = tweedie_mean(c, i, a.s[k][i], a.S[k][i]);
          a.s[k][i] = bin.w1[i] * bin.x[k][i] + bin.w2[i] * s0 + bin.v[i] * z[k][i];
        });
      });
}

// ---- compression, network input
// ---------------------------------------------------------------------------------------

constexpr float tiny = 1e-37f;  // modulus below which z counts as zero

// out = scale z gain(|scale z|); |z| is formed without overflow or underflow of its square
template <class Gain>
inline void scale_by_modulus(const cfloat* z, float scale, cfloat* out, Range range, Gain gain) {
  constexpr Width<block_frames> L;
  ComplexRow row;
  for (int64_t at = range.begin; at < range.end; at += L) {
    const int n = block_length(L, range.end, at);
    load(L, z + at, n, row);
    each(L, [&](int i) {
      const float re = row[0][i] * scale, im = row[1][i] * scale;
      const float x = __builtin_fabsf(re), y = __builtin_fabsf(im);
      const float large = x > y ? x : y, small = x > y ? y : x, ratio = small / (large > tiny ? large : tiny);
      const float g = gain(large * __builtin_sqrtf(1 + ratio * ratio));
      row[0][i] = re * g;
      row[1][i] = im * g;
    });
    store(L, row, n, out + at);
  }
}

void compress(const cfloat* z, float exponent, float factor, cfloat* out, Range range) {
  if (exponent == 0.5f)
    return scale_by_modulus(z, 1.f, out, range, [=](float r) { return factor / __builtin_sqrtf(r > tiny ? r : tiny); });
  scale_by_modulus(z, 1.f, out, range, [=](float r) { return factor * ::powf(r > tiny ? r : tiny, exponent - 1); });
}

void decompress(const cfloat* z, float exponent, float factor, cfloat* out, Range range) {
  if (exponent == 0.5f) return scale_by_modulus(z, 1 / factor, out, range, [](float r) { return r; });
  scale_by_modulus(z, 1 / factor, out, range, [=](float r) { return ::powf(r, 1 / exponent - 1); });
}

inline void convert(float x, float* out) { *out = x; }

inline void convert(float x, std::uint16_t* out) {
  const uint32_t b = static_cast<uint32_t>(bits(x));
  const uint32_t rounded = (b + 0x7fff + (b >> 16 & 1)) >> 16, quiet_nan = b >> 16 | 0x40;
  *out = static_cast<std::uint16_t>((b & 0x7fffffff) > 0x7f800000 ? quiet_nan : rounded);
}

template <class Real>
void network_input(const cfloat* state, const Shape& shape, const PerFrame& scale, Real* out, Range rows) {
  const auto [B, F, T] = shape;
  for (int64_t row = rows.begin; row < rows.end; ++row) {
    const float* z = reinterpret_cast<const float*>(state + row * T);
    Real* const real = out + (row / F * 2 * F + row % F) * T;
    Real* const imaginary = real + F * T;
    UDSE_VECTORISE
    for (int64_t t = 0; t < T; ++t) {
      const float a = scale.values ? scale.values[t] : scale.value;
      convert(z[2 * t] * a, real + t);
      convert(z[2 * t + 1] * a, imaginary + t);
    }
  }
}

// ---- NMF-IS
// -----------------------------------------------------------------------------------------------------------

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

#define UDSE_NAME(isa) #isa
#define UDSE_EXPANDED_NAME(isa) UDSE_NAME(isa)

const Kernels kernels = {UDSE_EXPANDED_NAME(UDSE_ISA),
                         corrector,
                         predictor,
                         marginal_guidance,
                         product_of_gaussians,
                         noise_posterior_guidance,
                         predictor_residual,
                         score_noise_guidance,
                         joint_guidance,
                         unexplained_power,
                         ddrm_step,
                         complex_normal,
                         compress,
                         decompress,
                         network_input<float>,
                         network_input<std::uint16_t>,
                         nmf_scale_h,
                         UDSE_FOR_RANK(nmf_scale_w),
                         UDSE_FOR_RANK(nmf_w),
                         UDSE_FOR_RANK(nmf_h),
                         UDSE_FOR_RANK(nmf_normalise)};

}  // namespace UDSE_ISA
}  // namespace udse
