// Takes the weights apart, holds them in panels, and runs a block through the layers in the order of `Compact`.
#include "causal_network.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <mutex>
#include <utility>

#include "causal_network_kernels.hpp"
#include "thread_pool.hpp"

namespace udse {
namespace {

using std::int64_t;

constexpr int64_t outputs = 21;          // of a bin: 9 complex weights, F, and the spread
constexpr std::size_t most_levels = 64;  // noise levels whose FiLM numbers are kept

void require(bool condition, const std::string& message) {
  if (!condition) throw Error(message);
}

const NetworkKernels& kernels() {
#ifdef UDSE_X86
  const std::string name = isa();
  if (name == "avx512") return avx512::network_kernels;
  if (name == "avx2") return avx2::network_kernels;
#endif
  return scalar::network_kernels;
}

constexpr std::size_t index(int64_t n) { return static_cast<std::size_t>(n); }

int64_t whole_panels(int64_t channels) { return (channels + panel - 1) / panel; }
int64_t padded(int64_t channels) { return whole_panels(channels) * panel; }

// Numbers in whole cache lines, zero at first.
class Floats {
 public:
  explicit Floats(int64_t size = 0) : lines_(index(whole_panels(size))) {}
  float* data() { return lines_.data()->v; }
  const float* data() const { return lines_.data()->v; }

 private:
  struct alignas(64) Line {
    float v[panel];
  };
  std::vector<Line> lines_;
};

std::string text(const std::vector<int64_t>& shape) {
  std::string out = "(";
  for (const int64_t size : shape) out += (out.size() > 1 ? ", " : "") + (size < 0 ? "any" : std::to_string(size));
  return out + ")";
}

constexpr int64_t any = -1;

class Checkpoint {
 public:
  explicit Checkpoint(const Weights& weights) : weights_(weights) {}

  bool has(const std::string& name) const { return weights_.count(name); }

  // The array `name`, of this shape but where it is `any`.
  const Weight& get(const std::string& name, const std::vector<int64_t>& shape) const {
    const auto found = weights_.find(name);
    require(found != weights_.end(), "the weights have no " + name + "; give those of a causal Compact network");
    const std::vector<int64_t>& given = found->second.shape;
    require(std::equal(given.begin(), given.end(), shape.begin(), shape.end(),
                       [](int64_t have, int64_t want) { return have == want || (want == any && have > 0); }),
            name + " must have shape " + text(shape) + "; got " + text(given));
    return found->second;
  }

  std::vector<float> values(const std::string& name, const std::vector<int64_t>& shape) const {
    const Weight& weight = get(name, shape);
    int64_t size = 1;
    for (const int64_t n : weight.shape) size *= n;
    return {weight.values, weight.values + size};
  }

  // How many of prefix + "0" + suffix, prefix + "1" + suffix, ... there are.
  int64_t count(const std::string& prefix, const std::string& suffix) const {
    int64_t n = 0;
    while (has(prefix + std::to_string(n) + suffix)) ++n;
    return n;
  }

 private:
  const Weights& weights_;
};

// A convolution with its weights.
struct Layer {
  Floats weights, bias;
  Convolution shape{};
  int64_t products = 1;  // or `points`, with weights for each

  Layer() = default;
  Layer(int64_t taps, int64_t window, int64_t columns, int64_t products = 1)
      : weights(products * padded(columns) * taps * window),
        bias(padded(columns)),
        shape{taps, window, whole_panels(columns), nullptr, nullptr},
        products(products) {}

  // Puts in the weights (O, C, taps, W) and biases of `name`: output o into column(o), channel c into place(c) of each
  // of the W parts of a window.
  template <class Column, class Place>
  void add(const Checkpoint& checkpoint, const std::string& name, const std::vector<int64_t>& size, Column column,
           Place place) {
    const float* value = checkpoint.get(name + ".weight", size).values;
    const float* const biases = checkpoint.get(name + ".bias", {size[0]}).values;
    for (int64_t o = 0; o < size[0]; ++o) {
      bias.data()[column(o)] = biases[o];
      for (int64_t c = 0; c < size[1]; ++c)
        for (int64_t tap = 0; tap < size[2]; ++tap, value += size[3])
          if (products == 1)
            for (int64_t w = 0; w < size[3]; ++w)
              at(0, column(o), tap, w * (shape.window / size[3]) + place(c)) = value[w];
          else
            for (int64_t i = 0; i < points; ++i)
              for (int64_t w = 0; w < 3; ++w) at(i, column(o), tap, place(c)) += kernel_sums[i][w] * value[w];
    }
  }

