// Draws the speech of one block from its posterior. A sampler says what it asks the networks for, call by call, and
// takes the answers: so the calls of many streams can be made together.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "compact_network.hpp"
#include "kernels.hpp"
#include "stream/noise_model.hpp"
#include "stream/prior.hpp"

namespace udse {

struct Call {
  bool of_posterior;         // network: that of the speech, or the posterior network
  std::int64_t samples;      // B
  float noise_level;         // of the speech prior's calls
  std::int64_t memory_size;  // numbers that the network remembers of it, (B, memory_size of the network)
  std::size_t memory_at;     // the group where they begin among those of all calls

  bool operator==(const Call& other) const {
    return of_posterior == other.of_posterior && samples == other.samples && noise_level == other.noise_level;
  }
};

// The network calls of a block, in their order
struct Calls {
  std::int64_t frames;  // K
  std::vector<Call> each;
  std::size_t memory_groups = 0;  // of all

  void add(const CompactNetwork& network, std::int64_t samples, float noise_level) {
    const std::int64_t memory_size = samples * network.memory_size();
    each.push_back({network.tells_noise(), samples, noise_level, memory_size, memory_groups});
    memory_groups += KeptNumbers::groups(memory_size);
  }
  bool operator==(const Calls& other) const { return frames == other.frames && each == other.each; }
};

// Nothing in it outlives a block.
class BlockSampler {
 public:
  virtual ~BlockSampler() = default;

  virtual const Calls& calls() const = 0;

  // The block: x (F, K), compressed and normalised, with the number of its first frame; it is read until the last
  // answer.
  virtual void start(const cfloat* mixture, std::uint64_t first_frame, const NoiseModel& noise) = 0;
  // What the network is asked; its memories are the caller's.
  virtual NetworkBlock request(std::size_t call) = 0;
  // The network has written what the request points to. The noise model learns on the way.
  virtual void answer(std::size_t call, NoiseModel& noise) = 0;
  // Samples (B, F, K), after the last answer
  virtual const cfloat* speech() const = 0;
  // An estimate for the ear (F, K), which is to be heard beside them; null where there is none
  virtual const cfloat* heard() const { return nullptr; }
};

// The sampler that the settings ask for, whose networks are there.
std::unique_ptr<BlockSampler> make_block_sampler(const Prior& prior, const StreamSettings& settings);

}  // namespace udse
