// Takes less away where what was taken for noise is speech: `udse_fast/sampling/restraint.py`, which says how and why.
#pragma once

#include <array>
#include <vector>

#include "stream/spectral.hpp"
#include "stream/state.hpp"

namespace udse {

class Restraint {
 public:
  // frames: of a block. on: else nothing is done.
  Restraint(const SpectralSettings& spectral, std::int64_t frames, bool on);

  // The speech (F, K) of a block that comes next, with more of its mixture (F, K) where speech was taken for noise
  void apply(const cfloat* mixture, cfloat* speech);

  void reset();
  void exchange(State& state);

 private:
  static constexpr std::size_t bands = 8;
  using Bands = std::array<float, bands>;
  // Of a frame; of what was taken away by band
  struct Powers {
    float mixture, speech;
    Bands taken;
  };
  // Of a bin: the lower of its two bands, and its share of the upper one
  struct Place {
    std::size_t band;
    float share;
  };

  Powers powers(const cfloat* mixture, const cfloat* speech, std::int64_t frame) const;
  // What the frames of the block are given back; false: nothing
  bool judge();
  Bands taken_in_pauses(const Powers* recent, const std::vector<float>& power, std::int64_t count);
  // Mean of what was taken from a band, around a frame
  double taken_near(const Powers* recent, std::size_t band, std::int64_t frame) const;

  bool on_;
  std::int64_t bins_, frames_, least_, apart_, near_, stays_;
  std::vector<Place> places_;
  std::vector<Powers> recent_;  // of the last frames, the latest at the end
  std::int64_t count_ = 0;      // of them that there are
  std::vector<float> power_;    // of the frames by which pauses are told, and sorted
  std::vector<float> sorted_;
  std::vector<Bands> spared_;  // (K), share of what was taken away
};

}  // namespace udse
