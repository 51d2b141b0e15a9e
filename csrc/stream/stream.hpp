// A running signal, from samples to samples: any number of frames in, what is ready out, aligned sample for sample.
#pragma once

#include <array>
#include <memory>
#include <vector>

#include "stream/causal_blocks.hpp"
#include "stream/resampler.hpp"
#include "stream/ring.hpp"
#include "stream/workbench.hpp"

namespace udse {

// Where a call writes: frames of interleaved channels. `noise`, which is what was taken away, may be null.
struct Output {
  float* speech;
  float* noise;
};

// The output does not depend on how the input is cut, nor on the company on a workbench, bit for bit. After the
// constructor nothing is allocated, no lock is taken and nothing is thrown, but by `restore`. One thread at a time.
class Stream {
 public:
  // Throws Error for settings, a rate or a number of channels that cannot be.
  Stream(std::shared_ptr<const Prior> prior, const StreamSettings& settings, std::int64_t sample_rate,
         std::int64_t channels);

  std::int64_t channels() const { return channel_count_; }
  std::int64_t sample_rate() const { return sample_rate_; }
  // Frames that must follow one before it is given, at most: exact
  std::int64_t latency() const;
  // Frames that `process` of so many gives, at most
  std::int64_t most(std::int64_t frames) const;
  std::int64_t received() const { return received_; }
  // Frames that came in and were not given yet
  std::int64_t remaining() const { return received_ - returned_; }

  // A workbench for this stream, and for others that ask the same of the network, so many signals side by side. A
  // workbench is used by one thread at a time.
  Workbench make_workbench(std::int64_t signals) const;
  bool fits(const Workbench& bench) const { return bench.fits(*prior_, calls()); }
  // Of a block of each channel
  const Calls& calls() const { return channels_[0]->blocks.sampler().calls(); }

  // Frames that come, and where those go that are ready: room for `most(frames)`
  struct Feed {
    Stream* stream;
    const float* in;
    std::int64_t frames;
    Output out;
    std::int64_t taken = 0, written = 0;
    bool ready = false;  // a block is
  };
  // All streams at once, each by its own feed, which tells what was written. NaN and infinite samples count as silence.
  static void process(Feed* feeds, std::size_t count, Workbench& bench);
  // One stream; gives the number of frames written
  std::int64_t process(const float* in, std::int64_t frames, const Output& out, Workbench& bench);
  // Room for `remaining()`; afterwards the stream starts anew
  std::int64_t flush(const Output& out, Workbench& bench);
  void reset();
  // Factor of the noise that is left in, 0 to 1, from the next block on
  void set_remaining_noise(float factor) { remaining_noise_ = factor; }

  std::size_t state_size();
  void save(unsigned char* bytes);  // room for `state_size()`
  // Throws Error for bytes that are damaged or of a stream with other settings; this stream is then as before.
  void restore(const unsigned char* bytes, std::size_t size);

  // Of this signal: network calls per posterior sample, of all blocks and channels
  std::int64_t network_calls() const { return network_calls_; }
  // Blocks whose computing broke down, and that were given as they came, 20 dB down
  std::int64_t recovered_blocks() const;

 private:
  struct Channel {
    CausalBlocks blocks;
    Resampler before, speech_after, gain_after, low_after;
  };

  struct Writer {
    Output out;
    std::int64_t written;  // frames
  };

  static std::array<Resampler*, 4> resamplers(Channel& channel);
  void push(const float* in, std::int64_t frames);
  bool ready() const { return channels_[0]->blocks.ready(); }  // all channels are in step
  // Until a block is ready, or everything is taken
  void take(Feed& feed);
  void put_on(Workbench& bench);
  // The block that the workbench has done. Of the samples that it gives at most `most_given` count.
  std::int64_t give_block(std::int64_t most_given, Writer& to);
  std::int64_t run_block(std::int64_t most_given, Writer& to, Workbench& bench);
  // Samples at the network's rate: speech, gain of the band above, and what came
  struct Part {
    const float *speech, *gain, *low;
  };
  void give(Channel& channel, std::int64_t number, const Part& part, std::int64_t n, Writer& to);
  void share_gain();
  void exchange(State& state);
  std::uint64_t facts() const;

  std::shared_ptr<const Prior> prior_;
  StreamSettings settings_;
  std::int64_t sample_rate_, channel_count_;
  std::int64_t most_pushed_ = 0;  // samples at the network's rate of a piece
  std::vector<std::unique_ptr<Channel>> channels_;
  std::vector<float> piece_, resampled_, silence_, speech_, gain_, low_;
  Ring mixture_;  // frames that came, those that were not given yet among them
  float remaining_noise_;
  std::int64_t received_ = 0, returned_ = 0, network_calls_ = 0;
};

}  // namespace udse