  Convolution convolution() const { return with(weights.data(), bias.data()); }

  Convolution product(int64_t i) const { return with(weights.data() + i * size(), nullptr); }

 private:
  int64_t size() const { return shape.panels * panel * shape.taps * shape.window; }

  float& at(int64_t product, int64_t column, int64_t tap, int64_t k) {
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

const auto same = [](int64_t channel) { return channel; };

// Convolution from maps of `channels` to maps of `out_channels`, both padded.
Layer layer(const Checkpoint& checkpoint, const std::string& name, int64_t out_channels, int64_t channels, int64_t taps,
            int64_t columns) {
  Layer made(taps, columns * padded(channels), out_channels);
  made.add(checkpoint, name, {out_channels, channels, taps, columns}, same, same);
  return made;
}

// One of 3 by 3 over maps of `channels`, to be filled.
Layer over_bands(int64_t out_channels, int64_t channels, int64_t bands) {
  return bands % tile_bands ? Layer(3, 3 * padded(channels), out_channels)
                            : Layer(3, padded(channels), out_channels, points);
}

struct Residual {
  int64_t channels = 0, reach = 0;  // reach: frames before its own that conv1 sees; over time its dilation times 4
  Layer conv1, conv2;
  std::vector<float> film, film_bias;  // (2 C, E), (2 C)
  int64_t film_at = 0;                 // where its gain and shift are among those of all

  Residual(const Checkpoint& checkpoint, const std::string& name, int64_t channels, int64_t embedding, int64_t reach,
           Layer conv1, Layer conv2)
      : channels(channels),
        reach(reach),
        conv1(std::move(conv1)),
        conv2(std::move(conv2)),
        film(checkpoint.values(name + ".norm.film.weight", {2 * channels, embedding})),
        film_bias(checkpoint.values(name + ".norm.film.bias", {2 * channels})) {}
};

Residual residual_over_bands(const Checkpoint& checkpoint, const std::string& name, int64_t channels, int64_t embedding,
                             int64_t bands) {
  Layer convolutions[2];
  for (int i : {0, 1}) {
    convolutions[i] = over_bands(channels, channels, bands);
    convolutions[i].add(checkpoint, name + (i ? ".conv2" : ".conv1"), {channels, channels, 3, 3}, same, same);
  }
  return {checkpoint, name, channels, embedding, 1, std::move(convolutions[0]), std::move(convolutions[1])};
}

Residual residual_over_time(const Checkpoint& checkpoint, const std::string& name, int64_t channels, int64_t embedding,
                            int64_t dilation) {
  return {checkpoint,
          name,
          channels,
          embedding,
          4 * dilation,
          layer(checkpoint, name + ".conv1", channels, channels, 5, 1),
          layer(checkpoint, name + ".conv2", channels, channels, 1, 1)};
}

struct Level {
  int64_t bands = 0, channels = 0;
  std::vector<Residual> before, after;  // on the way down and up
  Layer down, up;                       // to the next level and back
};

// Frames of bands of channels, with zero bands around and frames before the first.
class Map {
 public:
  Map() = default;
  Map(int64_t bands, int64_t channels, int64_t border, int64_t before = 0)
      : stride_((bands + 2 * border) * channels), size_(bands * channels), start_(border * channels), before_(before) {}

  void hold(int64_t frames) { values_ = Floats((before_ + frames) * stride_); }

  float* frame(int64_t t) { return values_.data() + (before_ + t) * stride_ + start_; }
  float* with_border(int64_t t) { return frame(t) - start_; }
  int64_t stride() const { return stride_; }
  int64_t size() const { return size_; }  // of a frame without its border

 private:
  int64_t stride_ = 0, size_ = 0, start_ = 0, before_ = 0;
  Floats values_;
};

// u of one frame: real and imaginary parts, each between zeros
struct Spectrum {
  int64_t plane = 0;
  Floats values;

  void hold(int64_t bins, int64_t frames) {
    plane = padded(bins) + 2 * panel;
    values = Floats((frames + 2) * 2 * plane);  // one before, and an empty one after
  }
  float* part(int64_t t, int64_t k) { return values.data() + ((t + 1) * 2 + k) * plane + panel; }
};

std::vector<float> dense(const std::vector<float>& weight, const std::vector<float>& bias,
                         const std::vector<float>& x) {
  std::vector<float> y(bias.size());
  for (std::size_t o = 0; o < y.size(); ++o) {
    double sum = bias[o];
    for (std::size_t i = 0; i < x.size(); ++i) sum += double(weight[o * x.size() + i]) * x[i];
    y[o] = static_cast<float>(sum);
  }
  return y;
}

std::vector<float> silu(std::vector<float> x) {
  for (float& value : x) value /= 1 + std::exp(-value);
  return x;
}

}  // namespace

struct CausalNetwork::Network {
  // What one sample needs while a block runs through the layers.
  struct Item {
    int64_t frames = 0;
    Spectrum u;
    Map features;
    struct Maps {
      Map x, first, second;  // what a residual block adds to, and the inputs of its convolutions
    };
    std::vector<Maps> levels;
    // of the call
    const NetworkBlock* block = nullptr;
    int64_t sample = 0;
    const float* before = nullptr;
    float* memory = nullptr;
    float noise_level = 0, data_scale = 0;
    std::shared_ptr<const Floats> film;  // of the noise level
  };
  // Items that work together, and what they share: side by side in the stack over time, one after the other elsewhere.
  struct Team {
    std::vector<Item> items;
    int64_t frames = 0;
    Floats bands, x, first, second;
    Map numbers;
    Floats sums, products, scratch;  // sums and products: of bands, of `points` kinds
  };
  // The items of a call.
  struct Items {
    Item* first;
    int64_t count;
    Item* begin() const { return first; }
    Item* end() const { return first + count; }
  };

