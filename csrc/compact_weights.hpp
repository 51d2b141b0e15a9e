// The weights of a compact network as it computes with them: taken out of a checkpoint, in panels.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "compact_network.hpp"
#include "compact_network_kernels.hpp"

namespace udse {

constexpr std::size_t index(std::int64_t n) { return static_cast<std::size_t>(n); }

constexpr std::int64_t whole_panels(std::int64_t channels) { return (channels + panel - 1) / panel; }
constexpr std::int64_t padded(std::int64_t channels) { return whole_panels(channels) * panel; }

void require(bool condition, const std::string& message);

// Numbers in whole cache lines, zero at first.
template <class Number>
class Lines {
 public:
  explicit Lines(std::int64_t size = 0) : lines_(index((size + of_line - 1) / of_line)) {}
  Number* data() { return lines_.empty() ? nullptr : lines_.data()->v; }
  const Number* data() const { return lines_.empty() ? nullptr : lines_.data()->v; }
  std::int64_t size() const { return static_cast<std::int64_t>(lines_.size()) * of_line; }

 private:
  static constexpr std::int64_t of_line = 64 / sizeof(Number);
  struct alignas(64) Line {
    Number v[of_line];
  };
  std::vector<Line> lines_;
};
using Floats = Lines<float>;
using Halves = Lines<Half>;

class Checkpoint {
 public:
  static constexpr std::int64_t any = -1;

  explicit Checkpoint(const Weights& weights) : weights_(weights) {}

  bool has(const std::string& name) const { return weights_.count(name); }
  // The array `name`, of this shape but where it is `any`.
  const Weight& get(const std::string& name, const std::vector<std::int64_t>& shape) const;
  std::vector<float> values(const std::string& name, const std::vector<std::int64_t>& shape) const;
  // How many of prefix + "0" + suffix, prefix + "1" + suffix, ... there are.
  std::int64_t count(const std::string& prefix, const std::string& suffix) const;

 private:
  const Weights& weights_;
};

// A convolution with its weights.
struct Layer {
  Floats weights, bias;
  Halves halves;  // the weights, where there are none of 32 bits
  Convolution shape{};
  std::int64_t products = 1;  // or `points`, with weights for each

  Layer() = default;
  Layer(std::int64_t taps, std::int64_t window, std::int64_t columns, std::int64_t products = 1)
      : weights(products * padded(columns) * taps * window),
        bias(padded(columns)),
        shape{taps, window, whole_panels(columns), nullptr, nullptr, nullptr},
        products(products) {}

  // Puts in the weights (O, C, taps, W) and biases of `name`, or (O, C) of a matrix: output o into column(o), channel c
  // into place(c) of each of the W parts of a window.
  template <class Column, class Place>
  void add(const Checkpoint& checkpoint, const std::string& name, const std::vector<std::int64_t>& size, Column column,
           Place place) {
    const float* value = checkpoint.get(name + ".weight", size).values;
    const float* const biases = checkpoint.get(name + ".bias", {size[0]}).values;
    const std::int64_t taps = size.size() > 2 ? size[2] : 1, parts = size.size() > 2 ? size[3] : 1;
    for (std::int64_t o = 0; o < size[0]; ++o) {
      bias.data()[column(o)] = biases[o];
      for (std::int64_t c = 0; c < size[1]; ++c)
        for (std::int64_t tap = 0; tap < taps; ++tap, value += parts)
          if (products == 1)
            for (std::int64_t w = 0; w < parts; ++w)
              at(0, column(o), tap, w * (shape.window / parts) + place(c)) = value[w];
          else
            for (std::int64_t i = 0; i < points; ++i)
              for (std::int64_t w = 0; w < 3; ++w) at(i, column(o), tap, place(c)) += kernel_sums[i][w] * value[w];
    }
  }

  // Keeps weights that are numbers of 16 bits in these: the same results, and half of the memory to be read for them.
  void keep_in_halves();

  Convolution convolution() const {
    Convolution c = with(weights.data(), bias.data());
    c.halves = halves.data();
    return c;
  }
  Convolution product(std::int64_t i) const { return with(weights.data() + i * size(), nullptr); }

 private:
  std::int64_t size() const { return shape.panels * panel * shape.taps * shape.window; }

  float& at(std::int64_t product, std::int64_t column, std::int64_t tap, std::int64_t k) {
    return weights
        .data()[product * size() + ((column / panel * shape.taps + tap) * shape.window + k) * panel + column % panel];
  }

  Convolution with(const float* w, const float* b) const {
    Convolution c = shape;
    c.weights = w;
    c.bias = b;
    return c;
  }
};

struct Residual {
  std::int64_t channels = 0, before = 0, after = 0;  // frames around its own that conv1 sees
  Layer conv1, conv2;
  std::int64_t film_at = 0;  // where its gain and shift are among those of all
};

struct Level {
  std::int64_t bands = 0, channels = 0;
  std::vector<Residual> before, after;  // on the way down and up
  Layer down, up;                       // to the next level and back
};

// Parameters and buffers by the names of `Compact` and `CompactPosterior`, here with any sizes.
struct CompactWeights {
  bool posterior = false;    // told a mixture and the variance of its noise, not a noise level
  bool centred = false;      // its kernels over time look as far ahead as back; else not ahead
  std::int64_t planes = 0;   // of the input
  std::int64_t outputs = 0;  // of a bin: 9 complex weights, F, spread; of a posterior network noise (2), listening
  std::int64_t bins = 0, stem = 0, embedding = 0, frame_channels = 0, film_size = 0, memory_size = 0;
  std::int64_t longest_before = 0, longest_after = 0;  // of the layers over time
  std::int64_t around = 0;       // frames to either side that the way down depends on, and the way up
  std::int64_t around_time = 0;  // the same of a centred stack over time
  bool joint = false;
  std::vector<float> frequencies, data_scale, label, band;
  Layer embed[2], film;  // noise level -> embedding -> gain and shift of every residual block
  Layer input, to_frames, from_frames, output;
  std::vector<Level> levels;
  std::vector<Residual> over_time;

  // Copies what it needs. dilations: of the layers over time.
  CompactWeights(const Weights& weights, const std::vector<std::int64_t>& dilations, bool centred);
  // Those of the layers whose rows are frames, most of the network
  void keep_in_halves();

 private:
  void read_embedding(const Checkpoint& checkpoint);
  void read_levels(const Checkpoint& checkpoint, std::int64_t channels, std::int64_t bands);
  void read_over_time(const Checkpoint& checkpoint, const std::vector<std::int64_t>& dilations);
  void read_heads(const Checkpoint& checkpoint);
  void read_film(const Checkpoint& checkpoint);
  // Of every residual block, with its name and the number of its bands, 0 over time
  template <class Body>
  void each_residual(Body body);
};

}  // namespace udse
