// Draws the speech of one block from its posterior. A sampler says what it asks the network for, call by call, and
// takes the answers: so the calls of many streams can be made together.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "causal_network.hpp"
#include "stream/noise_model.hpp"
#include "stream/prior.hpp"
#include "stream/state.hpp"

namespace udse {

class BlockSampler {
 public:
  virtual ~BlockSampler() = default;

  // Noise levels of the network calls of a block, in their order
  virtual const std::vector<float>& noise_levels() const = 0;

  // The block: x (F, K), compressed and normalised, with the number of its first frame; it is read until the last
  // answer.
  virtual void start(const cfloat* mixture, std::uint64_t first_frame, const NoiseModel& noise) = 0;
  virtual NetworkBlock request(std::size_t call) = 0;
  // The network has written what the request points to. The noise model learns on the way.
  virtual void answer(std::size_t call, NoiseModel& noise) = 0;
  // Samples (B, F, K), after the last answer
  virtual const cfloat* speech() const = 0;

  virtual void reset() = 0;
  virtual void exchange(State& state) = 0;
};

// The sampler that the settings ask for.
std::unique_ptr<BlockSampler> make_block_sampler(const Prior& prior, const StreamSettings& settings);

}  // namespace udse
