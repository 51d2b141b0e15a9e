// From samples to spectrograms and back; a spectrogram is (F, T) complex, frames are not centred.
#pragma once

#include <vector>

#include "udse_core.hpp"

namespace udse {

struct SpectralSettings {
  std::int64_t sample_rate = 16000, n_fft = 510, hop = 128;
  bool sqrt_hann = false;                 // the root of the periodic Hann window instead of the window
  float exponent = 0.5f, factor = 0.15f;  // of the compression

  std::int64_t bins() const { return n_fft / 2 + 1; }
  bool operator==(const SpectralSettings& other) const {
    return sample_rate == other.sample_rate && n_fft == other.n_fft && hop == other.hop &&
           sqrt_hann == other.sqrt_hann && exponent == other.exponent && factor == other.factor;
  }
};

// The transforms are products with matrices of cosines and sines, whose symmetry halves the work: for the few frames of
// a block they take less time than the network's memory traffic. Sums are made in double precision.
class Spectral {
 public:
  // What a transform of up to `frames` frames works in.
  struct Workspace {
    std::vector<double> even, odd;  // parts of the frames, or their transforms
    std::vector<double> by_cosine, by_sine;
    Workspace(const SpectralSettings& settings, std::int64_t frames);
  };

  explicit Spectral(const SpectralSettings& settings);

  const SpectralSettings& settings() const { return settings_; }
  const std::vector<float>& window() const { return window_; }

  // Windowed transforms of `frames` frames of the signal, ((T - 1) hop + n_fft) samples
  void analyse(const float* signal, std::int64_t frames, cfloat* out, Workspace& workspace) const;
  // Adds the windowed inverse transforms to `sum`, ((T - 1) hop + n_fft)
  void overlap_add(const cfloat* spectrogram, std::int64_t frames, float* sum, Workspace& workspace) const;
  // Adds the squared windows to `sum`
  void overlap_add_squares(std::int64_t frames, float* sum) const;

 private:
  // by_cosine(t, i) = sum over j of even(t, j) cos(2 pi i j / n_fft), and likewise of odd and sines; i, j < F
  void multiply(std::int64_t frames, Workspace& workspace) const;

  SpectralSettings settings_;
  std::vector<float> window_, cosine_, sine_;
};

}  // namespace udse
