// Any bytes as a checkpoint: read, or refused by Error.
#include <cstddef>

#include "stream/prior.hpp"

extern "C" int LLVMFuzzerTestOneInput(const unsigned char* bytes, std::size_t size) {
  try {
    udse::parse_prior(bytes, size);
  } catch (const udse::Error&) {
  }
  return 0;
}
