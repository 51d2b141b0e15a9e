#include "stream/noise_model.hpp"

#include <algorithm>
#include <cmath>
#include <random>

namespace udse {
namespace {

using std::int64_t;
using std::size_t;

constexpr float floor_of_factors = 1e-10f;

size_t area(int64_t rows, int64_t columns) { return static_cast<size_t>(rows * columns); }

float power_of(cfloat z) { return std::max(z.real() * z.real() + z.imag() * z.imag(), floor_of_factors); }

// (rows, columns) matrix: every column divided by its sum
void normalise_columns(std::vector<float>& matrix, int64_t rows, int64_t columns) {
  for (int64_t k = 0; k < columns; ++k) {
    double sum = 0;
    for (int64_t f = 0; f < rows; ++f) sum += static_cast<double>(matrix[area(f, columns) + static_cast<size_t>(k)]);
    for (int64_t f = 0; f < rows; ++f) matrix[area(f, columns) + static_cast<size_t>(k)] /= static_cast<float>(sum);
  }
}

}  // namespace

NoiseModel::NoiseModel(int64_t bins, int64_t frames, const StreamSettings& settings, double forgetting,
                       double block_seconds)
    : bins_(bins),
      frames_(frames),
      rank_(settings.rank),
      iterations_(settings.nmf_iterations),
      forgetting_(static_cast<float>(forgetting)),
      share_(static_cast<float>(settings.start_share)),
      random_(area(bins, rank_)),
      kept_(static_cast<size_t>(rank_)),
      W_(random_.size()),
      H_(area(rank_, frames)),
      numerator_(random_.size()),
      denominator_(random_.size()),
      next_numerator_(random_.size()),
      next_denominator_(random_.size()),
      floor_(bins, frames, settings.noise_floor, block_seconds),
      raised_(area(bins, frames)) {
  std::mt19937 generator(static_cast<std::uint32_t>(settings.seed));
  for (float& x : random_) x = 0.5f + static_cast<float>(generator() & 0xffffff) * 0x1p-24f;
  for (int64_t k = 0; k < rank_; ++k) {
    const float at = rank_ == 1 ? 0.5f : 0.5f - static_cast<float>(k) / static_cast<float>(rank_ - 1);
    const float pace = std::pow(static_cast<float>(settings.forgetting_spread), at);
    kept_[static_cast<size_t>(k)] = std::pow(forgetting_, pace - 1);
  }
  const int64_t stride = nmf_frames;  // all frames of a block are one item of the update
  scratch_.resize(static_cast<size_t>((2 * rank_ + 1) * stride + bins * (3 * rank_ + 1)) + 16);
  const auto misaligned = reinterpret_cast<std::uintptr_t>(scratch_.data()) % 64;
  float* const H = scratch_.data() + (64 - misaligned) % 64 / sizeof(float);  // vectors cross no cache line
  float* const scaled_h = H + rank_ * stride;
  float* const scaled_w = scaled_h + (rank_ + 1) * stride;
  float* const weighted = scaled_w + bins * (rank_ + 1);
  pass_ = {bins,
           frames,
           rank_,
           nullptr,
           W_.data(),
           H,
           stride,
           scaled_w,
           scaled_h,
           weighted,
           weighted + bins * rank_,
           floor_of_factors,
           nullptr,
           nullptr,
           forgetting_};
  reset();
}

void NoiseModel::reset() {
  started_ = 0;
  floor_.reset();
  W_ = random_;
  normalise_columns(W_, bins_, rank_);
  std::fill(H_.begin(), H_.end(), 0.f);
  for (auto* statistics : {&numerator_, &denominator_, &next_numerator_, &next_denominator_})
    std::fill(statistics->begin(), statistics->end(), 0.f);
}

void NoiseModel::start(const cfloat* mixture) {
  double first_frame = 0, sum = 0;
  for (int64_t f = 0; f < bins_; ++f) {
    double power = 0;
    for (int64_t t = 0; t < frames_; ++t) power += static_cast<double>(power_of(mixture[f * frames_ + t]));
    first_frame += static_cast<double>(power_of(mixture[f * frames_]));
    for (int64_t k = 0; k < rank_; ++k) {
      const size_t at = area(f, rank_) + static_cast<size_t>(k);
      W_[at] = random_[at] * static_cast<float>(power / static_cast<double>(frames_));
    }
  }
  normalise_columns(W_, bins_, rank_);
  for (const float w : W_) sum += static_cast<double>(w);
  // equal activations, with V summing to the power of the first frame
  const float even = std::max(static_cast<float>(first_frame / sum), floor_of_factors);
  std::fill(H_.begin(), H_.end(), share_ * even);
  started_ = 1;
}

void NoiseModel::next_block(const cfloat* mixture, float level) {
  if (floor_) floor_.next_block(mixture, level);
  if (!started_) return start(mixture);
  for (int64_t f = 0; f < bins_; ++f)
    for (int64_t k = 0; k < rank_; ++k) {
      const size_t at = area(f, rank_) + static_cast<size_t>(k);
      numerator_[at] = next_numerator_[at] * kept_[static_cast<size_t>(k)];
      denominator_[at] = next_denominator_[at] * kept_[static_cast<size_t>(k)];
    }
  for (int64_t k = 0; k < rank_; ++k) {
    float* const row = H_.data() + k * frames_;
    std::fill_n(row, frames_ - 1, row[frames_ - 1]);
  }
}

void NoiseModel::fit(const float* power) {
  const NMFKernels& run = kernels().nmf;
  if (floor_) floor_.raise(power, raised_.data());
  pass_.power = floor_ ? raised_.data() : power;
  pass_.A = next_numerator_.data();
  pass_.B = next_denominator_.data();
  next_numerator_ = numerator_;  // of the same size: nothing is allocated
  next_denominator_ = denominator_;
  for (int64_t k = 0; k < rank_; ++k) {
    std::copy_n(H_.data() + k * frames_, frames_, pass_.H + k * pass_.stride);
    std::fill_n(pass_.H + k * pass_.stride + frames_, pass_.stride - frames_, 0.f);
  }
  // no 0/0 in the frames behind the last one
  std::fill_n(pass_.scaled_h + rank_ * pass_.stride + frames_, pass_.stride - frames_, 1.f);
  for (int64_t i = 0; i < iterations_; ++i) {
    run.scale_w(pass_, {0, bins_});
    run.h(pass_, {0, 1});
  }
  run.scale_h(pass_, {0, frames_});
  run.w(pass_, {0, bins_});
  run.normalise(pass_, {0, bins_});
  for (int64_t k = 0; k < rank_; ++k) std::copy_n(pass_.H + k * pass_.stride, frames_, H_.data() + k * frames_);
}

void NoiseModel::variance(float* out) const {
  for (int64_t f = 0; f < bins_; ++f) {
    float* const row = out + f * frames_;
    std::fill_n(row, frames_, 0.f);
    for (int64_t k = 0; k < rank_; ++k) {
      const float w = W_[area(f, rank_) + static_cast<size_t>(k)];
      for (int64_t t = 0; t < frames_; ++t) row[t] += w * H_[static_cast<size_t>(k * frames_ + t)];
    }
  }
}

void NoiseModel::exchange(State& state) {
  state(W_);
  state(H_);
  state(numerator_);
  state(denominator_);
  state(next_numerator_);
  state(next_denominator_);
  state(started_, std::int32_t{0}, std::int32_t{1});
  floor_.exchange(state);
}

}  // namespace udse
