// Checkpoints of causal networks, of a prior alone or with a posterior network beside it: the networks, and what they
// were trained with. Shared by any number of streams.
#pragma once

#include <cstddef>
#include <memory>
#include <string>

#include "compact_network.hpp"
#include "stream/settings.hpp"
#include "stream/spectral.hpp"

namespace udse {

// ds = -gamma s dt + g(t) dw, as `OUVE` in Python.
struct OUVE {
  double gamma = 1.5, sigma_min = 0.05, sigma_max = 0.5;

  bool operator==(const OUVE& other) const {
    return gamma == other.gamma && sigma_min == other.sigma_min && sigma_max == other.sigma_max;
  }

  double delta(double t) const;
  double sigma(double t) const;
  double g(double t) const;
  Coefficients coefficients(double t, double dt) const;
};

struct Prior {
  Spectral spectral;
  OUVE sde;
  std::shared_ptr<const CompactNetwork> network, posterior;  // the latter may be null
  StreamSettings of_ddrm, of_amortised_ddrm;                 // recommended
  std::uint64_t fingerprint;                                 // of networks and configurations

  // With a posterior network streams use it, where nothing else is asked for.
  Sampler sampler() const { return posterior ? Sampler::amortised_ddrm : Sampler::ddrm; }
  const StreamSettings& recommended(Sampler sampler) const {
    return sampler == Sampler::ddrm ? of_ddrm : of_amortised_ddrm;
  }
};

struct FileBytes {
  const unsigned char* at = nullptr;
  std::size_t size = 0;
};

// Throw Error for a file that cannot be read, is damaged, or holds another kind of network. A posterior network without
// bytes, or a name, is none.
std::shared_ptr<const Prior> read_prior(const std::string& path, const std::string& posterior_path = "");
std::shared_ptr<const Prior> parse_prior(const FileBytes& file, const FileBytes& posterior_file = {});

}  // namespace udse
