// The tensor cores of a GPU: a warp multiplies small matrices of 16-bit numbers and adds up in float32,
//     multiply_accumulate(T{}, c, a, b): c += a b, (16 x 8), (16 x 16) and (16 x 8), the fragments of
//     mma.sync.m16n8k16.
// Two halves (sm_75) are the whole, as registers 0 and 1 of A are the columns that register 0 of B has as rows.
#pragma once

#include "narrow_numbers.hpp"

#ifndef __CUDACC__
#include "emulation/mma_on_cpu.hpp"
#endif

namespace udse {
namespace gpu {

#ifdef __CUDA_ARCH__

// c += a b, (16 x 8) and (8 x 8), of float16: all that sm_75 has
__device__ inline void multiply_8(float (&c)[4], const std::uint32_t* a, const std::uint32_t* b) {
  asm("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(b[0]));
}

__device__ inline void multiply_accumulate(Half, float (&c)[4], const std::uint32_t* a, const std::uint32_t* b) {
#if __CUDA_ARCH__ >= 800
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
  multiply_8(c, a, b);
  multiply_8(c, a + 2, b + 1);
#endif
}

__device__ inline void multiply_accumulate(BFloat16, float (&c)[4], const std::uint32_t* a, const std::uint32_t* b) {
#if __CUDA_ARCH__ >= 800
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
  __trap();  // there is no such instruction
#endif
}

#elif defined(__CUDACC__)

// of the host's pass of nvcc, which calls nothing of it
template <class T>
__device__ inline void multiply_accumulate(T, float (&)[4], const std::uint32_t*, const std::uint32_t*) {}

#else

template <class T>
void multiply_accumulate(T, float (&c)[4], const std::uint32_t* a, const std::uint32_t* b) {
  if (emulation::device().capability >= 80) return emulation::multiply<T, 16>(c, a, b);
  emulation::multiply<T, 8>(c, a, b);
  emulation::multiply<T, 8>(c, a + 2, b + 1);
}

#endif

}  // namespace gpu
}  // namespace udse
