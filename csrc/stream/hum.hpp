// What stands still in a signal: an offset (DC) and mains hum, which would set the level that a prior is shown;
// `udse_fast/audio/hum.py`.
#pragma once

#include <complex>
#include <cstdint>
#include <vector>

namespace udse {

// The lines of the mains, multiples of 50 or 60 Hz, are found by the steadiness of their amplitude and phase over
// pieces of a signal, which no speech has, and only where they are a good part of it. They are then fitted by least
// squares.
class Hum {
 public:
  // longest: samples of a signal.
  Hum(std::int64_t sample_rate, std::int64_t longest);

  // Takes offset and hum out of `signal` (n); leaves it as it is where there is nothing of that kind, or it is shorter
  // than half a second.
  void remove(float* signal, std::int64_t n);

 private:
  static constexpr int pieces = 6, most_lines = 21, most_tones = 2 * most_lines - 1;

  // Frequencies in radians per sample; the first may be 0, an offset.
  struct Lines {
    double share = 0;  // of the power
    int count = 0;
    double angle[most_lines];
  };

  // None where all that is at multiples of `mains` has less than the `least` share.
  Lines find(const float* signal, std::int64_t n, double mains, double least);
  void subtract_fit(float* signal, std::int64_t n, const Lines& lines);

  std::int64_t rate_, factor_;
  std::vector<float> slow_;  // decimated
};

}  // namespace udse
