#include "stream/resampler.hpp"

#include <algorithm>
#include <cmath>
#include <iterator>
#include <map>
#include <mutex>
#include <numeric>

namespace udse {
namespace {

using std::int64_t;
using std::size_t;

constexpr double pi = 3.141592653589793;
constexpr int zero_crossings = 29;    // of the sinc on either side: the transition band is 0.45 to 0.55 of the rate
constexpr double kaiser_beta = 8.96;  // stopband at -90 dB (Kaiser 1974)
constexpr int window_points = 16384;  // intervals of the table of the window
constexpr int64_t piece = 1024;       // inputs that are taken at a time
constexpr int sums = 8;               // partial sums of a product, so that it is a few vectors

double bessel_i0(double x) {
  double term = 1, sum = 1;
  for (int k = 1; term > sum * 1e-17; ++k) {
    term *= (x / 2 / k) * (x / 2 / k);
    sum += term;
  }
  return sum;
}

double sinc(double x) { return x == 0 ? 1 : std::sin(pi * x) / (pi * x); }

std::vector<double> kaiser_table() {
  std::vector<double> table(window_points + 1);
  for (size_t i = 0; i < table.size(); ++i) {
    const double x = 2.0 * static_cast<double>(i) / window_points - 1;
    table[i] = bessel_i0(kaiser_beta * std::sqrt(std::max(0.0, 1 - x * x))) / bessel_i0(kaiser_beta);
  }
  return table;
}

double interpolated(const std::vector<double>& table, double x) {  // x in [-1, 1]
  const double at = (x + 1) / 2 * window_points;
  const auto i = std::min(static_cast<size_t>(at), table.size() - 2);
  return table[i] + (at - static_cast<double>(i)) * (table[i + 1] - table[i]);
}

float product(const float* a, const float* b, int64_t n) {
  float partial[sums] = {};
  int64_t i = 0;
  for (; i + sums <= n; i += sums)
    for (int k = 0; k < sums; ++k) partial[k] += a[i + k] * b[i + k];
  float sum = 0;
  for (; i < n; ++i) sum += a[i] * b[i];
  for (int k = 0; k < sums; ++k) sum += partial[k];
  return sum;
}

}  // namespace

ResamplingFilter::ResamplingFilter(int64_t source, int64_t target)
    : step(source / std::gcd(source, target)),
      phases(target / std::gcd(source, target)),
      half(static_cast<int64_t>(
          std::ceil(zero_crossings * std::max(1.0, static_cast<double>(source) / static_cast<double>(target))))),
      taps(2 * half),
      weights(static_cast<size_t>(phases * taps)) {
  const std::vector<double> window = kaiser_table();
  const double lower = std::min(1.0, static_cast<double>(target) / static_cast<double>(source));
  std::vector<double> row(static_cast<size_t>(taps));
  for (int64_t phase = 0; phase < phases; ++phase) {
    double sum = 0;
    for (int64_t j = 0; j < taps; ++j) {
      const double distance =
          static_cast<double>(j + 1 - half) - static_cast<double>(phase) / static_cast<double>(phases);
      const bool lonely = phase == 0 && j == taps - 1;  // its mirror image, at -half, is not among the taps
      row[static_cast<size_t>(j)] =
          lonely ? 0 : sinc(distance * lower) * interpolated(window, distance / static_cast<double>(half));
      sum += row[static_cast<size_t>(j)];
    }
    for (int64_t j = 0; j < taps; ++j)
      weights[static_cast<size_t>(phase * taps + j)] = static_cast<float>(row[static_cast<size_t>(j)] / sum);
  }
}

std::shared_ptr<const ResamplingFilter> resampling_filter(int64_t source, int64_t target) {
  if (source == target) return nullptr;
  static std::mutex mutex;
  static std::map<std::pair<int64_t, int64_t>, std::weak_ptr<const ResamplingFilter>> filters;
  const std::lock_guard lock(mutex);
  for (auto at = filters.begin(); at != filters.end();) at = at->second.expired() ? filters.erase(at) : std::next(at);
  auto& known = filters[{source, target}];
  auto filter = known.lock();
  if (!filter) known = filter = std::make_shared<const ResamplingFilter>(source, target);
  return filter;
}

Resampler::Resampler(std::shared_ptr<const ResamplingFilter> filter) : filter_(std::move(filter)) {
  if (filter_) kept_.resize(static_cast<size_t>(filter_->taps + filter_->step / filter_->phases + 2 + piece));
  reset();
}

void Resampler::reset() {
  time_ = 0;
  kept_count_ = filter_ ? filter_->half - 1 : 0;
  std::fill(kept_.begin(), kept_.end(), 0.f);
}

int64_t Resampler::most(int64_t n) const { return filter_ ? (n + 1) * filter_->phases / filter_->step + 2 : n; }

int64_t Resampler::process(const float* in, int64_t n, float* out) {
  if (!filter_) {
    std::copy_n(in, n, out);
    return n;
  }
  const auto& [step, phases, half, taps, weights] = *filter_;
  float* const to = out;
  for (int64_t taken = 0; taken < n;) {
    const int64_t count = std::min(piece, n - taken);
    std::copy_n(in + taken, count, kept_.data() + kept_count_);
    taken += count;
    kept_count_ += count;
    for (; time_ / phases + taps <= kept_count_; time_ += step)
      *out++ = product(kept_.data() + time_ / phases, weights.data() + time_ % phases * taps, taps);
    const int64_t used = std::min(time_ / phases, kept_count_);
    std::copy(kept_.data() + used, kept_.data() + kept_count_, kept_.data());
    kept_count_ -= used;
    time_ -= used * phases;
  }
  return out - to;
}

void Resampler::exchange(State& state) {
  if (!filter_) return;
  state(time_, int64_t{0}, filter_->phases * filter_->taps);
  state(kept_count_, int64_t{0}, filter_->taps + filter_->step / filter_->phases);
  state(kept_);
}

}  // namespace udse
