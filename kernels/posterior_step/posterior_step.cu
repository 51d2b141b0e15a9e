// One reverse step of each posterior sampler; the equations are those of reference.py.
#include "../step/step.cuh"

namespace udse {
namespace gpu {

// s + sigma^2 S, or that over delta
UDSE_HD inline Complex estimate(const Step& step, const Numbers& c, const Element& a) {
  return (step.divide_tweedie ? c.inverse_delta : 1.f) * (a.s + c.sigma2 * a.S);
}

struct Marginal {
  UDSE_HD static void prepare(const Step& step, const Numbers& c, Bin& bin) {
    bin.w1 = step.apply ? c.pull / (c.a2 + bin.v) : 0.f;
  }
  UDSE_HD static void update(const Step& step, const Numbers& c, Bin& bin, Element& a, Element&) {
    a.s = predicted(c, a);
    a.s = a.s + bin.w1 * (bin.x - c.inverse_delta * a.s);
    bin.p += power(bin.x - (step.power_of_state ? a.s : estimate(step, c, a)));
  }
};

struct Product {
  UDSE_HD static void prepare(const Step& step, const Numbers& c, Bin& bin) {
    const float marginal = step.other_noise.kind == Noise::none ? c.sigma2 : 0.f;
    const float R = square(c.delta) * bin.v + marginal, q = c.score_step;
    bin.w1 = R / (R + q);
    bin.w2 = q / (R + q);
    bin.w3 = sqrtf(q * bin.w1);
  }
  UDSE_HD static void update(const Step& step, const Numbers& c, Bin& bin, Element& a, Element& forward) {
    const Complex z = a.z, y = c.delta * bin.x + c.sigma * forward.z;
    a.z = {0, 0};
    a.s = bin.w1 * predicted(c, a) + bin.w2 * y + bin.w3 * z;
    bin.p += power(bin.x - estimate(step, c, a));
  }
};

struct Posterior {
  UDSE_HD static void prepare(const Step& step, const Numbers& c, Bin& bin) {
    const float w = step.observation_variance, q = c.a2 + w, q_n = step.paper_posterior ? w : q;
    bin.w1 = bin.v / (bin.v + q_n);
    bin.w2 = c.pull / q;
    bin.p = static_cast<float>(step.shape.samples) * q_n * bin.w1;  // the posterior variance, the same for every sample
  }
  UDSE_HD static void update(const Step&, const Numbers& c, Bin& bin, Element& a, Element& noise) {
    a.s = predicted(c, a);
    const Complex mu = bin.w1 * (bin.x - c.inverse_delta * (a.s + c.sigma2 * a.S));
    a.s = a.s + bin.w2 * (bin.x - c.inverse_delta * a.s - mu);
    bin.p += power(mu);
    noise.s = mu;
  }
};

struct Residual : Unprepared {
  UDSE_HD static void update(const Step&, const Numbers& c, Bin& bin, Element& a, Element& residual) {
    a.s = predicted(c, a);
    residual.s = bin.x - c.inverse_delta * (a.s - c.sigma * residual.z);
  }
};

struct ScoreNoise : Unprepared {
  UDSE_HD static void update(const Step&, const Numbers& c, Bin&, Element& a, Element&) { a.s = a.s - c.pull * a.S; }
};

struct Joint {
  UDSE_HD static void prepare(const Step& step, const Numbers& c, Bin& bin) {
    bin.w1 = step.apply ? c.pull / (c.a2 + step.observation_variance) : 0.f;
  }
  UDSE_HD static void update(const Step&, const Numbers& c, Bin& bin, Element& a, Element& b) {
    const Complex s = predicted(c, a), n = predicted(c, b);
    const Complex s0 = c.inverse_delta * (s + c.sigma2 * a.S), n0 = c.inverse_delta * (n + c.sigma2 * b.S);
    a.s = s + bin.w1 * (bin.x - c.inverse_delta * s - n0);
    b.s = n + bin.w1 * (bin.x - c.inverse_delta * n - s0);
  }
};

UDSE_HD inline Complex tweedie_mean(const Numbers& c, const Element& a) { return c.inverse_delta * (a.s + c.sigma2 * a.S); }

struct Unexplained {
  UDSE_HD static void prepare(const Step&, const Numbers& c, Bin& bin) {
    const bool weaker = bin.v < c.a2;
    bin.w1 = weaker ? 1 / bin.v : 0.f;
    bin.w2 = weaker ? c.delta : 0.f;
    bin.w3 = weaker ? 1 / bin.v - 1 / c.a2 : 0.f;
  }
  UDSE_HD static void update(const Step& step, const Numbers& c, Bin& bin, Element& a, Element&) {
    const Complex r = bin.x - tweedie_mean(c, a);
    const float uncertain = a.C / (1 + bin.w3 * a.C);
    bin.p += step.noise_bias * (power(r - uncertain * (bin.w1 * r + bin.w2 * a.S)) + uncertain);
  }
};

struct Restoration {
  UDSE_HD static void prepare(const Step& step, const Numbers& c, Bin& bin) {
    const float missing = square(c.b) - bin.v;  // below 0 where the mixture's noise is the stronger
    const float root = sqrtf(missing >= 0 ? missing : bin.v), kept = sqrtf(1 - square(step.eta));
    bin.w1 = c.next_delta * (missing >= 0 ? 1.f : kept * c.b / root);
    bin.w2 = c.next_delta - bin.w1;
    bin.w3 = c.next_delta * (missing >= 0 ? root : step.eta * c.b);
  }
  UDSE_HD static void update(const Step&, const Numbers& c, Bin& bin, Element& a, Element&) {
    a.s = bin.w1 * bin.x + bin.w2 * tweedie_mean(c, a) + bin.w3 * a.z;
  }
};

struct PosteriorMean : Unprepared {
  UDSE_HD static void update(const Step&, const Numbers& c, Bin& bin, Element& a, Element&) {
    const Complex s0 = tweedie_mean(c, a);
    a.s = s0 + a.C / (a.C + bin.v) * (bin.x - s0);
  }
};

UDSE_EXPORT const char* udse_cuda_marginal_guidance(const Step* step, Stream stream) { return sweep<Marginal>(step, stream); }
UDSE_EXPORT const char* udse_cuda_product_of_gaussians(const Step* step, Stream stream) { return sweep<Product>(step, stream); }
UDSE_EXPORT const char* udse_cuda_noise_posterior_guidance(const Step* step, Stream stream) {
  return sweep<Posterior>(step, stream);
}
UDSE_EXPORT const char* udse_cuda_predictor_residual(const Step* step, Stream stream) { return sweep<Residual>(step, stream); }
UDSE_EXPORT const char* udse_cuda_score_noise_guidance(const Step* step, Stream stream) {
  return sweep<ScoreNoise>(step, stream);
}
UDSE_EXPORT const char* udse_cuda_joint_guidance(const Step* step, Stream stream) { return sweep<Joint>(step, stream); }
UDSE_EXPORT const char* udse_cuda_unexplained_power(const Step* step, Stream stream) { return sweep<Unexplained>(step, stream); }
UDSE_EXPORT const char* udse_cuda_ddrm_step(const Step* step, Stream stream) { return sweep<Restoration>(step, stream); }
UDSE_EXPORT const char* udse_cuda_posterior_mean(const Step* step, Stream stream) { return sweep<PosteriorMean>(step, stream); }

// What the caller's mirrors of the argument structures must measure.
UDSE_EXPORT int64_t udse_cuda_size_of_step() { return sizeof(Step); }
UDSE_EXPORT int64_t udse_cuda_size_of_nmf() { return sizeof(NMF); }

}  // namespace gpu
}  // namespace udse
