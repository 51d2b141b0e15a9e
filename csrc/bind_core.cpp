// Python bindings: numpy arrays are taken as they are (no copy, no conversion) or refused; the GIL is released for the
// work.
#include <pybind11/complex.h>
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <optional>
#include <string>
#include <utility>
#include <variant>

#include "udse_core.hpp"

namespace py = pybind11;
using namespace py::literals;
using std::int64_t;
using udse::cfloat;

namespace {

template <class T>
using Array = py::array_t<T, py::array::c_style>;
using Floats = Array<float>;
using Complexes = Array<cfloat>;
using KeyTuple = std::tuple<std::uint64_t, std::uint32_t, std::uint32_t, std::uint64_t, std::uint32_t>;
using NoiseArgument = std::optional<std::variant<Complexes, KeyTuple>>;
using VarianceArgument = std::variant<Floats, std::pair<Floats, Floats>>;
using Sizes = std::vector<int64_t>;

std::string text(const Sizes& sizes) {
  std::string out = "(";
  for (std::size_t i = 0; i < sizes.size(); ++i) out += (i ? ", " : "") + std::to_string(sizes[i]);
  return out + (sizes.size() == 1 ? ",)" : ")");
}

Sizes sizes(const py::array& a) { return Sizes(a.shape(), a.shape() + a.ndim()); }

template <class T>
const T* in(const Array<T>& a, const char* name, const Sizes& expected) {
  if (sizes(a) != expected)
    throw udse::Error(std::string(name) + " must have shape " + text(expected) + "; got " + text(sizes(a)));
  return a.data();
}

template <class T>
T* out(Array<T>& a, const char* name, const Sizes& expected) {
  if (!a.writeable()) throw udse::Error(std::string(name) + " is read-only; give a writeable array");
  return const_cast<T*>(in(a, name, expected));
}

udse::Shape shape_of(const Complexes& a, const char* name) {
  if (a.ndim() != 3) throw udse::Error(std::string(name) + " must have shape (B, F, T); got " + text(sizes(a)));
  return {a.shape(0), a.shape(1), a.shape(2)};
}

Sizes full(const udse::Shape& s) { return {s.samples, s.bins, s.frames}; }
Sizes plane(const udse::Shape& s) { return {s.bins, s.frames}; }

udse::PerFrame per_frame(const float* values, int64_t n) {
  return n == 1 ? udse::PerFrame(*values) : udse::PerFrame(values);
}

int64_t frames_or_one(const py::array& a, int axis, const char* name, int64_t frames) {
  const int64_t n = a.ndim() > axis ? a.shape(axis) : -1;
  if (a.ndim() != axis + 1 || (n != 1 && n != frames))
    throw udse::Error(std::string(name) + " must have 1 or T = " + std::to_string(frames) + " columns; got shape " +
                      text(sizes(a)));
  return n;
}

udse::PerFrame number(const Floats& a, const char* name, int64_t frames) {
  return per_frame(a.data(), frames_or_one(a, 0, name, frames));
}

udse::Coefficients coefficients(const Floats& a, int64_t frames) {
  const int64_t n = frames_or_one(a, 1, "coefficients", frames);
  if (a.shape(0) != 6)
    throw udse::Error("coefficients must have 6 rows (gamma, delta, sigma, g, dt, corrector_snr); got shape " +
                      text(sizes(a)));
  const float* p = a.data();
  return {per_frame(p, n),         per_frame(p + n, n),     per_frame(p + 2 * n, n),
          per_frame(p + 3 * n, n), per_frame(p + 4 * n, n), per_frame(p + 5 * n, n)};
}

udse::NoiseKey key(const KeyTuple& k) {
  return {std::get<0>(k), std::get<1>(k), std::get<2>(k), std::get<3>(k), std::get<4>(k)};
}

udse::Noise noise(const NoiseArgument& argument, const udse::Shape& shape) {
  if (!argument) return {};
  if (const auto* k = std::get_if<KeyTuple>(&*argument)) return key(*k);
  return in(std::get<Complexes>(*argument), "noise", full(shape));
}

udse::NoiseVariance variance(const VarianceArgument& argument, const udse::Shape& shape) {
  if (const auto* V = std::get_if<Floats>(&argument))
    return {in(*V, "noise_variance", plane(shape)), nullptr, nullptr, 0};
  const auto& [W, H] = std::get<std::pair<Floats, Floats>>(argument);
  const int64_t rank = W.ndim() == 2 ? W.shape(1) : 0;
  return {nullptr, in(W, "W", {shape.bins, rank}), in(H, "H", {rank, shape.frames}), rank};
}

udse::Source source(const Complexes& state, const Complexes& score, const NoiseArgument& draw, Complexes& next,
                    const udse::Shape& shape) {
  return {in(state, "state", full(shape)), in(score, "score", full(shape)), noise(draw, shape),
          out(next, "out", full(shape))};
}

// The part that all updates share.
udse::Step step(const Complexes& state, const Complexes& score, const Floats& numbers, const NoiseArgument& draw,
                Complexes& next) {
  udse::Step s;
  s.shape = shape_of(state, "state");
  s.coefficients = coefficients(numbers, s.shape.frames);
  s.speech = source(state, score, draw, next, s.shape);
  return s;
}

void observe(udse::Step& s, const Complexes& mixture, const VarianceArgument& noise_variance, Floats& power) {
  s.mixture = in(mixture, "mixture", plane(s.shape));
  s.variance = variance(noise_variance, s.shape);
  s.power = out(power, "power", plane(s.shape));
}

using StepFunction = void (*)(const udse::Step&, int);

void run(StepFunction function, const udse::Step& s, int threads) {
  py::gil_scoped_release release;
  function(s, threads);
}

void plain(StepFunction function, const Complexes& state, const Complexes& score, const Floats& numbers,
           const NoiseArgument& draw, Complexes next, int threads) {
  run(function, step(state, score, numbers, draw, next), threads);
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

template <class Real>
void network_input(const Complexes& state, const Floats& scale, Array<Real> result, int threads) {
  const udse::Shape shape = shape_of(state, "state");
  const udse::PerFrame by = number(scale, "scale", shape.frames);
  Real* const to = out(result, "out", {shape.samples, 2, shape.bins, shape.frames});
  const cfloat* const from = state.data();
  py::gil_scoped_release release;
  udse::network_input(from, shape, by, to, threads);
}

void register_updates(py::module_& m) {
  const auto state = "state"_a.noconvert(), score = "score"_a.noconvert(), mixture = "mixture"_a.noconvert(),
             numbers = "coefficients"_a.noconvert(), draw = "noise"_a.noconvert(), next = "out"_a.noconvert(),
             noise_variance = "noise_variance"_a.noconvert(), guidance = "guidance"_a.noconvert(),
             power = "power"_a.noconvert();
  for (const auto& [name, function] :
       {std::pair<const char*, StepFunction>{"corrector", udse::corrector}, {"predictor", udse::predictor}})
    m.def(
        name,
        [function = function](const Complexes& s, const Complexes& S, const Floats& c, const NoiseArgument& z,
                              Complexes to, int threads) { plain(function, s, S, c, z, to, threads); },
        state, score, numbers, draw, next, "threads"_a);
  m.def(
      "marginal_guidance",
      [](const Complexes& s, const Complexes& S, const Complexes& x, const VarianceArgument& V, const Floats& c,
         const NoiseArgument& z, const Floats& lambda, bool apply, bool power_of_state, bool divide_tweedie,
         Complexes to, Floats P, int threads) {
        udse::Step a = step(s, S, c, z, to);
        observe(a, x, V, P);
        a.guidance = number(lambda, "guidance", a.shape.frames);
        a.apply = apply;
        a.power_of_state = power_of_state;
        a.divide_tweedie = divide_tweedie;
        run(udse::marginal_guidance, a, threads);
      },
      state, score, mixture, noise_variance, numbers, draw, guidance, "apply"_a, "power_of_state"_a, "divide_tweedie"_a,
      next, power, "threads"_a);
  m.def(
      "product_of_gaussians",
      [](const Complexes& s, const Complexes& S, const Complexes& x, const VarianceArgument& V, const Floats& c,
         const NoiseArgument& z, const NoiseArgument& forward, bool divide_tweedie, Complexes to, Floats P,
         int threads) {
        udse::Step a = step(s, S, c, z, to);
        observe(a, x, V, P);
        a.noise.draw = noise(forward, a.shape);
        a.divide_tweedie = divide_tweedie;
        run(udse::product_of_gaussians, a, threads);
      },
      state, score, mixture, noise_variance, numbers, draw, "forward_noise"_a.noconvert(), "divide_tweedie"_a, next,
      power, "threads"_a);
  m.def(
      "noise_posterior_guidance",
      [](const Complexes& s, const Complexes& S, const Complexes& x, const VarianceArgument& V, const Floats& c,
         const NoiseArgument& z, const Floats& lambda, float w, bool paper_posterior, Complexes to, Floats P,
         std::optional<Complexes> mu, int threads) {
        udse::Step a = step(s, S, c, z, to);
        observe(a, x, V, P);
        a.guidance = number(lambda, "guidance", a.shape.frames);
        a.observation_variance = w;
        a.paper_posterior = paper_posterior;
        if (mu) a.noise.next = out(*mu, "noise_mean", full(a.shape));
        run(udse::noise_posterior_guidance, a, threads);
      },
      state, score, mixture, noise_variance, numbers, draw, guidance, "observation_variance"_a, "paper_posterior"_a,
      next, power, "noise_mean"_a.noconvert(), "threads"_a);
  m.def(
      "predictor_residual",
      [](const Complexes& s, const Complexes& S, const Complexes& x, const Floats& c, const NoiseArgument& z,
         const NoiseArgument& residual_noise, Complexes to, Complexes residual, int threads) {
        udse::Step a = step(s, S, c, z, to);
        a.mixture = in(x, "mixture", plane(a.shape));
        a.noise.draw = noise(residual_noise, a.shape);
        a.noise.next = out(residual, "residual", full(a.shape));
        run(udse::predictor_residual, a, threads);
      },
      state, score, mixture, numbers, draw, "residual_noise"_a.noconvert(), next, "residual"_a.noconvert(),
      "threads"_a);
  m.def(
      "score_noise_guidance",
      [](const Complexes& s, const Complexes& S, const Floats& c, const Floats& lambda, Complexes to, int threads) {
        udse::Step a = step(s, S, c, std::nullopt, to);
        a.guidance = number(lambda, "guidance", a.shape.frames);
        run(udse::score_noise_guidance, a, threads);
      },
      state, "noise_score"_a.noconvert(), numbers, guidance, next, "threads"_a);
  m.def(
      "joint_guidance",
      [](const Complexes& s, const Complexes& S, const Complexes& n, const Complexes& N, const Complexes& x,
         const Floats& c, const NoiseArgument& z, const NoiseArgument& z_n, const Floats& lambda, bool apply, float w,
         Complexes to, Complexes to_n, int threads) {
        udse::Step a = step(s, S, c, z, to);
        a.noise = source(n, N, z_n, to_n, a.shape);
        a.mixture = in(x, "mixture", plane(a.shape));
        a.guidance = number(lambda, "guidance", a.shape.frames);
        a.apply = apply;
        a.observation_variance = w;
        run(udse::joint_guidance, a, threads);
      },
      "speech"_a.noconvert(), "speech_score"_a.noconvert(), "noise"_a.noconvert(), "noise_score"_a.noconvert(), mixture,
      numbers, "speech_draw"_a.noconvert(), "noise_draw"_a.noconvert(), guidance, "apply"_a, "observation_variance"_a,
      "speech_out"_a.noconvert(), "noise_out"_a.noconvert(), "threads"_a);
  m.def(
      "unexplained_power",
      [](const Complexes& s, const Complexes& S, const Floats& C, const Complexes& x, const VarianceArgument& V,
         const Floats& c, float noise_bias, Floats P, int threads) {
        udse::Step a;
        a.shape = shape_of(s, "state");
        a.coefficients = coefficients(c, a.shape.frames);
        a.speech.state = s.data();
        a.speech.score = in(S, "score", full(a.shape));
        a.posterior_variance = in(C, "posterior_variance", full(a.shape));
        a.mixture = in(x, "mixture", plane(a.shape));
        a.variance = variance(V, a.shape);
        a.noise_bias = noise_bias;
        a.power = out(P, "power", plane(a.shape));
        run(udse::unexplained_power, a, threads);
      },
      state, score, "posterior_variance"_a.noconvert(), mixture, noise_variance, numbers, "noise_bias"_a, power, "threads"_a);
  m.def(
      "ddrm_step",
      [](const Complexes& s, const Complexes& S, const Floats& C, const Complexes& x, const VarianceArgument& V,
         const Floats& c, const std::optional<Floats>& following, const NoiseArgument& z, float eta, Complexes to,
         int threads) {
        udse::Step a = step(s, S, c, following ? z : std::nullopt, to);
        a.mixture = in(x, "mixture", plane(a.shape));
        a.variance = variance(V, a.shape);
        a.eta = eta;
        if (following) {
          const udse::Coefficients next = coefficients(*following, a.shape.frames);
          a.next_delta = next.delta;
          a.next_sigma = next.sigma;
        } else {
          a.posterior_variance = in(C, "posterior_variance", full(a.shape));
        }
        run(udse::ddrm_step, a, threads);
      },
      state, score, "posterior_variance"_a.noconvert(), mixture, noise_variance, numbers, "following"_a.noconvert(), draw,
      "eta"_a, next, "threads"_a);
}

void register_nmf(py::module_& m) {
  m.def(
      "nmf_update",
      [](const Floats& power, Floats W, Floats H, int iterations, float floor, bool fixed_w, int threads) {
        const udse::NMF arguments = nmf(power, W, H, floor);
        py::gil_scoped_release release;
        udse::nmf_update(arguments, iterations, fixed_w, threads);
      },
      "power"_a.noconvert(), "W"_a.noconvert(), "H"_a.noconvert(), "iterations"_a, "floor"_a, "fixed_w"_a, "threads"_a);
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
  m.def("network_input", network_input<float>, "state"_a.noconvert(), "scale"_a.noconvert(), "out"_a.noconvert(),
        "threads"_a);
  m.def("network_input_bfloat16", network_input<std::uint16_t>, "state"_a.noconvert(), "scale"_a.noconvert(),
        "out"_a.noconvert(), "threads"_a);
}

}  // namespace

void register_causal_network(py::module_& m);  // bind_causal_network.cpp

PYBIND11_MODULE(_core, m) {
  m.doc() = "The C++ core: fused posterior updates, NMF-IS and counter-based noise on CPUs.";
  py::register_local_exception_translator([](std::exception_ptr p) {
    try {
      if (p) std::rethrow_exception(p);
    } catch (const udse::Error& error) {
      py::set_error(py::module_::import("udse_fast.errors").attr("UdseError"), error.what());
    }
  });
  register_updates(m);
  register_nmf(m);
  register_signal(m);
  register_causal_network(m);
  m.def("isa", &udse::isa, "Instruction set in use: scalar, avx2 or avx512.");
  m.def(
      "set_isa", [](const std::string& name) { udse::set_isa(name.c_str()); }, "name"_a,
      "Change the instruction set of the process, for tests.");
}
