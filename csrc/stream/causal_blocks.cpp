#include "stream/causal_blocks.hpp"

#include <algorithm>
#include <cmath>
#include <limits>

namespace udse {
namespace {

using std::int64_t;
using std::size_t;

constexpr float least_level = 1e-6f;     // largest compressed modulus below which a block counts as digital silence
constexpr double release_seconds = 0.5;  // in which the level falls to 1/e once the loudest frame is forgotten
constexpr float least_squares = 1e-3f;   // of the windows, where a sample is hardly seen
constexpr float recovered_gain = 0.1f;   // of a block whose computing broke down: 20 dB down
constexpr float loudest_sample = 1e9f;   // far above full scale; powers of it are finite

constexpr double lowest_of_highest = 5000, highest_of_highest = 7500;  // Hz: what the band above follows

double seconds(const Prior& prior, int64_t samples) {
  return static_cast<double>(samples) / static_cast<double>(prior.spectral.settings().sample_rate);
}

double forgetting(const Prior& prior, const StreamSettings& settings) {
  const int64_t samples = settings.block_frames * prior.spectral.settings().hop;
  return std::exp(-seconds(prior, samples) / settings.forgetting_seconds);
}

int64_t block_samples(const Prior& prior, int64_t frames) {
  return (frames - 1) * prior.spectral.settings().hop + prior.spectral.settings().n_fft;
}

int64_t longest_heard(const Prior& prior, int64_t frames) {
  return prior.spectral.settings().sample_rate + block_samples(prior, frames);
}

float sane(float sample) { return std::isfinite(sample) ? std::clamp(sample, -loudest_sample, loudest_sample) : 0.f; }

}  // namespace

Scratch::Scratch(const Prior& prior, int64_t frames)
    : hum(prior.spectral.settings().sample_rate, longest_heard(prior, frames)),
      unsteady(static_cast<size_t>(longest_heard(prior, frames))) {}

CausalBlocks::CausalBlocks(std::shared_ptr<const Prior> prior, const StreamSettings& settings, int64_t most_pushed)
    : prior_(std::move(prior)),
      frames_(settings.block_frames),
      advance_(frames_ * prior_->spectral.settings().hop),
      window_(block_samples(*prior_, frames_)),
      release_(static_cast<float>(std::exp(-seconds(*prior_, advance_) / release_seconds))),
      removes_hum_(settings.remove_hum),
      noise_model_(prior_->network->bins(), frames_, settings, forgetting(*prior_, settings),
                   seconds(*prior_, advance_)),
      sampler_(make_block_sampler(*prior_, settings)),
      memories_(sampler_->calls().memory_groups),
      read_out_(prior_->spectral.settings(), settings, forgetting(*prior_, settings)),
      restraint_(prior_->spectral.settings(), frames_, settings.restraint),
      workspace_(prior_->spectral.settings(), frames_),
      input_(static_cast<size_t>(window_ + most_pushed)),
      sum_(static_cast<size_t>(window_)),
      gain_sum_(sum_.size()),
      squares_(sum_.size()),
      heard_(static_cast<size_t>(longest_heard(*prior_, frames_))),
      loudest_(static_cast<size_t>(std::max(1.0, std::nearbyint(settings.level_seconds / seconds(*prior_, advance_))))),
      mixture_(static_cast<size_t>(prior_->network->bins() * frames_)),
      spectrogram_(mixture_.size()),
      loud_mixture_(mixture_.size()),
      speech_(static_cast<size_t>(advance_)),
      gain_(speech_.size()),
      given_mixture_(speech_.size()) {
  State learnt(State::measure);
  exchange_learnt(learnt);
  learnt_.resize(learnt.size());
  reset();
}

void CausalBlocks::reset() {
  noise_model_.reset();
  read_out_.reset();
  restraint_.reset();
  std::fill(memories_.begin(), memories_.end(), KeptNumbers{});
  for (auto* numbers : {&input_, &sum_, &gain_sum_, &squares_, &loudest_, &heard_})
    std::fill(numbers->begin(), numbers->end(), 0.f);
  held_ = skip_ = skipped_at_first();  // centred frames: the first reaches half a window before the signal
  latest_ = recovered_blocks_ = left_out_ = heard_count_ = 0;
  level_ = 0;
  frame_ = 0;
}

void CausalBlocks::push(const float* samples, int64_t n) {
  std::transform(samples, samples + n, input_.data() + held_, sane);
  held_ += n;
}

void CausalBlocks::update_level() {
  float largest = 0;
  for (const cfloat z : mixture_) largest = std::max(largest, z.real() * z.real() + z.imag() * z.imag());
  latest_ = (latest_ + 1) % static_cast<int64_t>(loudest_.size());
  loudest_[static_cast<size_t>(latest_)] = std::sqrt(largest);
  level_ = std::max(*std::max_element(loudest_.begin(), loudest_.end()), level_ * release_);
}

const float* CausalBlocks::steady_signal(Scratch& scratch) {
  if (!removes_hum_) return input_.data();
  const int64_t fresh = heard_count_ ? advance_ : window_, rate = prior_->spectral.settings().sample_rate;
  std::copy_n(input_.data() + window_ - fresh, fresh, heard_.data() + heard_count_);
  const int64_t count = heard_count_ + fresh;
  std::copy_n(heard_.data(), count, scratch.unsteady.data());
  scratch.hum.remove(scratch.unsteady.data(), count);
  heard_count_ = std::min(count, rate);
  std::copy(heard_.data() + count - heard_count_, heard_.data() + count, heard_.data());
  return scratch.unsteady.data() + count - window_;
}

bool CausalBlocks::begin(Scratch& scratch) {
  const SpectralSettings& settings = prior_->spectral.settings();
  const auto size = static_cast<int64_t>(mixture_.size());
  prior_->spectral.analyse(steady_signal(scratch), frames_, spectrogram_.data(), workspace_);
  kernels().compression.compress(spectrogram_.data(), settings.exponent, settings.factor, mixture_.data(), {0, size});
  update_level();
  active_ = level_ > least_level;
  if (!active_) return false;
  State learnt(State::save, learnt_.data());
  exchange_learnt(learnt);
  for (cfloat& z : mixture_) z = {z.real() / level_, z.imag() / level_};
  noise_model_.next_block(mixture_.data(), level_);
  sampler_->start(mixture_.data(), frame_, noise_model_);
  return true;
}

// The mixture is given, as far down as noise would be, and what was learnt before the block is as it was.
void CausalBlocks::recover() {
  ++recovered_blocks_;
  const unsigned char* const before = learnt_.data();
  State learnt(State::restore, before);
  exchange_learnt(learnt);
  for (size_t i = 0; i < spectrogram_.size(); ++i) spectrogram_[i] = recovered_gain * loud_mixture_[i];
}

void CausalBlocks::estimate(std::vector<KeptNumbers>& memories) {
  read_out_.decompress(mixture_.data(), level_, loud_mixture_.data());
  read_out_.estimate({sampler_->speech(), sampler_->heard()}, mixture_.data(), level_, noise_model_,
                     spectrogram_.data());
  const auto finite = [](cfloat z) { return std::isfinite(z.real()) && std::isfinite(z.imag()); };
  if (!std::all_of(spectrogram_.begin(), spectrogram_.end(), finite)) return recover();
  memories_.swap(memories);
  restraint_.apply(loud_mixture_.data(), spectrogram_.data());
}

// Real gain up to 1 from the mixture to the speech, by their powers
float CausalBlocks::gain_of_highest(int64_t frame) const {
  const SpectralSettings& settings = prior_->spectral.settings();
  const auto bin = [&](double hertz) {
    const double at = hertz * static_cast<double>(settings.n_fft) / static_cast<double>(settings.sample_rate);
    return std::min(settings.bins(), static_cast<int64_t>(std::nearbyint(at)));
  };
  float speech = 0, mixture = 0;
  for (int64_t k = bin(lowest_of_highest); k < bin(highest_of_highest); ++k) {
    const auto at = static_cast<size_t>(k * frames_ + frame);
    speech += std::norm(spectrogram_[at]);
    mixture += std::norm(loud_mixture_[at]);
  }
  return std::min(1.f, std::sqrt(speech / std::max(mixture, std::numeric_limits<float>::min())));
}

void CausalBlocks::end() {
  const SpectralSettings& settings = prior_->spectral.settings();
  const std::vector<float>& window = prior_->spectral.window();
  if (active_) {
    prior_->spectral.overlap_add(spectrogram_.data(), frames_, sum_.data(), workspace_);
    for (int64_t t = 0; t < frames_; ++t) {
      const float gain = gain_of_highest(t);
      for (int64_t n = 0; n < settings.n_fft; ++n) {
        const float w = window[static_cast<size_t>(n)];
        gain_sum_[static_cast<size_t>(t * settings.hop + n)] += gain * (w * w);
      }
    }
  }
  prior_->spectral.overlap_add_squares(frames_, squares_.data());
  for (int64_t i = 0; i < advance_; ++i) {
    const auto at = static_cast<size_t>(i);
    speech_[at] = sum_[at] / std::max(squares_[at], least_squares);
    gain_[at] = gain_sum_[at] / std::max(squares_[at], least_squares);
    given_mixture_[at] = input_[at];
  }
  for (auto* sums : {&sum_, &gain_sum_, &squares_}) {
    std::copy(sums->begin() + advance_, sums->end(), sums->begin());
    std::fill(sums->end() - advance_, sums->end(), 0.f);
  }
  left_out_ = std::min(skip_, advance_);
  skip_ -= left_out_;
  std::copy(input_.data() + advance_, input_.data() + held_, input_.data());
  held_ -= advance_;
  frame_ += static_cast<std::uint64_t>(frames_);
}

int64_t CausalBlocks::missing() const {
  // samples that are held and were not given yet, with those before the signal, in whole blocks
  const int64_t blocks = (held_ + advance_ - 1) / advance_;
  return std::max<int64_t>(0, blocks * advance_ + window_ - advance_ - held_);
}

void CausalBlocks::exchange_learnt(State& state) {
  noise_model_.exchange(state);
  read_out_.exchange(state);
}

void CausalBlocks::exchange(State& state) {
  noise_model_.exchange(state);
  state(memories_);
  read_out_.exchange(state);
  restraint_.exchange(state);
  state(held_, int64_t{0}, window_ - 1);
  state(input_);
  state(sum_);
  state(gain_sum_);
  state(squares_);
  state(heard_);
  state(heard_count_, int64_t{0}, prior_->spectral.settings().sample_rate);
  state(loudest_);
  state(latest_, int64_t{0}, static_cast<int64_t>(loudest_.size()) - 1);
  state(level_, 0.f, 1e30f);
  state(frame_, std::uint64_t{0}, ~std::uint64_t{0});
  state(skip_, int64_t{0}, skipped_at_first());
  state(recovered_blocks_, int64_t{0}, INT64_MAX);
}

}  // namespace udse