  int64_t bins = 0, stem = 0, embedding = 0, frame_channels = 0, film_size = 0, memory_size = 0, longest_reach = 0;
  bool joint = false;
  std::vector<float> frequencies, data_scale, embed_weight[2], embed_bias[2], label, band;
  Layer input, to_frames, from_frames, output;
  std::vector<Level> levels;
  std::vector<Residual> over_time;

  std::mutex mutex;  // of what follows
  std::map<std::pair<float, int64_t>, std::shared_ptr<const Floats>> films;
  std::vector<Team> idle;

  Network(const Weights& weights, const std::vector<int64_t>& dilations) {
    const Checkpoint checkpoint(weights);
    const std::vector<int64_t> first = checkpoint.get("input.weight", {any, 3, 3, any}).shape;
    const int64_t bands = checkpoint.get("band", {first[0], 1, any}).shape[2];
    stem = first[3] / 2;
    bins = bands * stem;
    require(stem >= 2 && stem % 2 == 0, "the stem must be even; got " + std::to_string(stem));
    embedding = checkpoint.get("embed.0.weight", {any, 64}).shape[0];
    frequencies = checkpoint.values("noise_level.frequencies", {32});
    data_scale = checkpoint.values("scale.by_label", {2});
    for (int i : {0, 1}) {
      const std::string name = "embed." + std::to_string(2 * i);
      embed_weight[i] = checkpoint.values(name + ".weight", {embedding, i ? embedding : 64});
      embed_bias[i] = checkpoint.values(name + ".bias", {embedding});
    }
    joint = checkpoint.has("label.weight");
    if (joint) label = checkpoint.values("label.weight", {2, embedding});

    input = Layer(3, 3 * 2 * stem, first[0]);
    input.add(checkpoint, "input", {first[0], 3, 3, 2 * stem}, same, same);
    const std::vector<float> per_channel = checkpoint.values("band", {first[0], 1, bands});
    band.resize(index(bands * padded(first[0])));
    for (int64_t c = 0; c < first[0]; ++c)
      for (int64_t f = 0; f < bands; ++f) band[index(f * padded(first[0]) + c)] = per_channel[index(c * bands + f)];

    int64_t channels = first[0], level_bands = bands;
    const int64_t halvings = checkpoint.count("down.", ".weight");
    for (int64_t i = 0; i <= halvings; ++i, level_bands /= 2) {
      Level level;
      const std::string number = std::to_string(i);
      level.bands = level_bands;
      level.channels = channels;
      for (const auto& [name, blocks] :
           {std::pair{"down_blocks.", &level.before}, std::pair{"up_blocks.", &level.after}}) {
        const std::string prefix = name + number + ".";
        for (int64_t k = 0, n = checkpoint.count(prefix, ".conv1.weight"); k < n; ++k)
          blocks->push_back(
              residual_over_bands(checkpoint, prefix + std::to_string(k), channels, embedding, level_bands));
      }
      if (i < halvings) {
        require(level_bands % 2 == 0, "bands must be even at level " + number + "; got " + std::to_string(level_bands));
        const int64_t next = checkpoint.get("down." + number + ".weight", {any, channels, 1, 4}).shape[0];
        level.down = layer(checkpoint, "down." + number, next, channels, 1, 4);
        level.up = Layer(1, padded(next), 2 * padded(channels));
        level.up.add(
            checkpoint, "up." + number, {2 * channels, next, 1, 1},
            [&](int64_t o) { return o / channels * padded(channels) + o % channels; }, same);
        channels = next;
      }
      levels.push_back(std::move(level));
    }

    const Level& last = levels.back();
    const int64_t frame_size = last.bands * last.channels;
    const auto in_bands = [&](int64_t c) { return c / last.channels * padded(last.channels) + c % last.channels; };
    frame_channels = checkpoint.get("to_frames.weight", {any, frame_size, 1, 1}).shape[0];
    to_frames = Layer(1, last.bands * padded(last.channels), frame_channels);
    to_frames.add(checkpoint, "to_frames", {frame_channels, frame_size, 1, 1}, same, in_bands);
    from_frames = Layer(1, padded(frame_channels), last.bands * padded(last.channels));
    from_frames.add(checkpoint, "from_frames", {frame_size, frame_channels, 1, 1}, in_bands, same);
    const int64_t depth = checkpoint.count("over_time.", ".conv1.weight");
    require(static_cast<int64_t>(dilations.size()) == depth,
            "expected " + std::to_string(depth) + " dilations; got " + std::to_string(dilations.size()));
    for (std::size_t i = 0; i < dilations.size(); ++i) {
      require(dilations[i] >= 1, "dilations must be 1 or more; got " + std::to_string(dilations[i]));
      over_time.push_back(
          residual_over_time(checkpoint, "over_time." + std::to_string(i), frame_channels, embedding, dilations[i]));
      longest_reach = std::max(longest_reach, over_time.back().reach);
    }

    // number k of bin s of a band in column k stem + s: the answers then lie by number, as they are read
    output = over_bands(outputs * stem, first[0], bands);
    output.add(
        checkpoint, "output", {20 * stem, first[0], 3, 3}, [&](int64_t o) { return o % 20 * stem + o / 20; }, same);
    output.add(checkpoint, "spread", {stem, first[0], 3, 3}, [&](int64_t o) { return 20 * stem + o; }, same);

    memory_size = (2 + 3) * bins + levels[0].bands * padded(first[0]);  // of the filter, the input and the output
    for (Level& level : levels)
      for (auto* blocks : {&level.before, &level.after})
        for (Residual& block : *blocks) place(block, 2 * level.bands);
    for (Residual& block : over_time) place(block, block.reach);
  }

