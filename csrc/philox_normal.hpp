// Circular complex normal numbers from counters, number by number: for CPUs and GPUs, the same to about 1e-6 (a GPU
// rounds sums of products once).
#pragma once

#include <math.h>

#include <cstdint>
#include <cstring>

#ifdef __CUDACC__
#define UDSE_HD __host__ __device__
#else
#define UDSE_HD
#endif

namespace udse {

UDSE_HD static inline std::int32_t bits(float x) {
  std::int32_t b;
  memcpy(&b, &x, 4);
  return b;
}

UDSE_HD static inline float from_bits(std::int32_t b) {
  float x;
  memcpy(&x, &b, 4);
  return x;
}

// One round of Philox 4x32 (Salmon et al., SC 2011).
UDSE_HD static inline void philox_round(std::uint32_t& c0, std::uint32_t& c1, std::uint32_t& c2, std::uint32_t& c3,
                                        std::uint32_t k0, std::uint32_t k1) {
  const std::uint64_t p0 = std::uint64_t{0xD2511F53} * c0, p1 = std::uint64_t{0xCD9E8D57} * c2;
  c0 = static_cast<std::uint32_t>(p1 >> 32) ^ c1 ^ k0;
  c1 = static_cast<std::uint32_t>(p1);
  c2 = static_cast<std::uint32_t>(p0 >> 32) ^ c3 ^ k1;
  c3 = static_cast<std::uint32_t>(p0);
}

// ln((k + 1/2) / 2^24) for k < 2^24, relative error 1.5e-7. The upper half is taken from the distance to 1, which is
// exact.
UDSE_HD static inline float log_uniform(std::int32_t k) {
  const bool upper = k >= 1 << 23;
  const float v = (static_cast<float>(upper ? 0xffffff - k : k) + 0.5f) * 0x1p-24f;  // the uniform number, or 1 less it
  const std::int32_t exponent = (bits(v) - 0x3f2aaaab) >> 23;  // v = (1 + f) 2^exponent, 1 + f in [2/3, 4/3)
  const float lower_f = from_bits(bits(v) - exponent * (1 << 23)) - 1;
  const bool near_one = v <= 1.f / 3;
  const float f = upper ? (near_one ? -v : 1 - 2 * v) : lower_f;
  const float e = upper ? (near_one ? 0.f : -1.f) : static_cast<float>(exponent);
  float p = -0.121255808f;
  p = p * f + 0.134257495f;
  p = p * f - 0.123461902f;
  p = p * f + 0.141183093f;
  p = p * f - 0.166701406f;
  p = p * f + 0.200037807f;
  p = p * f - 0.249999881f;
  p = p * f + 0.333333194f;
  return e * 0.693147181f + (f + f * f * (p * f - 0.5f));
}

// bit 1 of a quadrant, where the sign of a float is
UDSE_HD static inline std::int32_t sign_bit(std::int32_t quadrant) {
  return static_cast<std::int32_t>(static_cast<std::uint32_t>(quadrant & 2) << 30);
}

// sqrt(-ln u_0) exp(2 pi j u_1), u = ((x >> 8) + 1/2) / 2^24; absolute error below 1e-6
UDSE_HD static inline void complex_normal(std::uint32_t x0, std::uint32_t x1, float& real, float& imaginary) {
  const float modulus = sqrtf(-log_uniform(static_cast<std::int32_t>(x0 >> 8)));
  const std::int32_t k = static_cast<std::int32_t>(x1 >> 8), quadrant = (k + (1 << 21)) >> 22;
  const float d = (static_cast<float>(k - quadrant * (1 << 22)) + 0.5f) * 0x1p-24f, u = d * d;  // turns, in [-1/8, 1/8]
  const float sine = d * (6.28318548f + u * (-41.3416634f + u * (81.5925446f - u * 75.4016113f)));
  const float cosine = 1 + u * (-19.7392082f + u * (64.9393158f + u * (-85.4428482f + u * 59.2201691f)));
  const bool odd = quadrant & 1;
  real = modulus * from_bits(bits(odd ? sine : cosine) ^ sign_bit(quadrant + 1));
  imaginary = modulus * from_bits(bits(odd ? cosine : sine) ^ sign_bit(quadrant));
}

}  // namespace udse
