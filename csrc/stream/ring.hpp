// Frames of a signal by their number, the last ones of them.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "stream/state.hpp"

namespace udse {

class Ring {
 public:
  // least: frames that it holds
  Ring(std::int64_t channels, std::int64_t least) : channels_(channels) {
    while (capacity_ < least) capacity_ *= 2;
    samples_.resize(static_cast<std::size_t>(capacity_ * channels));
  }

  std::int64_t capacity() const { return capacity_; }
  float* frame(std::int64_t number) { return samples_.data() + (number & (capacity_ - 1)) * channels_; }

  void write(std::int64_t number, const float* frames, std::int64_t n) {
    for (std::int64_t i = 0; i < n; ++i) std::copy_n(frames + i * channels_, channels_, frame(number + i));
  }

  void read(std::int64_t number, float* frames, std::int64_t n) {
    for (std::int64_t i = 0; i < n; ++i) std::copy_n(frame(number + i), channels_, frames + i * channels_);
  }

  void exchange(State& state) { state(samples_); }

 private:
  std::int64_t channels_, capacity_ = 1;  // a power of two
  std::vector<float> samples_;
};

}  // namespace udse
