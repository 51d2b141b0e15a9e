#include "stream/spectral.hpp"

#include <algorithm>
#include <cmath>

namespace udse {

using std::int64_t;

namespace {

constexpr double two_pi = 6.283185307179586;

std::size_t area(int64_t rows, int64_t columns) { return static_cast<std::size_t>(rows * columns); }

std::vector<float> make_window(const SpectralSettings& settings) {
  std::vector<float> window(static_cast<std::size_t>(settings.n_fft));
  for (std::size_t n = 0; n < window.size(); ++n) {
    const float angle = static_cast<float>(n) * static_cast<float>(two_pi / static_cast<double>(settings.n_fft));
    const float hann = std::cos(angle) * -0.5f + 0.5f;
    window[n] = settings.sqrt_hann ? std::sqrt(hann) : hann;
  }
  return window;
}

}  // namespace

Spectral::Workspace::Workspace(const SpectralSettings& settings, int64_t frames)
    : even(area(frames, settings.bins())), odd(even.size()), by_cosine(even.size()), by_sine(even.size()) {}

Spectral::Spectral(const SpectralSettings& settings) : settings_(settings), window_(make_window(settings)) {
  const int64_t F = settings.bins(), N = settings.n_fft;
  std::vector<double> cosines(static_cast<std::size_t>(N)), sines(cosines.size());
  for (std::size_t n = 0; n < cosines.size(); ++n) {
    const double angle = two_pi * static_cast<double>(n) / static_cast<double>(N);
    cosines[n] = std::cos(angle);
    sines[n] = std::sin(angle);
  }
  cosine_.resize(area(F, F));
  sine_.resize(area(F, F));
  for (int64_t i = 0; i < F; ++i)
    for (int64_t j = 0; j < F; ++j) {
      const auto turn = static_cast<std::size_t>(i * j % N), at = static_cast<std::size_t>(i * F + j);
      cosine_[at] = static_cast<float>(cosines[turn]);
      sine_[at] = static_cast<float>(sines[turn]);
    }
}

void Spectral::multiply(int64_t frames, Workspace& workspace) const {
  const int64_t F = settings_.bins();
  std::fill(workspace.by_cosine.begin(), workspace.by_cosine.end(), 0.0);
  std::fill(workspace.by_sine.begin(), workspace.by_sine.end(), 0.0);
  for (int64_t j = 0; j < F; ++j) {
    const float *const cosine = cosine_.data() + j * F, *const sine = sine_.data() + j * F;
    for (int64_t t = 0; t < frames; ++t) {
      const double even = workspace.even.data()[t * F + j], odd = workspace.odd.data()[t * F + j];
      double *const by_cosine = workspace.by_cosine.data() + t * F, *const by_sine = workspace.by_sine.data() + t * F;
      for (int64_t i = 0; i < F; ++i) {
        by_cosine[i] += even * static_cast<double>(cosine[i]);
        by_sine[i] += odd * static_cast<double>(sine[i]);
      }
    }
  }
}

void Spectral::analyse(const float* signal, int64_t frames, cfloat* out, Workspace& workspace) const {
  const int64_t F = settings_.bins(), N = settings_.n_fft;
  for (int64_t t = 0; t < frames; ++t) {
    const float* const frame = signal + t * settings_.hop;
    const auto windowed = [&](int64_t n) { return static_cast<double>(frame[n] * window_.data()[n]); };
    double *const even = workspace.even.data() + t * F, *const odd = workspace.odd.data() + t * F;
    even[0] = windowed(0);
    odd[0] = 0;
    for (int64_t n = 1; n < F; ++n) {
      const bool own_mirror = 2 * n == N;
      const double here = windowed(n), mirrored = own_mirror ? 0 : windowed(N - n);
      even[n] = here + mirrored;
      odd[n] = own_mirror ? 0 : here - mirrored;
    }
  }
  multiply(frames, workspace);
  for (int64_t k = 0; k < F; ++k)
    for (int64_t t = 0; t < frames; ++t)
      out[k * frames + t] = {static_cast<float>(workspace.by_cosine.data()[t * F + k]),
                             static_cast<float>(-workspace.by_sine.data()[t * F + k])};
}

void Spectral::overlap_add(const cfloat* spectrogram, int64_t frames, float* sum, Workspace& workspace) const {
  const int64_t F = settings_.bins(), N = settings_.n_fft;
  for (int64_t t = 0; t < frames; ++t)
    for (int64_t k = 0; k < F; ++k) {
      const bool once = k == 0 || 2 * k == N;  // the others stand for their mirror image too
      const double weight = (once ? 1.0 : 2.0) / static_cast<double>(N);
      const cfloat z = spectrogram[k * frames + t];
      workspace.even.data()[t * F + k] = weight * static_cast<double>(z.real());
      workspace.odd.data()[t * F + k] = once ? 0 : weight * static_cast<double>(z.imag());
    }
  multiply(frames, workspace);
  for (int64_t t = 0; t < frames; ++t) {
    const double *const by_cosine = workspace.by_cosine.data() + t * F, *const by_sine =
                                                                            workspace.by_sine.data() + t * F;
    float* const to = sum + t * settings_.hop;
    for (int64_t n = 0; n < F; ++n) to[n] += static_cast<float>(by_cosine[n] - by_sine[n]) * window_.data()[n];
    for (int64_t n = F; n < N; ++n) to[n] += static_cast<float>(by_cosine[N - n] + by_sine[N - n]) * window_.data()[n];
  }
}

void Spectral::overlap_add_squares(int64_t frames, float* sum) const {
  for (int64_t t = 0; t < frames; ++t)
    for (int64_t n = 0; n < settings_.n_fft; ++n) sum[t * settings_.hop + n] += window_.data()[n] * window_.data()[n];
}

}  // namespace udse
