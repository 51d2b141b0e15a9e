// The CUDA kernels, executed by the emulation: what the emulation itself finds, then every entry point against the
// CPU's core or sums in double precision, on memory of exactly the size it has to be (built with AddressSanitizer by
// ../run_sanitizers.sh).
#include <algorithm>
#include <cmath>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "../../kernels/complex_normal/complex_normal.cu"
#include "../../kernels/compression/compression.cu"
#include "../../kernels/convolution/convolution.cu"
#include "../../kernels/fused_layers/fused_layers.cu"
#include "../../kernels/nmf_is/nmf_is.cu"
#include "../../kernels/posterior_step/posterior_step.cu"
#include "../../kernels/predictor_corrector/predictor_corrector.cu"
#include "checking.hpp"

namespace gpu = udse::gpu;
using std::int64_t;
using udse::cfloat;

namespace {

std::mt19937 generator(1);

float normal() { return std::normal_distribution<float>()(generator); }

std::vector<cfloat> spectrogram(std::size_t n) {
  std::vector<cfloat> z(n);
  for (auto& value : z) value = {normal(), normal()};
  return z;
}

std::vector<float> positive(std::size_t n) {
  std::vector<float> a(n);
  for (auto& value : a) value = std::fabs(normal()) + 0.05f;
  return a;
}

template <class T>
bool close(const std::vector<T>& a, const std::vector<T>& b, double tolerance = 5e-6) {
  double difference = 0, largest = 1;
  for (std::size_t i = 0; i < a.size(); ++i) {
    largest = std::max<double>(largest, std::abs(b[i]));
    difference = std::max<double>(difference, std::isnan(std::abs(a[i])) ? HUGE_VAL : std::abs(a[i] - b[i]));
  }
  return a.size() == b.size() && difference <= tolerance * largest;
}

// -- the emulation ----------------------------------------------------------------------------------------------------

void reversed_kernel(const float* x, float* y) {
  __shared__ float kept[96];
  kept[threadIdx.x] = x[blockIdx.x * blockDim.x + threadIdx.x];
  __syncthreads();
  y[blockIdx.x * blockDim.x + threadIdx.x] = kept[blockDim.x - 1 - threadIdx.x];
}

void some_leave_kernel() {
  if (threadIdx.x < 40) return;
  __syncthreads();
}

void half_a_warp_kernel() {
  if (threadIdx.x % 32 < 16) __shfl_xor_sync(0xffffffff, 1, 1);
}

bool reverses() {
  const auto x = positive(3 * 96);
  std::vector<float> y(x.size());
  CHECK(!gpu::launch(reversed_kernel, 3, 96, nullptr, static_cast<const float*>(x.data()), y.data()));
  for (int i = 0; i < 96; ++i)
    if (y[96 + i] != x[96 + 95 - i]) return false;
  return true;
}

// Sums of block-wide reductions, as `reduce` makes them.
struct Sum {
  const float* x;
  int64_t length;
  float* sums;
  void term(int64_t item, int64_t j, float* s) const {
    s[0] += x[item * length + j];
    s[1] += udse::gpu::square(x[item * length + j]);
  }
  void finish(int64_t item, const float* s, int part, int parts) const {
    for (int k = part; k < 2; k += parts) sums[2 * item + k] = s[k];
  }
};

bool sums(int64_t length) {
  const int64_t items = 5;
  const auto x = positive(items * length);
  std::vector<float> result(2 * items, NAN), expected;
  for (int64_t i = 0; i < items; ++i) {
    double sum = 0, squares = 0;
    for (int64_t j = 0; j < length; ++j) sum += x[i * length + j];
    for (int64_t j = 0; j < length; ++j) squares += std::pow(x[i * length + j], 2);
    expected.push_back(static_cast<float>(sum));
    expected.push_back(static_cast<float>(squares));
  }
  CHECK(!gpu::reduce<2>(items, length, nullptr, Sum{x.data(), length, result.data()}));
  return close(result, expected);
}

void test_emulation() {
  CHECK(reverses());
  for (const int64_t length : {0, 1, 31, 33, 127, 128, 1000}) CHECK(sums(length));
  udse::emulation::device().barriers = false;
  CHECK(!reverses());
  CHECK(!sums(1000));
  udse::emulation::device().barriers = true;
  CHECK(std::strstr(gpu::launch(some_leave_kernel, 1, 64, nullptr), "before a barrier"));
  CHECK(std::strstr(gpu::launch(half_a_warp_kernel, 1, 64, nullptr), "not all lanes"));
  CHECK(gpu::launch(some_leave_kernel, 1, 1025, nullptr));
  CHECK(gpu::launch(some_leave_kernel, dim3(1, 65536), 32, nullptr));
  CHECK(reverses());  // it goes on after errors
}

// A product of matrices whose fragments are made and read by the layout of the PTX ISA, in its own words: for A of
// m16n8k16, row = groupID for ai where i = 0, 1, 4, 5 else groupID + 8; col = threadID * 2 + (i & 1), + 8 for i >= 4.
// For B, row = threadID * 2 + (i & 1), + 8 for i >= 2; col = groupID. For C, row = groupID for i < 2 else groupID + 8;
// col = threadID * 2 + (i & 1).
struct Matrices {
  std::uint16_t a[16][16], b[16][8];
  float c[16][8];
};

template <class T>
void product_kernel(Matrices* m) {
  const int group = static_cast<int>(threadIdx.x) >> 2, in_group = static_cast<int>(threadIdx.x) % 4;
  std::uint32_t a[4] = {}, b[2] = {};
  float c[4];
  for (int i = 0; i < 8; ++i) {
    const int row = i % 4 < 2 ? group : group + 8, column = in_group * 2 + (i & 1) + (i >= 4 ? 8 : 0);
    a[i / 2] |= std::uint32_t{m->a[row][column]} << 16 * (i & 1);
  }
  for (int i = 0; i < 4; ++i)
    b[i / 2] |= std::uint32_t{m->b[in_group * 2 + (i & 1) + (i >= 2 ? 8 : 0)][group]} << 16 * (i & 1);
  for (int i = 0; i < 4; ++i) c[i] = m->c[i < 2 ? group : group + 8][in_group * 2 + (i & 1)];
  gpu::multiply_accumulate(T{}, c, a, b);
  for (int i = 0; i < 4; ++i) m->c[i < 2 ? group : group + 8][in_group * 2 + (i & 1)] = c[i];
}

template <class T>
void test_matrix_product(int capability) {
  Matrices m;
  double expected[16][8];
  const auto number = [](std::uint16_t& word) {
    T rounded;
    gpu::narrow(normal(), rounded);
    word = rounded.word;
  };
  for (auto& row : m.a)
    for (auto& word : row) number(word);
  for (auto& row : m.b)
    for (auto& word : row) number(word);
  const auto of = [](std::uint16_t word) {
    T value;
    value.word = word;
    return static_cast<double>(gpu::widened(value));
  };
  for (int i = 0; i < 16; ++i)
    for (int j = 0; j < 8; ++j) {
      expected[i][j] = m.c[i][j] = normal();
      for (int k = 0; k < 16; ++k) expected[i][j] += of(m.a[i][k]) * of(m.b[k][j]);
    }
  udse::emulation::device().capability = capability;
  CHECK(!gpu::launch(product_kernel<T>, 1, 32, nullptr, &m));
  udse::emulation::device().capability = 80;
  for (int i = 0; i < 16; ++i)
    for (int j = 0; j < 8; ++j) CHECK(std::fabs(m.c[i][j] - expected[i][j]) < 1e-5);
}

// -- updates, noise, compression, NMF ---------------------------------------------------------------------------------

struct Results {
  std::vector<cfloat> next, other_next;
  std::vector<float> power;
};

template <class Update>
Results of(udse::Step step, const Update& update) {
  const std::size_t plane = step.shape.bins * step.shape.frames, size = step.shape.samples * plane;
  Results r{std::vector<cfloat>(size), std::vector<cfloat>(size), std::vector<float>(plane)};
  step.next = r.next.data();
  step.other_next = r.other_next.data();
  step.power = r.power.data();
  update(step);
  return r;
}

void test_updates(udse::Shape shape, int64_t rank) {
  const std::size_t plane = shape.bins * shape.frames, size = shape.samples * plane;
  const auto s = spectrogram(size), S = spectrogram(size), n = spectrogram(size), N = spectrogram(size),
             z = spectrogram(size), x = spectrogram(plane);
  const auto W = positive(shape.bins * rank), H = positive(rank * shape.frames), C = positive(size);
  udse::Step step;
  step.shape = shape;
  step.state = s.data();
  step.score = S.data();
  step.other_state = n.data();
  step.other_score = N.data();
  step.mixture = x.data();
  step.variance = {nullptr, W.data(), H.data(), rank};
  step.posterior_variance = C.data();
  step.coefficients = {1.5f, 0.6f, 0.25f, 0.5f, 0.04f};
  step.following = {1.5f, 0.7f, 0.2f, 0.5f, 0.04f};
  step.guidance = 1.5f;
  step.observation_variance = 1e-3f;
  step.eta = 0.3f;
  step.noise = udse::Noise(udse::NoiseKey{7, udse::predictor_speech, 3, (std::uint64_t{1} << 32) - 2, 1});
  step.other_noise = udse::Noise(z.data());
  struct Pair {
    void (*core)(const udse::Step&, int);
    const char* (*kernel)(const udse::Step*, gpu::Stream);
    bool writes_next, writes_other, writes_power;
  };
  const Pair pairs[] = {
      {udse::corrector, gpu::udse_cuda_corrector, true, false, false},
      {udse::predictor, gpu::udse_cuda_predictor, true, false, false},
      {udse::marginal_guidance, gpu::udse_cuda_marginal_guidance, true, false, true},
      {udse::product_of_gaussians, gpu::udse_cuda_product_of_gaussians, true, false, true},
      {udse::noise_posterior_guidance, gpu::udse_cuda_noise_posterior_guidance, true, true, true},
      {udse::predictor_residual, gpu::udse_cuda_predictor_residual, true, true, false},
      {udse::score_noise_guidance, gpu::udse_cuda_score_noise_guidance, true, false, false},
      {udse::joint_guidance, gpu::udse_cuda_joint_guidance, true, true, false},
      {udse::unexplained_power, gpu::udse_cuda_unexplained_power, false, false, true},
      {udse::ddrm_step, gpu::udse_cuda_ddrm_step, true, false, false},
      {udse::posterior_mean, gpu::udse_cuda_posterior_mean, true, false, false},
  };
  for (const Pair& pair : pairs) {
    const Results expected = of(step, [&](const udse::Step& a) { pair.core(a, 1); });
    const Results results = of(step, [&](udse::Step a) {
      if (!pair.writes_next) a.next = nullptr;
      if (!pair.writes_other) a.other_next = nullptr;
      if (!pair.writes_power) a.power = nullptr;
      CHECK(!pair.kernel(&a, nullptr));
    });
    if (pair.writes_next) CHECK(close(results.next, expected.next));
    if (pair.writes_other) CHECK(close(results.other_next, expected.other_next));
    if (pair.writes_power) CHECK(close(results.power, expected.power));
  }
}

void test_noise_and_compression() {
  const udse::Shape shape{3, 5, 67};
  const udse::NoiseKey key{11, udse::dither, 2, 5, 1};
  std::vector<cfloat> drawn(3 * 5 * 67), expected(drawn.size());
  CHECK(!gpu::udse_cuda_complex_normal(&key, &shape, drawn.data(), nullptr));
  udse::complex_normal(key, shape, expected.data());
  CHECK(close(drawn, expected));
  const auto n = static_cast<int64_t>(drawn.size());
  std::vector<cfloat> there(drawn.size()), back(drawn.size());
  CHECK(!gpu::udse_cuda_compress(drawn.data(), n, 0.5f, 0.15f, there.data(), nullptr));
  CHECK(!gpu::udse_cuda_decompress(there.data(), n, 0.5f, 0.15f, back.data(), nullptr));
  udse::compress(drawn.data(), n, 0.5f, 0.15f, expected.data());
  CHECK(close(there, expected));
  CHECK(close(back, drawn));
}

void test_nmf(int64_t bins, int64_t frames, int64_t rank) {
  const auto power = positive(bins * frames);
  auto W = positive(bins * rank), H = positive(rank * frames), A = positive(bins * rank), B = positive(bins * rank);
  auto expected_W = W, expected_H = H, expected_A = A, expected_B = B;
  const udse::NMF nmf{bins, frames, rank, power.data(), W.data(), H.data()};
  const udse::NMF expected{bins, frames, rank, power.data(), expected_W.data(), expected_H.data()};
  CHECK(!gpu::udse_cuda_nmf_update(&nmf, 2, nullptr));
  udse::nmf_update(expected, 2);
  CHECK(close(W, expected_W) && close(H, expected_H));
  CHECK(!gpu::udse_cuda_online_nmf_update(&nmf, A.data(), B.data(), 0.9f, 2, nullptr));
  udse::online_nmf_update(expected, expected_A.data(), expected_B.data(), 0.9f, 2);
  CHECK(close(W, expected_W) && close(H, expected_H) && close(A, expected_A) && close(B, expected_B));
}

// -- layers -----------------------------------------------------------------------------------------------------------

// (B, N, C) numbers of a type, as they are after rounding; memory with an offset of so many numbers.
template <class T>
struct Numbers {
  std::vector<T> memory;
  T* values;
  Numbers(std::size_t size, float mean, std::size_t offset = 0)
      : memory(size + offset), values(memory.data() + offset) {
    for (std::size_t i = 0; i < size; ++i) gpu::narrow(mean + normal(), values[i]);
  }
  double operator[](std::size_t i) const { return gpu::widened(values[i]); }
};

gpu::Tiling tiling(int64_t samples, int64_t positions, int64_t length) {
  return {samples, positions, (positions + length - 1) / length, length};
}

template <class T>
bool near(double result, double expected, double scale) {
  return std::fabs(result - expected) <= (5e-6 + (sizeof(T) == 4 ? 0 : 5e-3)) * std::max(1.0, scale);
}

// [x, skip] of Cx and Cs channels in so many groups, with bias, FiLM and SiLU
template <class T>
void test_norm(gpu::Dtype dtype, int64_t Cx, int64_t Cs, int64_t groups, std::size_t offset) {
  const int64_t B = 2, N = 77, C = Cx + Cs, width = C / groups;
  Numbers<T> x(B * N * Cx, 20, offset), skip(B * N * Cs, -3), weight(C, 1), bias(C, 0), before(B * C, 0),
      scale(B * C, 1), shift(B * C, 0), out(B * N * C, 0);
  const gpu::Tiling tiles = tiling(B, N, 32);
  std::vector<float> of_x(3 * B * tiles.tiles * Cx), of_skip(3 * B * tiles.tiles * Cs), scratch(2 * B * C);
  const gpu::GroupNorm norm{{x.values, of_x.data(), Cx, tiles.tiles, false},
                            {Cs ? skip.values : nullptr, of_skip.data(), Cs, Cs ? tiles.tiles : 0, !Cs},
                            tiles,
                            weight.values,
                            bias.values,
                            before.values,
                            scale.values,
                            shift.values,
                            out.values,
                            scratch.data(),
                            groups,
                            C,
                            C,
                            1e-6f,
                            dtype,
                            true};
  CHECK(!gpu::udse_cuda_norm_film_silu(&norm, nullptr));
  for (int64_t b = 0; b < B; ++b)
    for (int64_t g = 0; g < groups; ++g) {
      const auto at = [&](int64_t n, int64_t c) {
        return (c < Cx ? x[(b * N + n) * Cx + c] : skip[(b * N + n) * Cs + c - Cx]) + before[b * C + c];
      };
      double mean = 0, square = 0;
      for (int64_t n = 0; n < N; ++n)
        for (int64_t c = g * width; c < (g + 1) * width; ++c) mean += at(n, c) / static_cast<double>(N * width);
      for (int64_t n = 0; n < N; ++n)
        for (int64_t c = g * width; c < (g + 1) * width; ++c)
          square += (at(n, c) - mean) * (at(n, c) - mean) / static_cast<double>(N * width);
      for (int64_t n = 0; n < N; ++n)
        for (int64_t c = g * width; c < (g + 1) * width; ++c) {
          double y = (at(n, c) - mean) / std::sqrt(square + 1e-6) * weight[c] + bias[c];
          y = y * scale[b * C + c] + shift[b * C + c];
          CHECK(near<T>(out[(b * N + n) * C + c], y / (1 + std::exp(-y)), 30));
        }
    }
}

template <class T>
void test_sum(gpu::Dtype dtype, int64_t C, bool measured, std::size_t offset) {
  const int64_t B = 2, N = 77;
  Numbers<T> h(B * N * C, 5, offset), x(B * N * C, 3), bias(C, 0), out(B * N * C, 0);
  const gpu::Tiling tiles = tiling(B, N, 32);
  std::vector<float> statistics(measured ? 3 * B * tiles.tiles * C : 0, NAN);
  const gpu::Map map{out.values, measured ? statistics.data() : nullptr, C, tiles.tiles, false};
  CHECK(!gpu::udse_cuda_residual_sum(h.values, x.values, bias.values, 0.7f, &map, &tiles, dtype, nullptr));
  for (int64_t i = 0; i < B * N * C; ++i) CHECK(near<T>(out[i], h[i] + bias[i % C] + 0.7f * x[i], 10));
  for (int64_t b = 0; measured && b < B; ++b)
    for (int64_t tile = 0; tile < tiles.tiles; ++tile)
      for (int64_t c = 0; c < C; ++c) {
        double sum = 0, square = 0;
        const auto count = static_cast<double>(tiles.count(tile));
        const auto at = [&](int64_t n) { return out[(b * N + tile * 32 + n) * C + c]; };
        for (int64_t n = 0; n < tiles.count(tile); ++n) sum += at(n);
        for (int64_t n = 0; n < tiles.count(tile); ++n) square += (at(n) - sum / count) * (at(n) - sum / count);
        const int64_t place = (b * tiles.tiles + tile) * C + c;
        CHECK(near<float>(statistics[place], sum, std::fabs(sum)));
        CHECK(near<float>(statistics[B * tiles.tiles * C + place], square, 100));
        CHECK(statistics[2 * B * tiles.tiles * C + place] == count);
      }
}

// By the definition: the filter (1, 3, 3, 1)/8 after, or before, every second position
template <class T>
void test_resample(gpu::Dtype dtype, int64_t C, bool up) {
  const udse::Shape shape{2, 6, 10};
  const int64_t F = up ? 12 : 3, framesout = up ? 20 : 5;
  Numbers<T> x(2 * 6 * 10 * C, 1), out(2 * F * framesout * C, 0);
  CHECK(!gpu::udse_cuda_resample(x.values, &shape, C, up, dtype, out.values, nullptr));
  const double taps[] = {1, 3, 3, 1};
  for (int64_t b = 0; b < 2; ++b)
    for (int64_t f = 0; f < F; ++f)
      for (int64_t t = 0; t < framesout; ++t)
        for (int64_t c = 0; c < C; ++c) {
          double y = 0;
          for (int64_t row = 0; row < 6; ++row)
            for (int64_t column = 0; column < 10; ++column) {
              const int64_t u = up ? f - 2 * row + 1 : row - 2 * f + 1,
                            v = up ? t - 2 * column + 1 : column - 2 * t + 1;
              if (u < 0 || u > 3 || v < 0 || v > 3) continue;
              y += taps[u] * taps[v] / (up ? 16 : 64) * x[((b * 6 + row) * 10 + column) * C + c];
            }
          CHECK(near<T>(out[((b * F + f) * framesout + t) * C + c], y, 3));
        }
}

template <class T>
void test_layers(gpu::Dtype dtype) {
  for (const std::size_t offset : {0, 1}) {
    test_norm<T>(dtype, 24, 8, 4, offset);
    test_norm<T>(dtype, 5, 4, 3, offset);
    test_norm<T>(dtype, 8, 0, 2, offset);
    for (const bool measured : {false, true}) {
      test_sum<T>(dtype, 24, measured, offset);
      test_sum<T>(dtype, 5, measured, offset);
    }
  }
  for (const bool up : {false, true}) {
    test_resample<T>(dtype, 8, up);
    test_resample<T>(dtype, 3, up);
  }
}

// A convolution of odd sizes by its definition: [x, skip] under a norm with SiLU, 3x3, the 1x1 convolution of `other`
// or a residual, bias, statistics
template <class T>
struct ConvolutionCase {
  int64_t B = 2, F = 9, frames = 19, Cx, Cs, Co, C;
  Numbers<T> x, skip, other, bias, residual, out;
  std::vector<float> factor, shift, statistics;
  std::vector<Numbers<T>> weights;
  std::vector<double> expected;

