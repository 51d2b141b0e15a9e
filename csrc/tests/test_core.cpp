// The core from C++ alone: known answers and closed forms in double precision, for every instruction set of this
// processor; threads, cuts and errors. Built with sanitizers by ../run_sanitizers.sh.
#include <algorithm>
#include <cmath>
#include <functional>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "core_checking.hpp"
#include "kernels.hpp"
#include "thread_pool.hpp"

using udse::cfloat;
using cdouble = std::complex<double>;
using Spectrogram = std::vector<cfloat>;

namespace {

constexpr double tolerance = 3e-6;

bool close(cdouble a, cdouble b) { return std::abs(a - b) <= tolerance * std::max(1.0, std::abs(b)); }

std::mt19937 generator(1);

float uniform() { return std::uniform_real_distribution<float>(0.1f, 1.f)(generator); }

Spectrogram random_spectrogram(std::size_t n) {
  Spectrogram z(n);
  for (auto& value : z) value = {uniform() - 0.5f, uniform() - 0.5f};
  return z;
}

std::vector<float> random_positive(std::size_t n) {
  std::vector<float> a(n);
  std::generate(a.begin(), a.end(), uniform);
  return a;
}

const float nan = std::nanf("");

// A problem of one step, results filled with NaN.
struct Problem {
  udse::Shape shape;
  std::size_t plane = shape.bins * shape.frames, size = shape.samples * plane;
  std::int64_t rank = 3;
  Spectrogram s = random_spectrogram(size), S = random_spectrogram(size), n = random_spectrogram(size),
              N = random_spectrogram(size), x = random_spectrogram(plane), z = random_spectrogram(size),
              next = Spectrogram(size, nan), noise_next = Spectrogram(size, nan);
  std::vector<float> W = random_positive(shape.bins * rank), H = random_positive(rank * shape.frames),
                     C = random_positive(size), power = std::vector<float>(plane, nan);

