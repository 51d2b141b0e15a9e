// Python binding of compact networks; arrays as in bind_arrays.hpp.
#include <map>
#include <memory>

#include "bind_arrays.hpp"
#include "compact_network.hpp"

using namespace udse::bindings;

namespace {

// What both kinds of networks are asked
udse::NetworkBlock block_of(const udse::CompactNetwork& network, const Complexes& noisy, std::optional<Floats>& memory,
                            Complexes& clean, Floats& variance, const std::optional<Floats>& before) {
  if (noisy.ndim() != 3) throw udse::Error("noisy must have shape (B, F, K); got " + text(sizes(noisy)));
  if (!memory != network.centred())
    throw udse::Error("expected a memory of a causal network, and none of a centred one");
  const int64_t B = noisy.shape(0), F = network.bins(), K = noisy.shape(2);
  return {B,
          K,
          in(noisy, "noisy", {B, F, K}),
          nullptr,
          nullptr,
          memory ? out(*memory, "memory", {B, network.memory_size()}) : nullptr,
          out(clean, "clean", {B, F, K}),
          out(variance, "variance", {B, F, K}),
          before ? in(*before, "before", {B, network.memory_size()}) : nullptr};
}

}  // namespace

void register_compact_network(py::module_& m) {
  const py::metaclass plain(reinterpret_cast<PyObject*>(&PyType_Type));  // pybind11's own has no name a stub could give
  py::class_<udse::CompactNetwork, std::shared_ptr<udse::CompactNetwork>>(
      m, "CompactNetwork", plain, "A Compact network with its weights, or a posterior network.")
      .def(py::init([](const std::map<std::string, Floats>& arrays, const Sizes& dilations, bool centred) {
             udse::Weights weights;
             for (const auto& [name, array] : arrays) weights[name] = {sizes(array), array.data()};
             return std::make_shared<udse::CompactNetwork>(weights, dilations, centred);
           }),
           "weights"_a, "dilations"_a, "centred"_a = false)
      .def_property_readonly("tells_noise", &udse::CompactNetwork::tells_noise, "Whether it is a posterior network.")
      .def_property_readonly("bins", &udse::CompactNetwork::bins)
      .def_property_readonly("memory_size", &udse::CompactNetwork::memory_size,
                             "Numbers of the memory of one signal in one of the calls of a block.")
      .def(
          "step",
          [](const udse::CompactNetwork& network, const Complexes& noisy, const Floats& noise_level,
             const std::optional<Array<int64_t>>& label, std::optional<Floats> memory, Complexes clean, Floats variance,
             int threads, const std::optional<Floats>& before) {
            if (network.tells_noise()) throw udse::Error("expected a score network; a posterior network has say");
            udse::NetworkBlock block = block_of(network, noisy, memory, clean, variance, before);
            block.noise_level = in(noise_level, "noise_level", {block.samples});
            if (label) block.label = in(*label, "label", {block.samples});
            py::gil_scoped_release release;
            network.step(block, threads);
          },
          "noisy"_a.noconvert(), "noise_level"_a.noconvert(), "label"_a.noconvert(), "memory"_a.noconvert(),
          "clean"_a.noconvert(), "variance"_a.noconvert(), "threads"_a, "before"_a.noconvert() = py::none(),
          "The next K frames, (B, F, K) complex, at one noise level per sample; memory (B, memory_size) is updated, or "
          "written where what it is made from is given, before. Of a centred network all frames, and no memory.")
      .def(
          "say",
          [](const udse::CompactNetwork& network, const Complexes& mixture, const Floats& noise_variance,
             std::optional<Floats> memory, Complexes clean, Floats variance, Floats believed, Complexes heard,
             int threads, const std::optional<Floats>& before) {
            if (!network.tells_noise()) throw udse::Error("expected a posterior network; a score network has step");
            udse::NetworkBlock block = block_of(network, mixture, memory, clean, variance, before);
            const Sizes shape = sizes(mixture);
            block.noise_variance = in(noise_variance, "noise_variance", shape);
            block.believed = out(believed, "believed", shape);
            block.heard = out(heard, "heard", shape);
            py::gil_scoped_release release;
            network.step(block, threads);
          },
          "mixture"_a.noconvert(), "noise_variance"_a.noconvert(), "memory"_a.noconvert(), "clean"_a.noconvert(),
          "variance"_a.noconvert(), "believed"_a.noconvert(), "heard"_a.noconvert(), "threads"_a,
          "before"_a.noconvert() = py::none(),
          "The next K frames, (B, F, K) complex, in noise of this variance, of a posterior network; memory as in "
          "step.");
}
