#include "stream/workbench.hpp"

#include <algorithm>
#include <utility>

namespace udse {

Workbench::Workbench(std::shared_ptr<const Prior> prior, const Calls& calls, std::int64_t signals)
    : prior_(std::move(prior)),
      calls_(calls),
      scratch_(*prior_, calls.frames),
      places_(static_cast<std::size_t>(signals)),
      requests_(places_.size()) {
  for (const bool of_posterior : {false, true}) {
    std::int64_t samples = 0;
    std::vector<float> noise_levels;
    for (const Call& call : calls.each) {
      if (call.of_posterior != of_posterior) continue;
      samples = std::max(samples, call.samples);
      if (!of_posterior) noise_levels.push_back(call.noise_level);
    }
    if (samples) workspaces_.push_back(network(of_posterior).workspace(signals * samples, calls.frames, noise_levels));
  }
  std::int64_t memory_size = 0;
  for (const Call& call : calls.each) memory_size = std::max(memory_size, call.memory_size);
  for (Place& place : places_) {
    place.memory.resize(static_cast<std::size_t>(memory_size));
    place.memories.resize(calls.memory_groups);
  }
}

const CompactNetwork& Workbench::network(bool of_posterior) const {
  return of_posterior ? *prior_->posterior : *prior_->network;
}

void Workbench::put(CausalBlocks& blocks) {
  if (!blocks.begin(scratch_)) return;
  places_[taken_++].blocks = &blocks;
  if (taken_ == places_.size()) finish();
}

void Workbench::finish() {
  if (!taken_) return;
  const MemoryKernels& memory = kernels().memory;
  for (std::size_t call = 0; call < calls_.each.size(); ++call) {
    const Call& asked = calls_.each[call];
    for (std::size_t i = 0; i < taken_; ++i) {
      requests_[i] = places_[i].blocks->sampler().request(call);
      requests_[i].memory = places_[i].memory.data();
      memory.recall(places_[i].blocks->memories() + asked.memory_at, requests_[i].memory, asked.memory_size);
    }
    network(asked.of_posterior).step(requests_.data(), taken_, workspaces_[asked.of_posterior]);
    for (std::size_t i = 0; i < taken_; ++i) {
      memory.keep(requests_[i].memory, places_[i].memories.data() + asked.memory_at, asked.memory_size);
      places_[i].blocks->sampler().answer(call, places_[i].blocks->noise_model());
    }
  }
  for (std::size_t i = 0; i < taken_; ++i) places_[i].blocks->estimate(places_[i].memories);
  taken_ = 0;
}

}  // namespace udse
