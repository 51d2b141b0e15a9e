// The least that steady noise has: minimum statistics of a signal that goes on; `NoiseFloor` in Python.
#pragma once

#include <vector>

#include "stream/state.hpp"
#include "udse_core.hpp"

namespace udse {

class NoiseFloor {
 public:
  // factor: from the smallest smoothed power of a window to the variance of the noise; 0: there is no floor.
  NoiseFloor(std::int64_t bins, std::int64_t frames, double factor, double block_seconds);

  explicit operator bool() const { return factor_ > 0; }
  // The mixture (F, K) goes on, normalised by `level`.
  void next_block(const cfloat* mixture, float level);
  // out (F, K) = power, nowhere below the floor at the level of the last block
  void raise(const float* power, float* out) const;

  void reset();
  void exchange(State& state);

 private:
  std::int64_t bins_, frames_, blocks_;
  float factor_, kept_;
  std::vector<float> smoothed_, recent_;  // at the level of the input, (F) and (blocks of a window, F)
  std::int64_t latest_ = 0;               // row of `recent_`
  std::vector<float> power_, least_;      // (F), of the last block; the latter normalised
};

}  // namespace udse
