// The C interface: checks what comes, turns exceptions into codes.
#ifdef __linux__
#include <malloc.h>
#endif

#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>
#include <new>
#include <string>

#include "stream/live.hpp"
#include "stream/prior.hpp"
#include "stream/stream.hpp"
#include "udse.h"

#ifdef UDSE_EMBEDDED_PRIOR
// The files of the prior and of the posterior network, put into the library by the assembler
__asm__(
    ".section .rodata\n"
    ".balign 16\n"
    "udse_embedded_prior_begin: .incbin \"" UDSE_EMBEDDED_PRIOR
    "\"\n"
    "udse_embedded_prior_end: .byte 0\n"
    ".balign 16\n"
    "udse_embedded_posterior_begin: .incbin \"" UDSE_EMBEDDED_POSTERIOR
    "\"\n"
    "udse_embedded_posterior_end: .byte 0\n"
    ".previous\n");
extern "C" __attribute__((visibility("hidden"))) const unsigned char udse_embedded_prior_begin[],
    udse_embedded_prior_end[], udse_embedded_posterior_begin[], udse_embedded_posterior_end[];
#endif

struct udse_prior {
  std::shared_ptr<const udse::Prior> prior;
};
struct udse_stream {
  udse::Stream stream;
  std::shared_ptr<udse::Workbench> bench;
  std::shared_ptr<const udse::Prior> prior;
};
struct udse_live {
  udse::LiveStream live;
};

namespace {

constexpr std::int64_t most_frames = std::int64_t{1} << 40;  // of one call: sizes of it do not overflow
constexpr std::int64_t invalid = UDSE_INVALID;
constexpr std::uint32_t most_together = 64;

void describe(udse_error* error, int code, const char* text) {
  if (!error) return;
  error->code = code;
  std::strncpy(error->text, text, sizeof error->text - 1);
  error->text[sizeof error->text - 1] = 0;
}

// Reading a file takes several times the memory that a network does. What is free again goes back to the system: glibc
// would keep it.
void give_back_memory() {
#ifdef __GLIBC__
  malloc_trim(0);
#endif
}

// What `make` makes, or null with the reason in `error`.
template <class Make>
auto guarded(udse_error* error, int code, Make make) noexcept -> decltype(make()) {
  describe(error, UDSE_OK, "");
  try {
    return make();
  } catch (const udse::Error& e) {
    describe(error, code, e.what());
  } catch (const std::bad_alloc&) {
    describe(error, UDSE_MEMORY, "not enough memory");
  } catch (const std::exception& e) {
    describe(error, code, e.what());
  }
  return nullptr;
}

udse_options known_options(const udse_options* given) {
  udse_options options = udse_default_options();
  if (!given) return options;
  if (given->size < sizeof given->size || given->size > 4096)
    throw udse::Error("options: expected those of udse_default_options, got the size " + std::to_string(given->size));
  std::memcpy(&options, given, std::min(given->size, sizeof options));
  return options;
}

double remaining_noise(double max_attenuation_db) {
  return max_attenuation_db > 0 ? std::pow(10.0, -max_attenuation_db / 20) : 0;
}

udse::StreamSettings chosen_settings(const udse::Prior& prior, const udse_options& options) {
  if (options.sampler > UDSE_AMORTISED_DDRM)
    throw udse::Error("sampler: expected 0 (the best there is), UDSE_DDRM or UDSE_AMORTISED_DDRM, got " +
                      std::to_string(options.sampler));
  const udse::Sampler sampler = !options.sampler               ? prior.sampler()
                                : options.sampler == UDSE_DDRM ? udse::Sampler::ddrm
                                                               : udse::Sampler::amortised_ddrm;
  udse::StreamSettings settings = prior.recommended(sampler);
  settings.sampler = sampler;
  if (options.block_frames) settings.block_frames = options.block_frames;
  if (options.steps) settings.steps = options.steps;
  if (options.samples) settings.samples = options.samples;
  if (options.restraint > UDSE_OFF)
    throw udse::Error("restraint: expected 0 (as the checkpoint says), UDSE_ON or UDSE_OFF, got " +
                      std::to_string(options.restraint));
  if (options.restraint) settings.restraint = options.restraint == UDSE_ON;
  settings.seed = options.seed;
  if (!(options.max_attenuation_db >= 0))
    throw udse::Error("max_attenuation_db: expected 0 (no limit) or more, got " +
                      std::to_string(options.max_attenuation_db));
  settings.remaining_noise = remaining_noise(options.max_attenuation_db);
  return settings;
}

std::shared_ptr<const udse::Prior> of(const udse_prior* prior) {
  if (!prior) throw udse::Error("prior: expected an open one, got null");
  return prior->prior;
}

udse::Stream make_stream(const std::shared_ptr<const udse::Prior>& prior, const udse_options& options) {
  return {prior, chosen_settings(*prior, options), options.sample_rate, options.channels};
}

bool can_be(const udse_feed& feed) {
  return feed.stream && feed.frames >= 0 && feed.frames <= most_frames && feed.capacity >= 0 &&
         (!feed.frames || feed.in) && (!feed.capacity || feed.out);
}

// Feeds that are made on the stack at a time
constexpr size_t most_feeds = 64;

}  // namespace

