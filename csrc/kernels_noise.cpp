// Noise on its own.
#include "kernel_noise.hpp"

namespace udse {
namespace UDSE_ISA {
namespace {

void complex_normal(const NoiseKey& key, const Shape& shape, cfloat* out, Range pairs) {
  with_width(shape.frames, [&](auto L) {
    ComplexRow z[2];
    for (int64_t pair = pairs.begin; pair < pairs.end; ++pair)
      for (int64_t b = 0; b < shape.samples; ++b)
        for (int64_t t0 = 0; t0 < shape.frames; t0 += L) {
          draw(L, key, b, pair, t0, z);
          for (int64_t f = 2 * pair; f < shape.bins && f < 2 * pair + 2; ++f)
            store(L, z[f & 1], block_length(L, shape.frames, t0), out + (b * shape.bins + f) * shape.frames + t0);
        }
  });
}

}  // namespace

const NoiseKernels noise_kernels = {complex_normal};

}  // namespace UDSE_ISA
}  // namespace udse
