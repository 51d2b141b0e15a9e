// Compact networks, causal and centred, from C++ alone, for every instruction set of this processor: their kernels
// against plain loops in double precision, a network whose answer has a closed form, callers in parallel, and errors.
// Built with sanitizers by ../run_sanitizers.sh.
#include <algorithm>
#include <cmath>
#include <functional>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "compact_network.hpp"
#include "compact_network_kernels.hpp"
#include "core_checking.hpp"

using std::int64_t;
using Floats = std::vector<float>;

namespace {

bool close(double a, double b) { return std::abs(a - b) <= 5e-6 * std::max(1.0, std::abs(b)); }

std::mt19937 generator(1);

Floats random_floats(int64_t n) {
  Floats a(n);
  for (float& x : a) x = std::uniform_real_distribution<float>(-0.5f, 0.5f)(generator);
  return a;
}

const udse::NetworkKernels& kernels() {
#ifdef UDSE_X86
  const std::string isa = udse::isa();
  if (isa == "avx512") return udse::avx512::network_kernels;
  if (isa == "avx2") return udse::avx2::network_kernels;
#endif
  return udse::scalar::network_kernels;
}

double silu(double x) { return x / (1 + std::exp(-x)); }

double finished(double y, double before, udse::Finish finish) {
  if (finish == udse::Finish::add) return before + y;
  return finish == udse::Finish::silu ? silu(y) : y;
}

double of_half(udse::Half half) {
  const int exponent = half >> 10 & 31, mantissa = half & 1023;
  const double magnitude = exponent ? std::ldexp(1024 + mantissa, exponent - 25) : std::ldexp(mantissa, -24);
  return half & 0x8000 ? -magnitude : magnitude;
}

// Any of up to 1, one in eight of them denormal
std::vector<udse::Half> random_halves(int64_t n) {
  std::vector<udse::Half> a(n);
  for (udse::Half& x : a) {
    const auto bits = static_cast<udse::Half>(generator());
    x = static_cast<udse::Half>(bits & (generator() % 8 ? 0xbbff : 0x83ff));
  }
  return a;
}

void convolution(int64_t panels, int64_t taps, int64_t window, int64_t frames, int64_t rows, bool next_ends,
                 bool of_halves) {
  const int64_t row = 5, frame = rows * row + window, out_row = panels * 16, out_frame = rows * out_row;
  const std::vector<udse::Half> halves = random_halves(panels * taps * window * 16);
  Floats weights = random_floats(panels * taps * window * 16);
  if (of_halves) std::transform(halves.begin(), halves.end(), weights.begin(), of_half);
  const Floats bias = random_floats(panels * 16), in = random_floats((frames + taps) * frame),
               before = random_floats(frames * out_frame);
  for (const udse::Finish finish : {udse::Finish::store, udse::Finish::add, udse::Finish::silu}) {
    Floats out = before;
    kernels().convolve(
        {taps, window, panels, of_halves ? nullptr : weights.data(), bias.data(), of_halves ? halves.data() : nullptr},
        {in.data(), frame, row, frame}, frames, rows, next_ends, {out.data(), out_frame, out_row}, finish);
    for (int64_t i = 0; i < frames * out_frame; ++i) {
      const int64_t t = i / out_frame, r = i / out_row % rows, p = i % out_row / 16, c = i % 16;
      double sum = bias[p * 16 + c];
      for (int64_t tap = 0; tap < taps - (next_ends && t == frames - 1); ++tap)
        for (int64_t k = 0; k < window; ++k)
          sum += double(in[(t + tap) * frame + r * row + k]) * weights[((p * taps + tap) * window + k) * 16 + c];
      CHECK(close(out[i], finished(sum, before[i], finish)));
    }
  }
}

// One frame and one kernel of 3 bands per channel, by sums and products
void products(int64_t tiles, int64_t channels) {
  using udse::points;
  const int64_t bands = 4 * tiles, size = bands * channels, n = tiles * channels;
  const Floats in = random_floats(size + 2 * channels), kernel = random_floats(3 * channels),
               bias = random_floats(channels), before = random_floats(size);
  Floats sums(points * n);
  kernels().band_sums(in.data(), tiles, channels, sums.data());
  for (int64_t i = 0; i < points * n; ++i) {
    const float *const g = udse::kernel_sums[i / n], *const w = kernel.data() + 3 * (i % channels);
    sums[i] *= g[0] * w[0] + g[1] * w[1] + g[2] * w[2];
  }
  for (const udse::Finish finish : {udse::Finish::store, udse::Finish::add, udse::Finish::silu}) {
    Floats out = before;
    kernels().from_products(sums.data(), bias.data(), 1, tiles, channels, {out.data(), size, channels}, finish);
    for (int64_t i = 0; i < size; ++i) {
      const int64_t c = i % channels;
      double y = bias[c];
      for (int64_t k = 0; k < 3; ++k) y += double(kernel[3 * c + k]) * in[i + k * channels];
      CHECK(close(out[i], finished(y, before[i], finish)));
    }
  }
}

void norm(int64_t bands, int64_t channels) {
  const int64_t padded = (channels + 15) / 16 * 16, frames = 2, size = bands * padded;
  Floats in = random_floats(frames * size), gain = random_floats(padded), shift = random_floats(padded),
         out(frames * size);
  for (float& x : in) x = 3 * x + 1;
  for (int64_t i = 0; i < frames * size; ++i)
    if (i % padded >= channels) in[i] = 0;
  for (int64_t c = channels; c < padded; ++c) gain[c] = shift[c] = 0;
  kernels().norm_film_silu(
      {frames, bands, channels, padded, in.data(), size, out.data(), size, gain.data(), shift.data()});
  for (int64_t t = 0; t < frames; ++t) {
    double mean = 0, variance = 0;
    const auto each = [&](const std::function<void(double, int64_t)>& body) {
      for (int64_t i = 0; i < size; ++i)
        if (i % padded < channels) body(in[t * size + i], i);
    };
    const double count = double(bands * channels);
    each([&](double x, int64_t) { mean += x / count; });
    each([&](double x, int64_t) { variance += (x - mean) * (x - mean) / count; });
    each([&](double x, int64_t i) {
      CHECK(close(out[t * size + i],
                  silu((x - mean) / std::sqrt(variance + 1e-4) * gain[i % padded] + shift[i % padded])));
    });
    for (int64_t i = 0; i < size; ++i) CHECK(i % padded < channels || out[t * size + i] == 0);
  }
}

void activation() {
  Floats x(16 * 1001), y(x.size());
  for (std::size_t i = 0; i < x.size(); ++i) x[i] = (float(i) / 8008 - 1) * 100;
  kernels().silu(x.data(), int64_t(x.size()), y.data());
  for (std::size_t i = 0; i < x.size(); ++i) CHECK(std::abs(y[i] - silu(x[i])) <= 5e-7 * std::abs(silu(x[i])) + 1e-34);
}

// Weights of a small network: bins 16, stem 2, channels (3, 20), one block each, 5 channels over time.
struct SmallNetwork {
  std::map<std::string, Floats> values;
  udse::Weights weights;

