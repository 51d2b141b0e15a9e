#include "stream/restraint.hpp"

#include <algorithm>
#include <cmath>

namespace udse {
namespace {

using std::int64_t;
using std::size_t;

struct Range {
  double from, to;
};

constexpr Range evidence_db{14, 18}, trust_db{15, 25}, quiet_db{18, 24};
constexpr Range allowed{4, 1}, highest{1, 10};
constexpr double weight = 8;
constexpr double quiet_share = 0.12;
constexpr double apart_seconds = 0.24, near_seconds = 0.032, least_seconds = 1.5, remembered_seconds = 4;
constexpr double stays_seconds = 0.288, stays = 2;
constexpr float silence = 1e-7f;
constexpr double nothing = 1e-10;  // of the mixture's power: where nothing was taken away

double between(double value, Range ends) { return std::clamp((value - ends.from) / (ends.to - ends.from), 0.0, 1.0); }

double at(Range ends, double share) { return ends.from + share * (ends.to - ends.from); }

double decibels(double ratio) { return 10 * std::log10(ratio); }

double erb_number(double hertz) { return 21.4 * std::log10(1 + 0.00437 * hertz); }

}  // namespace

Restraint::Restraint(const SpectralSettings& spectral, int64_t frames, bool on)
    : on_(on), bins_(spectral.bins()), frames_(frames), spared_(static_cast<size_t>(frames)) {
  const auto of = [&](double seconds) {
    const double frames_a_second = static_cast<double>(spectral.sample_rate) / static_cast<double>(spectral.hop);
    return std::max<int64_t>(1, static_cast<int64_t>(std::nearbyint(seconds * frames_a_second)));
  };
  least_ = of(least_seconds);
  apart_ = of(apart_seconds);
  near_ = of(near_seconds);
  stays_ = of(stays_seconds);
  if (!on) return;
  const auto remembered = static_cast<size_t>(std::max(frames, of(remembered_seconds)));
  recent_.resize(remembered);
  power_.resize(remembered);
  sorted_.resize(remembered);
  const double bin_hertz = static_cast<double>(spectral.sample_rate) / static_cast<double>(spectral.n_fft);
  const double last = erb_number(bin_hertz * static_cast<double>(bins_ - 1));
  for (int64_t f = 0; f < bins_; ++f) {
    const double place = (bands - 1) * erb_number(bin_hertz * static_cast<double>(f)) / last;
    const auto band = std::min(static_cast<size_t>(place), bands - 2);
    places_.push_back({band, static_cast<float>(place - static_cast<double>(band))});
  }
}

Restraint::Powers Restraint::powers(const cfloat* mixture, const cfloat* speech, int64_t frame) const {
  Powers powers{};
  for (int64_t f = 0; f < bins_; ++f) {
    const cfloat x = mixture[f * frames_ + frame], s = speech[f * frames_ + frame];
    const auto [band, share] = places_[static_cast<size_t>(f)];
    const float taken = std::norm(x - s);
    powers.mixture += std::norm(x);
    powers.speech += std::norm(s);
    powers.taken[band] += (1 - share) * taken;
    powers.taken[band + 1] += share * taken;
  }
  return powers;
}

double Restraint::taken_near(const Powers* recent, size_t band, int64_t frame) const {
  const int64_t from = std::max(int64_t{0}, frame - near_), to = std::min(count_, frame + near_ + 1);
  double taken = 0;
  for (int64_t i = from; i < to; ++i) taken += static_cast<double>(recent[i].taken[band]);
  return taken / static_cast<double>(to - from);
}

// Mean over the frames of the least power that sound; power is infinite where they do not
Restraint::Bands Restraint::taken_in_pauses(const Powers* recent, const std::vector<float>& power, int64_t count) {
  std::copy_n(power.begin(), count_, sorted_.begin());
  const auto last =
      sorted_.begin() + std::max<int64_t>(1, static_cast<int64_t>(quiet_share * static_cast<double>(count))) - 1;
  std::nth_element(sorted_.begin(), last, sorted_.begin() + count_);
  Bands mean{};
  float frames = 0;
  for (int64_t t = 0; t < count_; ++t) {
    if (power[static_cast<size_t>(t)] > *last) continue;
    for (size_t b = 0; b < bands; ++b) mean[b] += recent[t].taken[b];
    ++frames;
  }
  for (float& taken : mean) taken /= frames;
  return mean;
}

bool Restraint::judge() {
  const Powers* const recent = recent_.data() + static_cast<int64_t>(recent_.size()) - count_;
  float loudest = 0;
  double speech = 0, all = 0, everything = 0;
  for (int64_t t = 0; t < count_; ++t) loudest = std::max(loudest, recent[t].mixture);
  const auto sounds = [&](int64_t t) { return recent[t].mixture > silence * loudest; };
  std::array<double, bands> mean{};
  int64_t count = 0;
  for (int64_t t = 0; t < count_; ++t) {
    all += static_cast<double>(recent[t].mixture);
    if (!sounds(t)) continue;
    ++count;
    speech += static_cast<double>(recent[t].speech);
    for (size_t b = 0; b < bands; ++b) mean[b] += static_cast<double>(recent[t].taken[b]);
  }
  if (count < least_) return false;
  const double least = nothing * all / static_cast<double>(count_);
  for (double& taken : mean) everything += taken = taken / static_cast<double>(count) + least;
  const double snr = decibels(speech / (static_cast<double>(count) * everything) + 1e-6);

  for (int64_t t = 0; t < count_; ++t) {
    float& nearby = power_[static_cast<size_t>(t)] = sounds(t) ? 0 : INFINITY;
    for (int64_t i = std::max(int64_t{0}, t - apart_); i <= std::min(count_ - 1, t + apart_); ++i)
      nearby = std::max(nearby, recent[i].speech);
  }
  const Bands far = taken_in_pauses(recent, power_, count);
  for (int64_t t = 0; t < count_; ++t) power_[static_cast<size_t>(t)] = sounds(t) ? recent[t].mixture : INFINITY;
  const Bands quiet = taken_in_pauses(recent, power_, count);

  const double share = between(snr, quiet_db), trust = between(snr, trust_db);
  const auto noise_of = [&](double far_from_words, double in_quiet) {
    return std::pow(far_from_words, 1 - share) * std::pow(in_quiet, share);
  };
  double all_far = 0, all_quiet = 0;
  for (size_t b = 0; b < bands; ++b) {
    all_far += static_cast<double>(far[b]) + least;
    all_quiet += static_cast<double>(quiet[b]) + least;
  }
  const double evidence = std::max(snr, 0.0) + decibels(everything / noise_of(all_far, all_quiet));
  const double restraint = between(evidence, evidence_db);
  if (restraint == 0) return false;
  const double most = highest.from * std::pow(highest.to / highest.from, trust);
  for (int64_t k = 0; k < frames_; ++k) {
    const int64_t t = count_ - frames_ + k;
    for (size_t b = 0; b < bands; ++b) {
      double noise = noise_of(static_cast<double>(far[b]) + least, static_cast<double>(quiet[b]) + least);
      const double taken = taken_near(recent, b, t) + least;
      if (t + 1 >= stays_) {  // what is always there is noise that has begun
        double lowest = taken;
        for (int64_t i = t + 1 - stays_; i < t; ++i) lowest = std::min(lowest, taken_near(recent, b, i) + least);
        noise = std::max(noise, stays * lowest);
      }
      const double lost = weight * std::max(0.0, std::min(taken, most * mean[b]) - at(allowed, trust) * noise);
      spared_[static_cast<size_t>(k)][b] = static_cast<float>(restraint * lost / (noise + lost));
    }
  }
  return true;
}

void Restraint::apply(const cfloat* mixture, cfloat* speech) {
  if (!on_) return;
  const auto kept = std::copy(recent_.begin() + frames_, recent_.end(), recent_.begin());
  for (int64_t k = 0; k < frames_; ++k) kept[k] = powers(mixture, speech, k);
  count_ = std::min(count_ + frames_, static_cast<int64_t>(recent_.size()));
  if (!judge()) return;
  for (int64_t f = 0; f < bins_; ++f) {
    const auto [band, share] = places_[static_cast<size_t>(f)];
    for (int64_t k = 0; k < frames_; ++k) {
      const Bands& spared = spared_[static_cast<size_t>(k)];
      cfloat& s = speech[f * frames_ + k];
      s += ((1 - share) * spared[band] + share * spared[band + 1]) * (mixture[f * frames_ + k] - s);
    }
  }
}

void Restraint::reset() {
  std::fill(recent_.begin(), recent_.end(), Powers{});
  count_ = 0;
}

void Restraint::exchange(State& state) {
  state(recent_);
  state(count_, int64_t{0}, static_cast<int64_t>(recent_.size()));
}

}  // namespace udse
