// Python bindings; the GIL is released for the work.
#include <array>
#include <cstring>
#include <variant>

#include "bind_arrays.hpp"

using namespace udse::bindings;
using udse::cfloat;

namespace {

using KeyTuple = std::tuple<std::uint64_t, std::uint32_t, std::uint32_t, std::uint64_t, std::uint32_t>;
using NoiseArgument = std::optional<std::variant<Complexes, KeyTuple>>;
using VarianceArgument = std::optional<std::variant<Floats, std::pair<Floats, Floats>>>;
using NumberArgument = std::variant<float, Floats>;
using CoefficientsArgument = std::variant<std::array<float, 6>, Floats>;

udse::Shape shape_of(const Complexes& a, const char* name) {
  if (a.ndim() != 3) throw udse::Error(std::string(name) + " must have shape (B, F, T); got " + text(sizes(a)));
  return {a.shape(0), a.shape(1), a.shape(2)};
}

Sizes full(const udse::Shape& s) { return {s.samples, s.bins, s.frames}; }
Sizes plane(const udse::Shape& s) { return {s.bins, s.frames}; }

udse::PerFrame number(const NumberArgument& argument, const char* name, int64_t frames) {
  if (const float* const value = std::get_if<float>(&argument)) return *value;
  return in(std::get<Floats>(argument), name, {frames});
}

udse::Coefficients coefficients(const CoefficientsArgument& argument, const char* name, int64_t frames) {
  if (const auto* const c = std::get_if<std::array<float, 6>>(&argument))
    return {(*c)[0], (*c)[1], (*c)[2], (*c)[3], (*c)[4], (*c)[5]};
  const float* const rows = in(std::get<Floats>(argument), name, {6, frames});
  return {rows, rows + frames, rows + 2 * frames, rows + 3 * frames, rows + 4 * frames, rows + 5 * frames};
}

udse::NoiseKey key(const KeyTuple& k) {
  return {std::get<0>(k), std::get<1>(k), std::get<2>(k), std::get<3>(k), std::get<4>(k)};
}

udse::Noise noise(const NoiseArgument& argument, const char* name, const udse::Shape& shape) {
  if (!argument) return {};
  if (const auto* k = std::get_if<KeyTuple>(&*argument)) return key(*k);
  return in(std::get<Complexes>(*argument), name, full(shape));
}

udse::NoiseVariance variance(const VarianceArgument& argument, const udse::Shape& shape) {
  if (!argument) return {};
  if (const auto* V = std::get_if<Floats>(&*argument)) return {in(*V, "variance", plane(shape)), nullptr, nullptr, 0};
  const auto& [W, H] = std::get<std::pair<Floats, Floats>>(*argument);
  const int64_t rank = W.ndim() == 2 ? W.shape(1) : 0;
  return {nullptr, in(W, "W", {shape.bins, rank}), in(H, "H", {rank, shape.frames}), rank};
}

using UpdateFunction = void (*)(const udse::Step&, int);

constexpr std::pair<const char*, UpdateFunction> updates[] = {
    {"corrector", udse::corrector},
    {"predictor", udse::predictor},
    {"marginal_guidance", udse::marginal_guidance},
    {"product_of_gaussians", udse::product_of_gaussians},
    {"noise_posterior_guidance", udse::noise_posterior_guidance},
    {"predictor_residual", udse::predictor_residual},
    {"score_noise_guidance", udse::score_noise_guidance},
    {"joint_guidance", udse::joint_guidance},
    {"unexplained_power", udse::unexplained_power},
    {"ddrm_step", udse::ddrm_step},
    {"posterior_mean", udse::posterior_mean},
};

UpdateFunction update_named(const char* name) {
  for (const auto& [known, function] : updates)
    if (!std::strcmp(known, name)) return function;
  throw udse::Error(std::string("there is no update \"") + name + "\"");
}

void update(const char* name, const Complexes& state, const Complexes& score, const CoefficientsArgument& c,
            const NoiseArgument& z, const std::optional<Complexes>& mixture, const VarianceArgument& V,
            const std::optional<Floats>& posterior_variance, const std::optional<CoefficientsArgument>& following,
            const std::optional<Complexes>& other_state, const std::optional<Complexes>& other_score,
            const NoiseArgument& other_noise, const NumberArgument& guidance, float observation_variance,
            float noise_bias, float eta, bool apply, bool power_of_state, bool divide_tweedie, bool paper_posterior,
            std::optional<Complexes> next, std::optional<Complexes> other_next, std::optional<Floats> power,
            int threads) {
  const UpdateFunction function = update_named(name);
  udse::Step step;
  step.shape = shape_of(state, "state");
  const Sizes all = full(step.shape), bins = plane(step.shape);
  const int64_t frames = step.shape.frames;
  step.state = state.data();
  step.score = in(score, "score", all);
  step.coefficients = coefficients(c, "coefficients", frames);
  step.noise = noise(z, "noise", step.shape);
  step.mixture = in(mixture, "mixture", bins);
  step.variance = variance(V, step.shape);
  step.posterior_variance = in(posterior_variance, "posterior_variance", all);
  if (following) step.following = coefficients(*following, "following", frames);
  step.other_state = in(other_state, "other_state", all);
  step.other_score = in(other_score, "other_score", all);
  step.other_noise = noise(other_noise, "other_noise", step.shape);
  step.guidance = number(guidance, "guidance", frames);
  step.observation_variance = observation_variance;
  step.noise_bias = noise_bias;
  step.eta = eta;
  step.apply = apply;
  step.power_of_state = power_of_state;
  step.divide_tweedie = divide_tweedie;
  step.paper_posterior = paper_posterior;
  step.next = out(next, "next", all);
  step.other_next = out(other_next, "other_next", all);
  step.power = out(power, "power", bins);
  py::gil_scoped_release release;
  function(step, threads);
}

void register_update(py::module_& m) {
  const udse::Step step;
  const auto absent = py::none();
  m.def("update", update, "name"_a, "state"_a.noconvert(), "score"_a.noconvert(), "coefficients"_a.noconvert(),
        "noise"_a.noconvert() = absent, "mixture"_a.noconvert() = absent, "variance"_a.noconvert() = absent,
        "posterior_variance"_a.noconvert() = absent, "following"_a.noconvert() = absent,
        "other_state"_a.noconvert() = absent, "other_score"_a.noconvert() = absent,
        "other_noise"_a.noconvert() = absent, "guidance"_a.noconvert() = step.guidance.value,
        "observation_variance"_a = step.observation_variance, "noise_bias"_a = step.noise_bias, "eta"_a = step.eta,
        "apply"_a = step.apply, "power_of_state"_a = step.power_of_state, "divide_tweedie"_a = step.divide_tweedie,
        "paper_posterior"_a = step.paper_posterior, "next"_a.noconvert() = absent, "other_next"_a.noconvert() = absent,
        "power"_a.noconvert() = absent, "threads"_a = 1);
}

udse::NMF nmf(const Floats& power, Floats& W, Floats& H, float floor) {
  if (power.ndim() != 2) throw udse::Error("power must have shape (F, T); got " + text(sizes(power)));
  const int64_t F = power.shape(0), T = power.shape(1), R = W.ndim() == 2 ? W.shape(1) : 0;
  return {F, T, R, power.data(), out(W, "W", {F, R}), out(H, "H", {R, T}), floor};
}

using Compression = void (*)(const cfloat*, int64_t, float, float, cfloat*, int);

void compression(Compression function, const Complexes& z, float exponent, float factor, Complexes result,
                 int threads) {
  cfloat* const to = out(result, "out", sizes(z));
  const cfloat* const from = z.data();
  const int64_t n = z.size();
  py::gil_scoped_release release;
  function(from, n, exponent, factor, to, threads);
}

void register_nmf(py::module_& m) {
  m.def(
      "nmf_update",
      [](const Floats& power, Floats W, Floats H, int iterations, float floor, int threads) {
        const udse::NMF arguments = nmf(power, W, H, floor);
        py::gil_scoped_release release;
        udse::nmf_update(arguments, iterations, threads);
      },
      "power"_a.noconvert(), "W"_a.noconvert(), "H"_a.noconvert(), "iterations"_a, "floor"_a, "threads"_a);
  m.def(
      "online_nmf_update",
      [](const Floats& power, Floats W, Floats H, Floats numerator, Floats denominator, float forgetting,
         int iterations, float floor, int threads) {
        const udse::NMF arguments = nmf(power, W, H, floor);
        float* const A = out(numerator, "numerator", {arguments.bins, arguments.rank});
        float* const B = out(denominator, "denominator", {arguments.bins, arguments.rank});
        py::gil_scoped_release release;
        udse::online_nmf_update(arguments, A, B, forgetting, iterations, threads);
      },
      "power"_a.noconvert(), "W"_a.noconvert(), "H"_a.noconvert(), "numerator"_a.noconvert(),
      "denominator"_a.noconvert(), "forgetting"_a, "iterations"_a, "floor"_a, "threads"_a);
}

void register_signal(py::module_& m) {
  m.def(
      "complex_normal",
      [](const KeyTuple& k, Complexes result, int threads) {
        const udse::Shape shape = shape_of(result, "out");
        cfloat* const to = out(result, "out", full(shape));
        py::gil_scoped_release release;
        udse::complex_normal(key(k), shape, to, threads);
      },
      "key"_a, "out"_a.noconvert(), "threads"_a);
  for (const auto& [name, function] :
       {std::pair<const char*, Compression>{"compress", udse::compress}, {"decompress", udse::decompress}})
    m.def(
        name,
        [function = function](const Complexes& z, float exponent, float factor, Complexes result, int threads) {
          compression(function, z, exponent, factor, result, threads);
        },
        "z"_a.noconvert(), "exponent"_a, "factor"_a, "out"_a.noconvert(), "threads"_a);
}

}  // namespace

void register_compact_network(py::module_& m);  // bind_compact_network.cpp
void register_stream(py::module_& m);           // bind_stream.cpp

PYBIND11_MODULE(_core, m) {
  m.doc() = "The C++ core: fused posterior updates, NMF-IS and counter-based noise on CPUs.";
  py::register_local_exception_translator([](std::exception_ptr p) {
    try {
      if (p) std::rethrow_exception(p);
    } catch (const udse::Error& error) {
      py::set_error(py::module_::import("udse_fast.errors").attr("UdseError"), error.what());
    }
  });
  register_update(m);
  register_nmf(m);
  register_signal(m);
  register_compact_network(m);
  register_stream(m);
  m.def("isa", &udse::isa, "Instruction set in use: scalar, avx2 or avx512.");
  m.def(
      "set_isa", [](const std::string& name) { udse::set_isa(name.c_str()); }, "name"_a,
      "Change the instruction set of the process, for tests.");
}