  udse::Step step() {
    udse::Step a;
    a.shape = shape;
    a.coefficients = {1.5f, 0.6f, 0.25f, 0.5f, 0.04f};
    a.state = s.data();
    a.score = S.data();
    a.noise = z.data();
    a.next = next.data();
    a.mixture = x.data();
    a.variance = {nullptr, W.data(), H.data(), rank};
    a.guidance = 1.5f;
    a.power = power.data();
    a.observation_variance = 1e-3f;
    return a;
  }
  double V(std::size_t bin, std::size_t frame) const {
    double v = 0;
    for (std::int64_t k = 0; k < rank; ++k) v += double(W[bin * rank + k]) * H[k * shape.frames + frame];
    return v;
  }
};

constexpr double gamma_ = 1.5, delta = 0.6f, sigma = 0.25, g = 0.5, dt = 0.04f, a2 = sigma * sigma / delta / delta;

cdouble predicted(cfloat s, cfloat S, cfloat z) {
  return cdouble(s) * (1 + gamma_ * dt) + g * g * dt * cdouble(S) + g * std::sqrt(dt) * cdouble(z);
}

void updates(const udse::Shape& shape, int threads) {
  Problem p{shape};
  // expected(b, bin, frame, index) for every number of the next state
  const auto compare = [&](const std::function<cdouble(std::size_t, std::size_t, std::size_t)>& expected) {
    for (std::size_t i = 0; i < p.size; ++i) {
      const std::size_t at = i % p.plane;
      CHECK(close(p.next[i], expected(i, at, at / shape.frames)));
    }
  };
  udse::corrector(p.step(), threads);
  const double eps = 0.25 * sigma * sigma;
  compare([&](auto i, auto, auto) {
    return cdouble(p.s[i]) + eps * cdouble(p.S[i]) + std::sqrt(2 * eps) * cdouble(p.z[i]);
  });

  udse::predictor(p.step(), threads);
  compare([&](auto i, auto, auto) { return predicted(p.s[i], p.S[i], p.z[i]); });

  udse::marginal_guidance(p.step(), threads);
  std::vector<double> power(p.plane);
  compare([&](auto i, auto at, auto bin) {
    cdouble s = predicted(p.s[i], p.S[i], p.z[i]);
    s += 1.5 * g * g * dt / delta * (cdouble(p.x[at]) - s / delta) / (a2 + p.V(bin, at % shape.frames));
    power[at] += std::norm(cdouble(p.x[at]) - s - sigma * sigma * cdouble(p.S[i])) / shape.samples;
    return s;
  });
  for (std::size_t at = 0; at < p.plane; ++at) CHECK(close(p.power[at], power[at]));

  udse::product_of_gaussians(p.step(), threads);
  compare([&](auto i, auto at, auto bin) {
    const double q = g * g * dt, R = delta * delta * (a2 + p.V(bin, at % shape.frames));
    const cdouble m = predicted(p.s[i], p.S[i], 0);
    return (R * m + q * delta * cdouble(p.x[at])) / (R + q) + std::sqrt(q * R / (R + q)) * cdouble(p.z[i]);
  });

  udse::Step step = p.step();
  step.other_next = p.noise_next.data();
  udse::noise_posterior_guidance(step, threads);
  compare([&](auto i, auto at, auto bin) {
    const double q = a2 + 1e-3, V = p.V(bin, at % shape.frames);
    const cdouble s = predicted(p.s[i], p.S[i], p.z[i]), s0 = (s + sigma * sigma * cdouble(p.S[i])) / delta;
    const cdouble mu = V / (V + q) * (cdouble(p.x[at]) - s0);
    CHECK(close(p.noise_next[i], mu));
    return s + 1.5 * g * g * dt / delta * (cdouble(p.x[at]) - s / delta - mu) / q;
  });

  step.other_state = p.n.data();
  step.other_score = p.N.data();
  udse::joint_guidance(step, threads);
  compare([&](auto i, auto at, auto) {
    const cdouble s = predicted(p.s[i], p.S[i], p.z[i]), n = predicted(p.n[i], p.N[i], 0);
    const cdouble n0 = (n + sigma * sigma * cdouble(p.N[i])) / delta;
    return s + 1.5 * g * g * dt / delta * (cdouble(p.x[at]) - s / delta - n0) / (a2 + 1e-3);
  });

  step.other_state = step.other_score = nullptr;
  udse::predictor_residual(step, threads);
  compare([&](auto i, auto at, auto) {
    const cdouble s = predicted(p.s[i], p.S[i], p.z[i]);
    CHECK(close(p.noise_next[i], cdouble(p.x[at]) - s / delta));
    return s;
  });

  udse::score_noise_guidance(p.step(), threads);
  compare([&](auto i, auto, auto) { return cdouble(p.s[i]) - 1.5 * g * g * dt / delta * cdouble(p.S[i]); });

  const auto tweedie_mean = [&](auto i) { return (cdouble(p.s[i]) + sigma * sigma * cdouble(p.S[i])) / delta; };
  step = p.step();
  step.next = nullptr;
  step.posterior_variance = p.C.data();
  step.noise_bias = 3;
  udse::unexplained_power(step, threads);
  std::fill(power.begin(), power.end(), 0);
  for (std::size_t i = 0; i < p.size; ++i) {
    const std::size_t at = i % p.plane;
    const double V = p.V(at / shape.frames, at % shape.frames), more = V < a2 ? 1 / V - 1 / a2 : 0;
    const cdouble x = p.x[at], s0 = tweedie_mean(i), u = cdouble(p.s[i]) / delta;
    const double precision = 1 / p.C[i] + more;
    const cdouble m = (s0 / double(p.C[i]) + (more > 0 ? x / V - u / a2 : 0)) / precision;
    power[at] += 3 * (std::norm(x - m) + 1 / precision) / shape.samples;
  }
  for (std::size_t at = 0; at < p.plane; ++at) CHECK(close(p.power[at], power[at]));

  step = p.step();
  step.power = nullptr;
  // below and above all V by turns: sqrt(b^2 - V) of nearly equal numbers has no accuracy to check
  std::vector<float> next_sigma(shape.frames);
  for (std::int64_t t = 0; t < shape.frames; ++t) next_sigma[t] = t % 2 ? 1.5f : 0.125f;
  step.following.delta = 0.75f;
  step.following.sigma = next_sigma.data();
  step.eta = 0.625f;
  udse::ddrm_step(step, threads);
  compare([&](auto i, auto at, auto bin) {
    const double b = next_sigma[at % shape.frames] / 0.75, V = p.V(bin, at % shape.frames), eta = 0.625;
    const cdouble s0 = tweedie_mean(i), x = p.x[at], z = p.z[i];
    if (b > 1) return 0.75 * (x + std::sqrt(b * b - V) * z);
    return 0.75 * (s0 + std::sqrt(1 - eta * eta) * b * (x - s0) / std::sqrt(V) + eta * b * z);
  });

  step.posterior_variance = p.C.data();
  udse::posterior_mean(step, threads);
  compare([&](auto i, auto at, auto bin) {
    const double V = p.V(bin, at % shape.frames);
    return (V * tweedie_mean(i) + double(p.C[i]) * cdouble(p.x[at])) / (V + p.C[i]);
  });
}

void noise_known_answers() {
  // Random123: philox4x32-10 of counter 0 and key 0, which are bins 0 and 1 of frame 0
  const std::uint32_t x[] = {0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8};
  cfloat z[2];
  udse::complex_normal({}, {1, 2, 1}, z);
  for (int bin = 0; bin < 2; ++bin) {
    const double u0 = ((x[2 * bin] >> 8) + 0.5) / (1 << 24), u1 = ((x[2 * bin + 1] >> 8) + 0.5) / (1 << 24);
    CHECK(close(z[bin], std::polar(std::sqrt(-std::log(u0)), 2 * M_PI * u1)));
  }
}

void noise_of_any_cut() {
  const udse::NoiseKey key{123, udse::dither, 4, 1000, 2};
  Spectrogram whole(3 * 7 * 200), part(2 * 7 * 77);
  udse::complex_normal(key, {3, 7, 200}, whole.data(), 8);
  udse::complex_normal({123, udse::dither, 4, 1090, 3}, {2, 7, 77}, part.data());
  for (int b = 0; b < 2; ++b)
    for (int f = 0; f < 7; ++f)
      for (int t = 0; t < 77; ++t) CHECK(part[(b * 7 + f) * 77 + t] == whole[((b + 1) * 7 + f) * 200 + t + 90]);
}

void nmf(std::int64_t F, std::int64_t T, std::int64_t R, int threads) {
  const std::vector<float> P = random_positive(F * T), W = random_positive(F * R), H = random_positive(R * T);
  std::vector<double> w(W.begin(), W.end()), h(H.begin(), H.end()), next(W.begin(), W.end());
  const auto V = [&](std::int64_t f, std::int64_t t) {
    double v = 0;
    for (std::int64_t k = 0; k < R; ++k) v += w[f * R + k] * h[k * T + t];
    return v;
  };
  for (std::int64_t f = 0; f < F; ++f)
    for (std::int64_t k = 0; k < R; ++k) {
      double a = 0, b = 0;
      for (std::int64_t t = 0; t < T; ++t)
        a += P[f * T + t] / V(f, t) / V(f, t) * h[k * T + t], b += h[k * T + t] / V(f, t);
      next[f * R + k] = w[f * R + k] * a / b;
    }
  w = next;
  next = h;
  for (std::int64_t k = 0; k < R; ++k)
    for (std::int64_t t = 0; t < T; ++t) {
      double a = 0, b = 0;
      for (std::int64_t f = 0; f < F; ++f)
        a += w[f * R + k] * P[f * T + t] / V(f, t) / V(f, t), b += w[f * R + k] / V(f, t);
      next[k * T + t] = h[k * T + t] * a / b;
    }
  std::vector<float> new_w = W, new_h = H;
  udse::nmf_update({F, T, R, P.data(), new_w.data(), new_h.data()}, 1, threads);
  for (std::int64_t k = 0; k < R; ++k) {
    double sum = 0;
    for (std::int64_t f = 0; f < F; ++f) sum += w[f * R + k];
    for (std::int64_t f = 0; f < F; ++f) CHECK(close(new_w[f * R + k], w[f * R + k] / sum));
    for (std::int64_t t = 0; t < T; ++t) CHECK(close(new_h[k * T + t] / sum, next[k * T + t]));
  }
}

// Each number to the nearest multiple of its group's unit, which is at most 2^-18 of the largest; the same bits
// everywhere.
void numbers_that_are_kept() {
  using udse::KeptNumbers;
  const udse::MemoryKernels& run = udse::kernels().memory;
  std::mt19937 own(2);
  for (const std::int64_t count : {1, 63, 64, 65, 1000}) {
    std::vector<float> x(static_cast<std::size_t>(count)), back(x.size() + 1, 7.f);
    for (float& value : x) value = std::ldexp(std::normal_distribution<float>()(own), int(own() % 12) - 6);
    x[0] = 0;
    std::vector<KeptNumbers> kept(KeptNumbers::groups(count)), by_scalar(kept.size());
    run.keep(x.data(), kept.data(), count);
    run.recall(kept.data(), back.data(), count);
    CHECK(back[0] == 0 && back[x.size()] == 7);
    for (std::size_t i = 0; i < x.size(); ++i) {
      const std::size_t group = i / KeptNumbers::count * KeptNumbers::count;
      float largest = 0;
      for (std::size_t k = group; k < std::min(group + KeptNumbers::count, x.size()); ++k)
        largest = std::max(largest, std::abs(x[k]));
      CHECK(std::abs(back[i] - x[i]) <= largest * 0x1p-19f);
    }
    udse::scalar::memory_kernels.keep(x.data(), by_scalar.data(), count);
    for (std::size_t i = 0; i < kept.size(); ++i)
      CHECK(kept[i].unit == by_scalar[i].unit && std::equal(kept[i].high, kept[i].high + 64, by_scalar[i].high) &&
            std::equal(kept[i].low, kept[i].low + 32, by_scalar[i].low));
  }
  // what is not finite, or beyond what a unit can be, stays finite
  std::vector<float> odd{nan, INFINITY, -INFINITY, 3e38f, 1e-45f, 1}, back(odd.size());
  KeptNumbers kept;
  run.keep(odd.data(), &kept, std::int64_t(odd.size()));
  run.recall(&kept, back.data(), std::int64_t(odd.size()));
  for (const float value : back) CHECK(std::isfinite(value));
  // as does what nobody has written yet
  kept = {};
  run.recall(&kept, back.data(), std::int64_t(odd.size()));
  CHECK(back == std::vector<float>(odd.size()));
}

void compression() {
  const Spectrogram z = random_spectrogram(1000);
  Spectrogram c(1000, nan), back(1000, nan);
  for (float exponent : {0.5f, 0.3f}) {
    udse::compress(z.data(), 1000, exponent, 0.15f, c.data());
    udse::decompress(c.data(), 1000, exponent, 0.15f, back.data(), 8);
    for (int i = 0; i < 1000; ++i) {
      CHECK(close(c[i], std::polar(0.15 * std::pow(std::abs(cdouble(z[i])), exponent), std::arg(cdouble(z[i])))));
      CHECK(close(back[i], z[i]));
    }
  }
}

void callers_in_parallel() {
  const udse::Shape shape{2, 65, 70};
  const std::size_t size = 2 * 65 * 70;
  Spectrogram expected(size);
  udse::complex_normal({5, 1, 2, 3, 4}, shape, expected.data());
  std::vector<Spectrogram> results(8, Spectrogram(size));
  std::vector<std::thread> callers;
  for (auto& result : results)
    callers.emplace_back([&] {
      for (int i = 0; i < 20; ++i) udse::complex_normal({5, 1, 2, 3, 4}, shape, result.data(), 8);
    });
  for (auto& caller : callers) caller.join();
  for (const auto& result : results) CHECK(result == expected);
}

void pool_does_every_item_once() {
  for (std::int64_t items : {0, 1, 7, 1000}) {
    std::vector<int> count(items);
    for (int threads : {1, 2, 8, 3}) {
      udse::parallel_for(items, threads, [&](std::int64_t begin, std::int64_t end) {
        for (std::int64_t i = begin; i < end; ++i) ++count[i];
      });
    }
    CHECK(std::all_of(count.begin(), count.end(), [](int n) { return n == 4; }));
  }
}

template <class F>
bool throws(F f, const char* message) {
  try {
    f();
  } catch (const udse::Error& error) {
    return std::string(error.what()).find(message) != std::string::npos;
  }
  return false;
}

void errors() {
  Problem p{{1, 2, 3}};
  udse::Step step = p.step();
  step.mixture = nullptr;
  CHECK(throws([&] { udse::marginal_guidance(step); }, "mixture must be given"));
  step = p.step();
  CHECK(throws([&] { udse::unexplained_power(step); }, "posterior_variance must be given"));
  step.eta = 1.5f;
  CHECK(throws([&] { udse::ddrm_step(step); }, "eta must be in [0, 1]"));
  step.next = nullptr;
  CHECK(throws([&] { udse::predictor(step); }, "next must be given"));
  step = p.step();
  step.shape.samples = 0;
  CHECK(throws([&] { udse::predictor(step); }, "got (0, 2, 3)"));
  CHECK(throws([&] { udse::nmf_update({2, 3, 33, p.power.data(), p.W.data(), p.H.data()}, 1); }, "got 33"));
  CHECK(throws([] { udse::set_isa("sse9"); }, "sse9"));
}

}  // namespace

int main() {
  pool_does_every_item_once();
  errors();
  each_isa([] {
    for (int threads : {1, 8})
      for (const udse::Shape& shape :
           {udse::Shape{1, 1, 1}, {2, 3, 63}, {3, 2, 64}, {1, 5, 65}, {2, 31, 130}, {1, 2, 0}, {2, 64, 129}})
        updates(shape, threads);
    for (int threads : {1, 8})
      for (int rank : {1, 2, 3, 4, 5, 8, 17, 32}) nmf(33, 130, rank, threads);
    nmf(1, 1, 1, 1);
    noise_known_answers();
    noise_of_any_cut();
    compression();
    numbers_that_are_kept();
    callers_in_parallel();
  });
}
