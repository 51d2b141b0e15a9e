// What a compact network computes with: a table that each instruction set fills from the one source
// compact_network_kernels.cpp.
#pragma once

#include "udse_core.hpp"

namespace udse {

constexpr std::int64_t panel = 16;  // channels that lie side by side; maps and weights are padded to whole panels

using Half = std::uint16_t;  // a number of 16 bits, IEEE 754 binary16

// A convolution over (time, frequency) as a matrix product: the rows of the left matrix are windows, read where they
// lie.
struct Convolution {
  std::int64_t taps, window;  // frames, and numbers of one frame, that an output sees
  std::int64_t panels;        // of output channels
  const float* weights;       // (panels, taps, window, 16)
  const float* bias;          // (panels, 16); null for none
  const Half* halves;         // the weights, where `weights` is null
};

// Four outputs of a kernel of 3 bands take 6 products instead of 12 (Winograd's F(4, 3); Lavin and Gray 2016): each
// product is of one of 6 sums of bands, and of one of 6 sums of weights, which are
constexpr std::int64_t tile_bands = 4, points = 6;
constexpr float kernel_sums[points][3] = {{1.f / 4, 0, 0},
                                          {-1.f / 6, -1.f / 6, -1.f / 6},
                                          {-1.f / 6, 1.f / 6, -1.f / 6},
                                          {1.f / 24, 1.f / 12, 1.f / 6},
                                          {1.f / 24, -1.f / 12, 1.f / 6},
                                          {0, 0, 1}};

// Where windows start: that of frame t and row r at `first + t frame + r row`, its next frame `tap` further.
struct Windows {
  const float* first;
  std::int64_t frame, row, tap;
};

struct Rows {
  float* first;
  std::int64_t frame, row;
};

enum class Finish { store, add, silu };  // out = y, out += y, out = y / (1 + exp(-y))

// SiLU of frames normed to mean 0 and variance 1, times `gain`, plus `shift`.
struct Norm {
  std::int64_t frames, bands, channels, padded;  // channels with and without those that fill panels
  const float* in;
  std::int64_t in_frame;
  float* out;
  std::int64_t out_frame;
  const float *gain, *shift;  // (padded)
  std::int64_t gain_frame;    // from them to those of the next frame; 0: they are the same
};

// The network's answer for one frame of F bins, as EDM and the output filter read it; of a posterior network also the
// noise.
struct Answer {
  std::int64_t bins, padded, stem;     // bins with and without those that fill vectors
  std::int64_t outputs;                // of a bin: 21, or 24 of a posterior network
  const float* numbers;                // (F / stem, row): of a band, (outputs, stem)
  std::int64_t row;                    // at least outputs stem
  const float *real, *imaginary;       // u of the frame; 0 at -1 and from F up to `padded`
  std::int64_t frame;                  // from u to the next frame of u
  const float *own, *unsure;           // (padded): logit of EDM's c_skip; posterior variance of Gaussian data
  const float *log_power, *log_given;  // (padded): of a posterior network, logs of |u|^4 and of the V that it is told
  cfloat* clean;                       // (F), each `step` numbers from the next, as the others
  float* variance;
  float* believed;  // of a posterior network: V that it believes in, and what to listen to; else null
  cfloat* heard;
  std::int64_t step;
  float* scratch;  // (outputs + 6, padded)
};

struct NetworkKernels {
  bool reads_halves;  // as fast as floats
  // `rows` windows of each of `frames` frames; where `next_ends`, the last frame has no last tap
  void (*convolve)(const Convolution&, const Windows&, std::int64_t frames, std::int64_t rows, bool next_ends,
                   const Rows& out, Finish);
  // of one frame: (4 tiles + 2, channels) -> (6, tiles, channels), whole panels of channels
  void (*band_sums)(const float* in, std::int64_t tiles, std::int64_t channels, float* out);
  // and back: (6, frames, tiles, channels) -> rows of `channels`, biases added
  void (*from_products)(const float* products, const float* bias, std::int64_t frames, std::int64_t tiles,
                        std::int64_t channels, const Rows& out, Finish);
  void (*norm_film_silu)(const Norm&);
  void (*silu)(const float* x, std::int64_t n, float* out);  // n a multiple of 16
  void (*answer)(const Answer&);
};

namespace scalar {
extern const NetworkKernels network_kernels;
}
#ifdef UDSE_X86
namespace avx2 {
extern const NetworkKernels network_kernels;
}
namespace avx512 {
extern const NetworkKernels network_kernels;
}
#endif

}  // namespace udse
