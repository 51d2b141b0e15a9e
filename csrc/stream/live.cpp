#include "stream/live.hpp"

#include <algorithm>

namespace udse {
namespace {

using std::int64_t;
using std::size_t;

constexpr int64_t chunk_frames = 512;   // that are worked on at a time
constexpr double fade_seconds = 0.005;  // from the enhanced signal to the noisy one, and back
constexpr double spare_seconds = 0.5;   // that the worker may be late before it starts anew

}  // namespace

LiveStream::LiveStream(std::unique_ptr<Stream> stream, float remaining_noise, int64_t buffer_frames)
    : stream_(std::move(stream)),
      bench_(stream_->make_workbench(stream_->channels())),
      channels_(stream_->channels()),
      latency_(stream_->latency()),
      fade_(buffer_frames > 0 ? static_cast<int64_t>(fade_seconds * static_cast<double>(stream_->sample_rate())) : 1),
      has_worker_(buffer_frames > 0),
      noisy_(channels_, latency_ + buffer_frames + fade_ + chunk_frames +
                            static_cast<int64_t>(spare_seconds * static_cast<double>(stream_->sample_rate()))),
      enhanced_(channels_, noisy_.capacity()),
      chunk_(static_cast<size_t>(chunk_frames * channels_)),
      result_(static_cast<size_t>(stream_->most(chunk_frames) * channels_)),
      remaining_noise_(remaining_noise) {
  if (has_worker_) {
    latency_ += buffer_frames + fade_;  // a fade needs frames that are there
    worker_ = std::thread([this] { work(); });
  }
}

LiveStream::~LiveStream() {
  if (!worker_.joinable()) return;
  closing_ = true;
  wake_.post();
  worker_.join();
}

void LiveStream::process(const float* in, float* out, int64_t frames) {
  for (int64_t done = 0; done < frames;) {
    const int64_t n = std::min(chunk_frames, frames - done);
    take_in(in + done * channels_, n);
    if (has_worker_)
      wake_.post();
    else
      follow();
    give_out(out + done * channels_, n);
    done += n;
  }
}

void LiveStream::take_in(const float* in, int64_t frames) {
  // what the worker has not taken yet stays
  const bool late = received_ + frames - consumed_.load(std::memory_order_acquire) > noisy_.capacity();
  int phase = phase_.load(std::memory_order_acquire);
  if (phase == running && late) phase_.store(phase = lost, std::memory_order_release);
  if (phase == cleared) {
    base_.store(received_, std::memory_order_relaxed);
    produced_.store(received_, std::memory_order_relaxed);
    consumed_.store(received_, std::memory_order_relaxed);
    phase_.store(phase = running, std::memory_order_release);
  }
  noisy_.write(received_, in, frames);
  received_ += frames;
  if (phase == running) fed_.store(received_, std::memory_order_release);
}

void LiveStream::give_out(float* out, int64_t frames) {
  const int64_t produced = produced_.load(std::memory_order_acquire), base = base_.load(std::memory_order_relaxed);
  const float step = 1.f / static_cast<float>(fade_);
  for (int64_t i = 0; i < frames; ++i, ++given_) {
    float* const to = out + i * channels_;
    const int64_t number = given_ - latency_;
    if (number < 0) {
      std::fill_n(to, channels_, 0.f);
      continue;
    }
    // as far as there are enhanced frames to fade out with
    const int64_t ahead = number < base ? 0 : produced - number;
    const float before = wet_;
    wet_ = std::clamp(static_cast<float>(ahead) * step, 0.f, std::min(1.f, wet_ + step));
    if (before >= 1 && wet_ < 1) ++missed_;
    if (wet_ < 1) ++bridged_frames_;
    const float *const noisy = noisy_.frame(number), *const enhanced = enhanced_.frame(number);
    for (int64_t c = 0; c < channels_; ++c)
      to[c] = wet_ >= 1 ? enhanced[c] : ahead <= 0 ? noisy[c] : noisy[c] + wet_ * (enhanced[c] - noisy[c]);
  }
}

void LiveStream::work() {
  while (!closing_.load()) {
    wake_.wait();
    follow();
  }
}

// Enhances everything that has come.
void LiveStream::follow() {
  while (!closing_.load(std::memory_order_relaxed)) {
    if (phase_.load(std::memory_order_acquire) == lost) {
      stream_->reset();
      phase_.store(cleared, std::memory_order_release);
      return;
    }
    if (phase_.load(std::memory_order_acquire) != running) return;
    taken_ = std::max(taken_, base_.load(std::memory_order_relaxed));
    const int64_t fed = fed_.load(std::memory_order_acquire);
    if (!enhance(fed)) return;
  }
}

// A chunk of the frames up to `until`; false where there are none.
bool LiveStream::enhance(int64_t until) {
  const int64_t n = std::min(chunk_frames, until - taken_);
  if (n <= 0) return false;
  noisy_.read(taken_, chunk_.data(), n);
  taken_ += n;
  consumed_.store(taken_, std::memory_order_release);
  stream_->set_remaining_noise(remaining_noise_.load(std::memory_order_relaxed));
  const int64_t count = stream_->process(chunk_.data(), n, {result_.data(), nullptr}, bench_);
  const int64_t produced = produced_.load(std::memory_order_relaxed);
  enhanced_.write(produced, result_.data(), count);
  produced_.store(produced + count, std::memory_order_release);
  return true;
}

}  // namespace udse
