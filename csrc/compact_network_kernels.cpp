// Compiled once per instruction set into the namespace UDSE_ISA; as in kernel_rows.hpp, only code of the anonymous
// namespace is called.
#include "compact_network_kernels.hpp"

#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace udse {
namespace UDSE_ISA {
namespace {

using std::int64_t;

// The largest tile of outputs whose sums stay in registers: rows by number of panels
#if defined(__AVX512F__)
constexpr int lanes = 16;
constexpr int most_rows[] = {0, 12, 12, 8, 6};
#elif defined(__AVX2__)
constexpr int lanes = 8;
constexpr int most_rows[] = {0, 6};
#else
constexpr int lanes = 4;  // floats of a vector
constexpr int most_rows[] = {0, 2};
#endif
constexpr int most_panels = sizeof most_rows / sizeof *most_rows - 1;
constexpr int vectors = panel / lanes;  // of a panel

typedef float Vector __attribute__((vector_size(4 * lanes)));
typedef std::uint32_t Integers __attribute__((vector_size(4 * lanes)));
#define UDSE_UNROLL _Pragma("GCC unroll 16")  // loops over the vectors of a tile

inline Vector load(const float* p) {
  Vector v;
  __builtin_memcpy(&v, p, sizeof v);
  return v;
}

#if !defined(__AVX2__)
// A half as a float: exponents of 15 and 127, mantissas of 10 and 23 bits, denormals in units of 2^-24
inline float widened(Half half) {
  const std::uint32_t magnitude = half & 0x7fffu, sign = (half & 0x8000u) << 16;
  const float denormal = static_cast<float>(magnitude) * 0x1p-24f;
  std::uint32_t bits;
  __builtin_memcpy(&bits, &denormal, sizeof bits);
  if (magnitude >= 0x400u) bits = (magnitude << 13) + (112u << 23);
  bits |= sign;
  float value;
  __builtin_memcpy(&value, &bits, sizeof value);
  return value;
}
#endif

// `lanes` halves; denormals stay what they are, whether or not the processor takes those of 32 bits for 0
inline Vector load(const Half* p) {
#if defined(__AVX512F__)
  return (Vector)_mm512_maskz_cvtph_ps(0xffff, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
#elif defined(__AVX2__)
  return (Vector)_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
#else
  Vector v;
  for (int i = 0; i < lanes; ++i) v[i] = widened(p[i]);
  return v;
#endif
}

inline void store(const Vector& v, float* p) { __builtin_memcpy(p, &v, sizeof v); }

inline Vector all(float x) { return x - Vector{}; }

inline Vector limited(const Vector& v, float least, float most) {
  const Vector low = v < all(least) ? all(least) : v;
  return low > all(most) ? all(most) : low;
}

inline Vector root(Vector v) {
  UDSE_UNROLL
  for (int i = 0; i < lanes; ++i) v[i] = __builtin_sqrtf(v[i]);
  return v;
}

inline float total(const Vector& v) {
  float sum = 0;
  for (int i = 0; i < lanes; ++i) sum += v[i];
  return sum;
}

// e^x = 2^n e^r, |r| <= ln(2) / 2, relative error 2e-7; x is limited to what a float holds
inline Vector exp(const Vector& v) {
  const Vector x = limited(v, -87.f, 88.f);
  const Vector shifted = x * 1.44269504f + 0x1.8p23f;  // adding 3/2 2^23 leaves the integer n in the low bits
  const Vector n = shifted - 0x1.8p23f;
  const Vector r = (x - n * 0.693145752f) - n * 1.42860677e-6f;
  Vector p = all(1.f / 720);
  p = p * r + 1.f / 120;
  p = p * r + 1.f / 24;
  p = p * r + 1.f / 6;
  p = p * r + 0.5f;
  p = p * r + 1;
  p = p * r + 1;
  return (Vector)((Integers)p + ((Integers)shifted << 23));
}

inline Vector sigmoid(const Vector& x) { return 1 / (1 + exp(-x)); }
inline Vector silu(const Vector& x) { return x / (1 + exp(-x)); }

inline Vector finished(const Vector& y, const float* out, Finish finish) {
  if (finish == Finish::add) return load(out) + y;
  return finish == Finish::silu ? silu(y) : y;
}

// R rows by P panels of outputs
template <int P, int R, class Number>
void tile(const Convolution& c, const Number* weights, int64_t taps, int64_t first_panel, const float* in,
          const Windows& windows, float* out, int64_t out_row, Finish finish) {
  const int64_t window = c.window, row = windows.row, next = c.taps * window * panel;
  weights += first_panel * next;
  Vector sum[R][P][vectors];
  UDSE_UNROLL
  for (int r = 0; r < R; ++r) UDSE_UNROLL
  for (int p = 0; p < P; ++p) UDSE_UNROLL
  for (int v = 0; v < vectors; ++v)
    sum[r][p][v] = c.bias ? load(c.bias + (first_panel + p) * panel + v * lanes) : Vector{};
  for (int64_t tap = 0; tap < taps; ++tap, in += windows.tap, weights += window * panel) {
    const Number* w = weights;
    for (int64_t k = 0; k < window; ++k, w += panel) {
      Vector b[P][vectors];
      UDSE_UNROLL
      for (int p = 0; p < P; ++p) UDSE_UNROLL
      for (int v = 0; v < vectors; ++v) b[p][v] = load(w + p * next + v * lanes);
      UDSE_UNROLL
      for (int r = 0; r < R; ++r) {
        const Vector a = all(in[r * row + k]);
        UDSE_UNROLL
        for (int p = 0; p < P; ++p) UDSE_UNROLL
        for (int v = 0; v < vectors; ++v) sum[r][p][v] += a * b[p][v];
      }
    }
  }
  UDSE_UNROLL
  for (int r = 0; r < R; ++r) UDSE_UNROLL
  for (int p = 0; p < P; ++p) UDSE_UNROLL
  for (int v = 0; v < vectors; ++v) {
    float* const to = out + r * out_row + p * panel + v * lanes;
    store(finished(sum[r][p][v], to, finish), to);
  }
}

template <int P, int R = 1>
void tile_of(int rows, const Convolution& c, int64_t taps, int64_t first_panel, const float* in, const Windows& windows,
             float* out, int64_t out_row, Finish finish) {
  if constexpr (R < most_rows[P])
    if (rows > R) return tile_of<P, R + 1>(rows, c, taps, first_panel, in, windows, out, out_row, finish);
  if (c.weights) return tile<P, R>(c, c.weights, taps, first_panel, in, windows, out, out_row, finish);
  tile<P, R>(c, c.halves, taps, first_panel, in, windows, out, out_row, finish);
}

// `panels` of output channels from `first_panel` on
template <int P = 1>
void convolve_panels(int panels, const Convolution& c, int64_t first_panel, const Windows& windows, int64_t frames,
                     int64_t rows, bool next_ends, const Rows& out, Finish finish) {
  if constexpr (P < most_panels)
    if (panels > P)
      return convolve_panels<P + 1>(panels, c, first_panel, windows, frames, rows, next_ends, out, finish);
  const int64_t tiles = (rows + most_rows[P] - 1) / most_rows[P];
  for (int64_t t = 0; t < frames; ++t) {
    const int64_t taps = c.taps - (next_ends && t == frames - 1);
    for (int64_t i = 0; i < tiles; ++i) {
      const int64_t r = rows * i / tiles, end = rows * (i + 1) / tiles;
      tile_of<P>(static_cast<int>(end - r), c, taps, first_panel, windows.first + t * windows.frame + r * windows.row,
                 windows, out.first + t * out.frame + r * out.row + first_panel * panel, out.row, finish);
    }
  }
}

void convolve(const Convolution& c, const Windows& windows, int64_t frames, int64_t rows, bool next_ends,
              const Rows& out, Finish finish) {
  // few rows: all of them in one tile, so that each weight is read once
  int64_t together = most_panels;
  while (together > 1 && rows > most_rows[together]) --together;
  if (rows > most_rows[together]) together = most_panels;
  const int64_t groups = (c.panels + together - 1) / together;
  for (int64_t i = 0; i < groups; ++i) {
    const int64_t first = c.panels * i / groups, end = c.panels * (i + 1) / groups;
    convolve_panels(static_cast<int>(end - first), c, first, windows, frames, rows, next_ends, out, finish);
  }
}

void band_sums(const float* in, int64_t tiles, int64_t channels, float* out) {
  const int64_t next = tiles * channels;
  for (int64_t tile = 0; tile < tiles; ++tile, in += tile_bands * channels, out += channels)
    for (int64_t c = 0; c < channels; c += lanes) {
      Vector d[points];
      UDSE_UNROLL
      for (int i = 0; i < points; ++i) d[i] = load(in + i * channels + c);
      const Vector even = d[4] - 4 * d[2], odd = d[3] - 4 * d[1], low = d[4] - d[2], twice = 2 * (d[3] - d[1]);
      store(4 * (d[0] - d[2]) + low, out + c);
      store(even + odd, out + next + c);
      store(even - odd, out + 2 * next + c);
      store(low + twice, out + 3 * next + c);
      store(low - twice, out + 4 * next + c);
      store(4 * (d[1] - d[3]) + (d[5] - d[3]), out + 5 * next + c);
    }
}

void from_products(const float* products, const float* bias, int64_t frames, int64_t tiles, int64_t channels,
                   const Rows& out, Finish finish) {
  const int64_t next = frames * tiles * channels;
  for (int64_t t = 0; t < frames; ++t)
    for (int64_t tile = 0; tile < tiles; ++tile, products += channels)
      for (int64_t c = 0; c < channels; c += lanes) {
        Vector m[points];
        UDSE_UNROLL
        for (int i = 0; i < points; ++i) m[i] = load(products + i * next + c);
        const Vector sum1 = m[1] + m[2], difference1 = m[1] - m[2], sum2 = m[3] + m[4], difference2 = m[3] - m[4];
        const Vector y[tile_bands] = {m[0] + sum1 + sum2, difference1 + 2 * difference2, sum1 + 4 * sum2,
                                      difference1 + 8 * difference2 + m[5]};
        UDSE_UNROLL
        for (int i = 0; i < tile_bands; ++i) {
          float* const to = out.first + t * out.frame + (tile * tile_bands + i) * out.row + c;
          store(finished(y[i] + load(bias + c), to, finish), to);
        }
      }
}

void norm_film_silu(const Norm& a) {
  const float count = static_cast<float>(a.bands * a.channels);
  const int64_t size = a.bands * a.padded;
  Vector present[vectors];  // of the last panel of channels
  for (int v = 0; v < vectors; ++v)
    for (int i = 0; i < lanes; ++i) present[v][i] = a.padded - panel + v * lanes + i < a.channels;
  for (int64_t t = 0; t < a.frames; ++t) {
    const float* const in = a.in + t * a.in_frame;
    float* const out = a.out + t * a.out_frame;
    const float *const gain = a.gain + t * a.gain_frame, *const shift = a.shift + t * a.gain_frame;
    Vector sum[vectors] = {};
    for (int64_t i = 0; i < size; i += panel) UDSE_UNROLL
    for (int v = 0; v < vectors; ++v) sum[v] += load(in + i + v * lanes);
    for (int v = 1; v < vectors; ++v) sum[0] += sum[v];
    const Vector mean = all(total(sum[0]) / count);
    Vector squares[vectors] = {};
    for (int64_t band = 0; band < size; band += a.padded) {
      for (int64_t i = 0; i < a.padded - panel; i += panel) UDSE_UNROLL
      for (int v = 0; v < vectors; ++v) {
        const Vector d = load(in + band + i + v * lanes) - mean;
        squares[v] += d * d;
      }
      UDSE_UNROLL
      for (int v = 0; v < vectors; ++v) {
        const Vector d = (load(in + band + a.padded - panel + v * lanes) - mean) * present[v];
        squares[v] += d * d;
      }
    }
    for (int v = 1; v < vectors; ++v) squares[0] += squares[v];
    const Vector scale = all(1 / __builtin_sqrtf(total(squares[0]) / count + 1e-4f));
    for (int64_t band = 0; band < size; band += a.padded)
      for (int64_t i = 0; i < a.padded; i += lanes) {
        const Vector x = (load(in + band + i) - mean) * scale;
        store(silu(x * load(gain + i) + load(shift + i)), out + band + i);
      }
  }
}

void silu(const float* x, int64_t n, float* out) {
  for (int64_t i = 0; i < n; i += lanes) store(silu(load(x + i)), out + i);
}

// D = sum of w_k u_k over the bin itself and its neighbours, plus sqrt(unsure) F; see `Compact`
void clean_and_variance(const Answer& a, int64_t f, float* results) {
  constexpr int neighbours[9][2] = {{0, 0}, {-1, 0}, {1, 0}, {0, -1}, {0, 1}, {-1, -1}, {-1, 1}, {1, -1}, {1, 1}};
  const int64_t F = a.padded;
  const float* const numbers = a.scratch + f;
  const Vector unsure = load(a.unsure + f), spread = root(unsure);
  Vector clean[2] = {spread * load(numbers + 18 * F), spread * load(numbers + 19 * F)};
  UDSE_UNROLL
  for (int k = 0; k < 9; ++k) {
    const int64_t at = neighbours[k][0] * a.frame + neighbours[k][1] + f;
    const Vector u[2] = {load(a.real + at), load(a.imaginary + at)};
    const Vector given = load(numbers + k * F),
                 w[2] = {k == 0 ? sigmoid(load(a.own + f) + 4 * given) : given, load(numbers + (9 + k) * F)};
    clean[0] += w[0] * u[0] - w[1] * u[1];
    clean[1] += w[0] * u[1] + w[1] * u[0];
  }
  store(clean[0], results + f);
  store(clean[1], results + F + f);
  store(unsure * exp(limited(2 * load(numbers + 20 * F), -12, 6)), results + 2 * F + f);
}

// The noise between what there is and what was told, and the gain for the ear; see `CompactPosterior`
void noise_and_heard(const Answer& a, int64_t f, float* results) {
  constexpr float log_quietest = -23.0258509f, log_loudest = 5;
  const int64_t F = a.padded;
  const float* const numbers = a.scratch + f;
  const Vector of_mixture = sigmoid(4 * load(numbers + 21 * F));
  const Vector log_noise = of_mixture * load(a.log_power + f) + (1 - of_mixture) * load(a.log_given + f);
  const Vector gain = exp(limited(2 * load(numbers + 23 * F), -6, 2));
  store(exp(limited(log_noise + 4 * load(numbers + 22 * F), log_quietest, log_loudest)), results + 3 * F + f);
  store(gain * load(results + f), results + 4 * F + f);
  store(gain * load(results + F + f), results + 5 * F + f);
}

void answer(const Answer& a) {
  const int64_t F = a.padded;
  for (int64_t k = 0; k < a.outputs; ++k)
    for (int64_t band = 0; band * a.stem < a.bins; ++band)
      for (int64_t s = 0; s < a.stem; ++s)
        a.scratch[k * F + band * a.stem + s] = a.numbers[band * a.row + k * a.stem + s];
  float* const results = a.scratch + a.outputs * F;
  for (int64_t f = 0; f < F; f += lanes) {
    clean_and_variance(a, f, results);
    if (a.believed) noise_and_heard(a, f, results);
  }
  const auto give = [&](const float* from, cfloat* to) {
    for (int64_t f = 0; f < a.bins; ++f) {
      float* const parts = reinterpret_cast<float*>(to + f * a.step);
      parts[0] = from[f];
      parts[1] = from[F + f];
    }
  };
  give(results, a.clean);
  for (int64_t f = 0; f < a.bins; ++f) a.variance[f * a.step] = results[2 * F + f];
  if (!a.believed) return;
  for (int64_t f = 0; f < a.bins; ++f) a.believed[f * a.step] = results[3 * F + f];
  give(results + 4 * F, a.heard);
}

}  // namespace

const NetworkKernels network_kernels = {lanes >= 8, convolve, band_sums, from_products, norm_film_silu, silu, answer};

}  // namespace UDSE_ISA
}  // namespace udse
