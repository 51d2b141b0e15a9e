// Python binding of native streams; arrays as in bind_arrays.hpp.
#include <algorithm>
#include <map>
#include <memory>
#include <mutex>

#include "bind_arrays.hpp"
#include "stream/stream.hpp"

using namespace udse::bindings;

namespace {

constexpr int64_t most_together = 8;  // signals side by side: more of them gain nothing

// Causal networks, and the workbenches of their streams: a thread takes one for a call.
struct StreamPrior {
  std::shared_ptr<const udse::Prior> prior;
  std::mutex mutex;  // of what follows
  std::vector<std::unique_ptr<udse::Workbench>> idle;

  std::unique_ptr<udse::Workbench> take(const udse::Stream& stream, int64_t signals) {
    {
      const std::lock_guard<std::mutex> lock(mutex);
      for (auto& bench : idle)
        if (stream.fits(*bench) && bench->signals() >= signals) {
          bench.swap(idle.back());
          auto taken = std::move(idle.back());
          idle.pop_back();
          return taken;
        }
    }
    return std::make_unique<udse::Workbench>(stream.make_workbench(signals));
  }

  void give_back(std::unique_ptr<udse::Workbench> bench) {
    const std::lock_guard<std::mutex> lock(mutex);
    idle.push_back(std::move(bench));
  }
};

struct NativeStream {
  std::shared_ptr<StreamPrior> prior;
  udse::Stream stream;
};

std::shared_ptr<StreamPrior> make_prior(std::shared_ptr<const udse::CompactNetwork> network,
                                        std::shared_ptr<const udse::CompactNetwork> posterior,
                                        const std::map<std::string, double>& config, bool sqrt_hann,
                                        std::uint64_t fingerprint) {
  if (network->tells_noise() || (posterior && !posterior->tells_noise()))
    throw udse::Error("expected a score network, and a posterior network or none beside it");
  if (network->centred() || (posterior && posterior->centred()))
    throw udse::Error("expected causal networks, got one that sees the future");
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
  auto made = std::make_shared<StreamPrior>();
  made->prior = std::shared_ptr<const udse::Prior>(
      new udse::Prior{udse::Spectral(spectral), sde, std::move(network), std::move(posterior), {}, {}, fingerprint});
  return made;
}

std::unique_ptr<NativeStream> make_stream(const std::shared_ptr<StreamPrior>& prior,
                                          const std::map<std::string, double>& numbers,
                                          const std::map<std::string, std::string>& words, std::uint64_t seed,
                                          int64_t sample_rate, int64_t channels) {
  udse::StreamSettings settings;
  for (const auto& [name, value] : numbers) udse::set_number(settings, name, value);
  for (const auto& [name, value] : words) udse::set_word(settings, name, value);
  settings.seed = seed;
  return std::unique_ptr<NativeStream>(
      new NativeStream{prior, udse::Stream(prior->prior, settings, sample_rate, channels)});
}

// Room for speech and noise (m, channels), of which the first frames are filled
struct Room {
  Floats speech, noise;

  Room(int64_t most, int64_t channels) : speech({most, channels}), noise({most, channels}) {}

  udse::Output output() { return {speech.mutable_data(), noise.mutable_data()}; }
  py::tuple filled(int64_t count) const {
    const py::slice ready(0, count, 1);
    return py::make_tuple(speech[ready], noise[ready]);
  }
};

// Speech and noise of every stream, whose chunks (n, channels) come next. They are of one prior, each is given once.
py::list process_many(const std::vector<NativeStream*>& streams, const std::vector<Floats>& chunks) {
  std::vector<Room> rooms;
  std::vector<udse::Stream::Feed> feeds;
  int64_t signals = 0;
  for (std::size_t i = 0; i < streams.size(); ++i) {
    udse::Stream& stream = streams[i]->stream;
    if (chunks[i].ndim() != 2 || chunks[i].shape(1) != stream.channels())
      throw udse::Error("samples must have shape (n, " + std::to_string(stream.channels()) + "); got " +
                        text(sizes(chunks[i])));
    rooms.emplace_back(stream.most(chunks[i].shape(0)), stream.channels());
    feeds.push_back({&stream, chunks[i].data(), chunks[i].shape(0), rooms.back().output()});
    signals += stream.channels();
  }
  {
    py::gil_scoped_release release;
    auto bench = streams[0]->prior->take(streams[0]->stream, std::min(signals, most_together));
    udse::Stream::process(feeds.data(), feeds.size(), *bench);
    streams[0]->prior->give_back(std::move(bench));
  }
  py::list results;
  for (std::size_t i = 0; i < rooms.size(); ++i) results.append(rooms[i].filled(feeds[i].written));
  return results;
}

py::tuple flush(NativeStream& native) {
  Room room(native.stream.remaining(), native.stream.channels());
  int64_t count = 0;
  {
    py::gil_scoped_release release;
    auto bench = native.prior->take(native.stream, native.stream.channels());
    count = native.stream.flush(room.output(), *bench);
    native.prior->give_back(std::move(bench));
  }
  return room.filled(count);
}

}  // namespace

void register_stream(py::module_& m) {
  const py::metaclass plain(reinterpret_cast<PyObject*>(&PyType_Type));
  py::class_<StreamPrior, std::shared_ptr<StreamPrior>>(m, "StreamPrior", plain,
                                                        "The causal networks of native streams.")
      .def(py::init(&make_prior), "network"_a, "posterior"_a, "config"_a, "sqrt_hann"_a, "fingerprint"_a);
  m.def("process_many", &process_many, "streams"_a, "samples"_a,
        "(n, channels) in, speech and noise (m, channels) out, of every stream; they compute side by side.");
  py::class_<NativeStream>(m, "NativeStream", plain, "Samples in, speech and noise out. One thread at a time.")
      .def(py::init(&make_stream), "prior"_a, "numbers"_a, "words"_a, "seed"_a, "sample_rate"_a, "channels"_a)
      .def(
          "fits",
          [](const NativeStream& a, const NativeStream& b) {
            return a.prior == b.prior && a.stream.calls() == b.stream.calls();
          },
          "other"_a, "Whether the two can be computed side by side.")
      .def("flush", &flush)
      .def("reset", [](NativeStream& native) { native.stream.reset(); })
      .def("state",
           [](NativeStream& native) {
             std::vector<unsigned char> bytes(native.stream.state_size());
             native.stream.save(bytes.data());
             return py::bytes(reinterpret_cast<const char*>(bytes.data()), bytes.size());
           })
      .def(
          "restore",
          [](NativeStream& native, const std::string& state) {
            native.stream.restore(reinterpret_cast<const unsigned char*>(state.data()), state.size());
          },
          "state"_a)
      .def_property_readonly("latency", [](const NativeStream& native) { return native.stream.latency(); })
      .def_property_readonly("remaining", [](const NativeStream& native) { return native.stream.remaining(); })
      .def_property_readonly("network_calls", [](const NativeStream& native) { return native.stream.network_calls(); })
      .def_property_readonly("recovered_blocks",
                             [](const NativeStream& native) { return native.stream.recovered_blocks(); });
}