  void place(Residual& block, int64_t remembered) {
    block.film_at = film_size;
    film_size += 2 * padded(block.channels);
    memory_size += remembered * padded(block.channels);
  }

  // 1 + scale and shift of every residual block.
  std::shared_ptr<const Floats> film(float noise_level, int64_t of_label) {
    const std::pair key{noise_level, of_label};
    {
      const std::lock_guard<std::mutex> lock(mutex);
      const auto found = films.find(key);
      if (found != films.end()) return found->second;
    }
    std::vector<float> x(2 * frequencies.size());
    for (std::size_t i = 0; i < frequencies.size(); ++i) {
      const float phase = std::log(noise_level) * frequencies[i];
      x[i] = std::sin(phase);
      x[frequencies.size() + i] = std::cos(phase);
    }
    for (int i : {0, 1}) x = silu(dense(embed_weight[i], embed_bias[i], x));
    if (joint)
      for (int64_t i = 0; i < embedding; ++i) x[index(i)] += label[index(of_label * embedding + i)];
    const auto numbers = std::make_shared<Floats>(film_size);
    const auto add = [&](const std::vector<Residual>& blocks) {
      for (const Residual& block : blocks) {
        const std::vector<float> film = dense(block.film, block.film_bias, x);
        float *const gain = numbers->data() + block.film_at, *const shift = gain + padded(block.channels);
        for (int64_t c = 0; c < block.channels; ++c) {
          gain[c] = 1 + film[index(c)];
          shift[c] = film[index(block.channels + c)];
        }
      }
    };
    for (const Level& level : levels) add(level.before), add(level.after);
    add(over_time);
    const std::lock_guard<std::mutex> lock(mutex);
    if (films.size() >= most_levels) films.clear();
    return films[key] = numbers;
  }

