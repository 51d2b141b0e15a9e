// How a stream enhances: what a checkpoint recommends, and what a caller may set.
#pragma once

#include <string>

#include "stream/json.hpp"
#include "udse_core.hpp"

namespace udse {

enum class Sampler { ddrm, amortised_ddrm };
enum class ReadOutKind { mean, mean_compressed, wiener, blend };
enum class HighBand { follow, keep, cut };  // above the network's band

// As `InferenceSettings` and the options of the samplers in Python, with the same names, defaults and ranges.
struct StreamSettings {
  Sampler sampler = Sampler::ddrm;
  std::int64_t steps = 30, samples = 4, shared_steps = 0, rank = 4, nmf_iterations = 1, block_frames = 0;
  double start_time = 1, end_time = 0.03;
  double eta = 0.85, noise_bias = 1.3, variance_scale = 1;
  std::int64_t em_rounds = 5, fits = 30;  // of amortised_ddrm, as `listening`
  double listening = 0.4;
  double start_share = 1;
  ReadOutKind readout = ReadOutKind::mean;
  bool restraint = false;
  double wiener_exponent = 1, blend_ratio = 1;
  double forgetting_seconds = 6, forgetting_spread = 1, noise_floor = 0, level_seconds = 5;
  double remaining_noise = 0;                   // factor of the noise that is left in
  bool remove_hum = true, common_gain = false;  // of all channels
  HighBand high_band = HighBand::follow;
  std::uint64_t seed = 0;
};

// Settings of a checkpoint's section "inference" for a sampler.
StreamSettings read_settings(const Json& inference, Sampler sampler);
// Whether it says anything about this sampler.
bool knows(const Json& inference, Sampler sampler);
// Throws Error where it recommends a sampler that streams do not have.
void check_recommended(const Json& inference);

// One of the numbers, by its name in Python. Throws Error where there is none of it.
void set_number(StreamSettings& settings, const std::string& name, double value);
// Likewise of the words: sampler, readout, restraint, hum, stereo, high_band.
void set_word(StreamSettings& settings, const std::string& name, const std::string& value);

// Throws Error, which names the setting, the range and the value.
void check(const StreamSettings& settings);

}  // namespace udse
