// Streams with the built-in networks, by each sampler: what a pipeline must be able to rely on. The files of the prior
// and of the posterior network are the arguments.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "calls_watched.hpp"
#include "checking.hpp"
#include "stream/stream.hpp"

using std::int64_t;
using std::size_t;
using Samples = std::vector<float>;

namespace {

// sanitizers and emulators make everything some twenty times slower, and see in a few blocks what they see in all of
// them
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr bool sanitized = true;
#else
constexpr bool sanitized = false;
#endif

#ifdef UDSE_EMULATED
constexpr bool emulated = true;
#else
constexpr bool emulated = false;
#endif
constexpr bool slow = sanitized || emulated;
constexpr int64_t part = slow ? 3 : 1;  // by which signals are shorter

std::shared_ptr<const udse::Prior> prior;
udse::Sampler sampler = udse::Sampler::ddrm;
std::mt19937 generator(1);

float noise() { return std::normal_distribution<float>(0, 0.05f)(generator); }

// Something like vowels, in noise
Samples signal(int64_t frames, int64_t rate, int64_t channels = 1) {
  Samples x(static_cast<size_t>(frames * channels));
  for (int64_t i = 0; i < frames; ++i) {
    const double t = double(i) / double(rate), voice = std::sin(6.283185 * 3 * t) > 0 ? 0.02 : 0;
    double tone = 0;
    for (int k = 1; k < 12; ++k) tone += std::sin(6.283185 * 140 * k * t) / k;
    for (int64_t c = 0; c < channels; ++c) x[size_t(i * channels + c)] = float(voice * tone) + noise();
  }
  return x;
}

udse::StreamSettings settings(int64_t steps, int64_t samples) {
  udse::StreamSettings chosen = prior->recommended(sampler);
  chosen.steps = steps;
  chosen.samples = samples;
  return chosen;
}

udse::Stream make_stream(int64_t rate = 16000, int64_t channels = 1, int64_t steps = 2, int64_t samples = 1) {
  return {prior, settings(steps, samples), rate, channels};
}

// A whole signal, in pieces of the lengths that `length` gives
template <class Length>
Samples run(udse::Stream& stream, const Samples& in, Length length, Samples* noise_out = nullptr) {
  const int64_t channels = stream.channels(), frames = int64_t(in.size()) / channels;
  Samples out, piece, noise_piece;
  udse::Workbench bench = stream.make_workbench(channels);
  const auto add = [&](int64_t count) {
    out.insert(out.end(), piece.begin(), piece.begin() + count * channels);
    if (noise_out) noise_out->insert(noise_out->end(), noise_piece.begin(), noise_piece.begin() + count * channels);
  };
  const auto make_room = [&](int64_t room) {
    piece.assign(size_t(room * channels), 1e9f);
    noise_piece.assign(size_t(room * channels), 1e9f);
  };
  for (int64_t at = 0; at < frames;) {
    const int64_t n = std::min<int64_t>(length(), frames - at);
    make_room(stream.most(n));
    const int64_t count = stream.process(in.data() + at * channels, n, {piece.data(), noise_piece.data()}, bench);
    CHECK(count <= stream.most(n));
    add(count);
    at += n;
  }
  make_room(stream.remaining());
  add(stream.flush({piece.data(), noise_piece.data()}, bench));
  return out;
}

bool same(const Samples& a, const Samples& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

bool all_finite(const Samples& x) {
  return std::all_of(x.begin(), x.end(), [](float value) { return std::isfinite(value); });
}

double energy(const Samples& x) {
  double sum = 0;
  for (const float value : x) sum += double(value) * double(value);
  return sum;
}

void any_cut_gives_the_same_bits(int64_t rate, int cuts, int64_t steps, int64_t samples) {
  const Samples in = signal(rate / 5, rate);
  udse::Stream stream = make_stream(rate, 1, steps, samples);
  const Samples whole = run(stream, in, [] { return int64_t{1} << 30; });
  CHECK(whole.size() == in.size());
  for (int i = 0; i < cuts; ++i) {
    const int64_t longest = int64_t{1} << (generator() % 13);
    CHECK(same(whole, run(stream, in, [&] { return int64_t(generator() % (2 * longest)); })));
  }
}

void every_rate_and_channel_keeps_its_length() {
  const std::vector<int64_t> rates{8000, 44100, 96000, 11025, 16000, 22050, 48000};
  for (const int64_t rate : std::vector<int64_t>(rates.begin(), slow ? rates.begin() + 3 : rates.end()))
    for (const int64_t channels : {1, 2})
      for (const int64_t frames : {int64_t{0}, int64_t{1}, int64_t{100}, 5000 / part}) {
        udse::Stream stream = make_stream(rate, channels);
        CHECK(run(stream, signal(frames, rate, channels), [] { return 777; }).size() == size_t(frames * channels));
      }
}

// Frame by frame: what has come in and was not given never exceeds the latency, and reaches it.
void latency_is_exact() {
  for (const int64_t rate : {8000, 16000, 44100, 48000}) {
    udse::Stream stream = make_stream(rate, 1, 1, 1);
    Samples out(size_t(stream.most(1)));
    int64_t most_waiting = 0;
    udse::Workbench bench = stream.make_workbench(1);
    for (int64_t i = 0; i < rate; ++i) {
      const float x = noise();
      stream.process(&x, 1, {out.data(), nullptr}, bench);
      most_waiting = std::max(most_waiting, stream.remaining());
    }
    CHECK(most_waiting == stream.latency());
  }
}

void channels_are_enhanced_one_by_one() {
  const Samples left = signal(9000, 48000), right = signal(9000, 48000);
  Samples both(18000);
  for (size_t i = 0; i < 9000; ++i) both[2 * i] = left[i], both[2 * i + 1] = right[i];
  udse::Stream mono = make_stream(48000), stereo = make_stream(48000, 2);
  const auto chunks = [] { return 480; };
  const Samples of_left = run(mono, left, chunks), of_right = run(mono, right, chunks), out = run(stereo, both, chunks);
  for (size_t i = 0; i < 9000; ++i) CHECK(out[2 * i] == of_left[i] && out[2 * i + 1] == of_right[i]);
}

// Streams of any rate and number of channels, in pieces of any length, on a workbench with fewer places than signals
void company_changes_nothing() {
  struct Member {
    int64_t rate, channels;
    Samples in, alone, out;
    udse::Stream stream;
  };
  std::vector<Member> members;
  for (const auto [rate, channels] : {std::pair{16000, 1}, {44100, 2}, {48000, 1}, {16000, 1}, {8000, 3}}) {
    const Samples in = signal(rate / (slow ? 24 : 4), rate, channels);
    udse::Stream stream = make_stream(rate, channels, 3, 2);
    const Samples alone = run(stream, in, [] { return 500; });
    members.push_back({rate, channels, in, alone, {}, std::move(stream)});
  }
  udse::Workbench bench = members[0].stream.make_workbench(3);
  std::vector<udse::Stream::Feed> feeds;
  std::vector<Samples> rooms;
  for (int round = 0; round < 40; ++round) {
    feeds.clear(), rooms.clear();
    rooms.reserve(members.size());
    for (Member& m : members) {
      CHECK(m.stream.fits(bench));
      const int64_t frames = int64_t(m.in.size()) / m.channels, at = std::min<int64_t>(frames, m.stream.received());
      const int64_t n = std::min<int64_t>(frames - at, int64_t(generator() % 2000));
      rooms.emplace_back(size_t(m.stream.most(n) * m.channels));
      feeds.push_back({&m.stream, m.in.data() + at * m.channels, n, {rooms.back().data(), nullptr}});
    }
    udse::Stream::process(feeds.data(), feeds.size(), bench);
    for (size_t i = 0; i < members.size(); ++i)
      members[i].out.insert(members[i].out.end(), rooms[i].begin(),
                            rooms[i].begin() + feeds[i].written * members[i].channels);
  }
  for (Member& m : members) {
    Samples rest(size_t(m.stream.remaining() * m.channels));
    m.stream.flush({rest.data(), nullptr}, bench);
    m.out.insert(m.out.end(), rest.begin(), rest.end());
    CHECK(same(m.out, m.alone));
  }
}

// Blocks whose network breaks down: a quiet mixture is given, and what was learnt before them is still there.
void a_block_that_breaks_down_changes_nothing() {
  const udse::StreamSettings chosen = settings(2, 2);
  udse::CausalBlocks broken(prior, chosen, 4096), sound(prior, chosen, 4096);
  udse::Scratch scratch(*prior, chosen.block_frames);
  float memory = 0;
  const auto answers = [&](udse::CausalBlocks& blocks, float value) {
    const udse::Calls& calls = blocks.sampler().calls();
    std::vector<udse::KeptNumbers> written(calls.memory_groups);
    written[0].unit = memory += 0.5f;
    CHECK(blocks.begin(scratch));
    for (size_t call = 0; call < calls.each.size(); ++call) {
      const udse::NetworkBlock asked = blocks.sampler().request(call);
      const int64_t size = asked.samples * asked.frames * prior->network->bins();
      std::fill_n(asked.clean, size, udse::cfloat(value, 0.1f));
      std::fill_n(asked.variance, size, 0.1f);
      if (asked.believed) std::fill_n(asked.believed, size, 0.1f), std::fill_n(asked.heard, size, udse::cfloat(0.1f));
      blocks.sampler().answer(call, blocks.noise_model());
    }
    blocks.estimate(written);
    blocks.end();
  };
  const auto learnt = [](udse::CausalBlocks& blocks) {
    udse::State size(udse::State::measure);
    blocks.noise_model().exchange(size);
    std::vector<unsigned char> bytes(size.size());
    udse::State saved(udse::State::save, bytes.data());
    blocks.noise_model().exchange(saved);
    bytes.push_back(static_cast<unsigned char>(blocks.memories()[0].unit));
    return bytes;
  };
  const Samples x = signal(16000, 16000);
  int64_t at = 0;
  for (auto* blocks : {&broken, &sound}) blocks->push(x.data(), blocks->window());
  for (int i = 0; i < 2; ++i) {
    for (auto* blocks : {&broken, &sound}) memory = float(i), answers(*blocks, 0.2f);
    for (auto* blocks : {&broken, &sound}) blocks->push(x.data() + at, blocks->advance());
    at += broken.advance();
  }
  const std::vector<unsigned char> before = learnt(broken);
  CHECK(before == learnt(sound));
  answers(broken, std::numeric_limits<float>::quiet_NaN());
  CHECK(broken.recovered_blocks() == 1 && learnt(broken) == before);
  for (int64_t i = 0; i < broken.count(); ++i) CHECK(std::isfinite(broken.speech()[i]));
  answers(sound, 0.2f);
  CHECK(sound.recovered_blocks() == 0 && learnt(sound) != before);
  broken.push(x.data() + at, broken.advance());
  answers(broken, 0.2f);
  CHECK(broken.recovered_blocks() == 1 && learnt(broken) != before);
}

void speech_and_noise_add_up_to_the_input() {
  const Samples in = signal(20000 / part, 16000);
  udse::Stream stream = make_stream();
  Samples noise_out;
  const Samples speech = run(stream, in, [] { return 500; }, &noise_out);
  for (size_t i = 0; i < in.size(); ++i) CHECK(std::abs(speech[i] + noise_out[i] - in[i]) < 1e-6f);
  CHECK(energy(speech) < 0.8 * energy(in));
}

void an_attenuation_limit_leaves_noise_in() {
  const Samples in = signal(8000 / part, 16000);
  udse::StreamSettings limited = settings(2, 1);
  limited.remaining_noise = 1;
  udse::Stream stream(prior, limited, 16000, 1);
  const Samples out = run(stream, in, [] { return 160; });
  for (size_t i = 0; i < in.size(); ++i) CHECK(std::abs(out[i] - in[i]) < 1e-6f);
}

void a_state_goes_on_to_the_bit(int64_t rate) {
  const Samples in = signal(rate / 2 / part, rate);
  const int64_t half = int64_t(in.size()) / 2 + 7;
  udse::Stream one = make_stream(rate, 1, 3, 2), other = make_stream(rate, 1, 3, 2);
  Samples first(size_t(one.most(half))), a(size_t(one.most(half))), b(a.size());
  udse::Workbench bench = one.make_workbench(1);
  one.process(in.data(), half, {first.data(), nullptr}, bench);
  std::vector<unsigned char> state(one.state_size());
  one.save(state.data());
  other.process(in.data(), 999, {b.data(), nullptr}, bench);  // has heard something else
  other.restore(state.data(), state.size());
  const int64_t rest = int64_t(in.size()) - half;
  const int64_t n = one.process(in.data() + half, rest, {a.data(), nullptr}, bench);
  CHECK(other.process(in.data() + half, rest, {b.data(), nullptr}, bench) == n);
  CHECK(std::memcmp(a.data(), b.data(), size_t(n) * sizeof(float)) == 0);

  const auto refused = [&](udse::Stream& stream, const std::vector<unsigned char>& bytes) {
    try {
      stream.restore(bytes.data(), bytes.size());
      return false;
    } catch (const udse::Error&) {
      return true;
    }
  };
  for (const size_t at : {size_t{0}, size_t{9}, size_t{40}, state.size() / 2, state.size() - 1}) {
    std::vector<unsigned char> damaged = state;
    damaged[at] ^= 1;
    CHECK(refused(other, damaged));
  }
  CHECK(refused(other, {state.begin(), state.end() - 1}));
  CHECK(refused(other, {}));
  udse::Stream different = make_stream(rate, 1, 2, 2);
  CHECK(refused(different, state));
}

void nothing_is_allocated_or_locked() {
  if (!calls_are_watched) return;
  for (const int64_t rate : {16000, 44100}) {
    const Samples in = signal(rate, rate, 2);
    udse::Stream stream = make_stream(rate, 2, 12, 2);
    Samples out(size_t(2 * stream.most(rate)));
    std::vector<unsigned char> state(stream.state_size());
    udse::Workbench bench = stream.make_workbench(1);
    start_watching();
    const int64_t n = stream.process(in.data(), rate, {out.data(), nullptr}, bench);
    stream.save(state.data());
    stream.flush({out.data(), nullptr}, bench);
    stream.restore(state.data(), state.size());
    stream.reset();
    const WatchedCalls calls = stop_watching();
    CHECK(n > 0 && calls.allocations == 0 && calls.locks == 0);
  }
}

void broken_samples_count_as_silence() {
  Samples in = signal(12000 / part, 16000), clean = in;
  for (size_t i = 2500; i < 3500; ++i) {
    constexpr float infinity = std::numeric_limits<float>::infinity();
    in[i] = i % 3 ? std::numeric_limits<float>::quiet_NaN() : i % 2 ? infinity : -infinity;
    clean[i] = 0;
  }
  udse::Stream stream = make_stream();
  const auto chunks = [] { return 333; };
  CHECK(same(run(stream, in, chunks), run(stream, clean, chunks)));
}

void levels_may_jump() {
  const size_t each = 3000 / part;
  const float gains[] = {1, 0.01f, 100, 0, 1e-20f, 1e20f, 3e38f, 1};
  Samples in = signal(int64_t(8 * each), 16000);
  for (size_t i = 0; i < in.size(); ++i) in[i] = std::clamp(in[i] * gains[i / each], -3e38f, 3e38f);
  udse::Stream stream = make_stream(16000, 1, 4, 2);
  CHECK(all_finite(run(stream, in, [] { return 100; })));
}

void silence_stays_silence() {
  udse::Stream stream = make_stream();
  const Samples out = run(stream, Samples(20000), [] { return 100; });
  CHECK(std::all_of(out.begin(), out.end(), [](float x) { return x == 0; }));
}

// Noise that the prior alone takes for speech as long as nobody knows it: only a second of it tells.
void steady_noise_alone_is_removed() {
  Samples x(32000);
  for (float& sample : x) sample = noise();
  const bool alone = sampler == udse::Sampler::ddrm;
  udse::StreamSettings chosen = settings(alone ? 12 : 6, 1);
  if (alone) chosen.noise_floor = 2;
  udse::Stream stream(prior, chosen, 16000, 1);
  const Samples y = run(stream, x, [] { return int64_t{1000}; });
  double in = 0, out = 0;
  for (size_t i = 16000; i < x.size(); ++i) {
    in += double(x[i]) * double(x[i]);
    out += double(y[i]) * double(y[i]);
  }
  CHECK(out < 0.01 * in);
}

void misuse_is_refused() {
  const auto refused = [](const udse::StreamSettings& chosen, int64_t rate, int64_t channels) {
    try {
      udse::Stream stream(prior, chosen, rate, channels);
      return false;
    } catch (const udse::Error&) {
      return true;
    }
  };
  const udse::StreamSettings good = settings(1, 1);
  CHECK(!refused(good, 16000, 1));
  CHECK(refused(good, 7999, 1) && refused(good, 1'000'001, 1) && refused(good, 16000, 0) && refused(good, 16000, 65));
  CHECK(refused(settings(0, 1), 16000, 1) && refused(settings(1, 65), 16000, 1));
  udse::StreamSettings bad = good;
  bad.noise_bias = std::numeric_limits<double>::quiet_NaN();
  CHECK(refused(bad, 16000, 1));
}

}  // namespace

void test_all() {
  const int cuts = (sampler == udse::Sampler::ddrm ? 700 : 100) / (slow ? 100 : 1);
  any_cut_gives_the_same_bits(16000, cuts, 1, 1);
  any_cut_gives_the_same_bits(48000, cuts * 3 / 7, 1, 1);
  if (!slow) {  // what is counted or heard, not read or written
    any_cut_gives_the_same_bits(44100, 3, 12, 2);
    latency_is_exact();
    steady_noise_alone_is_removed();
  }
  if (!emulated) {  // where a second of a stream takes minutes
    every_rate_and_channel_keeps_its_length();
    levels_may_jump();
  }
  channels_are_enhanced_one_by_one();
  company_changes_nothing();
  a_block_that_breaks_down_changes_nothing();
  speech_and_noise_add_up_to_the_input();
  an_attenuation_limit_leaves_noise_in();
  for (const int64_t rate : {8000, 44100}) a_state_goes_on_to_the_bit(rate);
  nothing_is_allocated_or_locked();
  broken_samples_count_as_silence();
  silence_stays_silence();
  misuse_is_refused();
}

int main(int argc, char** argv) {
  CHECK(argc == 3);
  prior = udse::read_prior(argv[1], argv[2]);
  for (const udse::Sampler each : {udse::Sampler::ddrm, udse::Sampler::amortised_ddrm}) {
    if (sanitized && each == udse::Sampler::ddrm) continue;  // whose steps are a part of the other
    sampler = each;
    test_all();
  }
  std::printf("streams: ok (%s)\n", udse::isa());
}
