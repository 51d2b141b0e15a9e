// Noise at one sample, bin and frame.
#pragma once

#include "device.hpp"

namespace udse {
namespace gpu {

// Words 0 and 1 of a counter serve the even bin, 2 and 3 the odd one.
UDSE_HD inline Complex drawn(const NoiseKey& key, int64_t sample, int64_t bin, int64_t frame) {
  const std::int64_t first_frame = key.first_frame_at ? *key.first_frame_at : static_cast<std::int64_t>(key.first_frame);
  std::uint32_t c0 = static_cast<std::uint32_t>(first_frame + frame);
  std::uint32_t c1 = static_cast<std::uint32_t>(bin >> 1) | static_cast<std::uint32_t>(key.first_sample + sample) << 16;
  std::uint32_t c2 = key.step, c3 = key.role;
  std::uint32_t k0 = static_cast<std::uint32_t>(key.seed), k1 = static_cast<std::uint32_t>(key.seed >> 32);
  for (int round = 0; round < 10; ++round, k0 += 0x9E3779B9, k1 += 0xBB67AE85) philox_round(c0, c1, c2, c3, k0, k1);
  Complex z;
  complex_normal(bin & 1 ? c2 : c0, bin & 1 ? c3 : c1, z.re, z.im);
  return z;
}

UDSE_HD inline Complex noise_at(const Noise& noise, const Shape& shape, int64_t sample, int64_t bin, int64_t frame) {
  if (noise.kind == Noise::drawn) return drawn(noise.key, sample, bin, frame);
  if (noise.kind == Noise::given) return load(noise.values, (sample * shape.bins + bin) * shape.frames + frame);
  return {0, 0};
}

}  // namespace gpu
}  // namespace udse
