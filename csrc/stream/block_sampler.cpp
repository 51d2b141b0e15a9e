#include "stream/block_sampler.hpp"

#include "stream/amortised_ddrm_sampler.hpp"

namespace udse {

std::unique_ptr<BlockSampler> make_block_sampler(const Prior& prior, const StreamSettings& settings) {
  if (settings.sampler == Sampler::ddrm) return std::make_unique<DdrmSampler>(prior, settings);
  return std::make_unique<AmortisedDdrmSampler>(prior, settings);
}

}  // namespace udse