  ConvolutionCase(int64_t x_channels, int64_t skip_channels, int64_t other_channels, int64_t out_channels,
                  std::size_t start)
      : Cx(x_channels),
        Cs(skip_channels),
        Co(other_channels),
        C(out_channels),
        x(B * F * frames * Cx, 0, start),
        skip(B * F * frames * Cs, 1),
        other(B * F * frames * Co, 0),
        bias(C, 0),
        residual(B * F * frames * C, 2),
        out(B * F * frames * C, 0),
        factor(positive(B * (Cx + Cs))),
        shift(positive(B * (Cx + Cs))),
        statistics(3 * B * 4 * C, NAN),
        expected(B * F * frames * C) {}

  // (chunks, taps, columns, 32), zeros where there is no channel
  Numbers<T>& of(int64_t channels, int64_t taps) {
    const int64_t columns = (C + 31) / 32 * 32, chunks = (channels + 31) / 32;
    weights.emplace_back(chunks * taps * columns * 32, 0);
    Numbers<T>& w = weights.back();
    for (int64_t i = 0; i < chunks * taps * columns * 32; ++i) {
      const bool there = i / 32 % columns < C && i / (taps * columns * 32) * 32 + i % 32 < channels;
      gpu::narrow(there ? 0.1f * static_cast<float>(w[i]) : 0.f, w.values[i]);
    }
    return w;
  }

