// The parts of a stream against plain formulas: transforms, resampling, JSON, safetensors.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "checking.hpp"
#include "stream/json.hpp"
#include "stream/resampler.hpp"
#include "stream/restraint.hpp"
#include "stream/safetensors.hpp"
#include "stream/spectral.hpp"

using std::int64_t;
using std::size_t;

namespace {

constexpr double pi = 3.141592653589793;
std::mt19937 generator(1);

std::vector<float> random_floats(size_t n) {
  std::vector<float> x(n);
  for (float& value : x) value = std::uniform_real_distribution<float>(-1, 1)(generator);
  return x;
}

// Of even and odd lengths
void transforms_are_those_of_the_formula(int64_t n_fft, int64_t hop, bool sqrt_hann) {
  const int64_t T = 3, F = n_fft / 2 + 1, length = (T - 1) * hop + n_fft;
  const udse::Spectral spectral({16000, n_fft, hop, sqrt_hann, 0.5f, 0.15f});
  udse::Spectral::Workspace workspace(spectral.settings(), T);
  const std::vector<float> x = random_floats(size_t(length));
  std::vector<udse::cfloat> z(size_t(F * T));
  spectral.analyse(x.data(), T, z.data(), workspace);
  const auto window = [&](int64_t n) {
    const double hann = 0.5 - 0.5 * std::cos(2 * pi * double(n) / double(n_fft));
    return sqrt_hann ? std::sqrt(hann) : hann;
  };
  for (int64_t k = 0; k < F; ++k)
    for (int64_t t = 0; t < T; ++t) {
      std::complex<double> sum = 0;
      for (int64_t n = 0; n < n_fft; ++n)
        sum += double(x[size_t(t * hop + n)]) * window(n) *
               std::polar(1.0, -2 * pi * double(k) * double(n) / double(n_fft));
      CHECK(std::abs(std::complex<double>(z[size_t(k * T + t)]) - sum) < 3e-5);
    }
  // what overlaps as often as it can comes back
  std::vector<float> sum(x.size()), squares(x.size());
  spectral.overlap_add(z.data(), T, sum.data(), workspace);
  spectral.overlap_add_squares(T, squares.data());
  for (size_t i = size_t(n_fft / 2); i + size_t(n_fft / 2) < x.size(); ++i)
    CHECK(std::abs(sum[i] / squares[i] - x[i]) < 1e-5f);
}

// A tone below both bands comes out as itself, one above the lower band not at all.
void tones_pass_or_vanish(int64_t source, int64_t target, double hz, bool passes) {
  udse::Resampler resampler(udse::resampling_filter(source, target));
  const int64_t n = source / 2;
  std::vector<float> in(static_cast<size_t>(n)), out(static_cast<size_t>(resampler.most(n)));
  for (int64_t i = 0; i < n; ++i) in[size_t(i)] = float(std::sin(2 * pi * hz * double(i) / double(source)));
  const int64_t count = resampler.process(in.data(), n, out.data());
  for (int64_t i = target / 100; i < count; ++i) {
    const double wanted = passes ? std::sin(2 * pi * hz * double(i) / double(target)) : 0;
    CHECK(std::abs(double(out[size_t(i)]) - wanted) < 1e-4);
  }
  CHECK(count >= (n - resampler.delay()) * target / source - 1);
}

void streams_share_their_filters() {
  const auto filter = udse::resampling_filter(44100, 16000);
  CHECK(filter && filter == udse::resampling_filter(44100, 16000));
  CHECK(filter != udse::resampling_filter(16000, 44100));
  CHECK(!udse::resampling_filter(16000, 16000));
}

bool refused(const std::string& bytes) {
  try {
    udse::parse_safetensors(reinterpret_cast<const unsigned char*>(bytes.data()), bytes.size());
    return false;
  } catch (const udse::Error&) {
    return true;
  }
}

std::string safetensors(const std::string& header, const std::string& data) {
  std::string bytes;
  for (int i = 0; i < 8; ++i) bytes += char(header.size() >> (8 * i) & 0xff);
  return bytes + header + data;
}

void arrays_are_read_in_every_format() {
  const std::string header =
      R"({"__metadata__":{"k":"v"},"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},)"
      R"("b":{"dtype":"F16","shape":[2,2],"data_offsets":[8,16]},"c":{"dtype":"BF16","shape":[1],"data_offsets":[16,18]}})";
  const float floats[] = {1.5f, -2.25f};
  const std::uint16_t halves[] = {0x3c00, 0xc100, 0x0001, 0x7c00}, brain[] = {0x3fc0};
  std::string data(reinterpret_cast<const char*>(floats), 8);
  data += std::string(reinterpret_cast<const char*>(halves), 8) + std::string(reinterpret_cast<const char*>(brain), 2);
  const std::string bytes = safetensors(header, data);
  const auto file = udse::parse_safetensors(reinterpret_cast<const unsigned char*>(bytes.data()), bytes.size());
  CHECK(file.metadata.at("k") == "v");
  CHECK(file.tensors.at("a").values == (std::vector<float>{1.5f, -2.25f}));
  const std::vector<float>& b = file.tensors.at("b").values;
  CHECK(b[0] == 1 && b[1] == -2.5f && b[2] == 0x1p-24f && std::isinf(b[3]));
  CHECK(file.tensors.at("b").shape == (std::vector<int64_t>{2, 2}) && file.tensors.at("c").values[0] == 1.5f);
  for (size_t length = 0; length < bytes.size(); ++length) CHECK(refused(bytes.substr(0, length)));
}

