// Amplitude compression of a spectrogram, and back.
#include "device.hpp"

namespace udse {
namespace gpu {

constexpr float zero_modulus = 1e-37f;  // modulus below which z counts as zero

// out = factor r^exponent (scale z), r = |scale z|, which is formed without overflow of its square
struct ScaleByModulus {
  const cfloat* z;
  cfloat* out;
  float scale, exponent, factor;

  UDSE_HD void operator()(int64_t i) const {
    const Complex scaled = scale * load(z, i);
    const float x = fabsf(scaled.re), y = fabsf(scaled.im);
    const float large = above(x > y ? x : y, zero_modulus), ratio = (x > y ? y : x) / large;
    const float r = large * sqrtf(1 + square(ratio));
    const float gain = exponent == -0.5f ? 1 / sqrtf(r) : exponent == 1.f ? r : powf(r, exponent);
    store(out, i, factor * gain * scaled);
  }
};

UDSE_EXPORT const char* udse_cuda_compress(const cfloat* z, int64_t n, float exponent, float factor, cfloat* out,
                                           Stream stream) {
  return for_each(n, stream, ScaleByModulus{z, out, 1, exponent - 1, factor});
}

UDSE_EXPORT const char* udse_cuda_decompress(const cfloat* z, int64_t n, float exponent, float factor, cfloat* out,
                                             Stream stream) {
  return for_each(n, stream, ScaleByModulus{z, out, 1 / factor, 1 / exponent - 1, 1});
}

}  // namespace gpu
}  // namespace udse
