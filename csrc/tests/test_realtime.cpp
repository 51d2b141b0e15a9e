// What a real-time thread relies on: `process` makes no system call, so it neither waits nor asks for memory, and
// leaves the processor's arithmetic as it was. The arguments are the prior and the posterior network.
#include <cmath>
#include <cstring>
#include <vector>

#include "checking.hpp"
#include "stream/denormals.hpp"
#include "udse.h"

#if defined(__linux__) && !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
#include <linux/seccomp.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>
#define UDSE_CALLS_CAN_BE_FORBIDDEN
constexpr unsigned part_of_a_second = 1;
#else
constexpr unsigned part_of_a_second = 4;  // sanitizers take long
#endif

namespace {

using std::int64_t;

std::vector<float> noise(int64_t n) {
  std::vector<float> x(static_cast<size_t>(n));
  unsigned state = 1;
  for (float& value : x) {
    state = state * 1664525u + 1013904223u;
    value = 1e-9f * static_cast<float>(static_cast<int>(state >> 8) - (1 << 23));
  }
  return x;
}

struct Opened {
  udse_stream* stream;
  udse_stream* beside;
  udse_live* live;
  std::vector<float> in, out, other;
};

Opened open_all(const udse_prior* prior, uint32_t rate, uint32_t sampler) {
  udse_options options = udse_default_options();
  options.sample_rate = rate;
  options.steps = options.samples = 2;
  options.together = 2;
  options.sampler = sampler;
  Opened all{udse_open_with(prior, &options, nullptr), nullptr, udse_open_live(prior, &options, nullptr),
             noise(rate / part_of_a_second),           {},      {}};
  CHECK(all.stream && all.live);
  all.beside = udse_open_beside(all.stream, &options, nullptr);
  all.out.resize(static_cast<size_t>(2 * udse_most(all.stream, rate)));
  all.other.resize(all.out.size());
  return all;
}

// Everything that udse.h calls real-time
bool use(Opened& all) {
  const auto frames = static_cast<int64_t>(all.in.size()), room = static_cast<int64_t>(all.out.size());
  udse_feed feeds[] = {{all.stream, all.in.data(), frames, all.out.data(), room, 0},
                       {all.beside, all.in.data(), frames, all.other.data(), room, 0}};
  bool well = udse_process(all.stream, all.in.data(), frames, all.out.data(), room) > 0;
  well = well && udse_process_many(feeds, 2) == UDSE_OK && feeds[0].written > 0;
  well = well && udse_set_max_attenuation(all.stream, 12) == UDSE_OK;
  well = well && udse_flush(all.stream, all.out.data(), room) > 0 && udse_reset(all.beside) == UDSE_OK;
  return well && udse_process_live(all.live, all.in.data(), all.out.data(), frames) == UDSE_OK;
}

void close_all(Opened& all) { udse_close(all.stream), udse_close(all.beside), udse_close_live(all.live); }

#ifdef UDSE_CALLS_CAN_BE_FORBIDDEN
// A process that the kernel kills at its first system call but read, write and exit
void no_system_call_is_made(const udse_prior* prior, uint32_t sampler) {
  for (const uint32_t rate : {16000u, 44100u}) {
    Opened all = open_all(prior, rate, sampler);
    const pid_t child = fork();
    if (child == 0) {
      const bool forbidden = prctl(PR_SET_SECCOMP, SECCOMP_MODE_STRICT) == 0;
      syscall(SYS_exit, !forbidden ? 2 : use(all) ? 0 : 1);
    }
    int status = 0;
    CHECK(child > 0 && waitpid(child, &status, 0) == child);
    CHECK(WIFEXITED(status));  // not killed
    if (WEXITSTATUS(status) == 2) std::puts("system calls cannot be forbidden here");
    CHECK(WEXITSTATUS(status) != 1);
    close_all(all);
  }
}
#endif

// Not what a compiler may work out
float product(float a, float b) {
  const volatile float x = a, y = b;
  return x * y;
}

void denormals_are_zero_within_and_as_before_afterwards(const udse_prior* prior, uint32_t sampler) {
  CHECK(product(1e-30f, 1e-10f) != 0);
#if defined(__SSE2__) || defined(__aarch64__)
  {
    const udse::DenormalsOff off;
    CHECK(product(1e-30f, 1e-10f) == 0 && product(1e-40f, 1e10f) == 0);
  }
#endif
  Opened all = open_all(prior, 16000, sampler);
  CHECK(use(all) && product(1e-30f, 1e-10f) != 0);
  close_all(all);
}

}  // namespace

int main(int argc, char** argv) {
  CHECK(argc == 3);
  udse_prior* const prior = udse_read_networks(argv[1], argv[2], nullptr);
  CHECK(prior);
  for (const uint32_t sampler : {UDSE_DDRM, UDSE_AMORTISED_DDRM}) {
    denormals_are_zero_within_and_as_before_afterwards(prior, sampler);
#ifdef UDSE_CALLS_CAN_BE_FORBIDDEN
    no_system_call_is_made(prior, sampler);
#endif
  }
  udse_close_prior(prior);
  std::puts("real time: ok");
}
