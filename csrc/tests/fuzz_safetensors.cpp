// Any bytes as a checkpoint of a prior, and of a posterior network: read, or refused by Error.
#include <cstddef>

#include "stream/prior.hpp"

extern "C" int LLVMFuzzerTestOneInput(const unsigned char* bytes, std::size_t size) {
  for (const bool as_posterior : {false, true}) try {
      udse::parse_prior({bytes, size}, as_posterior ? udse::FileBytes{bytes, size} : udse::FileBytes{});
    } catch (const udse::Error&) {
    }
  return 0;
}
