#include "stream/read_out.hpp"

#include <algorithm>
#include <cmath>
#include <limits>

namespace udse {
namespace {

using std::int64_t;
using std::size_t;

float power_of(cfloat z) { return z.real() * z.real() + z.imag() * z.imag(); }

float ratio(float speech, float noise) { return speech / std::max(speech + noise, std::numeric_limits<float>::min()); }

}  // namespace

ReadOut::ReadOut(const SpectralSettings& spectral, const StreamSettings& settings, double forgetting)
    : spectral_(spectral),
      kind_(settings.readout),
      samples_(settings.samples),
      frames_(settings.block_frames),
      exponent_(static_cast<float>(settings.wiener_exponent)),
      blend_ratio_(static_cast<float>(settings.blend_ratio)),
      forgetting_(static_cast<float>(forgetting)),
      listening_(static_cast<float>(settings.listening)),
      speech_power_(static_cast<size_t>(spectral.bins())),
      noise_power_(speech_power_.size()),
      variance_(static_cast<size_t>(spectral.bins() * frames_)),
      scaled_(variance_.size()),
      decompressed_(variance_.size()) {}

void ReadOut::reset() {
  std::fill(speech_power_.begin(), speech_power_.end(), 0.f);
  std::fill(noise_power_.begin(), noise_power_.end(), 0.f);
}

void ReadOut::exchange(State& state) {
  state(speech_power_);
  state(noise_power_);
}

void ReadOut::decompress(const cfloat* normalised, float level, cfloat* out) {
  for (size_t i = 0; i < scaled_.size(); ++i) scaled_[i] = level * normalised[i];
  const auto size = static_cast<int64_t>(scaled_.size());
  kernels().compression.decompress(scaled_.data(), spectral_.exponent, spectral_.factor, out, {0, size});
}

// The mean is that of the decompressed samples, or it is decompressed.
void ReadOut::mean_of_samples(const cfloat* samples, float level, cfloat* out) {
  const size_t size = scaled_.size();
  const float share = 1 / static_cast<float>(samples_);
  std::fill_n(out, size, cfloat{});
  for (int64_t b = 0; b < samples_; ++b) {
    const cfloat* sample = samples + b * static_cast<int64_t>(size);
    if (kind_ != ReadOutKind::mean_compressed) {
      decompress(sample, level, decompressed_.data());
      sample = decompressed_.data();
    }
    for (size_t i = 0; i < size; ++i) out[i] += share * sample[i];
  }
  if (kind_ != ReadOutKind::mean_compressed) return;
  std::copy_n(out, size, decompressed_.data());
  decompress(decompressed_.data(), level, out);
}

// Of the Wiener filter against the mean of the samples, by how much speech there is in the band
float ReadOut::filter_weight(int64_t bin, const cfloat* samples, float level) {
  const int64_t size = static_cast<int64_t>(variance_.size());
  float speech = 0, noise = 0;
  for (int64_t t = 0; t < frames_; ++t) {
    const int64_t at = bin * frames_ + t;
    float power = 0;
    for (int64_t b = 0; b < samples_; ++b) power += power_of(samples[b * size + at]);
    speech += power / static_cast<float>(samples_);
    noise += variance_[static_cast<size_t>(at)];
  }
  float &speech_power = speech_power_[static_cast<size_t>(bin)], &noise_power = noise_power_[static_cast<size_t>(bin)];
  speech_power = forgetting_ * speech_power + speech * (level * level);
  noise_power = forgetting_ * noise_power + noise * (level * level);
  return ratio(speech_power, blend_ratio_ * noise_power);
}

void ReadOut::estimate(const Heard& heard, const cfloat* mixture, float level, const NoiseModel& noise, cfloat* out) {
  of_samples(heard.samples, mixture, level, noise, out);
  if (!heard.for_ear) return;
  decompress(heard.for_ear, level, decompressed_.data());
  for (size_t i = 0; i < decompressed_.size(); ++i) out[i] += listening_ * (decompressed_[i] - out[i]);
}

void ReadOut::of_samples(const cfloat* samples, const cfloat* mixture, float level, const NoiseModel& noise,
                         cfloat* out) {
  if (kind_ == ReadOutKind::mean || kind_ == ReadOutKind::mean_compressed) return mean_of_samples(samples, level, out);
  const bool blend = kind_ == ReadOutKind::blend;
  const int64_t size = static_cast<int64_t>(variance_.size());
  noise.variance(variance_.data());
  if (blend) mean_of_samples(samples, level, out);
  decompress(mixture, level, decompressed_.data());
  for (int64_t bin = 0; bin < spectral_.bins(); ++bin) {
    const float weight = blend ? filter_weight(bin, samples, level) : 1;
    for (int64_t at = bin * frames_; at < (bin + 1) * frames_; ++at) {
      float gain = 0;
      for (int64_t b = 0; b < samples_; ++b)
        gain += ratio(power_of(samples[b * size + at]), variance_[static_cast<size_t>(at)]);
      gain = std::pow(gain / static_cast<float>(samples_), exponent_);
      const cfloat filtered = gain * decompressed_[static_cast<size_t>(at)];
      out[at] = blend ? weight * filtered + (1 - weight) * out[at] : filtered;
    }
  }
}

}  // namespace udse
