// A stream in a real-time pipeline: as many frames out as in, with a fixed delay, and something to hear whatever
// happens.
#pragma once

#include <atomic>
#include <thread>

#include "stream/ring.hpp"
#include "stream/semaphore.hpp"
#include "stream/stream.hpp"

namespace udse {

// The computing is done by the caller, or by a thread of its own behind queues of fixed size. Output that is not there
// in time is bridged by the noisy input of the same moment, faded in and out: never a gap, never a click.
class LiveStream {
 public:
  // buffer_frames: time that the own thread has for its computing, beside the latency of the stream; 0: no such thread.
  LiveStream(std::unique_ptr<Stream> stream, float remaining_noise, std::int64_t buffer_frames);
  ~LiveStream();

  // Delay in frames, exact
  std::int64_t latency() const { return latency_; }
  // `frames` of interleaved channels; in and out may be the same. Nothing is allocated, no lock is taken.
  void process(const float* in, float* out, std::int64_t frames);
  // Factor of the noise that is left in, 0 to 1, from one of the next blocks on
  void set_remaining_noise(float factor) { remaining_noise_.store(factor, std::memory_order_relaxed); }
  std::int64_t channels() const { return channels_; }
  std::int64_t missed() const { return missed_; }                  // times that the output was late
  std::int64_t bridged_frames() const { return bridged_frames_; }  // of noisy input instead

 private:
  // running: the worker follows the caller. lost: it came too late, the caller has stopped feeding it. cleared: it has
  // forgotten everything and waits for the next frame.
  enum Phase { running, lost, cleared };

  void take_in(const float* in, std::int64_t frames);
  void give_out(float* out, std::int64_t frames);
  void work();
  void follow();
  bool enhance(std::int64_t until);

  std::unique_ptr<Stream> stream_;
  Workbench bench_;
  std::int64_t channels_, latency_, fade_;
  bool has_worker_;
  Ring noisy_, enhanced_;
  std::vector<float> chunk_, result_;  // of the worker
  // of the caller
  std::int64_t received_ = 0, given_ = 0, missed_ = 0, bridged_frames_ = 0;
  float wet_ = 1;
  // of the worker: frames that it has taken
  std::int64_t taken_ = 0;
  // of both
  std::atomic<std::int64_t> fed_{0};       // frames that the worker may take
  std::atomic<std::int64_t> consumed_{0};  // frames that it has taken, and the caller may overwrite
  std::atomic<std::int64_t> produced_{0};  // frames that are enhanced
  std::atomic<std::int64_t> base_{0};      // the first frame after everything was forgotten
  std::atomic<float> remaining_noise_;
  std::atomic<int> phase_{running};
  std::atomic<bool> closing_{false};
  Semaphore wake_;
  std::thread worker_;
};

}  // namespace udse
