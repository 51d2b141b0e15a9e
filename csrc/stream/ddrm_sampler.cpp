#include "stream/ddrm_sampler.hpp"

#include <algorithm>
#include <cmath>

namespace udse {

using std::size_t;

namespace {

size_t numbers_of(const Shape& shape) { return static_cast<size_t>(shape.samples * shape.bins * shape.frames); }

}  // namespace

DdrmSampler::DdrmSampler(const Prior& prior, const StreamSettings& settings)
    : shape_{settings.samples, prior.network->bins(), settings.block_frames},
      seed_(settings.seed),
      eta_(static_cast<float>(settings.eta)),
      noise_bias_(static_cast<float>(settings.noise_bias)),
      variance_scale_(static_cast<float>(settings.variance_scale)),
      calls_{settings.block_frames, {}},
      level_of_samples_(static_cast<size_t>(settings.samples)),
      state_(static_cast<size_t>(shape_.samples * shape_.bins * shape_.frames)),
      unit_gain_(state_.size()),
      clean_(state_.size()),
      score_(state_.size()),
      posterior_variance_(state_.size()),
      power_(static_cast<size_t>(shape_.bins * shape_.frames)) {
  const std::int64_t last = settings.steps - 1, shared = std::min(settings.shared_steps, last);
  for (std::int64_t i = 0; i <= last; ++i) {
    const double share = last ? static_cast<double>(i) / static_cast<double>(last) : 0;
    const double t = settings.start_time + share * (settings.end_time - settings.start_time);
    delta_.push_back(prior.sde.delta(t));
    sigma_.push_back(prior.sde.sigma(t));
    coefficients_.push_back(prior.sde.coefficients(t, settings.start_time / static_cast<double>(settings.steps)));
    calls_.add(*prior.network, i < shared ? 1 : settings.samples, static_cast<float>(sigma_.back() / delta_.back()));
  }
}

Shape DdrmSampler::shape_of(size_t call) const { return {calls_.each[call].samples, shape_.bins, shape_.frames}; }

NoiseKey DdrmSampler::draw(Role role, size_t step) const {
  return {seed_, role, static_cast<std::uint32_t>(step), first_frame_, 0, nullptr};
}

// s = delta (x + sqrt(a^2 - V) z): the mixture with its noise brought up to a = sigma / delta. Where m = E[s | x, V] is
// known, that takes its place as far as the noise is stronger than a: with g = a^2 / (a^2 + V),
// s = delta (g x + (1 - g) m + sqrt(a^2 - g^2 V) z)
void DdrmSampler::start(const cfloat* mixture, std::uint64_t first_frame, const NoiseModel& noise,
                        const cfloat* expected) {
  mixture_ = mixture;
  first_frame_ = first_frame;
  noise.variance(power_.data());
  const Shape shape = shape_of(0);
  kernels().noise.complex_normal(draw(init_speech, 0), shape, state_.data(), {0, (shape.bins + 1) / 2});
  const double level = sigma_[0] / delta_[0];
  const float delta = static_cast<float>(delta_[0]), level2 = static_cast<float>(level * level);
  const size_t size = power_.size();
  for (size_t i = 0; i < numbers_of(shape); ++i) {
    const size_t at = i % size;
    const float V = power_[at], g = expected ? level2 / (level2 + V) : 1;
    const cfloat known = expected ? expected[at] + g * (mixture[at] - expected[at]) : mixture[at];
    state_[i] = delta * (known + std::sqrt(std::max(level2 - g * g * V, 0.f)) * state_[i]);
  }
}

// The network is asked at the unit-gain state u = s / delta.
NetworkBlock DdrmSampler::request(size_t call) {
  const Shape shape = shape_of(call);
  const float gain = static_cast<float>(1 / delta_[call]);
  for (size_t i = 0; i < numbers_of(shape); ++i) unit_gain_[i] = gain * state_[i];
  std::fill(level_of_samples_.begin(), level_of_samples_.end(), calls_.each[call].noise_level);
  return {shape.samples, shape.frames, unit_gain_.data(), level_of_samples_.data(),
          nullptr,       nullptr,      clean_.data(),     posterior_variance_.data()};
}

void DdrmSampler::answer(size_t call, NoiseModel& noise) {
  const UpdateKernels& run = kernels().updates;
  const Shape shape = shape_of(call);
  const Range pairs{0, (shape.bins + 1) / 2};
  const bool last = call + 1 == calls_.each.size();
  // Tweedie: S = (delta E[s_0 | s] - s) / sigma^2
  const double precision = 1 / (sigma_[call] * sigma_[call]);
  const float of_clean = static_cast<float>(delta_[call] * precision), of_state = static_cast<float>(precision);
  for (size_t i = 0; i < numbers_of(shape); ++i) score_[i] = clean_[i] * of_clean - state_[i] * of_state;

  Step step;
  step.shape = shape;
  step.coefficients = coefficients_[call];
  step.state = state_.data();
  step.score = score_.data();
  step.mixture = mixture_;
  step.variance = noise.variance();
  step.noise_bias = noise_bias_;
  step.power = power_.data();
  step.posterior_variance = posterior_variance_.data();
  run.unexplained_power(step, pairs);
  noise.fit(power_.data());

  step.power = nullptr;
  step.next = state_.data();
  if (last) {
    for (float& variance : posterior_variance_) variance *= variance_scale_;
    return run.posterior_mean(step, pairs);
  }
  // after the shared steps each sample goes on from what the one had, with noise of its own
  step.shape = shape_of(call + 1);
  for (size_t i = numbers_of(shape); i < numbers_of(step.shape); ++i) {
    state_[i] = state_[i % power_.size()];
    score_[i] = score_[i % power_.size()];
  }
  step.posterior_variance = nullptr;
  step.eta = eta_;
  step.following = coefficients_[call + 1];
  step.noise = draw(predictor_speech, call);
  run.ddrm_step(step, pairs);
}

}  // namespace udse
