// Numbers too small for a float's normal range count as zero while this lives: arithmetic with them takes a hundred
// times longer, and decaying signals are full of them.
#pragma once

#include <cstdint>
#if defined(__SSE2__) || defined(_M_X64)
#include <immintrin.h>
#endif

namespace udse {

class DenormalsOff {
 public:
  DenormalsOff() : before_(read()) { write(before_ | off); }
  ~DenormalsOff() { write(before_); }
  DenormalsOff(const DenormalsOff&) = delete;
  DenormalsOff& operator=(const DenormalsOff&) = delete;

 private:
#if defined(__SSE2__) || defined(_M_X64)
  static constexpr std::uint64_t off = 0x8040;  // results and operands
  static std::uint64_t read() { return _mm_getcsr(); }
  static void write(std::uint64_t control) { _mm_setcsr(static_cast<unsigned>(control)); }
#elif defined(__aarch64__)
  static constexpr std::uint64_t off = 1 << 24;
  static std::uint64_t read() {
    std::uint64_t control;
    __asm__ volatile("mrs %0, fpcr" : "=r"(control));
    return control;
  }
  static void write(std::uint64_t control) { __asm__ volatile("msr fpcr, %0" : : "r"(control)); }
#else  // nothing to set, as in WebAssembly
  static constexpr std::uint64_t off = 0;
  static std::uint64_t read() { return 0; }
  static void write(std::uint64_t) {}
#endif

  std::uint64_t before_;
};

}  // namespace udse
