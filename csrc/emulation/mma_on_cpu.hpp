// The matrix instructions of a warp on a CPU: mma.sync.aligned.m16n8k16 and m16n8k8 for numbers of 16 bits, with the
// layout of the fragments as the PTX ISA gives it (Warp Level Matrix Instructions, "Matrix Fragments for mma"):
// of lane 4 g + t, register r of A (16 x K) holds row g + 8 (r % 2), columns 2 t + 8 (r / 2) and the next; register r
// of B (K x 8) rows 2 t + 8 r and the next, column g; number i of C (16 x 8) row g + 8 (i / 2), column 2 t + i % 2. T
// has `widened`, its numbers two in a register, the first in the low half.
#pragma once

#include <cstring>

#include "cuda_on_cpu.hpp"

namespace udse {
namespace emulation {

struct Fragments {
  const std::uint32_t *a, *b;
  float* c;
};

template <class T>
float half_of(std::uint32_t word, int which) {
  T number;
  number.word = static_cast<std::uint16_t>(word >> 16 * which);
  return widened(number);
}

template <class T, int K>
void multiply_together(const std::vector<void*>& lanes) {
  float a[16][K], b[K][8];
  const auto of = [&](int lane) -> const Fragments& { return *static_cast<const Fragments*>(lanes[lane]); };
  for (int lane = 0; lane < 32; ++lane)
    for (int half = 0; half < 2; ++half) {
      const int g = lane / 4, t = lane % 4;
      for (int r = 0; r < K / 4; ++r) a[g + 8 * (r % 2)][2 * t + 8 * (r / 2) + half] = half_of<T>(of(lane).a[r], half);
      for (int r = 0; r < K / 8; ++r) b[2 * t + 8 * r + half][g] = half_of<T>(of(lane).b[r], half);
    }
  for (int lane = 0; lane < 32; ++lane)
    for (int i = 0; i < 4; ++i) {
      const int row = lane / 4 + 8 * (i / 2), column = 2 * (lane % 4) + i % 2;
      for (int k = 0; k < K; ++k) of(lane).c[i] += a[row][k] * b[k][column];
    }
}

// c += a b
template <class T, int K>
void multiply(float* c, const std::uint32_t* a, const std::uint32_t* b) {
  Fragments mine{a, b, c};
  do_together(multiply_together<T, K>, &mine);
}

}  // namespace emulation
}  // namespace udse
