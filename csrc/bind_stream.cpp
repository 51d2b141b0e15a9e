// Python binding of native streams; arrays as in bind_arrays.hpp.
#include <map>
#include <memory>

#include "bind_arrays.hpp"
#include "stream/stream.hpp"

using namespace udse::bindings;

namespace {

using PriorHandle = std::shared_ptr<const udse::Prior>;

PriorHandle make_prior(std::shared_ptr<const udse::CausalNetwork> network, const std::map<std::string, double>& config,
                       bool sqrt_hann, std::uint64_t fingerprint) {
  const auto number = [&](const char* name) {
    const auto found = config.find(name);
    if (found == config.end()) throw udse::Error(std::string("config has no ") + name);
    return found->second;
  };
  const auto whole = [&](const char* name) { return static_cast<int64_t>(number(name)); };
  const udse::SpectralSettings spectral{whole("sample_rate"),
                                        whole("n_fft"),
                                        whole("hop_length"),
                                        sqrt_hann,
                                        static_cast<float>(number("exponent")),
                                        static_cast<float>(number("factor"))};
  const udse::OUVE sde{number("gamma"), number("sigma_min"), number("sigma_max")};
  return PriorHandle(new udse::Prior{udse::Spectral(spectral), sde, std::move(network), {}, fingerprint});
}

std::unique_ptr<udse::Stream> make_stream(const PriorHandle& prior, const std::map<std::string, double>& numbers,
                                          const std::map<std::string, std::string>& words, std::uint64_t seed,
                                          int64_t sample_rate, int64_t channels) {
  udse::StreamSettings settings;
  for (const auto& [name, value] : numbers) udse::set_number(settings, name, value);
  for (const auto& [name, value] : words) udse::set_word(settings, name, value);
  settings.seed = seed;
  return std::make_unique<udse::Stream>(prior, settings, sample_rate, channels);
}

// What `run` gives, speech and noise (m, channels), in room for `most` frames
template <class Run>
py::tuple enhanced(const udse::Stream& stream, int64_t most, Run run) {
  Floats speech({most, stream.channels()}), noise({most, stream.channels()});
  const udse::Output out{speech.mutable_data(), noise.mutable_data()};
  int64_t count = 0;
  {
    py::gil_scoped_release release;
    count = run(out);
  }
  const py::slice ready(0, count, 1);
  return py::make_tuple(speech[ready], noise[ready]);
}

}  // namespace

void register_stream(py::module_& m) {
  const py::metaclass plain(reinterpret_cast<PyObject*>(&PyType_Type));
  py::class_<udse::Prior, std::shared_ptr<udse::Prior>>(m, "StreamPrior", plain, "A causal prior of native streams.")
      .def(
          py::init([](std::shared_ptr<udse::CausalNetwork> network, const std::map<std::string, double>& config,
                      bool sqrt_hann, std::uint64_t fingerprint) {
            return std::const_pointer_cast<udse::Prior>(make_prior(std::move(network), config, sqrt_hann, fingerprint));
          }),
          "network"_a, "config"_a, "sqrt_hann"_a, "fingerprint"_a);
  py::class_<udse::Stream>(m, "NativeStream", plain, "Samples in, speech and noise out. One thread at a time.")
      .def(py::init([](const std::shared_ptr<udse::Prior>& prior, const std::map<std::string, double>& numbers,
                       const std::map<std::string, std::string>& words, std::uint64_t seed, int64_t sample_rate,
                       int64_t channels) { return make_stream(prior, numbers, words, seed, sample_rate, channels); }),
           "prior"_a, "numbers"_a, "words"_a, "seed"_a, "sample_rate"_a, "channels"_a)
      .def(
          "process",
          [](udse::Stream& stream, const Floats& samples) {
            if (samples.ndim() != 2 || samples.shape(1) != stream.channels())
              throw udse::Error("samples must have shape (n, " + std::to_string(stream.channels()) + "); got " +
                                text(sizes(samples)));
            const int64_t frames = samples.shape(0);
            const float* const in = samples.data();
            return enhanced(stream, stream.most(frames),
                            [&](const udse::Output& out) { return stream.process(in, frames, out); });
          },
          "samples"_a.noconvert(), "(n, channels) in, speech and noise (m, channels) out.")
      .def("flush",
           [](udse::Stream& stream) {
             return enhanced(stream, stream.remaining(), [&](const udse::Output& out) { return stream.flush(out); });
           })
      .def("reset", &udse::Stream::reset)
      .def("state",
           [](udse::Stream& stream) {
             std::vector<unsigned char> bytes(stream.state_size());
             stream.save(bytes.data());
             return py::bytes(reinterpret_cast<const char*>(bytes.data()), bytes.size());
           })
      .def(
          "restore",
          [](udse::Stream& stream, const std::string& state) {
            stream.restore(reinterpret_cast<const unsigned char*>(state.data()), state.size());
          },
          "state"_a)
      .def_property_readonly("latency", &udse::Stream::latency)
      .def_property_readonly("remaining", &udse::Stream::remaining)
      .def_property_readonly("network_calls", &udse::Stream::network_calls)
      .def_property_readonly("recovered_blocks", &udse::Stream::recovered_blocks);
}
