// Convolutions of a U-Net as matrix products, channels_last, float16 or bfloat16, sums in float32: what stands before
// (norm and SiLU), what is added (bias, another map, the 1x1 convolution of other maps) and the statistics that the
// next norm needs are part of it, so that every map is read and written once. The equations are those of reference.py.
//
// A block makes a rectangle of 8 x 16 positions times 32, 64 or 96 channels. It takes 32 channels of the input at a
// time: their rectangle and a border of 1 are put into shared memory, activated, and serve all 9 taps; weights come
// from the cache straight into registers. Of the 32 channels lane 4 g + t takes 8 t to 8 t + 7 as the rows of its
// fragments, of A and B alike, so that every read is one of 16 bytes; and as columns, channels of the output that lie
// side by side.
#include "matrix_product.hpp"

namespace udse {
namespace gpu {

constexpr int conv_bins = 8, conv_frames = 16, conv_depth = 32, conv_threads = 128, most_sources = 4;
constexpr int halo_frames = conv_frames + 2, halo_positions = (conv_bins + 2) * halo_frames;
constexpr int packs_of_depth = conv_depth / 8;

// A map that is read, (B, F, T, C): SiLU(factor x + offset), or x where there is no factor.
struct Source {
  const void* values;
  const float *factor, *offset;  // (B, C), `stride` from one sample to the next
  const void* weights;           // (C / 32 rounded up, taps, columns, 32), taps from the first bin and frame on
  int64_t channels, stride;
  int32_t taps;  // 9, or 1: of 1x1
  bool packed;   // 8 channels can be read at once
};

// out = sum of the sources' convolutions + bias + factor residual
struct Convolution {
  Source sources[most_sources];
  int64_t source_count;
  Shape shape;                // of the maps
  int64_t channels, columns;  // of the output; with what it is rounded up to
  const void *bias, *residual;
  void* out;
  float* statistics;  // (3, B, rectangles, channels), or nullptr
  float factor;
  Dtype dtype;
  bool packed;  // 4 channels of output and residual can be read and written at once
};

// The 8 words of 16 bits that a lane reads at once: two registers of a fragment's rows 0, 1 and 8, 9, twice.
struct alignas(16) Words {
  std::uint32_t word[4];
};

UDSE_HD inline int rectangles(int64_t extent, int size) { return static_cast<int>((extent + size - 1) / size); }

// Where a block works.
struct Place {
  int sample, tile, bin, frame, column;
  __device__ Place(const Convolution& job, int block_columns) {
    const int across = rectangles(job.shape.frames, conv_frames),
              blocks = static_cast<int>(job.columns) / block_columns;
    const int block = static_cast<int>(blockIdx.x);
    sample = static_cast<int>(blockIdx.y);
    tile = block / blocks;
    column = block % blocks * block_columns;
    bin = tile / across * conv_bins;
    frame = tile % across * conv_frames;
  }
};

template <class T>
__device__ inline Words words_of(const Source& source, int position, int channel) {
  const T* from = static_cast<const T*>(source.values) + position * source.channels + channel;
  if (source.packed) return *reinterpret_cast<const Words*>(from);
  Words words{};
  for (int k = 0; k < 8 && channel + k < source.channels; ++k)
    words.word[k / 2] |= std::uint32_t{from[k].word} << 16 * (k % 2);
  return words;
}

template <class T>
__device__ inline Words activated(Words words, const float (&factor)[8], const float (&offset)[8]) {
  UDSE_UNROLL
  for (int k = 0; k < 8; ++k) {
    T number;
    number.word = static_cast<std::uint16_t>(words.word[k / 2] >> 16 * (k % 2));
    narrow(silu(factor[k] * widened(number) + offset[k]), number);
    const std::uint32_t kept = words.word[k / 2] & (k % 2 ? 0xffffu : 0xffff0000u);
    words.word[k / 2] = kept | std::uint32_t{number.word} << 16 * (k % 2);
  }
  return words;
}

// 32 channels of a source into shared memory, zeros where there is no map; the thread's 8 channels are the same in all
// positions.
template <class T>
__device__ inline void fill(const Convolution& job, const Source& source, const Place& place, int first, Words* halo) {
  const int pack = threadIdx.x % packs_of_depth, channel = first + pack * 8;
  const int bins = static_cast<int>(job.shape.bins), frames = static_cast<int>(job.shape.frames);
  const bool there = channel < source.channels, norm = source.factor;
  float factor[8] = {}, offset[8] = {};
  if (norm) {
    const int64_t row = place.sample * source.stride + channel;
    UDSE_UNROLL
    for (int k = 0; k < 8; ++k)
      if (channel + k < source.channels) factor[k] = source.factor[row + k], offset[k] = source.offset[row + k];
  }
  constexpr int step = conv_threads / packs_of_depth;
  UDSE_UNROLL_BY(3)
  for (int i = 0; i < (halo_positions + step - 1) / step; ++i) {
    const int position = static_cast<int>(threadIdx.x) / packs_of_depth + i * step;
    if (position >= halo_positions) break;
    const int bin = place.bin - 1 + position / halo_frames, frame = place.frame - 1 + position % halo_frames;
    Words words{};
    if (there && bin >= 0 && bin < bins && frame >= 0 && frame < frames) {
      words = words_of<T>(source, (place.sample * bins + bin) * frames + frame, channel);
      if (norm) words = activated<T>(words, factor, offset);
    }
    halo[position * packs_of_depth + pack] = words;
  }
}

// A warp makes 4 bins of 16 frames times 8 N columns: fragment m is a bin; fragment n of the lane's columns are
// 2 N t + 2 n and the next.
template <class T, int N>
struct WarpTile {
  int bin, column, g, t;  // of the rectangle; of the output
  float sums[4][N][4] = {};

