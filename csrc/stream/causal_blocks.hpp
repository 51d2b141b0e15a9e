// One channel at the network's rate: a few frames at a time, everything before them remembered; `CausalBlocks` in
// Python.
#pragma once

#include <memory>
#include <vector>

#include "stream/block_sampler.hpp"
#include "stream/hum.hpp"
#include "stream/read_out.hpp"
#include "stream/restraint.hpp"

namespace udse {

// What the start of a block works in; nothing in it outlives a block.
struct Scratch {
  // frames: of a block
  Scratch(const Prior& prior, std::int64_t frames);
  Hum hum;
  std::vector<float> unsteady;  // a signal without its hum
};

class CausalBlocks {
 public:
  // most_pushed: samples of one push.
  CausalBlocks(std::shared_ptr<const Prior> prior, const StreamSettings& settings, std::int64_t most_pushed);

  std::int64_t window() const { return window_; }                      // samples of a block
  std::int64_t advance() const { return advance_; }                    // samples that it gives
  std::int64_t first() const { return window_ - skipped_at_first(); }  // samples before anything is given
  BlockSampler& sampler() { return *sampler_; }
  NoiseModel& noise_model() { return noise_model_; }
  // What the networks remember of the blocks before, as the sampler's calls say
  const KeptNumbers* memories() const { return memories_.data(); }

  void push(const float* samples, std::int64_t n);
  bool ready() const { return held_ >= window_; }
  // Starts the next block; false for digital silence, of which nothing is asked.
  bool begin(Scratch& scratch);
  bool active() const { return active_; }  // the block under way is not silent
  // After the sampler's last answer: the speech (F, K) at the level of the input, and the mixture. `memories` are those
  // that the networks wrote: exchanged for the ones of the block before, where this one went well.
  void estimate(std::vector<KeptNumbers>& memories);
  std::vector<cfloat>& speech_spectrogram() { return spectrogram_; }
  const std::vector<cfloat>& mixture_spectrogram() const { return loud_mixture_; }
  // After the estimate, or after silence: the speech, the gain in the highest bands, and what came, `count()` samples
  void end();
  const float* speech() const { return speech_.data() + left_out_; }
  const float* gain() const { return gain_.data() + left_out_; }
  const float* mixture() const { return given_mixture_.data() + left_out_; }
  std::int64_t count() const { return advance_ - left_out_; }

  // Samples of the signal that were pushed and not given yet
  std::int64_t remaining() const { return held_ - skip_; }
  // Samples of silence after which everything that was pushed has been given
  std::int64_t missing() const;
  std::int64_t recovered_blocks() const { return recovered_blocks_; }

  void reset();
  void exchange(State& state);

 private:
  std::int64_t skipped_at_first() const { return prior_->spectral.settings().n_fft / 2; }
  // Samples of the block, without their hum where that is asked for
  const float* steady_signal(Scratch& scratch);
  void update_level();
  float gain_of_highest(std::int64_t frame) const;
  void recover();
  void exchange_learnt(State& state);

  std::shared_ptr<const Prior> prior_;
  std::int64_t frames_, advance_, window_;
  float release_;
  bool removes_hum_;
  NoiseModel noise_model_;
  std::unique_ptr<BlockSampler> sampler_;
  std::vector<KeptNumbers> memories_;
  ReadOut read_out_;
  Restraint restraint_;
  Spectral::Workspace workspace_;

  std::vector<float> input_;
  std::int64_t held_ = 0;                        // samples of `input_`
  std::vector<float> sum_, gain_sum_, squares_;  // overlap-add of speech, gain, and of the squared windows
  std::vector<float> heard_;  // at most a second before the end of the last block, in which hum is looked for
  std::int64_t heard_count_ = 0;
  std::vector<float> loudest_;  // compressed moduli of the last blocks, the latest at `latest_`
  std::int64_t latest_ = 0;
  float level_ = 0;
  std::uint64_t frame_ = 0;  // number of the next block's first
  std::int64_t skip_ = 0;    // samples before the signal starts
  bool active_ = false;
  std::vector<unsigned char> learnt_;  // noise model and read-out as they were before the block under way
  std::int64_t left_out_ = 0, recovered_blocks_ = 0;
  std::vector<cfloat> mixture_;                     // x, (F, K)
  std::vector<cfloat> spectrogram_, loud_mixture_;  // speech and mixture at the level of the input, (F, K)
  std::vector<float> speech_, gain_, given_mixture_;
};

}  // namespace udse
