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

#define UDSE_KERNELS(isa)      \
  const Kernels isa##_kernels{ \
      #isa, isa::noise_kernels, isa::update_kernels, isa::compression_kernels, isa::nmf_kernels, isa::memory_kernels};

UDSE_KERNELS(scalar)
#ifdef UDSE_X86
UDSE_KERNELS(avx2)
UDSE_KERNELS(avx512)
#endif

// Those of `name`, or nullptr where this build or processor does not have them.
const Kernels* find(const std::string& name) {
  if (name == "scalar") return &scalar_kernels;
#ifdef UDSE_X86
  if (name == "avx2" && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return &avx2_kernels;
  if (name == "avx512" && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl"))
    return &avx512_kernels;
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
  return scalar_kernels;
}

std::atomic<const Kernels*> chosen{nullptr};

}  // namespace

const Kernels& kernels() {
  const Kernels* table = chosen.load(std::memory_order_acquire);
  if (!table) chosen.store(table = &choose(), std::memory_order_release);
  return *table;
}

namespace {

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

using UpdateKernel = void (*UpdateKernels::*)(const Step&, Range);
enum Needs {
  next = 1,
  power = 2,
  other_next = 4,
  mixture = 8,
  variance = 16,
  posterior_variance = 32,
  other_source = 64
};

void run(UpdateKernel kernel, const Step& step, int needs, int threads) {
  check(step.shape);
  if (step.shape.frames == 0) return;
  const auto given = [&](int need, bool there, const char* what) {
    require(!(needs & need) || there, std::string(what) + " must be given");
  };
  require(step.state && step.score, "state and score must be given");
  require(step.noise.kind != Noise::given || step.noise.values, "the given noise is null");
  given(next, step.next, "next");
  given(power, step.power, "power");
  given(other_next, step.other_next, "other_next");
  given(mixture, step.mixture, "the mixture");
  given(variance, step.variance.values || (step.variance.W && step.variance.H),
        "the variance of the noise, V or W and H,");
  given(posterior_variance, step.posterior_variance, "the posterior_variance");
  given(other_source, step.other_state && step.other_score, "state and score of the other source");
  if (needs & variance && !step.variance.values) check_rank(step.variance.rank);
  share(pairs(step.shape), 2 * step.shape.samples * step.shape.frames, threads, kernels().updates.*kernel, step);
}

void check(const NMF& nmf, int iterations) {
  check_rank(nmf.rank);
  require(nmf.bins >= 1 && nmf.frames >= 1,
          "power must be (F >= 1, T >= 1); got (" + std::to_string(nmf.bins) + ", " + std::to_string(nmf.frames) + ")");
  require(iterations >= 0, "iterations must be >= 0; got " + std::to_string(iterations));
  require(nmf.floor > 0, "floor must be positive; got " + std::to_string(nmf.floor));
}

// The steps that both NMF forms are made of, on a copy of H in whole items.
class Passes {
 public:
  Passes(const NMF& nmf, int threads, float* A = nullptr, float* B = nullptr, float forgetting = 0)
      : nmf_(nmf),
        threads_(threads),
        items_((nmf.frames + nmf_frames - 1) / nmf_frames),
        by_frame_(static_cast<std::size_t>((2 * nmf.rank + 1) * items_)),
        by_bin_(static_cast<std::size_t>(nmf.bins * (3 * nmf.rank + 1))) {
    float* const scratch = by_bin_.data() + nmf.bins * (nmf.rank + 1);
    pass_ = {nmf.bins,
             nmf.frames,
             nmf.rank,
             nmf.power,
             nmf.W,
             by_frame_[0].frames,
             items_ * nmf_frames,
             by_bin_.data(),
             by_frame_[static_cast<std::size_t>(nmf.rank * items_)].frames,
             scratch,
             scratch + nmf.bins * nmf.rank,
             nmf.floor,
             A,
             B,
             forgetting};
    for (std::int64_t k = 0; k < nmf.rank; ++k)
      std::copy_n(nmf.H + k * nmf.frames, nmf.frames, pass_.H + k * pass_.stride);
    // no 0/0 in the frames behind the last one
    std::fill_n(pass_.scaled_h + nmf.rank * pass_.stride + nmf.frames, pass_.stride - nmf.frames, 1.f);
  }

  void update_w() {
    kernels().nmf.scale_h(pass_, {0, nmf_.frames});
    share(nmf_.bins, nmf_.frames, threads_, kernels().nmf.w, pass_);
  }

  void update_h() {
    kernels().nmf.scale_w(pass_, {0, nmf_.bins});
    share(items_, nmf_.bins * nmf_frames, threads_, kernels().nmf.h, pass_);
  }

  void normalise() { kernels().nmf.normalise(pass_, {0, nmf_.bins}); }

  void write_h() const {
    for (std::int64_t k = 0; k < nmf_.rank; ++k)
      std::copy_n(pass_.H + k * pass_.stride, nmf_.frames, nmf_.H + k * nmf_.frames);
  }

 private:
  const NMF& nmf_;
  int threads_;
  std::int64_t items_;
  struct alignas(64) Item {  // a vector that crosses a cache line is loaded at half the speed
    float frames[nmf_frames];
  };
  std::vector<Item> by_frame_;
  std::vector<float> by_bin_;
  NMFPass pass_;
};

}  // namespace

void corrector(const Step& step, int threads) { run(&UpdateKernels::corrector, step, next, threads); }
void predictor(const Step& step, int threads) { run(&UpdateKernels::predictor, step, next, threads); }
void marginal_guidance(const Step& step, int threads) {
  run(&UpdateKernels::marginal_guidance, step, next | power | mixture | variance, threads);
}
void product_of_gaussians(const Step& step, int threads) {
  run(&UpdateKernels::product_of_gaussians, step, next | power | mixture | variance, threads);
}
void noise_posterior_guidance(const Step& step, int threads) {
  run(&UpdateKernels::noise_posterior_guidance, step, next | power | mixture | variance, threads);
}
void predictor_residual(const Step& step, int threads) {
  run(&UpdateKernels::predictor_residual, step, next | other_next | mixture, threads);
}
void score_noise_guidance(const Step& step, int threads) {
  run(&UpdateKernels::score_noise_guidance, step, next, threads);
}
void joint_guidance(const Step& step, int threads) {
  run(&UpdateKernels::joint_guidance, step, next | other_next | mixture | other_source, threads);
}
void unexplained_power(const Step& step, int threads) {
  run(&UpdateKernels::unexplained_power, step, power | mixture | variance | posterior_variance, threads);
}
void ddrm_step(const Step& step, int threads) {
  require(step.eta >= 0 && step.eta <= 1, "eta must be in [0, 1]; got " + std::to_string(step.eta));
  run(&UpdateKernels::ddrm_step, step, next | mixture | variance, threads);
}
void posterior_mean(const Step& step, int threads) {
  run(&UpdateKernels::posterior_mean, step, next | mixture | variance | posterior_variance, threads);
}

void complex_normal(const NoiseKey& key, const Shape& shape, cfloat* out, int threads) {
  check(shape);
  share(pairs(shape), 2 * shape.samples * shape.frames, threads, kernels().noise.complex_normal, key, shape, out);
}

void compress(const cfloat* z, std::int64_t n, float exponent, float factor, cfloat* out, int threads) {
  require(exponent > 0 && exponent <= 1, "exponent must be in (0, 1]; got " + std::to_string(exponent));
  require(factor > 0, "factor must be positive; got " + std::to_string(factor));
  share(n, 1, threads, kernels().compression.compress, z, exponent, factor, out);
}

void decompress(const cfloat* z, std::int64_t n, float exponent, float factor, cfloat* out, int threads) {
  require(exponent > 0 && exponent <= 1, "exponent must be in (0, 1]; got " + std::to_string(exponent));
  require(factor > 0, "factor must be positive; got " + std::to_string(factor));
  share(n, 1, threads, kernels().compression.decompress, z, exponent, factor, out);
}

void nmf_update(const NMF& nmf, int iterations, int threads) {
  check(nmf, iterations);
  Passes passes(nmf, threads);
  for (int iteration = 0; iteration < iterations; ++iteration) {
    passes.update_w();
    passes.update_h();
    passes.normalise();
  }
  passes.write_h();
}

void online_nmf_update(const NMF& nmf, float* A, float* B, float forgetting, int iterations, int threads) {
  check(nmf, iterations);
  require(forgetting >= 0 && forgetting <= 1, "forgetting must be in [0, 1]; got " + std::to_string(forgetting));
  Passes passes(nmf, threads, A, B, forgetting);
  for (int iteration = 0; iteration < iterations; ++iteration) passes.update_h();
  passes.update_w();
  passes.normalise();
  passes.write_h();
}

const char* isa() { return kernels().name; }

void set_isa(const char* name) { chosen.store(&named(name, "instruction set"), std::memory_order_release); }

}  // namespace udse