  // A team of an earlier call, or a new one.
  Team take(int64_t count, int64_t frames) {
    Team team;
    {
      const std::lock_guard<std::mutex> lock(mutex);
      if (!idle.empty()) {
        team = std::move(idle.back());
        idle.pop_back();
      }
    }
    hold(team, count, frames);
    return team;
  }

  void hold(Team& team, int64_t count, int64_t frames) const {
    const auto have = static_cast<int64_t>(team.items.size());
    if (have >= count && team.frames >= frames) return;
    team.frames = frames = std::max(frames, team.frames);
    team.items.resize(index(std::max(count, have)));
    for (Item& item : team.items)
      if (item.frames < frames) hold(item, frames);
    const int64_t rows = frames * static_cast<int64_t>(team.items.size()), C = padded(frame_channels);
    const Level& last = levels.back();
    team.bands = Floats(rows * last.bands * padded(last.channels));
    team.x = team.second = Floats(rows * C);
    team.first = Floats(rows * C + longest_reach * static_cast<int64_t>(team.items.size()) * C);
    team.numbers = Map(levels[0].bands, padded(outputs * stem), 0);
    team.numbers.hold(frames);
    int64_t sums = 0, products = team.numbers.size();
    for (const Level& level : levels) sums = std::max(sums, level.bands * padded(level.channels));
    team.sums = Floats((frames + 1) * points * sums / tile_bands);
    team.products = Floats(frames * points * std::max(sums, products) / tile_bands);
    team.scratch = Floats(24 * padded(bins));
  }

  void hold(Item& item, int64_t frames) const {
    item.frames = frames;
    item.u.hold(bins, frames);
    item.features = Map(bins, 3, stem / 2, 1);
    item.features.hold(frames);
    item.levels.clear();
    for (const Level& level : levels) {
      const Map map(level.bands, padded(level.channels), 1, 1);
      item.levels.push_back({map, map, map});
    }
    for (auto& maps : item.levels)
      for (Map* map : {&maps.x, &maps.first, &maps.second}) map->hold(frames);
  }

  // Puts the frames before the block, of `size` numbers, in front of it and keeps its last ones.
  template <class Frame>
  static void remember(Item& item, Frame frame, int64_t size, int64_t before, int64_t frames) {
    const auto bytes = index(size) * sizeof(float);
    for (int64_t t = 0; t < before; ++t) std::memcpy(frame(t - before), item.before + t * size, bytes);
    for (int64_t t = 0; t < before; ++t) std::memcpy(item.memory + t * size, frame(frames - before + t), bytes);
    item.before += before * size;
    item.memory += before * size;
  }

  static void remember(Item& item, Map& map, int64_t before, int64_t frames) {
    remember(item, [&](int64_t t) { return map.frame(t); }, map.size(), before, frames);
  }

