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

// The network calls of a block
struct Calls {
  std::vector<float> noise_levels;  // in the order of the calls
  std::int64_t samples, frames;     // B, K

  bool operator==(const Calls& other) const {
    return noise_levels == other.noise_levels && samples == other.samples && frames == other.frames;
  }
};

class BlockSampler {
 public:
  virtual ~BlockSampler() = default;

  virtual const Calls& calls() const = 0;

  // The block: x (F, K), compressed and normalised, with the number of its first frame; it is read until the last
  // answer.
  virtual void start(const cfloat* mixture, std::uint64_t first_frame, const NoiseModel& noise) = 0;
  // `memories`: (calls, B, memory_size of the network), where it writes what it remembers of the block.
  virtual NetworkBlock request(std::size_t call, float* memories) = 0;
  // The network has written what the request points to. The noise model learns on the way.
  virtual void answer(std::size_t call, NoiseModel& noise) = 0;
  // Samples (B, F, K), after the last answer
  virtual const cfloat* speech() const = 0;

  // After a block that went well: its memories are those that the next one goes on from. They are exchanged for the
  // ones of the block before, which without this call stay.
  virtual void keep(std::vector<float>& memories) = 0;

  virtual void reset() = 0;
  virtual void exchange(State& state) = 0;
};

// The sampler that the settings ask for.
std::unique_ptr<BlockSampler> make_block_sampler(const Prior& prior, const StreamSettings& settings);

}  // namespace udse
