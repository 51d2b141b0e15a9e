// DDRM (Kawar et al. 2022) with the noise variance from NMF-IS, on a network with a memory for each step.
#pragma once

#include "stream/block_sampler.hpp"

namespace udse {

class DdrmSampler final : public BlockSampler {
 public:
  DdrmSampler(const Prior& prior, const StreamSettings& settings);

  const Calls& calls() const override { return calls_; }
  void start(const cfloat* mixture, std::uint64_t first_frame, const NoiseModel& noise) override {
    start(mixture, first_frame, noise, nullptr);
  }
  // The same where E[s | x, V] (F, K) is known already; null: it is not.
  void start(const cfloat* mixture, std::uint64_t first_frame, const NoiseModel& noise, const cfloat* expected);
  NetworkBlock request(std::size_t call) override;
  void answer(std::size_t call, NoiseModel& noise) override;
  const cfloat* speech() const override { return state_.data(); }

 private:
  NoiseKey draw(Role role, std::size_t step) const;
  Shape shape_of(std::size_t call) const;  // of its states

  Shape shape_;
  std::uint64_t seed_;
  float eta_, noise_bias_, variance_scale_;
  std::vector<double> delta_, sigma_;       // by step
  std::vector<Coefficients> coefficients_;  // by step
  Calls calls_;
  std::vector<float> level_of_samples_;  // of one call, (B)
  const cfloat* mixture_ = nullptr;
  std::uint64_t first_frame_ = 0;
  std::vector<cfloat> state_, unit_gain_, clean_, score_;  // (B, F, K)
  std::vector<float> posterior_variance_, power_;          // (B, F, K), (F, K)
};

}  // namespace udse