  void prepare(Item& item) const {
    const NetworkBlock& block = *item.block;
    const int64_t K = block.frames, b = item.sample;
    const int64_t of_label = joint && block.label ? block.label[b] : 1;
    item.before = (block.before ? block.before : block.memory) + b * memory_size;
    item.memory = block.memory + b * memory_size;
    item.noise_level = block.noise_level[b];
    item.data_scale = data_scale[index(of_label)];
    const float total = item.noise_level * item.noise_level + item.data_scale * item.data_scale;
    const float scale = 1 / std::sqrt(total);
    const float* const u = reinterpret_cast<const float*>(block.noisy + b * bins * K);
    for (int64_t k = 0; k < 2; ++k) {
      for (int64_t t = 0; t < K; ++t)
        for (int64_t f = 0; f < bins; ++f) item.u.part(t, k)[f] = u[2 * (f * K + t) + k];
      std::memcpy(item.u.part(-1, k), item.before, index(bins) * sizeof(float));
      std::memcpy(item.memory, item.u.part(K - 1, k), index(bins) * sizeof(float));
      std::memset(item.u.part(K, k), 0, index(bins) * sizeof(float));
      item.before += bins;
      item.memory += bins;
    }
    for (int64_t t = 0; t < K; ++t) {
      float* const to = item.features.frame(t);
      const float *const real = item.u.part(t, 0), *const imaginary = item.u.part(t, 1);
      for (int64_t f = 0; f < bins; ++f) {
        const float x = real[f] * scale, y = imaginary[f] * scale;
        to[3 * f] = x * 1.41421356f;
        to[3 * f + 1] = y * 1.41421356f;
        to[3 * f + 2] = std::log(x * x + y * y + 1e-4f) / 2;
      }
    }
    remember(item, item.features, 1, K);
  }

  // The convolution of 3 by 3 over the bands of `in`, whose channels are padded to `channels`.
  static void convolve(const NetworkKernels& run, const Layer& layer, Team& team, Map& in, int64_t channels,
                       int64_t frames, int64_t bands, Map& out, Finish finish) {
    const int64_t columns = layer.shape.panels * panel, tiles = bands / tile_bands;
    const Rows rows{out.frame(0), out.stride(), columns};
    if (layer.products == 1)
      return run.convolve(layer.convolution(), {in.with_border(-1), in.stride(), channels, in.stride()}, frames, bands,
                          true, rows, finish);
    const int64_t sums = tiles * channels, products = tiles * columns;
    for (int64_t t = 0; t <= frames; ++t)
      run.band_sums(in.with_border(t - 1), tiles, channels, team.sums.data() + t * points * sums);
    for (int64_t i = 0; i < points; ++i)
      run.convolve(layer.product(i), {team.sums.data() + i * sums, points * sums, channels, points * sums}, frames,
                   tiles, true, {team.products.data() + i * frames * products, products, columns}, Finish::store);
    run.from_products(team.products.data(), layer.bias.data(), frames, tiles, columns, rows, finish);
  }

  void residuals(const NetworkKernels& run, const std::vector<Residual>& blocks, Team& team, const Items& items,
                 int64_t frames, std::size_t level) const {
    const int64_t bands = levels[level].bands;
    for (const Residual& block : blocks) {
      const int64_t C = padded(block.channels);
      for (Item& item : items) {
        auto& maps = item.levels[level];
        norm(run, block, item, maps.x, maps.first, frames, bands);
        remember(item, maps.first, 1, frames);
        convolve(run, block.conv1, team, maps.first, C, frames, bands, maps.second, Finish::silu);
      }
      for (Item& item : items) {
        auto& maps = item.levels[level];
        remember(item, maps.second, 1, frames);
        convolve(run, block.conv2, team, maps.second, C, frames, bands, maps.x, Finish::add);
      }
    }
  }

  static void norm(const NetworkKernels& run, const Residual& block, Item& item, Map& in, Map& out, int64_t frames,
                   int64_t bands) {
    const int64_t C = padded(block.channels);
    const float* const gain = item.film->data() + block.film_at;
    run.norm_film_silu(
        {frames, bands, block.channels, C, in.frame(0), in.stride(), out.frame(0), out.stride(), gain, gain + C});
  }

  // Products whose rows are frames
  static void over_frames(const NetworkKernels& run, const Layer& layer, const float* in, int64_t stride, int64_t tap,
                          int64_t frames, float* out, int64_t out_stride, Finish finish) {
    run.convolve(layer.convolution(), {in, 0, stride, tap}, 1, frames, false, {out, 0, out_stride}, finish);
  }

