// The kernels, compiled once per instruction set into the namespace UDSE_ISA.
//
// Plain loops over blocks of a fixed number of frames, which the compiler vectorises: a short last block is padded, so
// that a frame is computed the same way wherever it lies in a block. Only code of this file's anonymous namespace is
// called: an inline function shared with other files could be kept by the linker in the version of the wrong
// instruction set.
#include "kernels.hpp"

#include <math.h>
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

constexpr int L = block_frames;
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

struct alignas(64) Row {
  float v[L];
  float& operator[](int i) { return v[i]; }
  float operator[](int i) const { return v[i]; }
};

struct ComplexRow {
  Row part[2];  // real, imaginary
  Row& operator[](int k) { return part[k]; }
  const Row& operator[](int k) const { return part[k]; }
};

template <class F>
inline void each(F f) {
  UDSE_VECTORISE
  for (int i = 0; i < L; ++i) f(i);
}

template <class F>
inline void each_part(F f) {
  for (int k = 0; k < 2; ++k) {
    UDSE_VECTORISE
    for (int i = 0; i < L; ++i) f(k, i);
  }
}

inline int block_length(int64_t frames, int64_t t0) { return frames - t0 < L ? static_cast<int>(frames - t0) : L; }

inline void load(const float* p, int n, Row& row) {
  if (n == L) return each([&](int i) { row[i] = p[i]; });
  for (int i = 0; i < L; ++i) row[i] = i < n ? p[i] : 0;
}

inline void store(const Row& row, int n, float* p) {
  if (n == L) return each([&](int i) { p[i] = row[i]; });
  for (int i = 0; i < n; ++i) p[i] = row[i];
}

inline void load(const cfloat* z, int n, ComplexRow& row) {
  const float* p = reinterpret_cast<const float*>(z);
  if (n == L) return each([&](int i) { row[0][i] = p[2 * i], row[1][i] = p[2 * i + 1]; });
  for (int i = 0; i < L; ++i) row[0][i] = i < n ? p[2 * i] : 0, row[1][i] = i < n ? p[2 * i + 1] : 0;
}

inline void store(const ComplexRow& row, int n, cfloat* z) {
  float* p = reinterpret_cast<float*>(z);
  if (n == L) return each([&](int i) { p[2 * i] = row[0][i], p[2 * i + 1] = row[1][i]; });
  for (int i = 0; i < n; ++i) p[2 * i] = row[0][i], p[2 * i + 1] = row[1][i];
}