  __device__ WarpTile(const Place& place) {
    const int thread = static_cast<int>(threadIdx.x), of_block = thread / warp, lane = thread % warp;
    bin = of_block / 2 * 4;
    column = place.column + of_block % 2 * 8 * N;
    g = lane / 4;
    t = lane % 4;
  }

  // The rows of the lane's columns, of weights (columns, 32)
  __device__ void read(const Words* rows, Words (&weights)[N]) const {
    UDSE_UNROLL
    for (int n = 0; n < N; ++n) weights[n] = rows[2 * n * packs_of_depth];
  }
  __device__ int first_row() const { return (column + g / 2 * 2 * N + g % 2) * packs_of_depth + t; }

  // `halo` from the tap's bin and frame on
  __device__ void add(const Words* halo, const Words (&weights)[N]) {
    UDSE_UNROLL
    for (int m = 0; m < 4; ++m) {
      const Words* row = halo + ((bin + m) * halo_frames + g) * packs_of_depth + t;
      const Words upper = row[0], lower = row[8 * packs_of_depth];
      UDSE_UNROLL
      for (int half = 0; half < 2; ++half) {
        const std::uint32_t a[] = {upper.word[2 * half], lower.word[2 * half], upper.word[2 * half + 1],
                                   lower.word[2 * half + 1]};
        UDSE_UNROLL
        for (int n = 0; n < N; ++n) multiply_accumulate(T{}, sums[m][n], a, &weights[n].word[2 * half]);
      }
    }
  }