  // The items side by side in every frame: their rows share the weights that are read, which are most of the network.
  void stack_over_time(const NetworkKernels& run, Team& team, const Items& items, int64_t frames) const {
    const int64_t C = padded(frame_channels), wide = levels.back().bands * padded(levels.back().channels);
    const int64_t rows = frames * items.count, next = items.count * C;  // from frame to frame
    const auto each_frame = [&](auto body) {
      for (int64_t t = 0; t < frames; ++t)
        for (int64_t i = 0; i < items.count; ++i)
          body(items.first[i].levels.back().x.frame(t), team.bands.data() + (t * items.count + i) * wide);
    };
    float *const x = team.x.data(), *const first = team.first.data() + longest_reach * next;
    each_frame([&](const float* h, float* to) { std::memcpy(to, h, index(wide) * sizeof(float)); });
    over_frames(run, to_frames, team.bands.data(), wide, 0, rows, x, C, Finish::store);
    for (const Residual& block : over_time) {
      for (int64_t i = 0; i < items.count; ++i) {
        Item& item = items.first[i];
        const float* const gain = item.film->data() + block.film_at;
        run.norm_film_silu({frames, 1, block.channels, C, x + i * C, next, first + i * C, next, gain, gain + C});
        remember(item, [&](int64_t t) { return first + t * next + i * C; }, C, block.reach, frames);
      }
      over_frames(run, block.conv1, first - block.reach * next, C, block.reach / 4 * next, rows, team.second.data(), C,
                  Finish::silu);
      over_frames(run, block.conv2, team.second.data(), C, 0, rows, x, C, Finish::add);
    }
    over_frames(run, from_frames, x, C, 0, rows, team.bands.data(), wide, Finish::add);
    each_frame([&](float* h, const float* from) { std::memcpy(h, from, index(wide) * sizeof(float)); });
  }

  void answer(const NetworkKernels& run, Team& team, Item& item) const {
    const NetworkBlock& block = *item.block;
    const int64_t K = block.frames, b = item.sample;
    const float a2 = item.noise_level * item.noise_level, data2 = item.data_scale * item.data_scale;
    const float skip = std::min(std::max(data2 / (a2 + data2), 1e-6f), 1 - 1e-6f);
    for (int64_t t = 0; t < K; ++t)
      run.answer({bins, padded(bins), stem, team.numbers.frame(t), padded(outputs * stem), item.u.part(t, 0),
                  item.u.part(t, 1), 2 * item.u.plane, std::log(skip / (1 - skip)), data2 * a2 / (a2 + data2),
                  block.clean + b * bins * K + t, block.variance + b * bins * K + t, K, team.scratch.data()});
  }

  // The first `count` items of a team, which know their block, their sample of it, and the film.
  void step(Team& team, int64_t count) const {
    const NetworkKernels& run = kernels();
    const Items items{team.items.data(), count};
    const int64_t K = items.first->block->frames;
    for (Item& item : items) prepare(item);
    for (Item& item : items) {
      Map& h = item.levels[0].x;
      for (int64_t t = 0; t < K; ++t) std::memcpy(h.frame(t), band.data(), band.size() * sizeof(float));
      Map& features = item.features;
      run.convolve(input.convolution(), {features.with_border(-1), features.stride(), 3 * stem, features.stride()}, K,
                   levels[0].bands, true, {h.frame(0), h.stride(), padded(levels[0].channels)}, Finish::add);
    }
    const std::size_t last = levels.size() - 1;
    for (std::size_t i = 0; i <= last; ++i) {
      residuals(run, levels[i].before, team, items, K, i);
      for (Item& item : items) {
        if (i == last) break;
        Map &h = item.levels[i].x, &next = item.levels[i + 1].x;
        run.convolve(levels[i].down.convolution(), {h.with_border(0), h.stride(), 2 * padded(levels[i].channels), 0}, K,
                     levels[i + 1].bands, false, {next.frame(0), next.stride(), padded(levels[i + 1].channels)},
                     Finish::store);
      }
    }
    stack_over_time(run, team, items, K);
    for (std::size_t i = levels.size(); i-- > 0;) {
      for (Item& item : items) {
        if (i == last) break;
        Map &h = item.levels[i].x, &from = item.levels[i + 1].x;
        const int64_t C = padded(levels[i + 1].channels);
        run.convolve(levels[i].up.convolution(), {from.frame(0), from.stride(), C, 0}, K, levels[i + 1].bands, false,
                     {h.frame(0), h.stride(), 2 * padded(levels[i].channels)}, Finish::add);
      }
      residuals(run, levels[i].after, team, items, K, i);
    }
    for (Item& item : items) {
      auto& maps = item.levels[0];
      for (int64_t t = 0; t < K; ++t) run.silu(maps.x.frame(t), maps.x.size(), maps.first.frame(t));
      remember(item, maps.first, 1, K);
      convolve(run, output, team, maps.first, padded(levels[0].channels), K, levels[0].bands, team.numbers,
               Finish::store);
      answer(run, team, item);
    }
  }

