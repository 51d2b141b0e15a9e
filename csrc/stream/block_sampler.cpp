#include "stream/block_sampler.hpp"

#include "stream/amortised_ddrm_sampler.hpp"

namespace udse {

std::unique_ptr<BlockSampler> make_block_sampler(const Prior& prior, const StreamSettings& settings) {
  if (settings.sampler == Sampler::ddrm) return std::make_unique<DdrmSampler>(prior, settings);
  if (!prior.posterior)
    throw Error("sampler amortised_ddrm: expected a causal posterior network beside the prior, got none");
  return std::make_unique<AmortisedDdrmSampler>(prior, settings);
}

}  // namespace udse