  // Of the lane's number k of its 2 N columns at bin m, frame g + 8 r.
  __device__ float& at(int m, int r, int k) { return sums[m][k / 2][2 * r + k % 2]; }
  __device__ int channel() const { return column + 2 * N * t; }
};

// 4 channels, read and written at once if they lie so
template <class T>
struct Four {
  const Convolution& job;
  int channel;
  __device__ int count() const {
    const int left = static_cast<int>(job.channels) - channel;
    return left < 0 ? 0 : left < 4 ? left : 4;
  }
  __device__ Pack<T, 4> read(const void* map, int position) const {
    const T* from = static_cast<const T*>(map) + position * job.channels + channel;
    if (job.packed) return *reinterpret_cast<const Pack<T, 4>*>(from);
    Pack<T, 4> numbers{};
    for (int k = 0; k < count(); ++k) numbers.values[k] = from[k];
    return numbers;
  }
  __device__ void write(int position, const Pack<T, 4>& numbers) const {
    T* to = static_cast<T*>(job.out) + position * job.channels + channel;
    if (job.packed) {
      *reinterpret_cast<Pack<T, 4>*>(to) = numbers;
    } else {
      for (int k = 0; k < count(); ++k) to[k] = numbers.values[k];
    }
  }
};

// Bias and residual are added, the sums are written, and are then as those who read them will see them.
template <class T, int N>
__device__ inline void finish(const Convolution& job, const Place& place, WarpTile<T, N>& tile) {
  const int bins = static_cast<int>(job.shape.bins), frames = static_cast<int>(job.shape.frames);
  UDSE_UNROLL
  for (int k = 0; k < 2 * N; k += 4) {
    const Four<T> four{job, tile.channel() + k};
    if (four.count() == 0) continue;
    float bias[4];
    UDSE_UNROLL
    for (int i = 0; i < 4; ++i) bias[i] = i < four.count() ? element<T>(job.bias, four.channel + i) : 0;
    UDSE_UNROLL
    for (int m = 0; m < 4; ++m) {
      UDSE_UNROLL
      for (int r = 0; r < 2; ++r) {
        const int bin = place.bin + tile.bin + m, frame = place.frame + tile.g + 8 * r;
        if (bin >= bins || frame >= frames) continue;
        const int position = (place.sample * bins + bin) * frames + frame;
        Pack<T, 4> numbers{};
        if (job.residual) numbers = four.read(job.residual, position);
        UDSE_UNROLL
        for (int i = 0; i < 4; ++i) {
          float& sum = tile.at(m, r, k + i);
          if (job.residual) sum += job.factor * widened(numbers.values[i]);
          narrow(sum + bias[i], numbers.values[i]);
          sum = widened(numbers.values[i]);
        }
        four.write(position, numbers);
      }
    }
  }
}

__device__ inline float sum_of_rows(float x) {
  for (int lanes = 4; lanes < warp; lanes *= 2) x += __shfl_xor_sync(0xffffffff, x, lanes);
  return x;
}

// Count, sum and centred sum of squares of every channel in the rectangle: of each warp's half of it by two passes over
// the numbers, which are still there, then of both (Chan, Golub, LeVeque 1983).
template <class T, int N>
__device__ inline void measure(const Convolution& job, const Place& place, WarpTile<T, N>& tile) {
  __shared__ float parts[2][2][16 * N];  // halves; sums and squares; channels of the block
  const int left_bins = static_cast<int>(job.shape.bins) - place.bin;
  const int left_frames = static_cast<int>(job.shape.frames) - place.frame;
  const int frames = left_frames < conv_frames ? left_frames : conv_frames;
  const auto bins_of = [&](int first) {
    const int left = left_bins - first;
    return left < 0 ? 0 : left < 4 ? left : 4;
  };
  const int bins = bins_of(tile.bin), half = tile.bin / 4, column = tile.channel() - place.column;
  const float inverse_count = bins ? 1 / static_cast<float>(bins * frames) : 0;
  UDSE_UNROLL
  for (int k = 0; k < 2 * N; ++k) {
    float sum = 0, squares = 0;
    UDSE_UNROLL
    for (int m = 0; m < 4; ++m) {
      UDSE_UNROLL
      for (int r = 0; r < 2; ++r) sum += m < bins && tile.g + 8 * r < frames ? tile.at(m, r, k) : 0;
    }
    sum = sum_of_rows(sum);
    const float mean = sum * inverse_count;
    UDSE_UNROLL
    for (int m = 0; m < 4; ++m) {
      UDSE_UNROLL
      for (int r = 0; r < 2; ++r) squares += m < bins && tile.g + 8 * r < frames ? square(tile.at(m, r, k) - mean) : 0;
    }
    squares = sum_of_rows(squares);
    if (tile.g == 0) parts[half][0][column + k] = sum, parts[half][1][column + k] = squares;
  }
  __syncthreads();
  const int channel = place.column + static_cast<int>(threadIdx.x);
  if (static_cast<int>(threadIdx.x) >= 16 * N || channel >= job.channels) return;
  const auto upper = static_cast<float>(bins_of(0) * frames), lower = static_cast<float>(bins_of(4) * frames);
  const auto& [of_upper, of_lower] = parts;
  const float sum = of_upper[0][threadIdx.x] + of_lower[0][threadIdx.x], all = upper + lower;
  float squares = of_upper[1][threadIdx.x] + of_lower[1][threadIdx.x];
  if (lower > 0) {
    const float distance = of_lower[0][threadIdx.x] / lower - of_upper[0][threadIdx.x] / upper;
    squares += square(distance) * upper * lower / all;
  }
  const int tiles = rectangles(job.shape.bins, conv_bins) * rectangles(job.shape.frames, conv_frames);
  const int64_t plane = job.shape.samples * tiles * job.channels;
  float* const to = job.statistics + (static_cast<int64_t>(place.sample) * tiles + place.tile) * job.channels + channel;
  to[0] = sum;
  to[plane] = squares;
  to[2 * plane] = all;
}

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 860
constexpr int blocks_at_once = 2;  // of a multiprocessor: here three would keep registers in memory
#else
constexpr int blocks_at_once = 3;
#endif

template <class T, int N>
__global__ void __launch_bounds__(conv_threads, blocks_at_once) convolution_kernel(Convolution job) {
  __shared__ Words halo[halo_positions * packs_of_depth];
  static_assert(16 * N <= conv_threads, "a thread for every channel");
  const Place place(job, 16 * N);
  WarpTile<T, N> tile(place);
  const int of_tap = static_cast<int>(job.columns) * packs_of_depth;
  for (int s = 0; s < job.source_count; ++s) {
    const Source& source = job.sources[s];
    const Words* rows = static_cast<const Words*>(source.weights) + tile.first_row();
    for (int channel = 0; channel < static_cast<int>(source.channels); channel += conv_depth) {
      __syncthreads();  // all have read what was there before
      fill<T>(job, source, place, channel, halo);
      Words weights[N], next[N];
      tile.read(rows, next);
      __syncthreads();
      UDSE_UNROLL_BY(1)
      for (int tap = 0; tap < source.taps; ++tap) {
        UDSE_UNROLL
        for (int n = 0; n < N; ++n) weights[n] = next[n];
        rows += of_tap;
        if (tap + 1 < source.taps) tile.read(rows, next);
        const int at = source.taps == 1 ? halo_frames + 1 : tap / 3 * halo_frames + tap % 3;
        tile.add(halo + at * packs_of_depth, weights);
      }
    }
  }
  finish(job, place, tile);
  if (job.statistics) measure(job, place, tile);
}

template <class T, int N>
static const char* convolve(const Convolution& job, Stream stream) {
  const int64_t tiles = int64_t{rectangles(job.shape.bins, conv_bins)} * rectangles(job.shape.frames, conv_frames);
  const dim3 grid(static_cast<unsigned>(tiles * (job.columns / (16 * N))), static_cast<unsigned>(job.shape.samples));
  if (!tiles || !job.shape.samples) return nullptr;
  return launch(convolution_kernel<T, N>, grid, conv_threads, stream, job);
}

template <class T>
static const char* convolve(const Convolution& job, Stream stream) {
  if (job.columns % 96 == 0) return convolve<T, 6>(job, stream);
  return job.columns % 64 == 0 ? convolve<T, 4>(job, stream) : convolve<T, 2>(job, stream);
}

UDSE_EXPORT const char* udse_cuda_convolution(const Convolution* job, Stream stream) {
  if (job->columns % 32 || job->columns < job->channels || job->source_count > most_sources || job->dtype == float32)
    return "expected columns in 32s, at most 4 maps, 16 bits";
  return job->dtype == float16 ? convolve<Half>(*job, stream) : convolve<BFloat16>(*job, stream);
}

UDSE_EXPORT int64_t udse_cuda_size_of_convolution() { return sizeof(Convolution); }

}  // namespace gpu
}  // namespace udse