inline void load(const PerFrame& number, int64_t t0, int n, Row& row) {
  if (number.values) return load(number.values + t0, n, row);
  each([&](int i) { row[i] = number.value; });
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
inline void philox(uint32_t frame, uint32_t bin, const NoiseKey& key, uint32_t x[4][L]) {
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
inline void normal_row(const uint32_t* x0, const uint32_t* x1, ComplexRow& z) {
  each([&](int i) {
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

// The rows of an even and the next odd bin: one counter serves both.
inline void draw(const NoiseKey& key, int64_t sample, int64_t pair, int64_t t0, ComplexRow z[2]) {
  alignas(64) uint32_t x[4][L];
  philox(static_cast<uint32_t>(key.first_frame + t0),
         static_cast<uint32_t>(pair) | static_cast<uint32_t>(key.first_sample + sample) << 16, key, x);
  normal_row(x[0], x[1], z[0]);
  normal_row(x[2], x[3], z[1]);
}

void complex_normal(const NoiseKey& key, const Shape& shape, cfloat* out, Range pairs) {
  ComplexRow z[2];
  for (int64_t pair = pairs.begin; pair < pairs.end; ++pair)
    for (int64_t b = 0; b < shape.samples; ++b)
      for (int64_t t0 = 0; t0 < shape.frames; t0 += L) {
        draw(key, b, pair, t0, z);
        for (int64_t f = 2 * pair; f < shape.bins && f < 2 * pair + 2; ++f)
          store(z[f & 1], block_length(shape.frames, t0), out + (b * shape.bins + f) * shape.frames + t0);
      }
}

// ---- fused updates --------------------------------------------------------------------------------------------------

// v += K rows of W H
template <int K>
inline void add_products(const float* w, const float* const* h, Row& v) {
  each([&](int i) {
    float sum = v[i];
    for (int k = 0; k < K; ++k) sum += w[k] * h[k][i];
    v[i] = sum;
  });
}

// v = sum over k of w[k] h[k], h[k] being rows of `stride` floats
inline void product_row(const float* w, const float* h, int64_t stride, int64_t rank, Row& v) {
  each([&](int i) { v[i] = 0; });
  int64_t k = 0;
  for (; k + 4 <= rank; k += 4) {
    const float* rows[] = {h + k * stride, h + (k + 1) * stride, h + (k + 2) * stride, h + (k + 3) * stride};
    add_products<4>(w + k, rows, v);
  }
  for (; k < rank; ++k) {
    const float* row = h + k * stride;
    add_products<1>(w + k, &row, v);
  }
}

inline void variance_row(const NoiseVariance& variance, int64_t bin, int64_t frames, int64_t t0, int n, Row& v) {
  if (variance.values) return load(variance.values + bin * frames + t0, n, v);
  const float *w = variance.W + bin * variance.rank, *h = variance.H + t0;
  if (n == L) return product_row(w, h, frames, variance.rank, v);
  for (int i = 0; i < L; ++i) v[i] = 0;
  for (int64_t k = 0; k < variance.rank; ++k) {
    Row row;
    load(h + k * frames, n, row);
    const float* p = row.v;
    add_products<1>(w + k, &p, v);
  }
}

// What the equations of a step need, for each frame of a block.
struct Numbers {
  Row drift, score_step, spread;    // predictor: gamma dt, g^2 dt, g sqrt(dt)
  Row langevin_step, langevin;      // corrector: eps, sqrt(2 eps)
  Row delta, inverse_delta, sigma;  // of the perturbation kernel
  Row sigma2, a2;                   // sigma^2, (sigma / delta)^2
  Row pull;                         // lambda g^2 dt / delta

  void fill(const Step& step, int64_t t0, int n) {
    const Coefficients& c = step.coefficients;
    Row gamma, g, dt, r, lambda;
    load(c.gamma, t0, n, gamma);
    load(c.delta, t0, n, delta);
    load(c.sigma, t0, n, sigma);
    load(c.g, t0, n, g);
    load(c.dt, t0, n, dt);
    load(c.corrector_snr, t0, n, r);
    load(step.strength, t0, n, lambda);
    each([&](int i) {
      drift[i] = gamma[i] * dt[i];
      score_step[i] = square(g[i]) * dt[i];
      spread[i] = g[i] * __builtin_sqrtf(dt[i]);
      langevin_step[i] = square(r[i] * sigma[i]);
      langevin[i] = __builtin_sqrtf(2 * langevin_step[i]);
      inverse_delta[i] = 1 / delta[i];
      sigma2[i] = square(sigma[i]);
      a2[i] = square(sigma[i] / delta[i]);
      pull[i] = lambda[i] * score_step[i] / delta[i];
    });
  }
};

inline bool constant(const Step& step) {
  const Coefficients& c = step.coefficients;
  return !(c.gamma.values || c.delta.values || c.sigma.values || c.g.values || c.dt.values || c.corrector_snr.values ||
           step.strength.values);
}

// One source's rows of one bin and sample.
struct SourceRows {
  ComplexRow s, S;  // state and score; the update writes the next state to s
};

// What all samples of one bin share.
struct BinRows {
  ComplexRow x;  // mixture
  Row v;         // V, or what an update makes of it
  Row w1, w2;    // more weights that depend on V
  Row p;         // power, summed over the samples
};

inline void noise_rows(const Noise& noise, const Shape& shape, int64_t b, int64_t pair, int64_t t0, int n,
                       ComplexRow z[2]) {
  if (noise.kind == Noise::drawn) return draw(noise.key, b, pair, t0, z);
  for (int64_t f = 2 * pair; f < shape.bins && f < 2 * pair + 2; ++f) {
    if (noise.kind == Noise::given)
      load(noise.values + (b * shape.bins + f) * shape.frames + t0, n, z[f & 1]);
    else
      each_part([&](int k, int i) { z[f & 1][k][i] = 0; });
  }
}

// Runs an update over pairs of bins: `prepare` once per bin and block, `update` for each sample of it.
template <class Prepare, class Update>
inline void sweep(const Step& step, Range pairs, Prepare prepare, Update update) {
  const auto [B, F, T] = step.shape;
  const bool same_for_all = constant(step);
  const bool two_draws = step.noise.draw.kind != Noise::none;
  Numbers c;
  BinRows bins[2];
  SourceRows speech, noise;
  ComplexRow z[2], z2[2];
  each_part([&](int k, int i) { z2[0][k][i] = z2[1][k][i] = 0; });
  if (same_for_all) c.fill(step, 0, L);

  for (int64_t pair = pairs.begin; pair < pairs.end; ++pair) {
    const int64_t first = 2 * pair, last = first + 2 < F ? first + 2 : F;
    for (int64_t t0 = 0; t0 < T; t0 += L) {
      const int n = block_length(T, t0);
      if (!same_for_all) c.fill(step, t0, n);
      for (int64_t f = first; f < last; ++f) {
        BinRows& bin = bins[f & 1];
        if (step.mixture) load(step.mixture + f * T + t0, n, bin.x);
        if (step.variance.values || step.variance.W) variance_row(step.variance, f, T, t0, n, bin.v);
        each([&](int i) { bin.p[i] = 0; });
        prepare(c, bin);
      }
      for (int64_t b = 0; b < B; ++b) {
        noise_rows(step.speech.draw, step.shape, b, pair, t0, n, z);
        if (two_draws) noise_rows(step.noise.draw, step.shape, b, pair, t0, n, z2);
        for (int64_t f = first; f < last; ++f) {
          const int64_t at = (b * F + f) * T + t0;
          load(step.speech.state + at, n, speech.s);
          load(step.speech.score + at, n, speech.S);
          if (step.noise.state) load(step.noise.state + at, n, noise.s);
          if (step.noise.score) load(step.noise.score + at, n, noise.S);
          update(c, bins[f & 1], speech, z[f & 1], noise, z2[f & 1]);
          store(speech.s, n, step.speech.next + at);
          if (step.noise.next) store(noise.s, n, step.noise.next + at);
        }
      }
      if (step.power)
        for (int64_t f = first; f < last; ++f) {
          Row& p = bins[f & 1].p;
          each([&](int i) { p[i] /= static_cast<float>(B); });
          store(p, n, step.power + f * T + t0);
        }
    }
  }
}

const auto nothing = [](const Numbers&, BinRows&) {};

inline float predicted(const Numbers& c, int i, float s, float S, float z) {
  return s + c.drift[i] * s + c.score_step[i] * S + c.spread[i] * z;
}

void corrector(const Step& step, Range pairs) {
  sweep(step, pairs, nothing,
        [](const Numbers& c, BinRows&, SourceRows& a, const ComplexRow& z, SourceRows&, const ComplexRow&) {
          each_part([&](int k, int i) { a.s[k][i] += c.langevin_step[i] * a.S[k][i] + c.langevin[i] * z[k][i]; });
        });
}

void predictor(const Step& step, Range pairs) {
  sweep(step, pairs, nothing,
        [](const Numbers& c, BinRows&, SourceRows& a, const ComplexRow& z, SourceRows&, const ComplexRow&) {
          each_part([&](int k, int i) { a.s[k][i] = predicted(c, i, a.s[k][i], a.S[k][i], z[k][i]); });
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
      [apply](const Numbers& c, BinRows& bin) {
        each([&](int i) { bin.w1[i] = apply * c.pull[i] / (c.a2[i] + bin.v[i]); });
      },
      [estimate](const Numbers& c, BinRows& bin, SourceRows& a, const ComplexRow& z, SourceRows&, const ComplexRow&) {
        each_part([&](int k, int i) {
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
      [marginal](const Numbers& c, BinRows& bin) {
        each([&](int i) {
          const float R = square(c.delta[i]) * bin.v[i] + marginal * c.sigma2[i], q = c.score_step[i];
          bin.w1[i] = R / (R + q);
          bin.w2[i] = q / (R + q);
          bin.v[i] = __builtin_sqrtf(q * bin.w1[i]);
        });
      },
      [estimate](const Numbers& c, BinRows& bin, SourceRows& a, const ComplexRow& z, SourceRows&,
                 const ComplexRow& z2) {
        each_part([&](int k, int i) {
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
      [=](const Numbers& c, BinRows& bin) {
        each([&](int i) {
          const float V = bin.v[i], q = marginal * c.a2[i] + w;
          bin.w1[i] = V / (V + q);
          bin.w2[i] = c.pull[i] / (c.a2[i] + w);
          bin.p[i] = samples * q * bin.w1[i];  // the posterior variance, the same for every sample
        });
      },
      [](const Numbers& c, BinRows& bin, SourceRows& a, const ComplexRow& z, SourceRows& n, const ComplexRow&) {
        each_part([&](int k, int i) {
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
        [](const Numbers& c, BinRows& bin, SourceRows& a, const ComplexRow& z, SourceRows& n, const ComplexRow& z2) {
          each_part([&](int k, int i) {
            const float s = predicted(c, i, a.s[k][i], a.S[k][i], z[k][i]);
            n.s[k][i] = bin.x[k][i] - (s - c.sigma[i] * z2[k][i]) * c.inverse_delta[i];
            a.s[k][i] = s;
          });
        });
}

void score_noise_guidance(const Step& step, Range pairs) {
  sweep(step, pairs, nothing,
        [](const Numbers& c, BinRows&, SourceRows& a, const ComplexRow&, SourceRows&, const ComplexRow&) {
          each_part([&](int k, int i) { a.s[k][i] -= c.pull[i] * a.S[k][i]; });
        });
}

void joint_guidance(const Step& step, Range pairs) {
  const float w = step.observation_variance, apply = step.apply ? 1.f : 0.f;
  sweep(
      step, pairs,
      [=](const Numbers& c, BinRows& bin) { each([&](int i) { bin.w1[i] = apply * c.pull[i] / (c.a2[i] + w); }); },
      [](const Numbers& c, BinRows& bin, SourceRows& a, const ComplexRow& z, SourceRows& o, const ComplexRow& z2) {
        each_part([&](int k, int i) {
          const float x = bin.x[k][i], to_clean = c.inverse_delta[i];
          const float s = predicted(c, i, a.s[k][i], a.S[k][i], z[k][i]);
          const float n = predicted(c, i, o.s[k][i], o.S[k][i], z2[k][i]);
          const float s0 = (s + c.sigma2[i] * a.S[k][i]) * to_clean, n0 = (n + c.sigma2[i] * o.S[k][i]) * to_clean;
          a.s[k][i] = s + bin.w1[i] * (x - s * to_clean - n0);
          o.s[k][i] = n + bin.w1[i] * (x - n * to_clean - s0);
        });
      });
}

// ---- compression, network input
// ---------------------------------------------------------------------------------------

constexpr float tiny = 1e-37f;  // modulus below which z counts as zero

// out = scale z gain(|scale z|); |z| is formed without overflow or underflow of its square
template <class Gain>
inline void scale_by_modulus(const cfloat* z, float scale, cfloat* out, Range range, Gain gain) {
  ComplexRow row;
  for (int64_t at = range.begin; at < range.end; at += L) {
    const int n = block_length(range.end, at);
    load(z + at, n, row);
    each([&](int i) {
      const float re = row[0][i] * scale, im = row[1][i] * scale;
      const float x = __builtin_fabsf(re), y = __builtin_fabsf(im);
      const float large = x > y ? x : y, small = x > y ? y : x, ratio = small / (large > tiny ? large : tiny);
      const float g = gain(large * __builtin_sqrtf(1 + ratio * ratio));
      row[0][i] = re * g;
      row[1][i] = im * g;
    });
    store(row, n, out + at);
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
constexpr int max_rank = 32;
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

template <int N>
inline float sum(const float* a) {
  float halves[N / 2];
  for (int i = 0; i < N / 2; ++i) halves[i] = a[i] + a[i + N / 2];
  return sum<N / 2>(halves);
}
template <>
inline float sum<1>(const float* a) {
  return *a;
}

inline float sum(const Vector& v) {
  float a[lanes];
  __builtin_memcpy(a, &v, sizeof v);
  return sum<lanes>(a);
}

// P V^-2 and V^-1 of one vector, V = sum over k of w[k] h[k]. V is kept at the floor or above: V^-2 of digital silence
// must stay finite.
struct Weights {
  Vector weighted, inverse;
};

template <int R>
inline Weights weights(const Vector& power, const float* w, const float* h, int64_t stride, int rank, float floor) {
  Vector v = w[0] * load(h);
  UDSE_UNROLL
  for (int k = 1; k < rank; ++k) v += w[k] * load(h + k * stride);
  const Vector least = floor - Vector{};
  const Vector inverse = 1.f / (v > least ? v : least);
  return {power * inverse * inverse, inverse};
}

// (P V^-2) H^T and V^-1 H^T of rows of P. R is the rank where that is known at compile time, else 0.
template <int R>
void nmf_statistics(const NMFPass& nmf, Range bins) {
  const int rank = R ? R : static_cast<int>(nmf.rank);
  for (int64_t f = bins.begin; f < bins.end; ++f) {
    const float *w = nmf.W + f * rank, *power = nmf.power + f * nmf.frames;
    Vector a[R ? R : max_rank], b[R ? R : max_rank];
    UDSE_UNROLL
    for (int k = 0; k < rank; ++k) a[k] = b[k] = Vector{};
    for (int64_t t = 0; t < nmf.frames; t += lanes) {
      const float* h = nmf.H + t;  // zero behind the last frame
      const Weights y = weights<R>(load(power + t, nmf.frames - t), w, h, nmf.stride, rank, nmf.floor);
      UDSE_UNROLL
      for (int k = 0; k < rank; ++k) {
        const Vector row = load(h + k * nmf.stride);
        a[k] += row * y.weighted;
        b[k] += row * y.inverse;
      }
    }
    UDSE_UNROLL
    for (int k = 0; k < rank; ++k) {
      nmf.weighted[f * rank + k] = sum(a[k]);
      nmf.inverse[f * rank + k] = sum(b[k]);
    }
  }
}

// H <- max(H * (W^T (P V^-2)) / (W^T V^-1), floor) of blocks of frames
template <int R>
void nmf_h(const NMFPass& nmf, Range blocks) {
  const int rank = R ? R : static_cast<int>(nmf.rank);
  const int64_t end = blocks.end * L < nmf.frames ? blocks.end * L : nmf.frames;
  for (int64_t t = blocks.begin * L; t < end; t += lanes) {
    float* const h = nmf.H + t;
    Vector a[R ? R : max_rank], b[R ? R : max_rank];
    UDSE_UNROLL
    for (int k = 0; k < rank; ++k) a[k] = b[k] = Vector{};
    for (int64_t f = 0; f < nmf.bins; ++f) {
      const float* w = nmf.W + f * rank;
      const Weights y =
          weights<R>(load(nmf.power + f * nmf.frames + t, nmf.frames - t), w, h, nmf.stride, rank, nmf.floor);
      UDSE_UNROLL
      for (int k = 0; k < rank; ++k) {
        a[k] += w[k] * y.weighted;
        b[k] += w[k] * y.inverse;
      }
    }
    UDSE_UNROLL
    for (int k = 0; k < rank; ++k)
      for (int i = 0; i < lanes && t + i < nmf.frames; ++i) {
        const float divisor = b[k][i] > 1e-30f ? b[k][i] : 1e-30f, next = h[k * nmf.stride + i] * a[k][i] / divisor;
        h[k * nmf.stride + i] = next > nmf.floor ? next : nmf.floor;
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
                         complex_normal,
                         compress,
                         decompress,
                         network_input<float>,
                         network_input<std::uint16_t>,
                         UDSE_FOR_RANK(nmf_statistics),
                         UDSE_FOR_RANK(nmf_h)};

}  // namespace UDSE_ISA
}  // namespace udse
