// Amplitude compression of a spectrogram, and back.
#include "kernel_rows.hpp"

namespace udse {
namespace UDSE_ISA {
namespace {

constexpr float tiny = 1e-37f;  // modulus below which z counts as zero

// out = scale z gain(|scale z|); |z| is formed without overflow or underflow of its square
template <class Gain>
inline void scale_by_modulus(const cfloat* z, float scale, cfloat* out, Range range, Gain gain) {
  constexpr Width<block_frames> L;
  ComplexRow row;
  for (int64_t at = range.begin; at < range.end; at += L) {
    const int n = block_length(L, range.end, at);
    load(L, z + at, n, row);
    each(L, [&](int i) {
      const float re = row[0][i] * scale, im = row[1][i] * scale;
      const float x = __builtin_fabsf(re), y = __builtin_fabsf(im);
      const float large = x > y ? x : y, small = x > y ? y : x, ratio = small / (large > tiny ? large : tiny);
      const float g = gain(large * __builtin_sqrtf(1 + ratio * ratio));
      row[0][i] = re * g;
      row[1][i] = im * g;
    });
    store(L, row, n, out + at);
  }
}

void compress(const cfloat* z, float exponent, float factor, cfloat* out, Range range) {
  if (exponent == 0.5f)
    return scale_by_modulus(z, 1.f, out, range, [=](float r) { return factor / __builtin_sqrtf(r > tiny ? r : tiny); });
  scale_by_modulus(z, 1.f, out, range, [=](float r) { return factor * ::powf(r > tiny ? r : tiny, exponent - 1); });
}

void decompress(const cfloat* z, float exponent, float factor, cfloat* out, Range range) {
  if (exponent == 0.5f) return scale_by_modulus(z, 1 / factor, out, range, [](float r) { return r; });
  scale_by_modulus(z, 1 / factor, out, range, [=](float r) { return ::powf(r, 1 / exponent - 1); });
}

}  // namespace

const CompressionKernels compression_kernels = {compress, decompress};

}  // namespace UDSE_ISA
}  // namespace udse
