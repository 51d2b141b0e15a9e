// Any calls of the C interface, in any order, with any samples and lengths: codes, never a crash, and as many frames
// out as went in. UDSE_PRIOR and UDSE_POSTERIOR name the checkpoints.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <vector>

#include "udse.h"

namespace {

struct Bytes {
  const unsigned char* at;
  const unsigned char* end;

  template <class Number>
  Number take() {
    Number number{};
    const auto n = std::min<std::ptrdiff_t>(sizeof number, end - at);
    std::memcpy(&number, at, static_cast<std::size_t>(n));
    at += n;
    return number;
  }
};

constexpr uint32_t rates[] = {8000, 16000, 44100, 48000, 12000, 24000, 32000, 11025};

// Mostly less than a block, now and then many of them
int64_t some_frames(Bytes& bytes) {
  const int64_t number = bytes.take<uint16_t>();
  return number % (number % 8 ? 300 : 3000);
}

void require(bool condition) {
  if (!condition) std::abort();
}

using OpenStream = std::unique_ptr<udse_stream, void (*)(udse_stream*)>;

// Streams that stay open keep the filters of their rates, half of the work of opening another
std::vector<OpenStream> one_of_every_rate(udse_prior* prior) {
  std::vector<OpenStream> streams;
  udse_options options = udse_default_options();
  for (const uint32_t rate : rates) {
    options.sample_rate = rate;
    streams.emplace_back(udse_open_with(prior, &options, nullptr), udse_close);
    require(streams.back() != nullptr);
  }
  return streams;
}

void run(Bytes bytes, udse_prior* prior) {
  udse_options options = udse_default_options();
  options.sample_rate = rates[bytes.take<uint8_t>() % 8];
  options.channels = 1 + bytes.take<uint8_t>() % 2;
  options.block_frames = bytes.take<uint8_t>() % 6;
  options.steps = options.samples = 1;
  options.sampler = bytes.take<uint8_t>() % 3;
  udse_stream* const stream = udse_open_with(prior, &options, nullptr);
  require(stream != nullptr);
  options.sample_rate = rates[bytes.take<uint8_t>() % 8];
  udse_stream* const beside = udse_open_beside(stream, &options, nullptr);
  require(beside != nullptr);
  int64_t in_frames = 0, out_frames = 0;
  std::vector<unsigned char> state;
  while (bytes.at < bytes.end) {
    const unsigned what = bytes.take<uint8_t>() % 9;
    if (what == 8) {  // side by side with a neighbour, which alone nothing is asked of
      const int64_t frames = some_frames(bytes);
      const std::vector<float> in(static_cast<std::size_t>(frames) * options.channels, bytes.take<float>());
      std::vector<float> out[2];
      udse_feed feeds[2] = {{stream, in.data(), frames, nullptr, 0, 0}, {beside, in.data(), frames, nullptr, 0, 0}};
      for (int i : {0, 1}) {
        feeds[i].capacity = udse_most(feeds[i].stream, frames);
        out[i].resize(static_cast<std::size_t>(feeds[i].capacity) * options.channels);
        feeds[i].out = out[i].data();
      }
      require(udse_process_many(feeds, 2) == UDSE_OK);
      in_frames += frames;
      out_frames += feeds[0].written;
      require(udse_remaining(stream) == in_frames - out_frames);
    } else if (what < 5) {
      const int64_t frames = some_frames(bytes);
      std::vector<float> in(static_cast<std::size_t>(frames) * options.channels);
      const float pattern[] = {bytes.take<float>(), bytes.take<float>(), bytes.take<float>()};
      for (std::size_t i = 0; i < in.size(); ++i) in[i] = pattern[i % 3];
      const int64_t most = udse_most(stream, frames), room = what == 4 && most > 0 ? most - 1 : most;
      std::vector<float> out(static_cast<std::size_t>(room) * options.channels);
      const int64_t n = udse_process(stream, in.data(), frames, out.data(), room);
      require(room < most ? n == UDSE_CAPACITY : n >= 0 && n <= room);
      if (n < 0) continue;
      in_frames += frames;
      out_frames += n;
      for (int64_t i = 0; i < n * options.channels; ++i) require(std::isfinite(out[static_cast<std::size_t>(i)]));
      require(udse_remaining(stream) == in_frames - out_frames);
    } else if (what == 5) {
      std::vector<float> out(static_cast<std::size_t>(udse_remaining(stream)) * options.channels);
      require(udse_flush(stream, out.data(), udse_remaining(stream)) == in_frames - out_frames);
      in_frames = out_frames = 0;
    } else if (what == 6) {
      state.resize(static_cast<std::size_t>(udse_state_size(stream)));
      require(udse_save(stream, state.data(), state.size()) > 0);
    } else {
      std::vector<unsigned char> changed = state;
      if (!changed.empty() && bytes.take<uint8_t>() % 2) changed[bytes.take<uint32_t>() % changed.size()] ^= 1;
      if (udse_restore(stream, changed.data(), changed.size()) == UDSE_OK) {
        in_frames = udse_remaining(stream);
        out_frames = 0;
      }
    }
  }
  udse_close(stream), udse_close(beside);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const unsigned char* bytes, std::size_t size) {
  static udse_prior* const prior =
      udse_read_networks(std::getenv("UDSE_PRIOR"), std::getenv("UDSE_POSTERIOR"), nullptr);
  require(prior != nullptr);
  static const std::vector<OpenStream> open = one_of_every_rate(prior);  // until the process ends
  run({bytes, bytes + std::min<std::size_t>(size, 400)}, prior);
  return 0;
}
