// A checkpoint of a causal prior: the network, and what it was trained with. Shared by any number of streams.
#pragma once

#include <cstddef>
#include <memory>
#include <string>

#include "causal_network.hpp"
#include "stream/settings.hpp"
#include "stream/spectral.hpp"

namespace udse {

// ds = -gamma s dt + g(t) dw, as `OUVE` in Python.
struct OUVE {
  double gamma = 1.5, sigma_min = 0.05, sigma_max = 0.5;

  double delta(double t) const;
  double sigma(double t) const;
  double g(double t) const;
  Coefficients coefficients(double t, double dt) const;
};

struct Prior {
  Spectral spectral;
  OUVE sde;
  std::shared_ptr<const CausalNetwork> network;
  StreamSettings recommended;
  std::uint64_t fingerprint;  // of network and configuration
};

// Throw Error for a file that cannot be read, is damaged, or holds another kind of network.
std::shared_ptr<const Prior> read_prior(const std::string& path);
std::shared_ptr<const Prior> parse_prior(const unsigned char* bytes, std::size_t size);

}  // namespace udse
