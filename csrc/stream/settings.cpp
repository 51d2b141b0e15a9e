#include "stream/settings.hpp"

#include <cmath>
#include <string>

namespace udse {
namespace {

struct Whole {
  const char* name;
  std::int64_t StreamSettings::* field;
  std::int64_t least, most;
};

constexpr Whole whole_numbers[] = {
    {"steps", &StreamSettings::steps, 1, 64},  // the network keeps what it knows of 64 noise levels
    {"samples", &StreamSettings::samples, 1, 64},
    {"shared_steps", &StreamSettings::shared_steps, 0, 100'000},
    {"rank", &StreamSettings::rank, 1, 32},
    {"nmf_iterations", &StreamSettings::nmf_iterations, 1, 1000},
    {"block_frames", &StreamSettings::block_frames, 1, 8},
    {"em_rounds", &StreamSettings::em_rounds, 1, 64},
    {"fits", &StreamSettings::fits, 1, 1000},
};

struct Real {
  const char* name;
  double StreamSettings::* field;
  double least, most;
  bool positive;
};

constexpr Real real_numbers[] = {
    {"start_time", &StreamSettings::start_time, 0, 1, true},
    {"end_time", &StreamSettings::end_time, 0, 1, true},
    {"eta", &StreamSettings::eta, 0, 1, false},
    {"noise_bias", &StreamSettings::noise_bias, 0, 1000, false},
    {"variance_scale", &StreamSettings::variance_scale, 0, 1000, false},
    {"listening", &StreamSettings::listening, 0, 1, false},
    {"start_share", &StreamSettings::start_share, 0, 1e6, true},
    {"wiener_exponent", &StreamSettings::wiener_exponent, 0, 2, true},
    {"blend_ratio", &StreamSettings::blend_ratio, 0, 1e6, true},
    {"forgetting_seconds", &StreamSettings::forgetting_seconds, 0, 86'400, true},
    {"forgetting_spread", &StreamSettings::forgetting_spread, 1, 1e6, false},
    {"noise_floor", &StreamSettings::noise_floor, 0, 100, false},
    {"level_seconds", &StreamSettings::level_seconds, 0, 3600, true},
    {"remaining_noise", &StreamSettings::remaining_noise, 0, 1, false},
};

// What older checkpoints call it.
std::string present_name(const std::string& name) {
  if (name == "caution") return "noise_bias";
  if (name == "doubt") return "variance_scale";
  return name;
}

bool set_if_known(StreamSettings& settings, const std::string& name, double value) {
  for (const Whole& number : whole_numbers)
    if (name == number.name) {
      settings.*number.field = std::llround(value);
      return true;
    }
  for (const Real& number : real_numbers)
    if (name == number.name) {
      settings.*number.field = value;
      return true;
    }
  return false;
}

template <class Choice>
struct Word {
  const char* name;
  Choice choice;
};

// The choice of this name
template <class Choice, std::size_t n>
Choice chosen(const Word<Choice> (&words)[n], const std::string& setting, const std::string& value) {
  std::string known;
  for (const Word<Choice>& word : words) {
    if (value == word.name) return word.choice;
    known += (known.empty() ? "" : ", ") + std::string(word.name);
  }
  throw Error(setting + ": expected one of " + known + ", got " + value.substr(0, 32));
}

constexpr Word<Sampler> samplers[] = {{"ddrm", Sampler::ddrm}, {"amortised_ddrm", Sampler::amortised_ddrm}};
constexpr Word<ReadOutKind> read_outs[] = {{"auto", ReadOutKind::mean},
                                           {"mean", ReadOutKind::mean},
                                           {"mean_compressed", ReadOutKind::mean_compressed},
                                           {"wiener", ReadOutKind::wiener},
                                           {"blend", ReadOutKind::blend}};
constexpr Word<bool> restraints[] = {{"auto", true}, {"off", false}};
constexpr Word<bool> hums[] = {{"remove", true}, {"keep", false}};
constexpr Word<bool> stereos[] = {{"common", true}, {"separate", false}};
constexpr Word<HighBand> high_bands[] = {
    {"follow", HighBand::follow}, {"keep", HighBand::keep}, {"cut", HighBand::cut}};

bool set_word_if_known(StreamSettings& settings, const std::string& name, const std::string& value) {
  if (name == "sampler")
    settings.sampler = chosen(samplers, name, value);
  else if (name == "readout")
    settings.readout = chosen(read_outs, name, value);
  else if (name == "restraint")
    settings.restraint = chosen(restraints, name, value);
  else if (name == "hum")
    settings.remove_hum = chosen(hums, name, value);
  else if (name == "stereo")
    settings.common_gain = chosen(stereos, name, value);
  else if (name == "high_band")
    settings.high_band = chosen(high_bands, name, value);
  else
    return false;
  return true;
}

// Settings that are unknown here are of other samplers, or of overlapping blocks.
void apply(const Json& section, StreamSettings& settings) {
  for (const auto& [given, value] : section.members) {
    const std::string name = present_name(given);
    if (value.kind == Json::string) set_word_if_known(settings, name, value.text);
    if (value.kind != Json::number) continue;
    if (name == "corrector_snr" && value.value != 0)
      throw Error("corrector_snr: expected 0 in a checkpoint for streams, got " + std::to_string(value.value));
    set_if_known(settings, name, value.value);
  }
}

}  // namespace

void set_number(StreamSettings& settings, const std::string& name, double value) {
  if (!set_if_known(settings, name, value)) throw Error("expected a setting of streams, got " + name.substr(0, 32));
}

void set_word(StreamSettings& settings, const std::string& name, const std::string& value) {
  if (!set_word_if_known(settings, name, value))
    throw Error("expected a setting of streams, got " + name.substr(0, 32));
}

bool knows(const Json& inference, Sampler sampler) {
  return inference.find(samplers[static_cast<std::size_t>(sampler)].name);
}

void check_recommended(const Json& inference) {
  if (const Json* const sampler = inference.find("sampler")) chosen(samplers, "sampler", sampler->text);
}

StreamSettings read_settings(const Json& inference, Sampler sampler) {
  StreamSettings settings;
  const Json *const all = inference.find("all"), *const own =
                                                     inference.find(samplers[static_cast<std::size_t>(sampler)].name);
  Json merged = all ? *all : Json{};
  if (own)
    for (const auto& [name, value] : own->members) merged.members[name] = value;
  apply(merged, settings);
  settings.sampler = sampler;
  return settings;
}

void check(const StreamSettings& settings) {
  for (const Whole& number : whole_numbers) {
    const std::int64_t value = settings.*number.field;
    if (value < number.least || value > number.most)
      throw Error(std::string(number.name) + ": expected " + std::to_string(number.least) + " to " +
                  std::to_string(number.most) + ", got " + std::to_string(value));
  }
  for (const Real& number : real_numbers) {
    const double value = settings.*number.field;
    if (!(value >= number.least && value <= number.most) || (number.positive && value == 0))
      throw Error(std::string(number.name) + ": expected " + (number.positive ? "more than " : "") +
                  std::to_string(number.least) + " to " + std::to_string(number.most) + ", got " +
                  std::to_string(value));
  }
  if (!(settings.end_time < settings.start_time))
    throw Error("expected end_time < start_time, got " + std::to_string(settings.end_time) + " and " +
                std::to_string(settings.start_time));
}

}  // namespace udse
