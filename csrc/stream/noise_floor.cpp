#include "stream/noise_floor.hpp"

#include <algorithm>
#include <cmath>

namespace udse {
namespace {

using std::int64_t;
using std::size_t;

constexpr double window_seconds = 0.9;     // in which speech has a gap in every band, and steady noise has none
constexpr double smoothing_seconds = 0.1;  // after which a block's power weighs 1/e
constexpr int64_t reach = 4;               // neighbours on either side whose mean power is looked at

}  // namespace

NoiseFloor::NoiseFloor(int64_t bins, int64_t frames, double factor, double block_seconds)
    : bins_(bins),
      frames_(frames),
      blocks_(std::max(int64_t{1}, static_cast<int64_t>(std::nearbyint(window_seconds / block_seconds)))),
      factor_(static_cast<float>(factor)),
      kept_(static_cast<float>(std::exp(-block_seconds / smoothing_seconds))),
      smoothed_(static_cast<size_t>(bins)),
      recent_(static_cast<size_t>(blocks_ * bins)),
      power_(smoothed_.size()),
      least_(smoothed_.size()) {}

void NoiseFloor::next_block(const cfloat* mixture, float level) {
  const float scale = level * level;
  for (int64_t f = 0; f < bins_; ++f) {
    float sum = 0;
    for (int64_t t = 0; t < frames_; ++t) sum += std::norm(mixture[f * frames_ + t]);
    power_[static_cast<size_t>(f)] = scale * sum / static_cast<float>(frames_);
  }
  latest_ = (latest_ + 1) % blocks_;
  float* const latest = recent_.data() + latest_ * bins_;
  for (int64_t f = 0; f < bins_; ++f) {
    float band = 0;
    for (int64_t i = f - reach; i <= f + reach; ++i)
      band += power_[static_cast<size_t>(std::clamp<int64_t>(i, 0, bins_ - 1))];
    band /= static_cast<float>(2 * reach + 1);
    float& smoothed = smoothed_[static_cast<size_t>(f)];
    smoothed = smoothed > 0 ? kept_ * smoothed + (1 - kept_) * band : band;
    latest[f] = smoothed;
  }
  std::copy_n(recent_.begin(), bins_, least_.begin());
  for (int64_t block = 1; block < blocks_; ++block)
    for (int64_t f = 0; f < bins_; ++f) {
      float& least = least_[static_cast<size_t>(f)];
      least = std::min(least, recent_[static_cast<size_t>(block * bins_ + f)]);
    }
  for (float& least : least_) least *= factor_ / scale;
}

void NoiseFloor::raise(const float* power, float* out) const {
  for (int64_t f = 0; f < bins_; ++f)
    for (int64_t t = 0; t < frames_; ++t)
      out[f * frames_ + t] = std::max(power[f * frames_ + t], least_[static_cast<size_t>(f)]);
}

void NoiseFloor::reset() {
  for (auto* numbers : {&smoothed_, &recent_, &least_}) std::fill(numbers->begin(), numbers->end(), 0.f);
  latest_ = 0;
}

void NoiseFloor::exchange(State& state) {
  state(smoothed_);
  state(recent_);
  state(latest_, int64_t{0}, blocks_ - 1);
}

}  // namespace udse