  void step(const NetworkBlock& block, int64_t begin, int64_t end) {
    Team team = take(end - begin, block.frames);
    for (int64_t b = begin; b < end; ++b) {
      Item& item = team.items[index(b - begin)];
      item.film = film(block.noise_level[b], joint && block.label ? block.label[b] : 1);
      item.block = &block;
      item.sample = b;
    }
    step(team, end - begin);
    const std::lock_guard<std::mutex> lock(mutex);
    idle.push_back(std::move(team));
  }
};

struct CausalNetwork::Workspace::Parts {
  Network::Team team;
  std::vector<std::pair<float, std::shared_ptr<const Floats>>> films;  // by noise level
};

CausalNetwork::Workspace::Workspace(std::unique_ptr<Parts> parts) : parts_(std::move(parts)) {}
CausalNetwork::Workspace::Workspace(Workspace&&) noexcept = default;
CausalNetwork::Workspace& CausalNetwork::Workspace::operator=(Workspace&&) noexcept = default;
CausalNetwork::Workspace::~Workspace() = default;

CausalNetwork::CausalNetwork(const Weights& weights, const std::vector<int64_t>& dilations)
    : network_(std::make_unique<Network>(weights, dilations)) {}

CausalNetwork::~CausalNetwork() = default;

int64_t CausalNetwork::bins() const { return network_->bins; }
int64_t CausalNetwork::memory_size() const { return network_->memory_size; }

CausalNetwork::Workspace CausalNetwork::workspace(int64_t samples, int64_t frames,
                                                  const std::vector<float>& noise_levels) const {
  auto parts = std::make_unique<Workspace::Parts>();
  network_->hold(parts->team, samples, frames);
  for (const float level : noise_levels) parts->films.emplace_back(level, network_->film(level, 1));
  return Workspace(std::move(parts));
}

void CausalNetwork::step(const NetworkBlock* blocks, std::size_t count, Workspace& workspace) const {
  Workspace::Parts& parts = *workspace.parts_;
  int64_t samples = 0;
  for (std::size_t i = 0; i < count; ++i)
    for (int64_t b = 0; b < blocks[i].samples; ++b) {
      Network::Item& item = parts.team.items[index(samples++)];
      for (const auto& [level, film] : parts.films)
        if (level == blocks[i].noise_level[b]) item.film = film;
      item.block = blocks + i;
      item.sample = b;
    }
  network_->step(parts.team, samples);
}

void CausalNetwork::step(const NetworkBlock& block, int threads) const {
  require(block.samples >= 0 && block.frames >= 1, "expected B >= 0 samples of K >= 1 frames; got " +
                                                       std::to_string(block.samples) + " of " +
                                                       std::to_string(block.frames));
  for (int64_t b = 0; b < block.samples; ++b) {
    require(block.noise_level[b] > 0 && std::isfinite(block.noise_level[b]),
            "noise_level must be positive and finite; got " + std::to_string(block.noise_level[b]));
    require(!block.label || block.label[b] == 0 || block.label[b] == 1,
            "label must be 0 (noise) or 1 (speech); got " + std::to_string(block.label ? block.label[b] : 0));
  }
  if (block.samples > 0)
    parallel_for(block.samples, threads, [&](int64_t begin, int64_t end) { network_->step(block, begin, end); });
}

}  // namespace udse
