// The variance of the noise, V = W H by NMF-IS of a signal that goes on: `OnlineNMF` in Python.
#pragma once

#include <vector>

#include "kernels.hpp"
#include "stream/noise_floor.hpp"
#include "stream/settings.hpp"
#include "stream/state.hpp"

namespace udse {

class NoiseModel {
 public:
  // forgetting: what a block leaves of the statistics, in the geometric mean of the columns of W.
  NoiseModel(std::int64_t bins, std::int64_t frames, const StreamSettings& settings, double forgetting,
             double block_seconds);

  NoiseModel(const NoiseModel&) = delete;

  // The mixture x (F, K), normalised by `level`, comes next: its noise starts as that of the last frame, in the first
  // block as the mixture.
  void next_block(const cfloat* mixture, float level);
  // M-step: `power` (F, K) is the expected |noise|^2.
  void fit(const float* power);

  NoiseVariance variance() const { return {nullptr, W_.data(), H_.data(), rank_}; }
  // V (F, K)
  void variance(float* out) const;

  void reset();
  void exchange(State& state);

 private:
  void start(const cfloat* mixture);

  std::int64_t bins_, frames_, rank_, iterations_;
  float forgetting_, share_;
  std::vector<float> random_;                             // (F, R), what the columns of W differ by at first
  std::vector<float> kept_;                               // (R), forgetting of the columns beside that of the update
  std::vector<float> W_, H_;                              // (F, R), (R, K)
  std::vector<float> numerator_, denominator_;            // statistics of the blocks before, (F, R)
  std::vector<float> next_numerator_, next_denominator_;  // with those of the step before
  std::int32_t started_ = 0;
  NoiseFloor floor_;
  std::vector<float> raised_;  // power of the M-step, (F, K)
  std::vector<float> scratch_;
  NMFPass pass_{};
};

}  // namespace udse
