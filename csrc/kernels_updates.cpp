// The fused updates: one pass over state and score, the noise drawn and V = W H formed on the way.
#include "kernel_noise.hpp"

namespace udse {
namespace UDSE_ISA {
namespace {

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
    load(L, step.following.delta, t0, n, next_delta);
    load(L, step.following.sigma, t0, n, b);
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
           step.guidance.values || step.following.delta.values || step.following.sigma.values);
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
  const int64_t B = step.shape.samples, F = step.shape.bins, T = step.shape.frames;
  const bool same_for_all = constant(step);
  const bool two_draws = step.other_noise.kind != Noise::none;
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
        noise_rows(L, step.noise, step.shape, b, pair, t0, n, z);
        if (two_draws) noise_rows(L, step.other_noise, step.shape, b, pair, t0, n, z2);
        for (int64_t f = first; f < last; ++f) {
          const int64_t at = (b * F + f) * T + t0;
          load(L, step.state + at, n, speech.s);
          load(L, step.score + at, n, speech.S);
          if (step.posterior_variance) load(L, step.posterior_variance + at, n, speech.C);
          if (step.other_state) load(L, step.other_state + at, n, noise.s);
          if (step.other_score) load(L, step.other_score + at, n, noise.S);
          update(L, c, bins[f & 1], speech, z[f & 1], noise, z2[f & 1]);
          if (step.next) store(L, speech.s, n, step.next + at);
          if (step.other_next) store(L, noise.s, n, step.other_next + at);
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
  const float marginal = step.other_noise.kind == Noise::none ? 1.f : 0.f;
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

void posterior_mean(const Step& step, Range pairs) {
  sweep(step, pairs, nothing,
        [](auto L, const Numbers& c, BinRows& bin, SourceRows& a, const ComplexRow&, SourceRows&, const ComplexRow&) {
          each(L, [&](int i) { a.C[i] /= a.C[i] + bin.v[i]; });
          each_part(L, [&](int k, int i) {
            const float s0 = tweedie_mean(c, i, a.s[k][i], a.S[k][i]);
            a.s[k][i] = s0 + a.C[i] * (bin.x[k][i] - s0);
          });
        });
}

void ddrm_step(const Step& step, Range pairs) {
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

}  // namespace

const UpdateKernels update_kernels = {corrector,
                                      predictor,
                                      marginal_guidance,
                                      product_of_gaussians,
                                      noise_posterior_guidance,
                                      predictor_residual,
                                      score_noise_guidance,
                                      joint_guidance,
                                      unexplained_power,
                                      ddrm_step,
                                      posterior_mean};

}  // namespace UDSE_ISA
}  // namespace udse