  explicit SmallNetwork(bool zero_outputs, bool posterior = false) {
    const auto add = [&](const std::string& name, const std::vector<int64_t>& shape, bool zero = false) {
      int64_t size = 1;
      for (const int64_t n : shape) size *= n;
      Floats& array = values[name] = zero ? Floats(size) : random_floats(size);
      weights[name] = {shape, array.data()};
    };
    const auto conv = [&](const std::string& name, const std::vector<int64_t>& shape, bool zero = false) {
      add(name + ".weight", shape, zero);
      add(name + ".bias", {shape[0]}, zero);
    };
    const auto block = [&](const std::string& name, int64_t C, int64_t taps, int64_t width) {
      conv(name + ".norm.film", {2 * C, 6});
      conv(name + ".conv1", {C, C, taps, width});
      conv(name + ".conv2", {C, C, taps == 5 ? 1 : taps, width});
    };
    add("noise_level.frequencies", {32});
    add("scale.by_label", {2});
    values["scale.by_label"] = {0.1f, 0.3f};
    weights["scale.by_label"].values = values["scale.by_label"].data();
    conv("embed.0", {6, 64});
    conv("embed.2", {6, 6});
    add("band", {3, 1, 8});
    conv("input", {3, posterior ? 5 : 3, 3, 4});
    for (const std::string way : {"down_blocks.", "up_blocks."}) {
      block(way + "0.0", 3, 3, 3);
      block(way + "1.0", 20, 3, 3);
    }
    conv("down.0", {20, 3, 1, 4});
    conv("up.0", {6, 20, 1, 1});
    conv("to_frames", {5, 80, 1, 1});
    conv("from_frames", {80, 5, 1, 1});
    block("over_time.0", 5, 5, 1);
    conv("output", {40, 3, 3, 3}, zero_outputs);
    conv("spread", {2, 3, 3, 3}, zero_outputs);
    if (!posterior) return;
    conv("noise", {4, 3, 3, 3}, zero_outputs);
    conv("listening", {2, 3, 3, 3}, zero_outputs);
  }
};

struct Block {
  int64_t B, K;
  Floats u = random_floats(B * 16 * K * 2), level = Floats(B, 0.4f), clean = Floats(u.size(), std::nanf("")),
         variance = Floats(u.size() / 2, std::nanf(""));
  Floats noise = Floats(variance.size(), 0.02f), believed = variance, heard = clean;  // of a posterior network
  Floats memory = {};

