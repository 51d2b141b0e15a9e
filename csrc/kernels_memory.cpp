// Numbers that are kept for long, in 20 bits each.
#include <algorithm>

#include "kernels.hpp"
#include "philox_normal.hpp"

namespace udse {
namespace UDSE_ISA {
namespace {

using std::int32_t;

constexpr int n = KeptNumbers::count;
constexpr float most = 0x1p19f - 1;    // that 20 bits with a sign hold
constexpr float rounding = 0x1.8p23f;  // a number of less than 23 bits, added to it, is its lowest bits, to nearest

// Those of the last group that are not there count as zero.
void keep(const float* numbers, KeptNumbers* kept, std::int64_t count) {
  for (; count > 0; count -= n, numbers += n, ++kept) {
    float x[n] = {};
    std::copy_n(numbers, std::min<std::int64_t>(n, count), x);
    int32_t largest = 0;
    for (int i = 0; i < n; ++i) largest = std::max(largest, bits(x[i]) & 0x7fffffff);
    // 2^(e + 1) is above all of them; what is too small or too large for a normal unit and its inverse is cut off
    const int32_t exponent = std::min(std::max(largest >> 23, 19), 200);
    kept->unit = from_bits((exponent - 18) << 23);
    const float inverse = from_bits((272 - exponent) << 23);
    int32_t whole[n];
    for (int i = 0; i < n; ++i) {
      const float scaled = std::max(-most, std::min(most, x[i] * inverse));  // in this order no NaN goes through
      whole[i] = bits(scaled + rounding) - bits(rounding);
    }
    for (int i = 0; i < n; ++i) kept->high[i] = static_cast<std::int16_t>(whole[i] >> 4);
    for (int i = 0; i < n / 2; ++i)
      kept->low[i] = static_cast<std::uint8_t>((whole[i] & 15) | (whole[i + n / 2] & 15) << 4);
  }
}

void recall(const KeptNumbers* kept, float* numbers, std::int64_t count) {
  for (; count > 0; count -= n, numbers += n, ++kept) {
    float x[n];
    for (int i = 0; i < n / 2; ++i) {
      x[i] = static_cast<float>(kept->high[i] * 16 + (kept->low[i] & 15)) * kept->unit;
      x[i + n / 2] = static_cast<float>(kept->high[i + n / 2] * 16 + (kept->low[i] >> 4)) * kept->unit;
    }
    std::copy_n(x, std::min<std::int64_t>(n, count), numbers);
  }
}

}  // namespace

const MemoryKernels memory_kernels = {keep, recall};

}  // namespace UDSE_ISA
}  // namespace udse
