#include "stream/stream.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>
#include <string>

#include "stream/denormals.hpp"
#include "stream/fingerprint.hpp"

namespace udse {
namespace {

using std::int64_t;
using std::size_t;

constexpr int64_t piece_frames = 256;  // that go through the stream at a time
constexpr int64_t least_rate = 8000, most_rate = 1'000'000, most_channels = 64;
constexpr std::uint64_t state_version = 3;

constexpr int64_t everything = std::numeric_limits<int64_t>::max();

// In front of a saved state
struct StateHeader {
  std::uint64_t version, facts, size, checksum;
};

StreamSettings checked(const Prior& prior, const StreamSettings& settings, int64_t sample_rate, int64_t channels) {
  if (settings.sampler == Sampler::amortised_ddrm && !prior.posterior)
    throw Error("sampler amortised_ddrm: expected a causal posterior network beside the prior, got none");
  check(settings);
  if (sample_rate < least_rate || sample_rate > most_rate)
    throw Error("sample_rate: expected 8000 to 1000000 Hz, got " + std::to_string(sample_rate));
  if (channels < 1 || channels > most_channels)
    throw Error("channels: expected 1 to 64, got " + std::to_string(channels));
  return settings;
}

template <class... Numbers>
std::uint64_t hash_of(const Numbers&... numbers) {
  std::uint64_t hash = fingerprint(nullptr, 0);
  const auto add = [&](const auto& number) {
    unsigned char bytes[sizeof number];
    std::memcpy(bytes, &number, sizeof number);
    hash = fingerprint(bytes, sizeof number, hash);
  };
  (add(numbers), ...);
  return hash;
}

}  // namespace

Stream::Stream(std::shared_ptr<const Prior> prior, const StreamSettings& settings, int64_t sample_rate,
               int64_t channels)
    : prior_(std::move(prior)),
      settings_(checked(*prior_, settings, sample_rate, channels)),
      sample_rate_(sample_rate),
      channel_count_(channels),
      mixture_(channels, piece_frames + 1),
      remaining_noise_(static_cast<float>(settings.remaining_noise)) {
  isa();  // throws where one is forced that is not there
  const int64_t network_rate = prior_->spectral.settings().sample_rate;
  const auto down = resampling_filter(sample_rate, network_rate), up = resampling_filter(network_rate, sample_rate);
  most_pushed_ = Resampler(down).most(piece_frames);
  for (int64_t c = 0; c < channels; ++c)
    channels_.push_back(std::unique_ptr<Channel>(
        new Channel{{prior_, settings, most_pushed_}, Resampler(down), Resampler(up), Resampler(up), Resampler(up)}));
  const Channel& first = *channels_[0];
  piece_.resize(piece_frames);
  resampled_.resize(static_cast<size_t>(most_pushed_));
  const int64_t longest_silence = std::max({first.speech_after.delay(), piece_frames, most_pushed_});
  silence_.resize(static_cast<size_t>(longest_silence));
  mixture_ = Ring(channels, latency() + piece_frames + 1);
  for (auto* samples : {&speech_, &gain_, &low_})
    samples->resize(static_cast<size_t>(first.speech_after.most(std::max(first.blocks.advance(), longest_silence))));
}

int64_t Stream::latency() const {
  const Channel& channel = *channels_[0];
  const int64_t network_hz = prior_->spectral.settings().sample_rate, common = std::gcd(sample_rate_, network_hz);
  const int64_t rate = sample_rate_ / common, network_rate = network_hz / common;
  // in units of 1 / network_rate of our samples
  const int64_t held = (channel.blocks.window() - 1 + channel.speech_after.delay()) * rate;
  // blocks end at samples first - 1, first - 1 + advance, ... of the network's rate, which are not all of ours: the
  // whole sample that is missing where none of them falls late enough between two
  const int64_t end = (channel.blocks.first() - 1) * rate % std::gcd(channel.blocks.advance(), network_rate);
  return channel.before.delay() + held / network_rate - (end > held % network_rate);
}

Workbench Stream::make_workbench(int64_t signals) const { return {prior_, calls(), signals}; }

int64_t Stream::most(int64_t frames) const {
  const Channel& channel = *channels_[0];
  const int64_t advance = channel.blocks.advance();
  return channel.speech_after.most((channel.before.most(frames) + advance - 1) / advance * advance);
}

void Stream::push(const float* in, int64_t frames) {
  for (int64_t c = 0; c < channel_count_; ++c) {
    Channel& channel = *channels_[static_cast<size_t>(c)];
    for (int64_t i = 0; i < frames; ++i) {
      const float sample = in[i * channel_count_ + c];
      mixture_.frame(received_ + i)[c] = piece_[static_cast<size_t>(i)] = std::isfinite(sample) ? sample : 0.f;
    }
    channel.blocks.push(resampled_.data(), channel.before.process(piece_.data(), frames, resampled_.data()));
  }
  received_ += frames;
}

void Stream::give(Channel& channel, int64_t number, const Part& part, int64_t n, Writer& to) {
  const bool has_high_band = sample_rate_ > prior_->spectral.settings().sample_rate;
  const HighBand high_band = has_high_band ? settings_.high_band : HighBand::cut;
  const int64_t count = std::min(channel.speech_after.process(part.speech, n, speech_.data()), remaining());
  if (high_band == HighBand::follow) channel.gain_after.process(part.gain, n, gain_.data());
  if (high_band != HighBand::cut) channel.low_after.process(part.low, n, low_.data());
  for (int64_t i = 0; i < count; ++i) {
    const auto at = static_cast<size_t>(i);
    const float mixture = mixture_.frame(returned_ + i)[number];
    float own = speech_[at];
    if (high_band == HighBand::keep) own += mixture - low_[at];
    if (high_band == HighBand::follow) own += std::clamp(gain_[at], 0.f, 1.f) * (mixture - low_[at]);
    const float given = (1 - remaining_noise_) * own + remaining_noise_ * mixture;
    const int64_t to_at = (to.written + i) * channel_count_ + number;
    to.out.speech[to_at] = given;
    if (to.out.noise) to.out.noise[to_at] = mixture - given;
  }
  if (number < channel_count_ - 1) return;
  to.written += count;  // as many of every channel
  returned_ += count;
}

// One real gain per bin for all channels that are not silent, so that the image stays
void Stream::share_gain() {
  const size_t size = channels_[0]->blocks.mixture_spectrogram().size();
  for (size_t i = 0; i < size; ++i) {
    float speech = 0, mixture = 0;
    for (const auto& channel : channels_) {
      if (!channel->blocks.active()) continue;
      speech += std::norm(channel->blocks.speech_spectrogram()[i]);
      mixture += std::norm(channel->blocks.mixture_spectrogram()[i]);
    }
    const float gain = std::min(1.f, std::sqrt(speech / std::max(mixture, std::numeric_limits<float>::min())));
    for (const auto& channel : channels_)
      if (channel->blocks.active())
        channel->blocks.speech_spectrogram()[i] = gain * channel->blocks.mixture_spectrogram()[i];
  }
}

void Stream::put_on(Workbench& bench) {
  for (auto& channel : channels_) bench.put(channel->blocks);
}

int64_t Stream::give_block(int64_t most_given, Writer& to) {
  const auto active =
      std::count_if(channels_.begin(), channels_.end(), [](const auto& channel) { return channel->blocks.active(); });
  network_calls_ += active * static_cast<int64_t>(calls().each.size());
  if (settings_.common_gain && active > 1) share_gain();
  for (auto& channel : channels_) channel->blocks.end();
  const int64_t count = std::min(channels_[0]->blocks.count(), most_given);
  for (int64_t c = 0; c < channel_count_; ++c) {
    Channel& channel = *channels_[static_cast<size_t>(c)];
    const CausalBlocks& blocks = channel.blocks;
    give(channel, c, {blocks.speech(), blocks.gain(), blocks.mixture()}, count, to);
  }
  return count;
}

int64_t Stream::run_block(int64_t most_given, Writer& to, Workbench& bench) {
  put_on(bench);
  bench.finish();
  return give_block(most_given, to);
}

void Stream::take(Feed& feed) {
  while (!ready() && feed.taken < feed.frames) {
    const int64_t count = std::min(piece_frames, feed.frames - feed.taken);
    push(feed.in + feed.taken * channel_count_, count);
    feed.taken += count;
  }
  feed.ready = ready();
}

void Stream::process(Feed* feeds, size_t count, Workbench& bench) {
  const DenormalsOff denormals_off;
  for (bool any = true; any;) {
    any = false;
    for (Feed* feed = feeds; feed != feeds + count; ++feed) {
      feed->stream->take(*feed);
      if (feed->ready) feed->stream->put_on(bench);
      any = any || feed->ready;
    }
    bench.finish();
    for (Feed* feed = feeds; feed != feeds + count; ++feed) {
      if (!feed->ready) continue;
      Writer to{feed->out, feed->written};
      feed->stream->give_block(everything, to);
      feed->written = to.written;
    }
  }
}

int64_t Stream::process(const float* in, int64_t frames, const Output& out, Workbench& bench) {
  Feed feed{this, in, frames, out};
  process(&feed, 1, bench);
  return feed.written;
}

int64_t Stream::flush(const Output& out, Workbench& bench) {
  const DenormalsOff denormals_off;
  const CausalBlocks& blocks = channels_[0]->blocks;
  Writer to{out, 0};
  // as if silence followed: first in front of the blocks, until all of the signal has come to them
  for (int64_t left = channels_[0]->before.delay(); left > 0;) {
    const int64_t count = std::min(piece_frames, left);
    left -= count;
    for (auto& channel : channels_)
      channel->blocks.push(resampled_.data(), channel->before.process(silence_.data(), count, resampled_.data()));
    while (ready()) run_block(everything, to, bench);
  }
  // then to the blocks, until they have given all of it
  int64_t to_give = blocks.remaining();
  for (int64_t missing = blocks.missing(); missing > 0;) {
    const int64_t count = std::min(most_pushed_, missing);
    missing -= count;
    for (auto& channel : channels_) channel->blocks.push(silence_.data(), count);
    while (ready()) to_give -= run_block(to_give, to, bench);
  }
  for (int64_t c = 0; c < channel_count_; ++c) {
    Channel& channel = *channels_[static_cast<size_t>(c)];
    const float* const silence = silence_.data();
    give(channel, c, {silence, silence, silence}, channel.speech_after.delay(), to);
  }
  reset();
  return to.written;
}

std::array<Resampler*, 4> Stream::resamplers(Channel& channel) {
  return {&channel.before, &channel.speech_after, &channel.gain_after, &channel.low_after};
}

void Stream::reset() {
  for (auto& channel : channels_) {
    channel->blocks.reset();
    for (Resampler* resampler : resamplers(*channel)) resampler->reset();
  }
  received_ = returned_ = network_calls_ = 0;
}

int64_t Stream::recovered_blocks() const {
  int64_t count = 0;
  for (const auto& channel : channels_) count += channel->blocks.recovered_blocks();
  return count;
}

// What the state belongs to
std::uint64_t Stream::facts() const {
  const StreamSettings& s = settings_;
  return hash_of(prior_->fingerprint, sample_rate_, channel_count_, s.sampler, s.em_rounds, s.fits, s.listening,
                 s.steps, s.samples, s.shared_steps, s.rank, s.nmf_iterations, s.block_frames, s.start_time, s.end_time,
                 s.eta, s.noise_bias, s.variance_scale, s.start_share, s.readout, s.restraint, s.wiener_exponent,
                 s.blend_ratio, s.forgetting_seconds, s.forgetting_spread, s.noise_floor, s.level_seconds,
                 s.remaining_noise, s.seed, s.remove_hum, s.common_gain, s.high_band);
}

void Stream::exchange(State& state) {
  for (auto& channel : channels_) {
    channel->blocks.exchange(state);
    for (Resampler* resampler : resamplers(*channel)) resampler->exchange(state);
  }
  mixture_.exchange(state);
  state(received_, int64_t{0}, everything);
  state(returned_, int64_t{0}, everything);
}

size_t Stream::state_size() {
  State state(State::measure);
  exchange(state);
  return sizeof(StateHeader) + state.size();
}

void Stream::save(unsigned char* bytes) {
  State state(State::save, bytes + sizeof(StateHeader));
  exchange(state);
  const StateHeader header{state_version, facts(), state.size(),
                           fingerprint(bytes + sizeof(StateHeader), state.size())};
  std::memcpy(bytes, &header, sizeof header);
}

void Stream::restore(const unsigned char* bytes, size_t size) {
  StateHeader header{};
  if (size >= sizeof header) std::memcpy(&header, bytes, sizeof header);
  if (size < sizeof header || header.version != state_version)
    throw Error("restore: expected what save of a stream gave, got other bytes");
  if (header.facts != facts() || size != state_size())
    throw Error("restore: expected the state of a stream with the same checkpoint, rate, channels and settings");
  const unsigned char* const content = bytes + sizeof header;
  State checking(State::check, content);
  exchange(checking);
  if (header.size != checking.size() || header.checksum != fingerprint(content, checking.size()) || !checking.valid())
    throw Error("restore: expected a state as save gave it, got one that was damaged since");
  State restoring(State::restore, content);
  exchange(restoring);
}

}  // namespace udse
