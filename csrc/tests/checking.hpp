// What the C++ tests share: a check that says where it failed.
#pragma once

#include <cstdio>
#include <cstdlib>

inline void check(bool condition, const char* text, const char* file, int line) {
  if (condition) return;
  std::fprintf(stderr, "%s:%d: %s\n", file, line, text);
  std::exit(1);
}
#define CHECK(condition) check(condition, #condition, __FILE__, __LINE__)
