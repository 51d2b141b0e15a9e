// A number that tells bytes from others: FNV-1a over words of eight bytes. Against accidents, not against attacks.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

namespace udse {

inline std::uint64_t fingerprint(const unsigned char* bytes, std::size_t size,
                                 std::uint64_t hash = 0xcbf29ce484222325) {
  constexpr std::uint64_t prime = 0x100000001b3;
  const std::size_t words = size / sizeof hash;
  for (std::size_t i = 0; i < words; ++i) {
    std::uint64_t word;
    std::memcpy(&word, bytes + i * sizeof word, sizeof word);
    hash = (hash ^ word) * prime;
    hash ^= hash >> 32;  // what a product carries upwards only
  }
  for (std::size_t i = words * sizeof hash; i < size; ++i) hash = (hash ^ bytes[i]) * prime;
  return hash;
}

}  // namespace udse
