#include "stream/prior.hpp"

#include <cerrno>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <limits>
#include <utility>
#include <vector>

#include "stream/fingerprint.hpp"
#include "stream/safetensors.hpp"

namespace udse {
namespace {

constexpr long largest_file = 1L << 30;
constexpr int noise_features = 32;

double number(const Json* section, const char* name, double otherwise, double least, double most) {
  const Json* const found = section ? section->find(name) : nullptr;
  if (!found) return otherwise;
  if (found->kind != Json::number || !(found->value >= least && found->value <= most))
    throw Error(std::string(name) + ": expected " + std::to_string(least) + " to " + std::to_string(most) +
                " in the checkpoint, got " +
                (found->kind == Json::number ? std::to_string(found->value) : "another kind"));
  return found->value;
}

std::int64_t whole(const Json* section, const char* name, std::int64_t otherwise, std::int64_t least,
                   std::int64_t most) {
  return std::llround(
      number(section, name, static_cast<double>(otherwise), static_cast<double>(least), static_cast<double>(most)));
}

SpectralSettings read_spectral(const Json& config) {
  const Json *const stft = config.find("stft"), *const compression = config.find("compression");
  SpectralSettings settings;
  settings.sample_rate = whole(stft, "sample_rate", 16000, 8000, 1'000'000);
  settings.n_fft = whole(stft, "n_fft", 510, 4, 4096);
  settings.hop = whole(stft, "hop_length", 128, 1, settings.n_fft);
  const Json* const window = stft ? stft->find("window") : nullptr;
  if (window && window->text != "hann" && window->text != "sqrt_hann")
    throw Error("window: expected hann or sqrt_hann in the checkpoint, got " + window->text.substr(0, 32));
  settings.sqrt_hann = window && window->text == "sqrt_hann";
  settings.exponent = static_cast<float>(number(compression, "exponent", 0.5, 1e-3, 1));
  settings.factor = static_cast<float>(number(compression, "factor", 0.15, 1e-6, 1e6));
  return settings;
}

OUVE read_sde(const Json& config) {
  const Json* const sde = config.find("sde");
  OUVE ouve;
  ouve.gamma = number(sde, "gamma", ouve.gamma, 1e-6, 1e3);
  ouve.sigma_min = number(sde, "sigma_min", ouve.sigma_min, 1e-6, 1e3);
  ouve.sigma_max = number(sde, "sigma_max", ouve.sigma_max, 1e-6, 1e3);
  if (!(ouve.sigma_min < ouve.sigma_max)) throw Error("expected sigma_min < sigma_max in the checkpoint");
  return ouve;
}

std::vector<std::int64_t> read_dilations(const Json& architecture) {
  const Json* const given = architecture.find("dilations");
  if (!given) return {1, 2, 4, 8, 1, 2};
  std::vector<std::int64_t> dilations;
  for (const Json& item : given->items)
    dilations.push_back(item.kind == Json::number && item.value >= 1 && item.value <= 1024 ? std::llround(item.value)
                                                                                           : 0);
  return dilations;
}

// 10^(log10(0.2) .. log10(8)), as torch.logspace steps: from both ends
std::vector<float> noise_level_frequencies() {
  const float start = std::log10(0.2f), end = std::log10(8.f), step = (end - start) / (noise_features - 1);
  std::vector<float> frequencies(noise_features);
  for (int i = 0; i < noise_features; ++i) {
    const float exponent = i < noise_features / 2 ? start + step * static_cast<float>(i)
                                                  : end - step * static_cast<float>(noise_features - 1 - i);
    frequencies[static_cast<std::size_t>(i)] = std::pow(10.f, exponent);
  }
  return frequencies;
}

// sigma_data of noise and of speech
std::vector<float> read_data_scale(const Json& architecture) {
  const Json* const given = architecture.find("sigma_data");
  std::vector<float> scale{0.06f, 0.06f};
  if (given && given->kind == Json::number) scale.assign(2, static_cast<float>(given->value));
  if (given && given->kind == Json::array && given->items.size() == 2)
    scale = {static_cast<float>(given->items[0].value), static_cast<float>(given->items[1].value)};
  for (const float value : scale)
    if (!(value > 0 && std::isfinite(value))) throw Error("sigma_data: expected positive numbers in the checkpoint");
  return scale;
}

// Without a branch for each of them
bool all_finite(const std::vector<float>& values) {
  bool finite = true;
  for (const float value : values) finite &= std::abs(value) <= std::numeric_limits<float>::max();
  return finite;
}

std::shared_ptr<const CompactNetwork> make_network(SafeTensors& file, const Json& architecture, const char* expected) {
  const Json* const name = architecture.find("name");
  if (!name || name->text != expected)
    throw Error(std::string("expected a checkpoint of the network ") + expected + ", got " +
                (name ? name->text.substr(0, 32) : "none"));
  if (whole(&architecture, "causal_block", 0, 0, 8) < 1)
    throw Error("expected a checkpoint of a causal network, got one that sees the future");
  file.tensors["noise_level.frequencies"] = {{noise_features}, noise_level_frequencies()};
  file.tensors["scale.by_label"] = {{2}, read_data_scale(architecture)};
  Weights weights;
  for (const auto& [tensor_name, tensor] : file.tensors) {
    if (!all_finite(tensor.values)) throw Error(tensor_name + " of the checkpoint has NaN or infinite numbers");
    weights[tensor_name] = {tensor.shape, tensor.values.data()};
  }
  return std::make_shared<const CompactNetwork>(weights, read_dilations(architecture));
}

std::vector<unsigned char> read_file(const std::string& path) {
  const auto fail = [&](const char* why) -> Error { return Error("cannot read the checkpoint " + path + ": " + why); };
  struct Closer {
    void operator()(std::FILE* file) const { std::fclose(file); }
  };
  const std::unique_ptr<std::FILE, Closer> file(std::fopen(path.c_str(), "rb"));
  if (!file) throw fail(std::strerror(errno));
  if (std::fseek(file.get(), 0, SEEK_END) != 0) throw fail("it is no plain file");
  const long size = std::ftell(file.get());
  if (size < 0 || size > largest_file) throw fail("it is no plain file of up to 1 GiB");
  std::rewind(file.get());
  std::vector<unsigned char> bytes(static_cast<std::size_t>(size));
  if (std::fread(bytes.data(), 1, bytes.size(), file.get()) != bytes.size()) throw fail("it ends early");
  return bytes;
}

// What a file says
struct Checkpoint {
  SpectralSettings spectral;
  OUVE sde;
  std::shared_ptr<const CompactNetwork> network;
  Json inference;
  std::int64_t causal_block;
  std::uint64_t fingerprint;
};

Checkpoint parse_checkpoint(const FileBytes& bytes, const char* network) {
  SafeTensors file = parse_safetensors(bytes.at, bytes.size);
  const std::string text = file.metadata["udse_fast"];
  if (text.empty()) throw Error("expected a checkpoint of udse-fast; this safetensors file has no configuration");
  const Json config = parse_json(text.data(), text.data() + text.size());
  const Json *const architecture = config.find("architecture"), *const inference = config.find("inference");
  if (!architecture) throw Error("expected the section architecture in the checkpoint");
  const Checkpoint checkpoint{read_spectral(config),
                              read_sde(config),
                              make_network(file, *architecture, network),
                              inference ? *inference : Json{},
                              whole(architecture, "causal_block", 0, 0, 8),
                              fingerprint(bytes.at, bytes.size)};
  if (checkpoint.network->bins() != checkpoint.spectral.bins())
    throw Error("expected a network of " + std::to_string(checkpoint.spectral.bins()) +
                " bins in the checkpoint, got " + std::to_string(checkpoint.network->bins()));
  return checkpoint;
}

// The prior's settings for a sampler, or those of the other network where it has none
StreamSettings settings_of(const Checkpoint& prior, const Checkpoint& other, Sampler sampler) {
  StreamSettings settings = read_settings((knows(prior.inference, sampler) ? prior : other).inference, sampler);
  if (!settings.block_frames) settings.block_frames = other.causal_block;
  return settings;
}

}  // namespace

double OUVE::delta(double t) const { return std::exp(-gamma * t); }

double OUVE::sigma(double t) const {
  const double ratio = std::log(sigma_max / sigma_min);
  return sigma_min * std::sqrt((std::exp(2 * ratio * t) - std::exp(-2 * gamma * t)) * (ratio / (gamma + ratio)));
}

double OUVE::g(double t) const {
  const double ratio = std::log(sigma_max / sigma_min);
  return sigma_min * std::sqrt(2 * ratio) * std::exp(ratio * t);
}

Coefficients OUVE::coefficients(double t, double dt) const {
  return {static_cast<float>(gamma), static_cast<float>(delta(t)), static_cast<float>(sigma(t)),
          static_cast<float>(g(t)),  static_cast<float>(dt),       0.f};
}

std::shared_ptr<const Prior> parse_prior(const FileBytes& file, const FileBytes& posterior_file) {
  Checkpoint posterior{};
  if (posterior_file.size) posterior = parse_checkpoint(posterior_file, "compact-posterior");
  const Checkpoint speech = parse_checkpoint(file, "compact");
  check_recommended(speech.inference);
  auto prior = std::make_shared<Prior>(Prior{Spectral(speech.spectral),
                                             speech.sde,
                                             speech.network,
                                             nullptr,
                                             settings_of(speech, speech, Sampler::ddrm),
                                             {},
                                             speech.fingerprint});
  if (!posterior.network) return prior;
  if (!(posterior.spectral == speech.spectral && posterior.sde == speech.sde))
    throw Error("expected a posterior network of the stft, compression and sde of the prior, got one of others");
  prior->posterior = posterior.network;
  prior->of_amortised_ddrm = settings_of(speech, posterior, Sampler::amortised_ddrm);
  const auto* const theirs = reinterpret_cast<const unsigned char*>(&posterior.fingerprint);
  prior->fingerprint = fingerprint(theirs, sizeof posterior.fingerprint, speech.fingerprint);
  return prior;
}

std::shared_ptr<const Prior> read_prior(const std::string& path, const std::string& posterior_path) {
  const std::vector<unsigned char> bytes = read_file(path);
  std::vector<unsigned char> of_posterior;
  if (!posterior_path.empty()) of_posterior = read_file(posterior_path);
  return parse_prior({bytes.data(), bytes.size()}, {of_posterior.data(), of_posterior.size()});
}

}  // namespace udse