extern "C" {

udse_options udse_default_options(void) {
  udse_options options{};
  options.size = sizeof options;
  options.sample_rate = 16000;
  options.channels = 1;
  return options;
}

const char* udse_version(void) { return UDSE_VERSION; }

const char* udse_code_text(int64_t code) {
  switch (code) {
    case UDSE_INVALID:
      return "an argument that cannot be";
    case UDSE_CAPACITY:
      return "too little room for the output";
    case UDSE_FILE:
      return "a checkpoint that cannot be read, or is damaged";
    case UDSE_MEMORY:
      return "not enough memory";
    case UDSE_STATE:
      return "a saved state that is damaged, or of another stream";
    default:
      return code >= 0 ? "no error" : "an unknown code";
  }
}

udse_prior* udse_read_prior(const char* path, udse_error* error) { return udse_read_networks(path, nullptr, error); }

udse_prior* udse_read_networks(const char* prior, const char* posterior, udse_error* error) {
  return guarded(error, UDSE_FILE, [&] {
    if (!prior) throw udse::Error("path: expected the name of a checkpoint, got null");
    auto* const made = new udse_prior{udse::read_prior(prior, posterior ? posterior : "")};
    give_back_memory();
    return made;
  });
}

udse_prior* udse_parse_prior(const void* bytes, size_t size, udse_error* error) {
  return udse_parse_networks(bytes, size, nullptr, 0, error);
}

udse_prior* udse_parse_networks(const void* prior, size_t prior_size, const void* posterior, size_t posterior_size,
                                udse_error* error) {
  return guarded(error, UDSE_FILE, [&] {
    if (!prior || (posterior_size && !posterior)) throw udse::Error("bytes: expected those of a checkpoint, got null");
    auto* const made =
        new udse_prior{udse::parse_prior({static_cast<const unsigned char*>(prior), prior_size},
                                         {static_cast<const unsigned char*>(posterior), posterior_size})};
    give_back_memory();
    return made;
  });
}

udse_prior* udse_embedded_prior(udse_error* error) {
#ifdef UDSE_EMBEDDED_PRIOR
  const auto size = [](const unsigned char* begin, const unsigned char* end) {
    return static_cast<size_t>(end - begin);
  };
  return udse_parse_networks(udse_embedded_prior_begin, size(udse_embedded_prior_begin, udse_embedded_prior_end),
                             udse_embedded_posterior_begin,
                             size(udse_embedded_posterior_begin, udse_embedded_posterior_end), error);
#else
  return guarded(error, UDSE_FILE, []() -> udse_prior* {
    throw udse::Error("expected a library with an embedded prior (-DUDSE_EMBED_PRIOR=ON); read one from a file");
  });
#endif
}

void udse_close_prior(udse_prior* prior) { delete prior; }

udse_stream* udse_open(const char* path, const udse_options* options, udse_error* error) {
  udse_prior* const prior = udse_read_prior(path, error);
  if (!prior) return nullptr;
  udse_stream* const stream = udse_open_with(prior, options, error);
  udse_close_prior(prior);
  return stream;
}

udse_stream* udse_open_with(const udse_prior* prior, const udse_options* options, udse_error* error) {
  return guarded(error, UDSE_INVALID, [&] {
    const udse_options chosen = known_options(options);
    if (chosen.together > most_together)
      throw udse::Error("together: expected up to 64 signals, got " + std::to_string(chosen.together));
    udse::Stream stream = make_stream(of(prior), chosen);
    auto bench =
        std::make_shared<udse::Workbench>(stream.make_workbench(std::max<int64_t>(stream.channels(), chosen.together)));
    return new udse_stream{std::move(stream), std::move(bench), prior->prior};
  });
}

udse_stream* udse_open_beside(const udse_stream* other, const udse_options* options, udse_error* error) {
  return guarded(error, UDSE_INVALID, [&] {
    if (!other) throw udse::Error("other: expected an open stream, got null");
    udse::Stream stream = make_stream(other->prior, known_options(options));
    if (!stream.fits(*other->bench))
      throw udse::Error("options: expected the sampler, block_frames, steps and samples of the other stream");
    return new udse_stream{std::move(stream), other->bench, other->prior};
  });
}

void udse_close(udse_stream* stream) { delete stream; }

int64_t udse_process(udse_stream* stream, const float* in, int64_t frames, float* out, int64_t capacity) {
  if (!can_be({stream, in, frames, out, capacity, 0})) return UDSE_INVALID;
  if (capacity < stream->stream.most(frames)) return UDSE_CAPACITY;
  return stream->stream.process(in, frames, {out, nullptr}, *stream->bench);
}

int udse_process_many(udse_feed* feeds, size_t count) {
  if (count && !feeds) return UDSE_INVALID;
  int code = UDSE_OK;
  for (size_t i = 0; i < count && code == UDSE_OK; ++i) {
    const udse_feed& feed = feeds[i];
    if (!can_be(feed) || feed.stream->bench != feeds[0].stream->bench) return UDSE_INVALID;
    for (size_t k = 0; k < i; ++k)
      if (feeds[k].stream == feed.stream) return UDSE_INVALID;
    if (feed.capacity < feed.stream->stream.most(feed.frames)) code = UDSE_CAPACITY;
  }
  if (code != UDSE_OK) return code;
  for (size_t first = 0; first < count; first += most_feeds) {
    udse::Stream::Feed own[most_feeds];
    const size_t n = std::min(most_feeds, count - first);
    for (size_t i = 0; i < n; ++i) {
      const udse_feed& feed = feeds[first + i];
      own[i] = {&feed.stream->stream, feed.in, feed.frames, {feed.out, nullptr}};
    }
    udse::Stream::process(own, n, *feeds[0].stream->bench);
    for (size_t i = 0; i < n; ++i) feeds[first + i].written = own[i].written;
  }
  return UDSE_OK;
}

int64_t udse_most(const udse_stream* stream, int64_t frames) {
  return stream && frames >= 0 && frames <= most_frames ? stream->stream.most(frames) : invalid;
}

int64_t udse_flush(udse_stream* stream, float* out, int64_t capacity) {
  if (!stream || capacity < 0 || (capacity && !out)) return UDSE_INVALID;
  if (capacity < stream->stream.remaining()) return UDSE_CAPACITY;
  return stream->stream.flush({out, nullptr}, *stream->bench);
}

int64_t udse_remaining(const udse_stream* stream) { return stream ? stream->stream.remaining() : invalid; }

int udse_reset(udse_stream* stream) {
  if (!stream) return UDSE_INVALID;
  stream->stream.reset();
  return UDSE_OK;
}

int udse_set_max_attenuation(udse_stream* stream, double db) {
  if (!stream || !(db >= 0)) return UDSE_INVALID;
  stream->stream.set_remaining_noise(static_cast<float>(remaining_noise(db)));
  return UDSE_OK;
}

int64_t udse_latency(const udse_stream* stream) { return stream ? stream->stream.latency() : invalid; }

int64_t udse_recovered_blocks(const udse_stream* stream) {
  return stream ? stream->stream.recovered_blocks() : invalid;
}

int64_t udse_state_size(udse_stream* stream) {
  return stream ? static_cast<int64_t>(stream->stream.state_size()) : invalid;
}

int64_t udse_save(udse_stream* stream, void* bytes, size_t size) {
  if (!stream || !bytes) return UDSE_INVALID;
  const size_t needed = stream->stream.state_size();
  if (size < needed) return UDSE_CAPACITY;
  stream->stream.save(static_cast<unsigned char*>(bytes));
  return static_cast<int64_t>(needed);
}

int udse_restore(udse_stream* stream, const void* bytes, size_t size) {
  if (!stream || !bytes) return UDSE_INVALID;
  try {
    stream->stream.restore(static_cast<const unsigned char*>(bytes), size);
    return UDSE_OK;
  } catch (const std::bad_alloc&) {
    return UDSE_MEMORY;
  } catch (const std::exception&) {
    return UDSE_STATE;
  }
}

udse_live* udse_open_live(const udse_prior* prior, const udse_options* options, udse_error* error) {
  return guarded(error, UDSE_INVALID, [&] {
    const udse_options chosen = known_options(options);
    auto stream = std::make_unique<udse::Stream>(make_stream(of(prior), chosen));
    if (chosen.buffer_frames > 10 * chosen.sample_rate)
      throw udse::Error("buffer_frames: expected up to 10 seconds, got " + std::to_string(chosen.buffer_frames));
    return new udse_live{
        {std::move(stream), static_cast<float>(remaining_noise(chosen.max_attenuation_db)), chosen.buffer_frames}};
  });
}

void udse_close_live(udse_live* live) { delete live; }

int udse_process_live(udse_live* live, const float* in, float* out, int64_t frames) {
  if (!live || frames < 0 || (frames && (!in || !out))) return UDSE_INVALID;
  live->live.process(in, out, frames);
  return UDSE_OK;
}

int udse_live_set_max_attenuation(udse_live* live, double db) {
  if (!live || !(db >= 0)) return UDSE_INVALID;
  live->live.set_remaining_noise(static_cast<float>(remaining_noise(db)));
  return UDSE_OK;
}

int64_t udse_live_latency(const udse_live* live) { return live ? live->live.latency() : invalid; }

int64_t udse_live_missed(const udse_live* live) { return live ? live->live.missed() : invalid; }

}  // extern "C"
