// Stateful resampling of one channel, aligned: output n belongs to the time of input n * source / target.
#pragma once

#include <memory>
#include <vector>

#include "stream/state.hpp"
#include "udse_core.hpp"

namespace udse {

// A polyphase filter between two rates: the sinc of the lower one under a Kaiser window, flat to 0.45 of it (0.0005
// dB), below -89 dB from 0.55 on.
struct ResamplingFilter {
  std::int64_t step, phases;  // source and target without what they have in common
  std::int64_t half;          // inputs that it reaches to either side
  std::int64_t taps;
  std::vector<float> weights;  // (phases, taps)

  ResamplingFilter(std::int64_t source, std::int64_t target);
};

// The concatenated output is the same, bit for bit, however the input is cut; equal rates leave it as it is.
class Resampler {
 public:
  // filter: none where the rates are equal
  explicit Resampler(std::shared_ptr<const ResamplingFilter> filter);

  // Inputs that must follow one before the outputs up to its time are given: exact
  std::int64_t delay() const { return filter_ ? filter_->half : 0; }
  // Outputs that n inputs give, at most
  std::int64_t most(std::int64_t n) const;
  // Room for `most(n)` outputs; gives their number
  std::int64_t process(const float* in, std::int64_t n, float* out);

  void reset();
  void exchange(State& state);

 private:
  std::shared_ptr<const ResamplingFilter> filter_;
  std::int64_t time_ = 0;  // of the next output after the first input kept, in 1 / phases
  std::int64_t kept_count_ = 0;
  std::vector<float> kept_;  // inputs from the first tap of the next output on
};

// The filter, one for all who use it at the same time, or null where the rates are equal. Takes a lock.
std::shared_ptr<const ResamplingFilter> resampling_filter(std::int64_t source, std::int64_t target);

}  // namespace udse
