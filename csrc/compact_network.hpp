// Compact networks on CPUs: `Compact.posterior` of udse_fast/networks/compact.py, and `CompactPosterior.say` of
// compact_posterior.py, at one noise level or in noise of a known variance.
//
// A call of a causal network takes the next few frames of a signal and goes on from a memory: the frames before them,
// as every layer saw them. A centred one takes a whole signal, in pieces of its frames side by side on the threads.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "udse_core.hpp"

namespace udse {

// A float32 array of a checkpoint, dense.
struct Weight {
  std::vector<std::int64_t> shape;
  const float* values;
};
using Weights = std::map<std::string, Weight>;

struct NetworkBlock {
  std::int64_t samples, frames;   // B, K
  const cfloat* noisy;            // u, (B, F, K); of a posterior network the mixture x
  const float* noise_level;       // a > 0, (B); a posterior network does not look at it
  const std::int64_t* label;      // (B) 1 speech, 0 noise; null is speech; of a joint network only
  float* memory;                  // (B, memory_size), updated; zero before the first block; null of a centred network
  cfloat* clean;                  // E[s_0 | u], (B, F, K)
  float* variance;                // E|s_0 - E[s_0 | u]|^2, (B, F, K)
  const float* before = nullptr;  // (B, memory_size) that `memory` is made from, and stays; null: `memory` itself
  // of a posterior network, (B, F, K)
  const float* noise_variance = nullptr;  // a guess of V, E|nu|^2 where x |x| = S + nu
  float* believed = nullptr;              // the V that the network believes in
  cfloat* heard = nullptr;                // the estimate to listen to
};

class CompactNetwork {
 public:
  // Copies what it needs of `weights`: parameters and buffers by the names of `Compact`, here with any sizes; a
  // posterior network where they are those of `CompactPosterior`.
  // dilations: of the layers over time, as the weights do not tell them; nor whether they are centred.
  CompactNetwork(const Weights& weights, const std::vector<std::int64_t>& dilations, bool centred = false);
  ~CompactNetwork();

  // What a caller works in: with it, `step` allocates nothing and takes no lock.
  class Workspace {
   public:
    Workspace(Workspace&&) noexcept;
    Workspace& operator=(Workspace&&) noexcept;
    ~Workspace();

   private:
    friend class CompactNetwork;
    struct Parts;
    explicit Workspace(std::unique_ptr<Parts> parts);
    std::unique_ptr<Parts> parts_;
  };

  // For calls with up to this many samples and frames, at these noise levels; of a posterior network none.
  Workspace workspace(std::int64_t samples, std::int64_t frames, const std::vector<float>& noise_levels) const;

  bool tells_noise() const;          // it is a posterior network
  bool centred() const;              // it takes whole signals
  std::int64_t bins() const;         // F
  std::int64_t memory_size() const;  // numbers of the memory of one signal in one of the calls of a block; centred: 0

  // Thread safe with different memories. Samples, and pieces of a centred network's frames, are shared among the
  // threads; each gets the same bits in any company.
  void step(const NetworkBlock& block, int threads = 1) const;
  // The same for several blocks at once, of speech, of equally many frames, in the caller's thread. They are what the
  // workspace was made for: nothing is checked.
  void step(const NetworkBlock* blocks, std::size_t count, Workspace& workspace) const;

 private:
  struct Network;
  std::unique_ptr<Network> network_;
};

}  // namespace udse
