// The tables of kernels that each instruction set fills from the sources kernels_*.cpp.
#pragma once

#include "udse_core.hpp"

namespace udse {

// Frames that are worked on at once: a few vectors of any instruction set, all scratch in L1; of signals of few frames,
// such as the blocks of a stream, one vector of the widest.
constexpr int block_frames = 64, short_block_frames = 16;

struct Range {
  std::int64_t begin, end;
};

constexpr std::int64_t nmf_frames = 16;  // of an item of nmf_h: a cache line, whole vectors of any instruction set

// One NMF update. V = d_t (w_0 + sum over k > 0 of w_k h_k / d_t), d_t = h_0 of the frame, needs no product for k = 0,
// neither do the sums of V^-1 and P V^-2 that belong to it; and likewise with d_f = w_0 of the bin.
struct NMFPass {
  std::int64_t bins, frames, rank;
  const float* power;          // (F, T)
  float* W;                    // (F, R)
  float* H;                    // (R, stride)
  std::int64_t stride;         // T rounded up to whole items
  float *scaled_w, *scaled_h;  // (F, R + 1) and (R + 1, stride): 1/d, w_k/d or h_k/d, floor/d
  float *weighted, *inverse;   // scratch of nmf_w: (P V^-2) H^T and V^-1 H^T, (F, R)
  float floor;
  float *A, *B;  // the statistics of the online form, (F, R), else null
  float forgetting;
};

struct NoiseKernels {
  void (*complex_normal)(const NoiseKey&, const Shape&, cfloat*, Range);  // over pairs of bins
};

// over pairs of bins
struct UpdateKernels {
  void (*corrector)(const Step&, Range);
  void (*predictor)(const Step&, Range);
  void (*marginal_guidance)(const Step&, Range);
  void (*product_of_gaussians)(const Step&, Range);
  void (*noise_posterior_guidance)(const Step&, Range);
  void (*predictor_residual)(const Step&, Range);
  void (*score_noise_guidance)(const Step&, Range);
  void (*joint_guidance)(const Step&, Range);
  void (*unexplained_power)(const Step&, Range);
  void (*ddrm_step)(const Step&, Range);
  void (*posterior_mean)(const Step&, Range);
};

// over numbers
struct CompressionKernels {
  void (*compress)(const cfloat*, float exponent, float factor, cfloat*, Range);
  void (*decompress)(const cfloat*, float exponent, float factor, cfloat*, Range);
};

struct NMFKernels {
  void (*scale_h)(const NMFPass&, Range);    // over frames
  void (*scale_w)(const NMFPass&, Range);    // over bins
  void (*w)(const NMFPass&, Range);          // over bins
  void (*h)(const NMFPass&, Range);          // over items of nmf_frames frames
  void (*normalise)(const NMFPass&, Range);  // all bins at once
};

// A group of numbers in 20 bits each, as whole multiples of a power of two: within 2^-19 of the largest of them.
struct KeptNumbers {
  static constexpr int count = 64;
  float unit;
  std::int16_t high[count];
  std::uint8_t low[count / 2];  // 4 bits of a number, and above them those of the one that is half a group further

  static std::size_t groups(std::int64_t numbers) { return static_cast<std::size_t>((numbers + count - 1) / count); }
};

struct MemoryKernels {
  void (*keep)(const float* numbers, KeptNumbers*, std::int64_t count);
  void (*recall)(const KeptNumbers*, float* numbers, std::int64_t count);
};

// What was compiled for one instruction set.
struct Kernels {
  const char* name;
  const NoiseKernels& noise;
  const UpdateKernels& updates;
  const CompressionKernels& compression;
  const NMFKernels& nmf;
  const MemoryKernels& memory;
};

// Those in use. They check nothing, and run in the caller's thread.
const Kernels& kernels();

#define UDSE_DECLARE_KERNELS(isa)                      \
  namespace isa {                                      \
  extern const NoiseKernels noise_kernels;             \
  extern const UpdateKernels update_kernels;           \
  extern const CompressionKernels compression_kernels; \
  extern const NMFKernels nmf_kernels;                 \
  extern const MemoryKernels memory_kernels;           \
  }

UDSE_DECLARE_KERNELS(scalar)
#ifdef UDSE_X86
UDSE_DECLARE_KERNELS(avx2)
UDSE_DECLARE_KERNELS(avx512)
#endif

}  // namespace udse