  void add(const Numbers<T>& map, const Numbers<T>& w, int64_t channels, int64_t taps, int64_t first) {
    const int64_t columns = (C + 31) / 32 * 32, reach = taps == 9 ? 1 : 0;
    for (int64_t at = 0; at < B * F * frames; ++at)
      for (int64_t tap = 0; tap < taps; ++tap) {
        const int64_t f = at / frames % F + tap / 3 - reach, t = at % frames + tap % 3 - reach, b = at / frames / F;
        if (f < 0 || f >= F || t < 0 || t >= frames) continue;
        for (int64_t k = 0; k < channels; ++k) {
          double y = map[((b * F + f) * frames + t) * channels + k];
          const int64_t row = b * (Cx + Cs) + first + k;
          if (first >= 0) y = y * factor[row] + shift[row];
          if (first >= 0) y /= 1 + std::exp(-y);
          for (int64_t c = 0; c < C; ++c)
            expected[at * C + c] += y * w[((k / 32 * taps + tap) * columns + c) * 32 + k % 32];
        }
      }
  }

  // Whether maps and statistics are right.
  bool right(gpu::Dtype dtype) {
    const int64_t stride = Cx + Cs;
    weights.reserve(3);
    Numbers<T>&wx = of(Cx, 9), &ws = of(Cs, 9), &wo = of(Co, 1);
    gpu::Convolution job{};
    const auto source = [&](Numbers<T>& map, Numbers<T>& w, int64_t channels, int32_t taps, int64_t first) {
      if (!channels) return;
      const float *by = first < 0 ? nullptr : factor.data() + first, *to = first < 0 ? nullptr : shift.data() + first;
      const bool packed = channels % 8 == 0 && reinterpret_cast<std::uintptr_t>(map.values) % 16 == 0;
      job.sources[job.source_count++] = {map.values, by, to, w.values, channels, stride, taps, packed};
      add(map, w, channels, taps, first);
    };
    source(x, wx, Cx, 9, 0);
    source(skip, ws, Cs, 9, Cx);
    source(other, wo, Co, 1, -1);
    job.shape = {B, F, frames};
    job.channels = C;
    job.columns = (C + 31) / 32 * 32;
    job.bias = bias.values;
    job.residual = Co ? nullptr : residual.values;
    job.out = out.values;
    job.statistics = statistics.data();
    job.factor = 0.7f;
    job.dtype = dtype;
    job.packed = C % 4 == 0;
    if (gpu::udse_cuda_convolution(&job, nullptr)) return false;
    for (int64_t i = 0; i < B * F * frames * C; ++i)
      if (!near<T>(out[i], expected[i] + bias[i % C] + (Co ? 0 : 0.7f * residual[i]), 8)) return false;
    return statistics_are_right();
  }

