// DDRM that starts from an amortised fit of the noise, and is heard together with the estimate for the ear:
// `AmortisedDDRM` in Python.
#pragma once

#include "stream/ddrm_sampler.hpp"

namespace udse {

// EM first, whose E-step is a call of the posterior network; then the steps of DDRM.
class AmortisedDdrmSampler final : public BlockSampler {
 public:
  AmortisedDdrmSampler(const Prior& prior, const StreamSettings& settings);

  const Calls& calls() const override { return calls_; }
  void start(const cfloat* mixture, std::uint64_t first_frame, const NoiseModel& noise) override;
  NetworkBlock request(std::size_t call) override;
  void answer(std::size_t call, NoiseModel& noise) override;
  const cfloat* speech() const override { return ddrm_.speech(); }
  const cfloat* heard() const override { return heard_.data(); }

 private:
  void tell(const NoiseModel& noise);

  DdrmSampler ddrm_;
  std::size_t rounds_;
  std::int64_t fits_;
  Calls calls_;
  const cfloat* mixture_ = nullptr;
  std::uint64_t first_frame_ = 0;
  std::vector<float> told_, believed_, variance_, power_;  // V in the linear domain; the power of the M-step, (F, K)
  std::vector<cfloat> clean_, heard_;                      // (F, K)
};

}  // namespace udse
