// The C interface: misuse gives codes, live streams keep their delay and bridge what is late. The
// arguments are the prior and the posterior network.
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstring>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "calls_watched.hpp"
#include "checking.hpp"
#include "udse.h"

using std::int64_t;
using std::size_t;
using Samples = std::vector<float>;

namespace {

const char *path, *posterior_path;

udse_options quick(uint32_t rate = 16000, uint32_t channels = 1) {
  udse_options options = udse_default_options();
  options.sample_rate = rate;
  options.channels = channels;
  options.steps = options.samples = 1;
  return options;
}

Samples noise(size_t n) {
  std::mt19937 generator(3);
  Samples x(n);
  for (float& value : x) value = std::normal_distribution<float>(0, 0.1f)(generator);
  return x;
}

void wrong_files_say_what_is_wrong() {
  udse_error error;
  CHECK(!udse_read_prior("/no/such/file", &error) && error.code == UDSE_FILE &&
        std::strstr(error.text, "/no/such/file"));
  CHECK(!udse_read_prior(nullptr, &error) && error.code == UDSE_FILE);
  CHECK(!udse_read_prior(nullptr, nullptr));
  CHECK(!udse_read_prior("/", &error) && error.code == UDSE_FILE);
  CHECK(!udse_parse_prior("12345678901", 11, &error) && error.code == UDSE_FILE && error.text[0]);
  CHECK(!udse_open("/no/such/file", nullptr, &error) && error.code == UDSE_FILE);
}

void networks_are_told_apart(const udse_prior* both) {
  udse_error error;
  CHECK(!udse_read_networks(posterior_path, nullptr, &error) && std::strstr(error.text, "compact, got compact-post"));
  CHECK(!udse_read_networks(path, path, &error) && std::strstr(error.text, "compact-posterior, got compact"));
  CHECK(!udse_parse_networks("12345678901", 11, nullptr, 1, &error) && error.code == UDSE_FILE);
  udse_prior* const alone = udse_read_prior(path, nullptr);
  const auto latency = [&](const udse_prior* prior, uint32_t sampler) {
    udse_options options = udse_default_options();
    options.sampler = sampler;
    udse_stream* const stream = udse_open_with(prior, &options, &error);
    const int64_t frames = stream ? udse_latency(stream) : 0;
    udse_close(stream);
    return frames;
  };
  CHECK(latency(both, 0) == latency(both, UDSE_AMORTISED_DDRM) && latency(both, 0) < 800);
  CHECK(latency(alone, 0) == latency(both, UDSE_DDRM) && latency(alone, 0) > 1200);
  CHECK(latency(alone, UDSE_AMORTISED_DDRM) == 0 && std::strstr(error.text, "posterior network"));
  CHECK(latency(both, 3) == 0 && std::strstr(error.text, "got 3"));
  udse_close_prior(alone);
}

void wrong_options_say_what_is_wrong(const udse_prior* prior) {
  udse_error error;
  const auto refused = [&](const udse_options& options) {
    return !udse_open_with(prior, &options, &error) && error.code == UDSE_INVALID && error.text[0];
  };
  udse_options options = quick(7000);
  CHECK(refused(options) && std::strstr(error.text, "7000"));
  CHECK(refused(quick(16000, 0)) && refused(quick(16000, 65)));
  options = quick();
  options.size = 3;
  CHECK(refused(options));
  options = quick();
  options.max_attenuation_db = std::nan("");
  CHECK(refused(options));
  options = quick();
  options.block_frames = 9;
  CHECK(refused(options));
  options = quick();
  options.restraint = 3;
  CHECK(refused(options) && std::strstr(error.text, "restraint"));
  CHECK(!udse_open_with(nullptr, &options, &error) && error.code == UDSE_INVALID);
  options = quick();
  options.buffer_frames = 0xffffffff;
  CHECK(!udse_open_live(prior, &options, &error) && error.code == UDSE_INVALID);
}

void older_callers_know_fewer_fields(const udse_prior* prior) {
  udse_options options = quick(48000);
  options.size = offsetof(udse_options, channels);
  options.channels = 99;  // behind what this caller knows
  udse_stream* const stream = udse_open_with(prior, &options, nullptr);
  CHECK(stream && udse_latency(stream) > 2000);
  udse_close(stream);
}

void wrong_calls_give_codes(const udse_prior* prior) {
  const udse_options options = quick();
  udse_error error;
  udse_stream* const stream = udse_open_with(prior, &options, &error);
  CHECK(stream && error.code == UDSE_OK);
  Samples x = noise(5000), out(10000);
  CHECK(udse_process(nullptr, x.data(), 10, out.data(), 10000) == UDSE_INVALID);
  CHECK(udse_process(stream, nullptr, 10, out.data(), 10000) == UDSE_INVALID);
  CHECK(udse_process(stream, x.data(), -1, out.data(), 10000) == UDSE_INVALID);
  CHECK(udse_process(stream, x.data(), INT64_MAX, out.data(), 10000) == UDSE_INVALID);
  CHECK(udse_process(stream, x.data(), 10, nullptr, 10000) == UDSE_INVALID);
  CHECK(udse_process(stream, x.data(), 5000, out.data(), 10) == UDSE_CAPACITY && udse_remaining(stream) == 0);
  CHECK(udse_process(stream, nullptr, 0, out.data(), 10000) == 0);
  const int64_t n = udse_process(stream, x.data(), 5000, out.data(), udse_most(stream, 5000));
  CHECK(n > 0 && udse_remaining(stream) == 5000 - n);
  CHECK(udse_flush(stream, out.data(), 1) == UDSE_CAPACITY);
  std::vector<unsigned char> state(size_t(udse_state_size(stream)));
  CHECK(udse_save(stream, state.data(), 10) == UDSE_CAPACITY);
  CHECK(udse_save(stream, state.data(), state.size()) == int64_t(state.size()));
  CHECK(udse_restore(stream, state.data(), state.size()) == UDSE_OK);
  state.back() ^= 1;
  CHECK(udse_restore(stream, state.data(), state.size()) == UDSE_STATE);
  CHECK(udse_flush(stream, out.data(), udse_remaining(stream)) == 5000 - n && udse_remaining(stream) == 0);
  CHECK(udse_reset(stream) == UDSE_OK && udse_reset(nullptr) == UDSE_INVALID);
  CHECK(udse_most(stream, -1) == UDSE_INVALID && udse_most(nullptr, 1) == UDSE_INVALID);
  CHECK(udse_latency(nullptr) == UDSE_INVALID && udse_state_size(nullptr) == UDSE_INVALID);
  CHECK(udse_process_live(nullptr, x.data(), out.data(), 1) == UDSE_INVALID);
  for (int code = 1; code > -8; --code) CHECK(udse_code_text(code)[0]);
  udse_close(stream);
  udse_close(nullptr), udse_close_prior(nullptr), udse_close_live(nullptr);
}

// What a stream gives for the whole input
Samples enhanced(const udse_prior* prior, const udse_options& options, const Samples& in) {
  udse_stream* const stream = udse_open_with(prior, &options, nullptr);
  const int64_t frames = int64_t(in.size()) / options.channels, room = udse_most(stream, frames) + frames;
  Samples out(size_t(room * options.channels));
  const int64_t n = udse_process(stream, in.data(), frames, out.data(), room);
  CHECK(n + udse_flush(stream, out.data() + n * options.channels, room - n) == frames);
  udse_close(stream);
  return out;
}

void live_is_the_stream_with_a_delay(const udse_prior* prior, uint32_t rate, uint32_t channels) {
  const udse_options options = quick(rate, channels);
  udse_live* const live = udse_open_live(prior, &options, nullptr);
  const int64_t frames = rate / 2, latency = udse_live_latency(live);
  const Samples in = noise(size_t(frames * channels)), wanted = enhanced(prior, options, in);
  Samples out = in;
  for (int64_t at = 0, n = 1; at < frames; at += n, n = n * 5 % 997) {
    n = std::min(n, frames - at);
    start_watching();
    const int code = udse_process_live(live, out.data() + at * channels, out.data() + at * channels, n);
    const WatchedCalls calls = stop_watching();
    CHECK(code == UDSE_OK && calls.allocations == 0 && calls.locks == 0);
  }
  for (int64_t i = 0; i < frames; ++i)
    for (int64_t c = 0; c < channels; ++c) {
      const float expected = i < latency ? 0 : wanted[size_t((i - latency) * channels + c)];
      CHECK(out[size_t(i * channels + c)] == expected);
    }
  CHECK(udse_live_missed(live) == 0);
  udse_close_live(live);
}

void streams_beside_each_other(const udse_prior* prior) {
  udse_options options = quick();
  options.together = 2;
  udse_stream* const first = udse_open_with(prior, &options, nullptr);
  udse_options other_rate = quick(48000);
  udse_stream* const second = udse_open_beside(first, &other_rate, nullptr);
  udse_stream* const apart = udse_open_with(prior, &options, nullptr);
  CHECK(first && second && apart);
  const Samples x = noise(4800), wanted = enhanced(prior, other_rate, x);
  Samples a(9000), b(9000);
  udse_feed feeds[] = {{first, x.data(), 1600, a.data(), 9000, -1}, {second, x.data(), 4800, b.data(), 9000, -1}};
  const auto refused = [&](udse_feed bad, int code) {
    udse_feed both[] = {feeds[0], bad};
    return udse_process_many(both, 2) == code && both[0].written == -1 && udse_remaining(first) == 0;
  };
  udse_feed bad = feeds[1];
  bad.stream = apart;
  CHECK(refused(bad, UDSE_INVALID));
  bad.stream = first;  // twice
  CHECK(refused(bad, UDSE_INVALID));
  bad = feeds[1];
  bad.capacity = 10;
  CHECK(refused(bad, UDSE_CAPACITY));
  bad.frames = -1;
  CHECK(refused(bad, UDSE_INVALID));
  CHECK(udse_process_many(nullptr, 1) == UDSE_INVALID && udse_process_many(nullptr, 0) == UDSE_OK);
  start_watching();
  CHECK(udse_process_many(feeds, 2) == UDSE_OK);
  const WatchedCalls calls = stop_watching();
  CHECK(calls.allocations == 0 && calls.locks == 0);
  CHECK(feeds[0].written == 1600 - udse_remaining(first) && feeds[1].written > 0);
  for (int64_t i = 0; i < feeds[1].written; ++i) CHECK(b[size_t(i)] == wanted[size_t(i)]);

  udse_error error;
  options.steps = 2;
  CHECK(!udse_open_beside(first, &options, &error) && error.code == UDSE_INVALID && std::strstr(error.text, "steps"));
  CHECK(!udse_open_beside(nullptr, &options, &error) && error.code == UDSE_INVALID);
  options.together = 65;
  CHECK(!udse_open_with(prior, &options, &error) && std::strstr(error.text, "65"));
  udse_close(first);  // the others go on
  CHECK(udse_flush(second, b.data(), 9000) >= 0);
  udse_close(second), udse_close(apart);
}

// Fed at leisure, a worker gives what the caller would compute; fed as fast as can be it is late, and what is heard
// then is the input of that moment, without a jump.
void a_worker_that_is_late_is_bridged(const udse_prior* prior) {
  udse_options options = quick();
  options.buffer_frames = 1600;
  options.max_attenuation_db = 1e-9;  // input and output are the same: any other sample is a fault of the queues
  const Samples tone = [] {
    Samples x(64000);
    for (size_t i = 0; i < x.size(); ++i) x[i] = 0.3f * float(std::sin(0.05 * double(i)));
    return x;
  }();
  for (const bool leisure : {true, false}) {
    udse_live* const live = udse_open_live(prior, &options, nullptr);
    const int64_t latency = udse_live_latency(live);
    Samples out(tone.size());
    for (size_t at = 0; at + 160 <= tone.size(); at += 160) {
      start_watching();
      CHECK(udse_process_live(live, tone.data() + at, out.data() + at, 160) == UDSE_OK);
      const WatchedCalls calls = stop_watching();
      CHECK(calls.allocations == 0 && calls.locks == 0);
      if (leisure) std::this_thread::sleep_for(std::chrono::milliseconds(2));
    }
    for (size_t i = size_t(latency); i < tone.size(); ++i) CHECK(std::abs(out[i] - tone[i - size_t(latency)]) < 1e-5f);
    CHECK(leisure || udse_live_missed(live) > 0);
    udse_close_live(live);
  }
}

}  // namespace

int main(int argc, char** argv) {
  CHECK(argc == 3);
  path = argv[1], posterior_path = argv[2];
  udse_error error;
  udse_prior* const prior = udse_read_networks(path, posterior_path, &error);
  CHECK(prior && error.code == UDSE_OK && udse_version()[0]);
  wrong_files_say_what_is_wrong();
  networks_are_told_apart(prior);
  wrong_options_say_what_is_wrong(prior);
  older_callers_know_fewer_fields(prior);
  wrong_calls_give_codes(prior);
  live_is_the_stream_with_a_delay(prior, 16000, 1);
  live_is_the_stream_with_a_delay(prior, 44100, 2);
  streams_beside_each_other(prior);
  a_worker_that_is_late_is_bridged(prior);
  udse_close_prior(prior);
  std::puts("C interface: ok");
}
