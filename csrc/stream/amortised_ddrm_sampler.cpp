#include "stream/amortised_ddrm_sampler.hpp"

#include <algorithm>
#include <cmath>

namespace udse {
namespace {

using std::size_t;

// V / (E|c(nu)|^2)^2 of complex Gaussian noise nu of variance V, c(nu) = |nu|^1/2 exp(i arg nu): 16 / (4 pi)
constexpr float noise_power = 1.273f;
constexpr float least_power = 1e-10f;

}  // namespace

AmortisedDdrmSampler::AmortisedDdrmSampler(const Prior& prior, const StreamSettings& settings)
    : ddrm_(prior, settings),
      rounds_(static_cast<size_t>(settings.em_rounds)),
      fits_(settings.fits),
      calls_{settings.block_frames, {}},
      told_(static_cast<size_t>(prior.network->bins() * settings.block_frames)),
      believed_(told_.size()),
      variance_(told_.size()),
      power_(told_.size()),
      clean_(told_.size()),
      heard_(told_.size()) {
  for (size_t round = 0; round < rounds_; ++round) calls_.add(*prior.posterior, 1, 0);
  for (const Call& call : ddrm_.calls().each) calls_.add(*prior.network, call.samples, call.noise_level);
}

// V as it is fitted, from the domain of the mixture to the linear one
void AmortisedDdrmSampler::tell(const NoiseModel& noise) {
  noise.variance(told_.data());
  for (float& V : told_) V = noise_power * std::max(V, least_power) * std::max(V, least_power);
}

void AmortisedDdrmSampler::start(const cfloat* mixture, std::uint64_t first_frame, const NoiseModel& noise) {
  mixture_ = mixture;
  first_frame_ = first_frame;
  tell(noise);
}

NetworkBlock AmortisedDdrmSampler::request(size_t call) {
  if (call >= rounds_) return ddrm_.request(call - rounds_);
  NetworkBlock block{};
  block.samples = 1;
  block.frames = calls_.frames;
  block.noisy = mixture_;
  block.clean = clean_.data();
  block.variance = variance_.data();
  block.noise_variance = told_.data();
  block.believed = believed_.data();
  block.heard = heard_.data();
  return block;
}

// What the network says about the noise is smooth: NMF may follow it closely, by many M-steps.
void AmortisedDdrmSampler::answer(size_t call, NoiseModel& noise) {
  if (call >= rounds_) return ddrm_.answer(call - rounds_, noise);
  for (size_t i = 0; i < power_.size(); ++i) power_[i] = std::sqrt(believed_[i] / noise_power);
  for (std::int64_t i = 0; i < fits_; ++i) noise.fit(power_.data());
  if (call + 1 < rounds_)
    tell(noise);
  else
    ddrm_.start(mixture_, first_frame_, noise, clean_.data());
}

}  // namespace udse