  void step(const udse::CompactNetwork& network, int threads = 1) {
    memory.resize(B * network.memory_size());
    network.step({B, K, reinterpret_cast<udse::cfloat*>(u.data()), level.data(), nullptr, memory.data(),
                  reinterpret_cast<udse::cfloat*>(clean.data()), variance.data(), nullptr, noise.data(),
                  believed.data(), reinterpret_cast<udse::cfloat*>(heard.data())},
                 threads);
  }
};

// With zero output weights D = c_skip u, and the variance is that of Gaussian data.
void closed_form(bool centred) {
  const SmallNetwork weights(true);
  const udse::CompactNetwork network(weights.weights, {2}, centred);
  for (const int64_t K : {1, 2, 5, 80}) {
    Block block{1, K};
    for (int i = 0; i < 2; ++i) block.step(network, 2);
    for (std::size_t i = 0; i < block.u.size(); ++i) CHECK(close(block.clean[i], 0.09 / 0.25 * block.u[i]));
    for (const float variance : block.variance) CHECK(close(variance, 0.09 * 0.16 / 0.25));
  }
}

// Of a posterior network the mixture is a state with a noise level of its own in every bin; the noise is believed to be
// half way between what was told and what is there, on a scale of logs.
void closed_form_of_posterior() {
  const SmallNetwork weights(true, true);
  const udse::CompactNetwork network(weights.weights, {2});
  CHECK(network.tells_noise());
  for (const int64_t K : {1, 2, 5}) {
    Block block{2, K};
    for (std::size_t i = 0; i < block.noise.size(); ++i) block.noise[i] = 1e-5f * float(1 + i % 997);
    for (int i = 0; i < 2; ++i) block.step(network);
    for (std::size_t i = 0; i < block.noise.size(); ++i) {
      const double x = block.u[2 * i], y = block.u[2 * i + 1], power = x * x + y * y, V = block.noise[i];
      const double blur = V / std::sqrt(1.6 * power * 1.6 * power + 1.273 * V), skip = 0.09 / (0.09 + blur);
      CHECK(close(block.clean[2 * i], skip * x) && close(block.clean[2 * i + 1], skip * y));
      CHECK(close(block.variance[i] / (skip * blur), 1));
      CHECK(std::abs(block.believed[i] / std::sqrt((power * power + 1e-9) * (V + 1e-9)) - 1) < 1e-4);
      CHECK(block.heard[2 * i] == block.clean[2 * i] && block.heard[2 * i + 1] == block.clean[2 * i + 1]);
    }
  }
}

// Several samples of a few frames, or one of many, which are cut into pieces, side by side on two threads each
void callers_in_parallel(bool posterior, bool centred) {
  const SmallNetwork weights(false, posterior);
  const udse::CompactNetwork network(weights.weights, {2}, centred);
  CHECK(network.centred() == centred && (network.memory_size() == 0) == centred);
  std::vector<Block> blocks;
  for (int i = 0; i < 4; ++i) {
    if (centred)
      blocks.push_back({1, 64 + 9 * i});
    else
      blocks.push_back({3, 2 + i});
    std::fill(blocks.back().noise.begin(), blocks.back().noise.end(), 0.01f * float(1 + i));
    std::fill(blocks.back().level.begin(), blocks.back().level.end(), 0.1f + 0.1f * float(i));
  }
  std::vector<Block> alone = blocks;
  const auto run = [&](Block& block, int threads) {
    for (int i = 0; i < 5; ++i) block.step(network, threads);
  };
  for (Block& block : alone) run(block, 1);
  std::vector<std::thread> threads;
  for (Block& block : blocks) threads.emplace_back([&] { run(block, 2); });
  for (std::thread& thread : threads) thread.join();
  for (std::size_t i = 0; i < blocks.size(); ++i) {
    CHECK(blocks[i].clean == alone[i].clean);
    CHECK(blocks[i].variance == alone[i].variance);
    CHECK(blocks[i].memory == alone[i].memory);
    if (!posterior) continue;
    CHECK(blocks[i].believed == alone[i].believed);
    CHECK(blocks[i].heard == alone[i].heard);
  }
}

template <class Call>
void throws(const Call& call, const std::string& expected) {
  try {
    call();
  } catch (const udse::Error& error) {
    CHECK(std::string(error.what()).find(expected) != std::string::npos);
    return;
  }
  CHECK(false);
}

void errors() {
  SmallNetwork weights(false);
  throws([&] { udse::CompactNetwork(weights.weights, {}); }, "expected 1 dilations; got 0");
  const udse::CompactNetwork network(weights.weights, {1});
  Block block{1, 2};
  block.level[0] = 0;
  throws([&] { block.step(network); }, "noise_level must be positive and finite; got 0");
  weights.weights["band"].shape = {3, 1, 7};
  throws([&] { udse::CompactNetwork(weights.weights, {1}); }, "bands must be even at level 0; got 7");
  weights.weights.erase("up.0.bias");
  weights.weights["band"].shape = {3, 1, 8};
  throws([&] { udse::CompactNetwork(weights.weights, {1}); }, "the weights have no up.0.bias");
  const SmallNetwork of_posterior(false, true);
  const udse::CompactNetwork posterior(of_posterior.weights, {1});
  udse::NetworkBlock without_noise{};
  without_noise.samples = without_noise.frames = 1;
  throws([&] { posterior.step(without_noise); }, "expected the variance of the noise");
}

}  // namespace

int main() {
  errors();
  each_isa([] {
    for (int64_t panels = 1; panels <= 7; ++panels)
      for (const int64_t rows : {1, 2, 5, 8, 13, 32}) {
        convolution(panels, 3, 9, 3, rows, true, false);
        for (const bool of_halves : {false, true}) convolution(panels, 5, 4, 1, rows, false, of_halves);
      }
    for (const int64_t channels : {16, 48}) products(1, channels), products(5, channels);
    for (const int64_t channels : {1, 15, 16, 17, 48}) norm(7, channels), norm(1, channels + 1);
    activation();
    for (const bool centred : {false, true}) closed_form(centred);
    closed_form_of_posterior();
    for (const bool posterior : {false, true})
      for (const bool centred : {false, true}) callers_in_parallel(posterior, centred);
  });
}
