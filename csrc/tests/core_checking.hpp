// What the tests of the core itself share: a check that says where and with what instructions it failed, and a body for
// every instruction set.
#pragma once

#include <cstdio>
#include <cstdlib>

#include "udse_core.hpp"

inline void check(bool condition, const char* text, int line) {
  if (condition) return;
  std::fprintf(stderr, "line %d: %s (%s)\n", line, text, udse::isa());
  std::exit(1);
}
#define CHECK(condition) check(condition, #condition, __LINE__)

// body(), with every instruction set of this processor
template <class Body>
void each_isa(Body body) {
  for (const char* isa : {"scalar", "avx2", "avx512"}) {
    try {
      udse::set_isa(isa);
    } catch (const udse::Error& error) {
      std::printf("%s\n", error.what());
      continue;
    }
    body();
    std::printf("%s: ok\n", udse::isa());
  }
}
