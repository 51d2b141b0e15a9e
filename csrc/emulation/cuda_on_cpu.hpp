// CUDA's kernels on a CPU, for tests: the launch geometry, barriers, shuffles and shared memory of csrc/device.hpp are
// executed as they are written. Every thread of a block is a context of its own; those that do not wait run in a random
// order, and so do the blocks. What a GPU would hang or fail at is reported: launches that are too large, threads of a
// block or a warp that wait for different things. What is not emulated: two threads in the same instruction, alignment,
// the device's half precision and approximate functions.
#pragma once

#include <ucontext.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <numeric>
#include <random>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#define UDSE_ADDRESS_SANITIZER
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define UDSE_ADDRESS_SANITIZER
#endif
#endif
#ifdef UDSE_ADDRESS_SANITIZER
#include <sanitizer/common_interface_defs.h>
#endif

struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

namespace udse {
namespace emulation {

constexpr unsigned warp_size = 32, most_threads = 1024, most_blocks_y = 65535;  // of every device from sm_70 on
constexpr std::size_t stack_bytes = std::size_t{1} << 18;

enum class Wait { nothing, barrier, warp };

// What the lanes of a warp do together: one function of what each of them brings.
using Together = void (*)(const std::vector<void*>& lanes);

// A stack that the sanitizer has to know of when it is left and entered.
struct Stack {
  const void* bottom = nullptr;
  std::size_t size = 0;
  void* fake = nullptr;
};

// One thread of the block that runs.
struct Thread {
  ucontext_t context;
  std::unique_ptr<char[]> memory{new char[stack_bytes]};
  Stack stack;
  dim3 index;
  Wait waits = Wait::nothing;
  bool ended = false;
  Together together = nullptr;  // of the instruction of a warp it waits for
  void* brings = nullptr;
};

// What runs: one launch at a time.
struct Device {
  std::vector<std::unique_ptr<Thread>> threads;  // kept from block to block
  Thread* running = nullptr;
  ucontext_t scheduler;
  Stack stack;  // of the scheduler
  const std::function<void()>* kernel = nullptr;
  dim3 grid, block, block_index;
  std::mt19937 order{1};
  std::mutex mutex;
  bool barriers = true;  // false: __syncthreads does nothing, to see that tests notice
  int capability = 80;   // which instructions there are
};

inline Device& device() {
  static Device only;
  return only;
}

// Before a switch to `next`, and after one back.
inline void leave([[maybe_unused]] Stack& now, [[maybe_unused]] const Stack& next) {
#ifdef UDSE_ADDRESS_SANITIZER
  __sanitizer_start_switch_fiber(&now.fake, next.bottom, next.size);
#endif
}
inline void enter([[maybe_unused]] Stack& now, [[maybe_unused]] Stack* before = nullptr) {
#ifdef UDSE_ADDRESS_SANITIZER
  Stack ignored;
  Stack& left = before ? *before : ignored;
  __sanitizer_finish_switch_fiber(now.fake, &left.bottom, &left.size);
#endif
}

// The running thread stops until the scheduler goes on with it.
inline void stop(Wait why) {
  Device& d = device();
  Thread& thread = *d.running;
  thread.waits = why;
  leave(thread.stack, d.stack);
  swapcontext(&thread.context, &d.scheduler);
  enter(thread.stack);
}

// A context serves one thread after another.
inline void serve() {
  Device& d = device();
  enter(d.running->stack, &d.stack);
  while (true) {
    (*d.kernel)();
    d.running->ended = true;
    stop(Wait::nothing);
  }
}

inline void go_on(Thread& thread) {
  Device& d = device();
  d.running = &thread;
  thread.waits = Wait::nothing;
  leave(d.stack, thread.stack);
  swapcontext(&d.scheduler, &thread.context);
  enter(d.stack);
}

inline std::unique_ptr<Thread> new_thread() {
  auto thread = std::make_unique<Thread>();
  getcontext(&thread->context);
  thread->context.uc_stack.ss_sp = thread->memory.get();
  thread->context.uc_stack.ss_size = stack_bytes;
  thread->context.uc_link = nullptr;
  thread->stack = {thread->memory.get(), stack_bytes, nullptr};
  makecontext(&thread->context, serve, 0);
  return thread;
}

using Warp = std::vector<Thread*>;

inline bool ready(const Thread* thread) { return !thread->ended && thread->waits == Wait::nothing; }

// The running thread and the other lanes of its warp do something together.
inline void do_together(Together together, void* brings) {
  device().running->together = together;
  device().running->brings = brings;
  stop(Wait::warp);
}

// The lanes of a warp, in random order, until each waits or has ended; then what they wait to do together. Returns what
// is wrong.
inline const char* go_on(const Warp& warp) {
  Warp order = warp;
  std::shuffle(order.begin(), order.end(), device().order);
  for (Thread* lane : order)
    if (ready(lane)) go_on(*lane);
  const auto waits = [](const Thread* lane) { return lane->waits == Wait::warp; };
  if (std::none_of(warp.begin(), warp.end(), waits)) return nullptr;
  const Together together = warp.front()->together;
  const auto same = [&](const Thread* lane) { return waits(lane) && lane->together == together; };
  if (!std::all_of(warp.begin(), warp.end(), same)) return "not all lanes of a warp came to an instruction";
  std::vector<void*> brought;
  for (const Thread* lane : warp) brought.push_back(lane->brings);
  together(brought);
  for (Thread* lane : warp) lane->waits = Wait::nothing;
  return nullptr;
}

// Warps in random order, each as far as it comes on its own.
inline const char* run_block(const std::vector<Thread*>& block, dim3 size) {
  std::vector<Warp> warps;
  for (unsigned i = 0; i < block.size(); ++i) {
    block[i]->index = {i % size.x, i / size.x % size.y, i / size.x / size.y};
    block[i]->ended = false;
    block[i]->waits = Wait::nothing;
    if (i % warp_size == 0) warps.emplace_back();
    warps.back().push_back(block[i]);
  }
  const auto ended = [](const Thread* thread) { return thread->ended; };
  while (!std::all_of(block.begin(), block.end(), ended)) {
    std::vector<const Warp*> able;
    for (const Warp& warp : warps)
      if (std::any_of(warp.begin(), warp.end(), ready)) able.push_back(&warp);
    if (!able.empty()) {
      if (const char* error = go_on(*able[device().order() % able.size()])) return error;
    } else if (std::any_of(block.begin(), block.end(), ended)) {
      return "a thread ended before a barrier of the others";
    } else {
      for (Thread* thread : block) thread->waits = Wait::nothing;
    }
  }
  return nullptr;
}

// kernel() for every thread of every block. Returns what is wrong, as a CUDA call would.
inline const char* launch(dim3 grid, dim3 block, const std::function<void()>& kernel) {
  Device& d = device();
  const std::lock_guard<std::mutex> one_at_a_time(d.mutex);
  const std::uint64_t threads = std::uint64_t{block.x} * block.y * block.z;
  const std::uint64_t blocks = std::uint64_t{grid.x} * grid.y;
  if (!threads || threads > most_threads || !blocks || grid.y > most_blocks_y || grid.z != 1)
    return "invalid configuration argument";
  d.kernel = &kernel;
  d.grid = grid;
  d.block = block;
  while (d.threads.size() < threads) d.threads.push_back(new_thread());
  std::vector<Thread*> of_block;
  for (std::uint64_t i = 0; i < threads; ++i) of_block.push_back(d.threads[i].get());
  std::vector<std::uint64_t> order(blocks);
  std::iota(order.begin(), order.end(), std::uint64_t{0});
  std::shuffle(order.begin(), order.end(), d.order);
  for (const std::uint64_t number : order) {
    d.block_index = dim3(static_cast<unsigned>(number % grid.x), static_cast<unsigned>(number / grid.x));
    if (const char* error = run_block(of_block, block)) {
      d.threads.clear();  // where they stopped they would wait for ever
      return error;
    }
  }
  return nullptr;
}

}  // namespace emulation
}  // namespace udse

