#include "stream/hum.hpp"

#include <algorithm>
#include <cmath>

namespace udse {
namespace {

using std::int64_t;
using std::size_t;

constexpr double two_pi = 6.283185307179586;
constexpr double mains_frequencies[] = {50, 60};
constexpr double highest = 1000;          // Hz, up to which lines are looked for
constexpr double least_seconds = 0.5;     // of a signal in which lines can be told from voices
constexpr double least_power = 0.3;       // share of offset and lines in the power, from which on they are taken out
constexpr double least_share = 0.01;      // and of a single line
constexpr double least_steadiness = 0.9;  // correlation of a line in one piece with the same in the next
constexpr double most_off = 0.3;          // Hz, by which the mains may be off
constexpr int rounds = 3;                 // weaker lines are found when the stronger ones are out
constexpr double least_energy = 1e-20;    // keeps 0/0 away

double mean_power(const float* signal, int64_t n) {
  double sum = 0;
  for (int64_t i = 0; i < n; ++i) sum += static_cast<double>(signal[i]) * static_cast<double>(signal[i]);
  return sum / static_cast<double>(n);
}

// Sums over i < n of exp(j i angle)
std::complex<double> sum_of_powers(double angle, int64_t n) {
  const double half = std::sin(angle / 2), count = static_cast<double>(n);
  if (std::abs(half) < 1e-12) return count;
  return std::polar(std::sin(count * angle / 2) / half, (count - 1) * angle / 2);
}

// a x = b by elimination with pivots; a (n, n) and b are overwritten
void solve(double* a, double* b, int n, int row_length) {
  const auto at = [&](int i, int j) -> double& { return a[i * row_length + j]; };
  for (int k = 0; k < n; ++k) {
    int pivot = k;
    for (int i = k + 1; i < n; ++i)
      if (std::abs(at(i, k)) > std::abs(at(pivot, k))) pivot = i;
    for (int j = 0; j < n; ++j) std::swap(at(k, j), at(pivot, j));
    std::swap(b[k], b[pivot]);
    for (int i = k + 1; i < n; ++i) {
      const double factor = at(i, k) / at(k, k);
      for (int j = k; j < n; ++j) at(i, j) -= factor * at(k, j);
      b[i] -= factor * b[k];
    }
  }
  for (int i = n - 1; i >= 0; --i) {
    for (int j = i + 1; j < n; ++j) b[i] -= at(i, j) * b[j];
    b[i] /= at(i, i);
  }
}

}  // namespace

Hum::Hum(int64_t sample_rate, int64_t longest)
    : rate_(sample_rate),
      factor_(std::max<int64_t>(1, static_cast<int64_t>(static_cast<double>(sample_rate) / (2 * highest)))),
      slow_(static_cast<size_t>(longest / factor_ + 1)) {}

Hum::Lines Hum::find(const float* signal, int64_t n, double mains, double least) {
  // the boxcar in front of the decimation is no good filter, but what it lets through is not steady
  const int64_t count = n / (factor_ * pieces), used = count * pieces;
  const float* const last = signal + n - used * factor_;
  for (int64_t i = 0; i < used; ++i) {
    double sum = 0;
    for (int64_t k = 0; k < factor_; ++k) sum += static_cast<double>(last[i * factor_ + k]);
    slow_[static_cast<size_t>(i)] = static_cast<float>(sum / static_cast<double>(factor_));
  }
  const int lines = static_cast<int>(highest / mains) + 1;
  const double power = std::max(mean_power(signal, n), least_energy);
  const double piece_seconds = static_cast<double>(n) / static_cast<double>(rate_) / pieces;
  double share[most_lines], off[most_lines], total = 0, weight = 0, weighted = 0;
  bool steady[most_lines];
  Lines found;
  for (int line = 0; line < lines; ++line) {
    std::complex<double> amplitude[pieces], product = 0, phase = 1;
    const std::complex<double> turn =
        std::polar(1.0, -two_pi * mains * line * static_cast<double>(factor_) / static_cast<double>(rate_));
    double energy = 0, sum = 0;
    for (int p = 0; p < pieces; ++p) {
      for (int64_t i = p * count; i < (p + 1) * count; ++i, phase *= turn)
        amplitude[p] += static_cast<double>(slow_[static_cast<size_t>(i)]) * phase;
      amplitude[p] /= static_cast<double>(count);
      sum += std::norm(amplitude[p]);
      if (p == 0) continue;
      product += amplitude[p] * std::conj(amplitude[p - 1]);
      energy += (std::norm(amplitude[p]) + std::norm(amplitude[p - 1])) / 2;
    }
    share[line] = (line ? 2 : 1) * sum / pieces / power;
    off[line] = std::arg(product) / (two_pi * piece_seconds) / std::max(line, 1);
    steady[line] =
        std::abs(product) > least_steadiness * energy && share[line] > least_share && std::abs(off[line]) < most_off;
    total += share[line];
    if (!steady[line]) continue;
    found.share += share[line];
    if (line == 0) continue;
    weight += share[line];
    weighted += share[line] * off[line];
  }
  if (total < least) return {};
  const double exact = mains + weighted / std::max(weight, least_energy);
  for (int line = 0; line < lines; ++line)
    if (steady[line]) found.angle[found.count++] = two_pi * exact * line / static_cast<double>(rate_);
  return found;
}

// The least-squares fit of tones at these frequencies: cosines, and sines of those above 0
void Hum::subtract_fit(float* signal, int64_t n, const Lines& lines) {
  double gram[most_tones * most_tones], weights[most_tones];
  const int first_sine = lines.count, skipped = lines.count && lines.angle[0] == 0 ? 1 : 0;
  const int tones = 2 * lines.count - skipped;
  const auto angle_of = [&](int tone) { return lines.angle[tone < first_sine ? tone : tone - first_sine + skipped]; };
  for (int i = 0; i < tones; ++i)
    for (int j = 0; j < tones; ++j) {
      const double a = angle_of(i), b = angle_of(j);
      const std::complex<double> apart = sum_of_powers(a - b, n), together = sum_of_powers(a + b, n);
      const bool sine_i = i >= first_sine, sine_j = j >= first_sine;
      gram[i * most_tones + j] = (sine_i && sine_j ? apart.real() - together.real()
                                  : sine_i         ? together.imag() + apart.imag()
                                  : sine_j         ? together.imag() - apart.imag()
                                                   : apart.real() + together.real()) /
                                 2;
    }
  const auto sine_of = [&](int line) { return first_sine + line - skipped; };  // none of an angle of 0
  std::complex<double> turn[most_lines], phase[most_lines];
  for (int line = 0; line < lines.count; ++line) {
    turn[line] = std::polar(1.0, lines.angle[line]);
    std::complex<double> now = 1, sum = 0;
    for (int64_t i = 0; i < n; ++i, now *= turn[line]) sum += static_cast<double>(signal[i]) * now;
    weights[line] = sum.real();
    if (sine_of(line) >= first_sine) weights[sine_of(line)] = sum.imag();
  }
  solve(gram, weights, tones, most_tones);
  std::fill_n(phase, lines.count, 1.0);
  for (int64_t i = 0; i < n; ++i) {
    double fitted = 0;
    for (int line = 0; line < lines.count; ++line) {
      const double sine = sine_of(line) >= first_sine ? weights[sine_of(line)] * phase[line].imag() : 0;
      fitted += weights[line] * phase[line].real() + sine;
      phase[line] *= turn[line];
    }
    signal[i] -= static_cast<float>(fitted);
  }
}

void Hum::remove(float* signal, int64_t n) {
  if (static_cast<double>(n) < least_seconds * static_cast<double>(rate_)) return;
  Lines lines;
  double mains = 0;
  for (const double frequency : mains_frequencies) {
    const Lines found = find(signal, n, frequency, least_power);
    if (found.share >= lines.share) lines = found, mains = frequency;
  }
  if (lines.share < least_power) return;
  for (int round = 0; round < rounds; ++round) {
    subtract_fit(signal, n, lines);
    if (lines.angle[lines.count - 1] == 0) return;  // an offset alone
    lines = find(signal, n, mains, least_share);
    if (lines.count == 0) return;
  }
}

}  // namespace udse
