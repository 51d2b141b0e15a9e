// The table of kernels that each instruction set fills from the one source kernels.cpp.
#pragma once

#include "udse_core.hpp"

namespace udse {

constexpr int block_frames =
    64;  // frames that are worked on at once: a few vectors of any instruction set, all scratch in L1

struct Range {
  std::int64_t begin, end;
};

struct NMFPass {
  std::int64_t bins, frames, rank;
  const float* power;         // (F, T)
  const float* W;             // (F, R)
  float* H;                   // (R, stride), zero from T on
  std::int64_t stride;        // T rounded up to whole blocks
  float *weighted, *inverse;  // (P V^-2) H^T and V^-1 H^T, (F, R), out of nmf_statistics
  float floor;
};

struct Kernels {
  const char* name;
  // over pairs of bins
  void (*corrector)(const Step&, Range);
  void (*predictor)(const Step&, Range);
  void (*marginal_guidance)(const Step&, Range);
  void (*product_of_gaussians)(const Step&, Range);
  void (*noise_posterior_guidance)(const Step&, Range);
  void (*predictor_residual)(const Step&, Range);
  void (*score_noise_guidance)(const Step&, Range);
  void (*joint_guidance)(const Step&, Range);
  void (*complex_normal)(const NoiseKey&, const Shape&, cfloat*, Range);
  // over numbers
  void (*compress)(const cfloat*, float exponent, float factor, cfloat*, Range);
  void (*decompress)(const cfloat*, float exponent, float factor, cfloat*, Range);
  // over rows (sample, bin)
  void (*network_input)(const cfloat*, const Shape&, const PerFrame&, float*, Range);
  void (*network_input_bfloat16)(const cfloat*, const Shape&, const PerFrame&, std::uint16_t*, Range);
  void (*nmf_statistics)(const NMFPass&, Range bins);
  void (*nmf_h)(const NMFPass&, Range blocks);
};

namespace scalar {
extern const Kernels kernels;
}
#ifdef UDSE_X86
namespace avx2 {
extern const Kernels kernels;
}
namespace avx512 {
extern const Kernels kernels;
}
#endif

}  // namespace udse
