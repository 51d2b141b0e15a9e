// Where blocks are computed, several signals side by side: the weights of the networks are then read once for all of
// them.
#pragma once

#include <memory>
#include <vector>

#include "stream/causal_blocks.hpp"

namespace udse {

// Nothing on it outlives a block, so all streams of a thread may share one. What a signal gets does not depend on its
// neighbours, bit for bit. After the constructor nothing is allocated.
class Workbench {
 public:
  // For blocks with these network calls, of up to so many signals side by side.
  Workbench(std::shared_ptr<const Prior> prior, const Calls& calls, std::int64_t signals);

  std::int64_t signals() const { return static_cast<std::int64_t>(places_.size()); }
  // Whether it is for these calls of the same networks.
  bool fits(const Prior& prior, const Calls& calls) const {
    return prior_->network == prior.network && prior_->posterior == prior.posterior && calls_ == calls;
  }

  // Begins the next block of a signal; where there is no place left, those that are there are done first.
  void put(CausalBlocks& blocks);
  // Does what is left: every block that was put here has its estimate then.
  void finish();

 private:
  struct Place {
    CausalBlocks* blocks = nullptr;
    std::vector<float> memory;          // of the call under way
    std::vector<KeptNumbers> memories;  // of all calls, after them
  };

  const CompactNetwork& network(bool of_posterior) const;

  std::shared_ptr<const Prior> prior_;
  Calls calls_;
  std::vector<CompactNetwork::Workspace> workspaces_;  // of the prior, and of the posterior network where it is asked
  Scratch scratch_;
  std::vector<Place> places_;
  std::vector<NetworkBlock> requests_;  // of the places
  std::size_t taken_ = 0;
};

}  // namespace udse
