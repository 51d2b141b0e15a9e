#include "stream/workbench.hpp"

#include <utility>

namespace udse {

Workbench::Workbench(std::shared_ptr<const Prior> prior, const Calls& calls, std::int64_t signals)
    : prior_(std::move(prior)),
      calls_(calls),
      workspace_(prior_->network->workspace(signals * calls.samples, calls.frames, calls.noise_levels)),
      places_(static_cast<std::size_t>(signals)),
      requests_(places_.size()) {
  const auto samples = calls.noise_levels.size() * static_cast<std::size_t>(calls.samples);
  for (Place& place : places_)
    place.memories.resize(samples * static_cast<std::size_t>(prior_->network->memory_size()));
}

void Workbench::put(CausalBlocks& blocks) {
  if (!blocks.begin()) return;
  places_[taken_++].blocks = &blocks;
  if (taken_ == places_.size()) finish();
}

void Workbench::finish() {
  if (!taken_) return;
  for (std::size_t call = 0; call < calls_.noise_levels.size(); ++call) {
    for (std::size_t i = 0; i < taken_; ++i)
      requests_[i] = places_[i].blocks->sampler().request(call, places_[i].memories.data());
    prior_->network->step(requests_.data(), taken_, workspace_);
    for (std::size_t i = 0; i < taken_; ++i)
      places_[i].blocks->sampler().answer(call, places_[i].blocks->noise_model());
  }
  for (std::size_t i = 0; i < taken_; ++i) places_[i].blocks->estimate(places_[i].memories);
  taken_ = 0;
}

}  // namespace udse
