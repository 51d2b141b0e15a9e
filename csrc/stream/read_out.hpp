// From posterior samples to one estimate of the speech: `ReadOut` in Python.
#pragma once

#include <vector>

#include "stream/noise_model.hpp"
#include "stream/spectral.hpp"

namespace udse {

// What there is to hear of a block, normalised
struct Heard {
  const cfloat* samples;  // (B, F, K)
  const cfloat* for_ear;  // (F, K), or null: an estimate that is heard beside them
};

class ReadOut {
 public:
  // forgetting: of the powers by band, from block to block.
  ReadOut(const SpectralSettings& spectral, const StreamSettings& settings, double forgetting);

  // Speech (F, K) at the level of the input, decompressed, from what was normalised by `level`, as the mixture (F, K).
  void estimate(const Heard& heard, const cfloat* mixture, float level, const NoiseModel& noise, cfloat* out);
  void decompress(const cfloat* normalised, float level, cfloat* out);

  void reset();
  void exchange(State& state);

 private:
  void of_samples(const cfloat* samples, const cfloat* mixture, float level, const NoiseModel& noise, cfloat* out);
  void mean_of_samples(const cfloat* samples, float level, cfloat* out);
  float filter_weight(std::int64_t bin, const cfloat* samples, float level);

  SpectralSettings spectral_;
  ReadOutKind kind_;
  std::int64_t samples_, frames_;
  float exponent_, blend_ratio_, forgetting_, listening_;
  std::vector<float> speech_power_, noise_power_;  // by band, of the blocks before
  std::vector<float> variance_;                    // V, (F, K)
  std::vector<cfloat> scaled_, decompressed_;      // (F, K)
};

}  // namespace udse
