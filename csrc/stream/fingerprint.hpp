// A number that tells bytes from others: FNV-1a, 64 bits. Against accidents, not against attacks.
#pragma once

#include <cstddef>
#include <cstdint>

namespace udse {

inline std::uint64_t fingerprint(const unsigned char* bytes, std::size_t size,
                                 std::uint64_t hash = 0xcbf29ce484222325) {
  for (std::size_t i = 0; i < size; ++i) hash = (hash ^ bytes[i]) * 0x100000001b3;
  return hash;
}

}  // namespace udse
