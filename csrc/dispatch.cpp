// Checks the arguments, picks the instruction set, shares the work among the threads.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdlib>
#include <string>
#include <utility>
#include <vector>

#include "kernels.hpp"
#include "thread_pool.hpp"

namespace udse {
namespace {

constexpr std::int64_t serial_below = 1 << 13;  // numbers; waking a thread costs about as much

void require(bool condition, const std::string& message) {
  if (!condition) throw Error(message);
}

// The table of `name`, or nullptr where this build or processor does not have it.
const Kernels* find(const std::string& name) {
  if (name == "scalar") return &scalar::kernels;
#ifdef UDSE_X86
  if (name == "avx2" && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return &avx2::kernels;
  if (name == "avx512" && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl"))
    return &avx512::kernels;
#endif
  return nullptr;
}

const Kernels& named(const std::string& name, const std::string& source) {
  require(name == "scalar" || name == "avx2" || name == "avx512",
          source + " must be scalar, avx2 or avx512; got \"" + name + "\"");
  const Kernels* const kernels = find(name);
  require(kernels, source + "=" + name + ": this processor or build does not have it; use scalar");
  return *kernels;
}

const Kernels& choose() {
  if (const char* const forced = std::getenv("UDSE_FORCE_ISA"); forced && *forced)
    return named(forced, "UDSE_FORCE_ISA");
  for (const char* name : {"avx512", "avx2"})
    if (const Kernels* const kernels = find(name)) return *kernels;
  return scalar::kernels;
}

std::atomic<const Kernels*> chosen{nullptr};

const Kernels& kernels() {
  const Kernels* table = chosen.load(std::memory_order_acquire);
  if (!table) chosen.store(table = &choose(), std::memory_order_release);
  return *table;
}

// kernel(arguments..., range) over `items`, each of `numbers` numbers
template <class Kernel, class... Arguments>
void share(std::int64_t items, std::int64_t numbers, int threads, Kernel kernel, const Arguments&... arguments) {
  parallel_for(items, items * numbers < serial_below ? 1 : threads,
               [&](std::int64_t begin, std::int64_t end) { kernel(arguments..., Range{begin, end}); });
}

std::int64_t pairs(const Shape& shape) { return (shape.bins + 1) / 2; }

void check(const Shape& shape) {
  require(shape.samples >= 1 && shape.bins >= 1 && shape.frames >= 0,
          "shape must be (B >= 1, F >= 1, T >= 0); got (" + std::to_string(shape.samples) + ", " +
              std::to_string(shape.bins) + ", " + std::to_string(shape.frames) + ")");
  require(shape.samples <= 1 << 16 && shape.bins <= 1 << 17,
          "the noise counter holds 65536 samples and 131072 bins; got " + std::to_string(shape.samples) + " and " +
              std::to_string(shape.bins));
}

void check_rank(std::int64_t rank) {
  require(1 <= rank && rank <= 32, "rank must be in 1..32; got " + std::to_string(rank));
}

enum Needs { mixture = 1, variance = 2, power = 4, noise_next = 8, noise_source = 16 };

void run(void (*Kernels::*kernel)(const Step&, Range), const Step& step, int needs, int threads) {
  check(step.shape);
  if (step.shape.frames == 0) return;
  require(step.speech.state && step.speech.score && step.speech.next, "state, score and next must be given");
  require(step.speech.draw.kind != Noise::given || step.speech.draw.values, "the given noise is null");
  require(!(needs & mixture) || step.mixture, "the mixture must be given");
  require(!(needs & variance) || step.variance.values || (step.variance.W && step.variance.H),
          "the noise variance must be given, as V or as W and H");
  if (needs & variance && !step.variance.values) check_rank(step.variance.rank);
  require(!(needs & power) || step.power, "power must be given");
  require(!(needs & noise_next) || step.noise.next, "noise.next must be given");
  require(!(needs & noise_source) || (step.noise.state && step.noise.score),
          "state and score of the noise must be given");
  share(pairs(step.shape), 2 * step.shape.samples * step.shape.frames, threads, kernels().*kernel, step);
}

void check(const NMF& nmf, int iterations) {
  check_rank(nmf.rank);
  require(nmf.bins >= 1 && nmf.frames >= 1,
          "power must be (F >= 1, T >= 1); got (" + std::to_string(nmf.bins) + ", " + std::to_string(nmf.frames) + ")");
  require(iterations >= 0, "iterations must be >= 0; got " + std::to_string(iterations));
  require(nmf.floor > 0, "floor must be positive; got " + std::to_string(nmf.floor));
}

// The passes over P that both NMF forms are made of. H is held in whole blocks, zero behind its last frame.
class Passes {
 public:
  Passes(const NMF& nmf, int threads)
      : nmf_(nmf),
        threads_(threads),
        blocks_((nmf.frames + block_frames - 1) / block_frames),
        storage_(nmf.rank * blocks_),
        H_(storage_.data()->frames),
        weighted(nmf.bins * nmf.rank),
        inverse(nmf.bins * nmf.rank),
        pass_{nmf.bins,        nmf.frames,     nmf.rank, nmf.power, nmf.W, H_, blocks_ * block_frames,
              weighted.data(), inverse.data(), nmf.floor} {
    for (std::int64_t k = 0; k < nmf.rank; ++k) std::copy_n(nmf.H + k * nmf.frames, nmf.frames, H_ + k * pass_.stride);
  }

  void statistics() { share(nmf_.bins, nmf_.frames, threads_, kernels().nmf_statistics, pass_); }
  void update_h() { share(blocks_, nmf_.bins * block_frames, threads_, kernels().nmf_h, pass_); }

  // Columns of W to sum 1, their sums into H; returns the sums.
  std::vector<float> normalise() {
    std::vector<double> sums(nmf_.rank);
    for (std::int64_t f = 0; f < nmf_.bins; ++f)
      for (std::int64_t k = 0; k < nmf_.rank; ++k) sums[k] += nmf_.W[f * nmf_.rank + k];
    for (std::int64_t f = 0; f < nmf_.bins; ++f)
      for (std::int64_t k = 0; k < nmf_.rank; ++k) nmf_.W[f * nmf_.rank + k] /= static_cast<float>(sums[k]);
    for (std::int64_t k = 0; k < nmf_.rank; ++k)
      for (std::int64_t t = 0; t < nmf_.frames; ++t) H_[k * pass_.stride + t] *= static_cast<float>(sums[k]);
    return {sums.begin(), sums.end()};
  }

  void write_h() const {
    for (std::int64_t k = 0; k < nmf_.rank; ++k)
      std::copy_n(H_ + k * pass_.stride, nmf_.frames, nmf_.H + k * nmf_.frames);
  }

 private:
  const NMF& nmf_;
  int threads_;
  std::int64_t blocks_;
  struct alignas(64) Block {  // a vector that crosses a cache line is loaded at half the speed
    float frames[block_frames];
  };
  std::vector<Block> storage_;
  float* H_;

 public:
  std::vector<float> weighted, inverse;  // (P V^-2) H^T and V^-1 H^T, (F, R)

 private:
  NMFPass pass_;
};

float above(float x, float least) { return x > least ? x : least; }
constexpr float tiny = 1e-30f;  // keeps 0/0 away

}  // namespace

void corrector(const Step& step, int threads) { run(&Kernels::corrector, step, 0, threads); }
void predictor(const Step& step, int threads) { run(&Kernels::predictor, step, 0, threads); }
void marginal_guidance(const Step& step, int threads) {
  run(&Kernels::marginal_guidance, step, mixture | variance | power, threads);
}
void product_of_gaussians(const Step& step, int threads) {
  run(&Kernels::product_of_gaussians, step, mixture | variance | power, threads);
}
void noise_posterior_guidance(const Step& step, int threads) {
  run(&Kernels::noise_posterior_guidance, step, mixture | variance | power, threads);
}
void predictor_residual(const Step& step, int threads) {
  run(&Kernels::predictor_residual, step, mixture | noise_next, threads);
}
void score_noise_guidance(const Step& step, int threads) { run(&Kernels::score_noise_guidance, step, 0, threads); }
void joint_guidance(const Step& step, int threads) {
  run(&Kernels::joint_guidance, step, mixture | noise_next | noise_source, threads);
}

void complex_normal(const NoiseKey& key, const Shape& shape, cfloat* out, int threads) {
  check(shape);
  share(pairs(shape), 2 * shape.samples * shape.frames, threads, kernels().complex_normal, key, shape, out);
}

void compress(const cfloat* z, std::int64_t n, float exponent, float factor, cfloat* out, int threads) {
  require(exponent > 0 && exponent <= 1, "exponent must be in (0, 1]; got " + std::to_string(exponent));
  require(factor > 0, "factor must be positive; got " + std::to_string(factor));
  share(n, 1, threads, kernels().compress, z, exponent, factor, out);
}

void decompress(const cfloat* z, std::int64_t n, float exponent, float factor, cfloat* out, int threads) {
  require(exponent > 0 && exponent <= 1, "exponent must be in (0, 1]; got " + std::to_string(exponent));
  require(factor > 0, "factor must be positive; got " + std::to_string(factor));
  share(n, 1, threads, kernels().decompress, z, exponent, factor, out);
}

void network_input(const cfloat* state, const Shape& shape, const PerFrame& scale, float* out, int threads) {
  check(shape);
  share(shape.samples * shape.bins, shape.frames, threads, kernels().network_input, state, shape, scale, out);
}

void network_input(const cfloat* state, const Shape& shape, const PerFrame& scale, std::uint16_t* out, int threads) {
  check(shape);
  share(shape.samples * shape.bins, shape.frames, threads, kernels().network_input_bfloat16, state, shape, scale, out);
}

void nmf_update(const NMF& nmf, int iterations, bool fixed_w, int threads) {
  check(nmf, iterations);
  Passes passes(nmf, threads);
  for (int iteration = 0; iteration < iterations; ++iteration) {
    if (!fixed_w) {
      passes.statistics();
      for (std::int64_t i = 0; i < nmf.bins * nmf.rank; ++i)
        nmf.W[i] = above(nmf.W[i] * passes.weighted[i] / above(passes.inverse[i], tiny), nmf.floor);
    }
    passes.update_h();
    if (!fixed_w) passes.normalise();
  }
  passes.write_h();
}

void online_nmf_update(const NMF& nmf, float* A, float* B, float forgetting, int iterations, int threads) {
  check(nmf, iterations);
  require(forgetting >= 0 && forgetting <= 1, "forgetting must be in [0, 1]; got " + std::to_string(forgetting));
  Passes passes(nmf, threads);
  for (int iteration = 0; iteration < iterations; ++iteration) passes.update_h();
  passes.statistics();
  for (std::int64_t i = 0; i < nmf.bins * nmf.rank; ++i) {
    A[i] = forgetting * A[i] + nmf.W[i] * nmf.W[i] * passes.weighted[i];
    B[i] = forgetting * B[i] + passes.inverse[i];
    nmf.W[i] = above(std::sqrt(A[i] / above(B[i], tiny)), nmf.floor);
  }
  const std::vector<float> sums = passes.normalise();
  for (std::int64_t i = 0; i < nmf.bins * nmf.rank; ++i) {
    A[i] /= sums[i % nmf.rank];
    B[i] *= sums[i % nmf.rank];
  }
  passes.write_h();
}

const char* isa() { return kernels().name; }

void set_isa(const char* name) { chosen.store(&named(name, "instruction set"), std::memory_order_release); }

}  // namespace udse
