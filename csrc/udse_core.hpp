// The C++ core of udse-fast: everything of a reverse diffusion step but the network.
//
// Shapes: B posterior samples, F bins, T frames, R rank; arrays are dense, the last index runs fastest. Equations are
// named as in the plain references, kernels/<operation>/reference.py. Every function is thread safe, throws udse::Error
// for arguments that cannot be, and gives the same numbers for any thread count and any cut of the frames into blocks.
#pragma once

#include <complex>
#include <cstdint>
#include <stdexcept>

namespace udse {

using cfloat = std::complex<float>;

struct Error : std::invalid_argument {
  using std::invalid_argument::invalid_argument;
};

struct Shape {
  std::int64_t samples, bins, frames;
};

// One number for all frames, or one per frame.
struct PerFrame {
  float value = 0;
  const float* values = nullptr;  // (T), overrides `value`
  PerFrame(float v = 0) : value(v) {}
  PerFrame(const float* v) : values(v) {}
};

// The SDE at one step; corrector_snr is r.
struct Coefficients {
  PerFrame gamma, delta = 1.0f, sigma, g, dt, corrector_snr = 0.5f;
};

// Fixed identity of each use of noise.
enum Role : std::uint32_t {
  init_speech,
  init_noise,
  corrector_speech,
  corrector_noise,
  predictor_speech,
  predictor_noise,
  forward_mixture,
  dither,
};

// One draw of circular complex normal numbers, E|z|^2 = 1: a pure function of these fields, the bin and the frame.
struct NoiseKey {
  std::uint64_t seed = 0;
  std::uint32_t role = 0, step = 0;
  std::uint64_t first_frame = 0;
  std::uint32_t first_sample = 0;
  const std::int64_t* first_frame_at = nullptr;  // GPU kernels alone: read there, overrides `first_frame`
};

// Noise of an update: given numbers, a draw made on the fly, or none.
struct Noise {
  enum { none, given, drawn } kind = none;
  const cfloat* values = nullptr;  // (B, F, T)
  NoiseKey key;
  Noise() = default;
  Noise(const cfloat* v) : kind(given), values(v) {}
  Noise(const NoiseKey& k) : kind(drawn), key(k) {}
};

// V (F, T), or W (F, R) and H (R, T) with V = W H, which is then never stored.
struct NoiseVariance {
  const float *values = nullptr, *W = nullptr, *H = nullptr;
  std::int64_t rank = 0;
};

// The arguments of one fused update: kernels/step/__init__.py has the same names. Each function says which fields it
// reads beyond shape, coefficients, state and score, and which of next, other_next and power it writes.
struct Step {
  Shape shape{};
  const cfloat* state = nullptr;  // s, (B, F, T)
  const cfloat* score = nullptr;  // S, (B, F, T), the network's at `state`
  Coefficients coefficients;
  Noise noise;                                // z of the update
  const cfloat* mixture = nullptr;            // x, (F, T)
  NoiseVariance variance;                     // V
  const float* posterior_variance = nullptr;  // C, (B, F, T)
  Coefficients following;                     // of the next step
  const cfloat* other_state = nullptr;        // of a second source, (B, F, T)
  const cfloat* other_score = nullptr;        // (B, F, T)
  Noise other_noise;                          // of a second source, or a second draw of this one
  PerFrame guidance = 1.0f;                   // lambda
  float observation_variance = 0;             // w
  float noise_bias = 1, eta = 0;              // kappa, eta
  bool apply = true, power_of_state = false, divide_tweedie = false, paper_posterior = false;
  cfloat* next = nullptr;        // (B, F, T), out, may be `state`
  cfloat* other_next = nullptr;  // (B, F, T), out, may be `other_state`
  float* power = nullptr;        // P of the M-step, (F, T), out
};

// s + eps S + sqrt(2 eps) z, eps = (r sigma)^2. Reads noise; writes next.
void corrector(const Step& step, int threads = 1);
// s + gamma s dt + g^2 S dt + g sqrt(dt) z. Reads noise; writes next.
void predictor(const Step& step, int threads = 1);
// UDiffSE, UDiffSE+. Reads noise, mixture, variance, guidance, apply, power_of_state, divide_tweedie; writes next,
// power.
void marginal_guidance(const Step& step, int threads = 1);
// DEPSE. Reads noise, mixture, variance, divide_tweedie; other_noise is z_f of the TL form, none selects the IL form;
// writes next, power.
void product_of_gaussians(const Step& step, int threads = 1);
// DiffUSEEN. Reads noise, mixture, variance, guidance, observation_variance, paper_posterior; writes next, power, and
// mu to other_next, if any.
void noise_posterior_guidance(const Step& step, int threads = 1);
// ParaDiffUSE-IN, first half. Reads noise, mixture; other_noise is z of the paper's form; writes next, and
// x - (s - sigma z)/delta to other_next.
void predictor_residual(const Step& step, int threads = 1);
// ParaDiffUSE-IN, second half. Reads guidance; score is the noise network's at the residual; writes next.
void score_noise_guidance(const Step& step, int threads = 1);
// ParaDiffUSE-EN. Reads noise, mixture, the three of the other source, guidance, observation_variance, apply; writes
// next, other_next.
void joint_guidance(const Step& step, int threads = 1);
// DDRM, for the M-step. Reads mixture, variance, posterior_variance, noise_bias; writes power.
void unexplained_power(const Step& step, int threads = 1);
// DDRM, every step but the last. Reads noise, mixture, variance, following, eta; writes next.
void ddrm_step(const Step& step, int threads = 1);
// DDRM, the last step. Reads mixture, variance, posterior_variance; writes next.
void posterior_mean(const Step& step, int threads = 1);

// z of `key`, (B, F, T)
void complex_normal(const NoiseKey& key, const Shape& shape, cfloat* out, int threads = 1);

// factor |z|^exponent exp(j arg z), and its inverse; n numbers, out may be z
void compress(const cfloat* z, std::int64_t n, float exponent, float factor, cfloat* out, int threads = 1);
void decompress(const cfloat* z, std::int64_t n, float exponent, float factor, cfloat* out, int threads = 1);

// NMF-IS of power (F, T): W (F, R) and H (R, T) are updated in place; R in 1..32
struct NMF {
  std::int64_t bins, frames, rank;
  const float* power;
  float *W, *H;
  float floor = 1e-10f;
};
void nmf_update(const NMF& nmf, int iterations, int threads = 1);
// H of a block of frames, then W from the statistics A, B (F, R), which are updated in place
void online_nmf_update(const NMF& nmf, float* A, float* B, float forgetting, int iterations, int threads = 1);

// Instruction set in use: "scalar", "avx2" or "avx512"; the best one of the processor, or UDSE_FORCE_ISA where that is
// set.
const char* isa();
// Changes it for the whole process, for tests.
void set_isa(const char* name);

}  // namespace udse