#define __global__
#define __device__
#define __launch_bounds__(...)
#define __shared__ static
#define threadIdx (::udse::emulation::device().running->index)
#define blockIdx (::udse::emulation::device().block_index)
#define blockDim (::udse::emulation::device().block)
#define gridDim (::udse::emulation::device().grid)

inline void __syncthreads() {
  if (udse::emulation::device().barriers) udse::emulation::stop(udse::emulation::Wait::barrier);
}

inline float __shfl_xor_sync(unsigned, float value, unsigned lanes) {
  struct Offer {
    float value;
    unsigned partner;  // lane
  };
  udse::emulation::Device& d = udse::emulation::device();
  const dim3 at = d.running->index;
  Offer offer{value, (((at.z * d.block.y + at.y) * d.block.x + at.x) % udse::emulation::warp_size) ^ lanes};
  const auto exchange = [](const std::vector<void*>& brought) {
    std::vector<float> offered;
    for (const void* lane : brought) offered.push_back(static_cast<const Offer*>(lane)->value);
    for (void* lane : brought) {
      Offer& offer = *static_cast<Offer*>(lane);
      if (offer.partner < offered.size()) offer.value = offered[offer.partner];
    }
  };
  udse::emulation::do_together(exchange, &offer);
  return offer.value;
}
