// What the equations of a step need at one frame, and the loop over the samples of a bin that every update shares.
#pragma once

#include "../complex_normal/complex_normal.cuh"

namespace udse {
namespace gpu {

struct Numbers {
  float drift, score_step, spread;      // predictor: gamma dt, g^2 dt, g sqrt(dt)
  float langevin_step, langevin;        // corrector: eps, sqrt(2 eps)
  float delta, inverse_delta, sigma;    // of the perturbation kernel
  float sigma2, a2;                     // sigma^2, (sigma / delta)^2
  float pull;                           // lambda g^2 dt / delta
  float next_delta, b;                  // of the next step: delta', sigma' / delta'

  UDSE_HD Numbers(const Step& step, int64_t t) {
    const Coefficients& c = step.coefficients;
    const float g = at_frame(c.g, t), dt = at_frame(c.dt, t);
    delta = at_frame(c.delta, t);
    sigma = at_frame(c.sigma, t);
    drift = at_frame(c.gamma, t) * dt;
    score_step = square(g) * dt;
    spread = g * sqrtf(dt);
    langevin_step = square(at_frame(c.corrector_snr, t) * sigma);
    langevin = sqrtf(2 * langevin_step);
    inverse_delta = 1 / delta;
    sigma2 = square(sigma);
    a2 = square(sigma / delta);
    pull = at_frame(step.guidance, t) * score_step / delta;
    next_delta = at_frame(step.following.delta, t);
    b = at_frame(step.following.sigma, t) / next_delta;
  }
};

// What all samples of one bin share.
struct Bin {
  Complex x;     // mixture
  float v;       // V
  float w1, w2, w3;  // what an update makes of it
  float p;       // power, summed over the samples
};

// State and score of one source and the noise of its update; the update writes the next state to s.
struct Element {
  Complex s, S, z;
  float C;  // posterior_variance
};

UDSE_HD inline Complex predicted(const Numbers& c, const Element& a) {
  return a.s + c.drift * a.s + c.score_step * a.S + c.spread * a.z;
}

UDSE_HD inline float variance_at(const NoiseVariance& variance, int64_t bin, int64_t frames, int64_t t) {
  if (variance.values) return variance.values[bin * frames + t];
  float v = 0;
  for (int64_t k = 0; k < variance.rank; ++k) v += variance.W[bin * variance.rank + k] * variance.H[k * frames + t];
  return v;
}

// One bin and frame: `Update::prepare` once, `Update::update` for each sample.
template <class Update>
struct Sweep {
  Step step;

  UDSE_HD void operator()(int64_t i) const {
    const Shape& shape = step.shape;
    const int64_t f = i / shape.frames, t = i % shape.frames;
    const Numbers c(step, t);
    Bin bin{};
    if (step.mixture) bin.x = load(step.mixture, i);
    if (step.variance.values || step.variance.W) bin.v = variance_at(step.variance, f, shape.frames, t);
    Update::prepare(step, c, bin);
    for (int64_t b = 0; b < shape.samples; ++b) {
      const int64_t at = b * shape.bins * shape.frames + i;
      Element speech{load(step.state, at), load(step.score, at), noise_at(step.noise, shape, b, f, t),
                     step.posterior_variance ? step.posterior_variance[at] : 0.f};
      Element other{};
      if (step.other_state) other.s = load(step.other_state, at);
      if (step.other_score) other.S = load(step.other_score, at);
      other.z = noise_at(step.other_noise, shape, b, f, t);
      Update::update(step, c, bin, speech, other);
      if (step.next) store(step.next, at, speech.s);
      if (step.other_next) store(step.other_next, at, other.s);
    }
    if (step.power) step.power[i] = bin.p / static_cast<float>(shape.samples);
  }
};

template <class Update>
const char* sweep(const Step* step, Stream stream) {
  return for_each(step->shape.bins * step->shape.frames, stream, Sweep<Update>{*step});
}

struct Unprepared {
  UDSE_HD static void prepare(const Step&, const Numbers&, Bin&) {}
};

}  // namespace gpu
}  // namespace udse