  bool statistics_are_right() const {
    for (int64_t b = 0; b < B; ++b)
      for (int64_t tile = 0; tile < 4; ++tile)
        for (int64_t c = 0; c < C; ++c) {
          std::vector<double> y;
          for (int64_t f = tile / 2 * 8; f < std::min<int64_t>(F, tile / 2 * 8 + 8); ++f)
            for (int64_t t = tile % 2 * 16; t < std::min<int64_t>(frames, tile % 2 * 16 + 16); ++t)
              y.push_back(out[((b * F + f) * frames + t) * C + c]);
          double sum = 0, square = 0;
          for (const double value : y) sum += value;
          for (const double value : y) square += std::pow(value - sum / static_cast<double>(y.size()), 2);
          const int64_t place = (b * 4 + tile) * C + c;
          if (!near<float>(statistics[place], sum, 100)) return false;
          if (!near<float>(statistics[B * 4 * C + place], square, square)) return false;
          if (statistics[2 * B * 4 * C + place] != static_cast<float>(y.size())) return false;
        }
    return true;
  }
};

template <class T>
void test_convolution(gpu::Dtype dtype) {
  CHECK(ConvolutionCase<T>(40, 8, 0, 96, 0).right(dtype));
  CHECK(ConvolutionCase<T>(8, 5, 9, 10, 1).right(dtype));
  gpu::Convolution wide{};
  wide.channels = wide.columns = 20;
  CHECK(gpu::udse_cuda_convolution(&wide, nullptr));
  wide.source_count = 5;
  wide.columns = 32;
  CHECK(gpu::udse_cuda_convolution(&wide, nullptr));
}

}  // namespace

int main() {
  test_emulation();
  for (const int capability : {75, 80}) test_matrix_product<gpu::Half>(capability);
  test_matrix_product<gpu::BFloat16>(80);
  test_convolution<gpu::BFloat16>(gpu::bfloat16);
  udse::emulation::device().barriers = false;
  CHECK(!ConvolutionCase<gpu::BFloat16>(40, 8, 0, 10, 0).right(gpu::bfloat16));
  udse::emulation::device().barriers = true;
  udse::emulation::device().capability = 75;  // whose products of matrices are others, and only of this type
  test_convolution<gpu::Half>(gpu::float16);
  udse::emulation::device().capability = 80;
  test_updates({2, 8, 33}, 5);
  test_updates({3, 5, 67}, 3);
  test_noise_and_compression();
  test_nmf(6, 33, 3);
  test_nmf(7, 13, 7);
  test_layers<float>(gpu::float32);
  test_layers<gpu::Half>(gpu::float16);
  test_layers<gpu::BFloat16>(gpu::bfloat16);
  std::puts("the kernels are right");
}