void files_that_lie_are_refused() {
  const auto array = [](const char* shape, const char* offsets, const char* dtype = "F32") {
    return std::string(R"({"a":{"dtype":")") + dtype + R"(","shape":)" + shape + R"(,"data_offsets":)" + offsets + "}}";
  };
  const std::string eight(8, 0);
  CHECK(!refused(safetensors(array("[2]", "[0,8]"), eight)));
  for (const auto& header :
       {array("[2]", "[0,4]"), array("[1]", "[0,4]"), array("[1]", "[4,8]"), array("[2]", "[8,16]"),
        array("[2]", "[8,0]"), array("[-2]", "[0,8]"), array("[2.5]", "[0,8]"), array("[2]", "[0,8]", "I64"),
        array("[4611686018427387904,4611686018427387904]", "[0,8]"), array("[1e300]", "[0,8]"), array("{}", "[0,8]"),
        array("[2]", "[0]"), array("[2]", "[0,8,9]"), std::string("[]"), std::string("{\"a\":1}"), std::string("{"),
        std::string(200, '['),
        std::string(R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},)"
                    R"("b":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}})")})
    CHECK(refused(safetensors(header, eight)));
  CHECK(refused(std::string(8, '\xff')));
}

void json_is_read() {
  const std::string text = R"( {"a": [1, -2.5e3, true, null], "b": {"c": "x\n\u00e9\ud83d\ude00\""}} )";
  const udse::Json json = udse::parse_json(text.data(), text.data() + text.size());
  CHECK(json.find("a")->items[1].value == -2500 && json.find("a")->items[2].truth && !json.find("z"));
  CHECK(json.find("b")->find("c")->text == "x\n\xc3\xa9\xf0\x9f\x98\x80\"");
  for (const char* wrong : {"", "{", "[1,]", "{\"a\" 1}", "\"", "\"\\u12\"", "\"\\ud800\"", "nul", "1 2",
                            "{\"a\":1,\"a\":2}", "-", "\x01"}) {
    bool caught = false;
    try {
      udse::parse_json(wrong, wrong + std::strlen(wrong));
    } catch (const udse::Error&) {
      caught = true;
    }
    CHECK(caught);
  }
}

// Six seconds of words with pauses, of which the upper half is lost in some frames, in blocks of two. What was lost, of
// the last three seconds, before and after: energies. noise: of the mixture.
struct Lost {
  double before = 0, after = 0;
};

Lost lost_with_restraint(bool on, float noise) {
  const udse::SpectralSettings settings{16000, 510, 255, true, 0.5f, 0.15f};
  udse::Restraint restraint(settings, 2, on);
  const int64_t F = settings.bins(), blocks = 188;
  std::vector<udse::cfloat> clean(size_t(2 * F)), mixture(clean), speech(clean);
  Lost lost;
  for (int64_t block = 0; block < blocks; ++block) {
    const int64_t at = block % 30;  // 15 of them are a word, the last two of it a bright sound
    const float level = at < 15 ? 1.f : 1e-3f;
    for (size_t i = 0; i < clean.size(); ++i) {
      const auto normal = [&] { return std::normal_distribution<float>()(generator); };
      clean[i] = level * udse::cfloat(normal(), normal());
      mixture[i] = clean[i] + noise * udse::cfloat(normal(), normal());
      speech[i] = (at == 13 || at == 14) && i >= clean.size() / 2 ? 0.1f * clean[i] : clean[i];
    }
    const std::vector<udse::cfloat> estimate = speech;
    restraint.apply(mixture.data(), speech.data());
    for (size_t i = 0; block >= blocks / 2 && i < clean.size(); ++i) {
      lost.before += double(std::norm(estimate[i] - clean[i]));
      lost.after += double(std::norm(speech[i] - clean[i]));
    }
  }
  return lost;
}

void what_is_lost_of_clean_speech_is_given_back() {
  const Lost without = lost_with_restraint(false, 0), clean = lost_with_restraint(true, 0);
  CHECK(without.before > 0 && without.after == without.before);
  CHECK(clean.after < 0.02 * clean.before);
  const Lost noisy = lost_with_restraint(true, 0.5f);  // as much is there between the words
  CHECK(noisy.after == noisy.before);
}

}  // namespace

int main() {
  what_is_lost_of_clean_speech_is_given_back();
  transforms_are_those_of_the_formula(510, 255, true);
  transforms_are_those_of_the_formula(16, 4, false);
  transforms_are_those_of_the_formula(15, 5, true);
  for (const auto& [source, target] : std::vector<std::pair<int64_t, int64_t>>{
           {16000, 48000}, {48000, 16000}, {44100, 16000}, {16000, 44100}, {8000, 16000}, {16000, 8000}}) {
    tones_pass_or_vanish(source, target, 1000.5, true);
    if (target < source) tones_pass_or_vanish(source, target, double(target) * 0.56, false);
  }
  streams_share_their_filters();
  arrays_are_read_in_every_format();
  files_that_lie_are_refused();
  json_is_read();
  std::puts("parts of streams: ok");
}
