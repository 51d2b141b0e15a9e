#include "compact_weights.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <utility>

namespace udse {
namespace {

using std::int64_t;

constexpr int64_t any = Checkpoint::any;

std::string text(const std::vector<int64_t>& shape) {
  std::string out = "(";
  for (const int64_t size : shape) out += (out.size() > 1 ? ", " : "") + (size < 0 ? "any" : std::to_string(size));
  return out + ")";
}

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

Layer dense(const Checkpoint& checkpoint, const std::string& name, int64_t outputs, int64_t inputs) {
  Layer made(1, inputs, outputs);
  made.add(checkpoint, name, {outputs, inputs}, same, same);
  return made;
}

Residual residual_over_bands(const Checkpoint& checkpoint, const std::string& name, int64_t channels, int64_t bands) {
  Layer convolutions[2];
  for (int i : {0, 1}) {
    convolutions[i] = over_bands(channels, channels, bands);
    convolutions[i].add(checkpoint, name + (i ? ".conv2" : ".conv1"), {channels, channels, 3, 3}, same, same);
  }
  return {channels, 1, 1, std::move(convolutions[0]), std::move(convolutions[1])};
}

Residual residual_over_time(const Checkpoint& checkpoint, const std::string& name, int64_t channels, int64_t dilation,
                            bool centred) {
  const int64_t after = centred ? 2 * dilation : 0;
  return {channels, 4 * dilation - after, after, layer(checkpoint, name + ".conv1", channels, channels, 5, 1),
          layer(checkpoint, name + ".conv2", channels, channels, 1, 1)};
}

// Whether `value` is a half, and which
bool is_half(float value, Half& half) {
  std::uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  const std::uint32_t sign = bits >> 16 & 0x8000u, magnitude = bits & 0x7fffffffu;
  if (magnitude >= (113u << 23)) {  // exponents of 15 and 127, mantissas of 10 and 23 bits
    half = static_cast<Half>(sign | (magnitude - (112u << 23)) >> 13);
    return magnitude < (143u << 23) && (magnitude & 0x1fffu) == 0;
  }
  const float units = std::abs(value) * 0x1p24f;  // denormals
  half = static_cast<Half>(sign | static_cast<std::uint32_t>(units));
  return units == std::floor(units);
}

}  // namespace

void Layer::keep_in_halves() {
  Halves same(weights.size());
  for (int64_t i = 0; i < weights.size(); ++i)
    if (!is_half(weights.data()[i], same.data()[i])) return;
  halves = std::move(same);
  weights = Floats();
}

void require(bool condition, const std::string& message) {
  if (!condition) throw Error(message);
}

const Weight& Checkpoint::get(const std::string& name, const std::vector<int64_t>& shape) const {
  const auto found = weights_.find(name);
  require(found != weights_.end(), "the weights have no " + name + "; give those of a causal Compact network");
  const std::vector<int64_t>& given = found->second.shape;
  require(std::equal(given.begin(), given.end(), shape.begin(), shape.end(),
                     [](int64_t have, int64_t want) { return have == want || (want == any && have > 0); }),
          name + " must have shape " + text(shape) + "; got " + text(given));
  return found->second;
}

std::vector<float> Checkpoint::values(const std::string& name, const std::vector<int64_t>& shape) const {
  const Weight& weight = get(name, shape);
  int64_t size = 1;
  for (const int64_t n : weight.shape) size *= n;
  return {weight.values, weight.values + size};
}

int64_t Checkpoint::count(const std::string& prefix, const std::string& suffix) const {
  int64_t n = 0;
  while (has(prefix + std::to_string(n) + suffix)) ++n;
  return n;
}

CompactWeights::CompactWeights(const Weights& weights, const std::vector<int64_t>& dilations, bool sees_future)
    : centred(sees_future) {
  const Checkpoint checkpoint(weights);
  posterior = checkpoint.has("listening.weight");
  planes = posterior ? 5 : 3;
  const std::vector<int64_t> first = checkpoint.get("input.weight", {any, planes, 3, any}).shape;
  const int64_t bands = checkpoint.get("band", {first[0], 1, any}).shape[2];
  stem = first[3] / 2;
  bins = bands * stem;
  require(stem >= 2 && stem % 2 == 0, "the stem must be even; got " + std::to_string(stem));
  read_embedding(checkpoint);

  input = Layer(3, planes * 2 * stem, first[0]);
  input.add(checkpoint, "input", {first[0], planes, 3, 2 * stem}, same, same);
  const std::vector<float> per_channel = checkpoint.values("band", {first[0], 1, bands});
  band.resize(index(bands * padded(first[0])));
  for (int64_t c = 0; c < first[0]; ++c)
    for (int64_t f = 0; f < bands; ++f) band[index(f * padded(first[0]) + c)] = per_channel[index(c * bands + f)];

  read_levels(checkpoint, first[0], bands);
  read_over_time(checkpoint, dilations);
  read_heads(checkpoint);
  read_film(checkpoint);
}

void CompactWeights::keep_in_halves() {
  for (Layer* layer : {&to_frames, &from_frames, &film}) layer->keep_in_halves();
  for (Residual& block : over_time) block.conv1.keep_in_halves(), block.conv2.keep_in_halves();
}

void CompactWeights::read_embedding(const Checkpoint& checkpoint) {
  embedding = checkpoint.get("embed.0.weight", {any, 64}).shape[0];
  frequencies = checkpoint.values("noise_level.frequencies", {32});
  data_scale = checkpoint.values("scale.by_label", {2});
  embed[0] = dense(checkpoint, "embed.0", embedding, 64);
  embed[1] = dense(checkpoint, "embed.2", embedding, embedding);
  joint = checkpoint.has("label.weight");
  if (joint) label = checkpoint.values("label.weight", {2, embedding});
}

void CompactWeights::read_levels(const Checkpoint& checkpoint, int64_t channels, int64_t bands) {
  const int64_t halvings = checkpoint.count("down.", ".weight");
  for (int64_t i = 0; i <= halvings; ++i, bands /= 2) {
    Level level;
    const std::string number = std::to_string(i);
    level.bands = bands;
    level.channels = channels;
    for (const auto& [name, blocks] :
         {std::pair{"down_blocks.", &level.before}, std::pair{"up_blocks.", &level.after}}) {
      const std::string prefix = name + number + ".";
      for (int64_t k = 0, n = checkpoint.count(prefix, ".conv1.weight"); k < n; ++k)
        blocks->push_back(residual_over_bands(checkpoint, prefix + std::to_string(k), channels, bands));
    }
    if (i < halvings) {
      require(bands % 2 == 0, "bands must be even at level " + number + "; got " + std::to_string(bands));
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
}

void CompactWeights::read_over_time(const Checkpoint& checkpoint, const std::vector<int64_t>& dilations) {
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
        residual_over_time(checkpoint, "over_time." + std::to_string(i), frame_channels, dilations[i], centred));
    longest_before = std::max(longest_before, over_time.back().before);
    longest_after = std::max(longest_after, over_time.back().after);
    around_time += over_time.back().after;
  }
}

// Number k of bin s of a band in column k stem + s: the answers then lie by number, as they are read
void CompactWeights::read_heads(const Checkpoint& checkpoint) {
  struct Head {
    const char* name;
    int64_t numbers;  // of a bin
  };
  constexpr Head heads[] = {{"output", 20}, {"spread", 1}, {"noise", 2}, {"listening", 1}};
  const int64_t count = posterior ? 4 : 2, channels = levels[0].channels;
  for (int64_t i = 0; i < count; ++i) outputs += heads[i].numbers;
  output = over_bands(outputs * stem, channels, levels[0].bands);
  int64_t from = 0;
  for (int64_t i = 0; i < count; ++i) {
    const int64_t numbers = heads[i].numbers;
    output.add(
        checkpoint, heads[i].name, {numbers * stem, channels, 3, 3},
        [&](int64_t o) { return (from + o % numbers) * stem + o / numbers; }, same);
    from += numbers;
  }
}

template <class Body>
void CompactWeights::each_residual(Body body) {
  for (std::size_t i = 0; i < levels.size(); ++i)
    for (auto* blocks : {&levels[i].before, &levels[i].after})
      for (std::size_t k = 0; k < blocks->size(); ++k)
        body(
            (*blocks)[k],
            (blocks == &levels[i].before ? "down_blocks." : "up_blocks.") + std::to_string(i) + "." + std::to_string(k),
            levels[i].bands);
  for (std::size_t i = 0; i < over_time.size(); ++i) body(over_time[i], "over_time." + std::to_string(i), int64_t{0});
}

// One matrix for all blocks: of each 1 + its scales, then its shifts
void CompactWeights::read_film(const Checkpoint& checkpoint) {
  memory_size = (2 + planes) * bins + levels[0].bands * padded(levels[0].channels);  // filter, input and output
  each_residual([&](Residual& block, const std::string&, int64_t bands) {
    block.film_at = film_size;
    film_size += 2 * padded(block.channels);
    memory_size += (bands ? 2 * bands : block.before) * padded(block.channels);
  });
  if (centred) memory_size = 0;
  int64_t down = 1, up = 1;  // the first convolution, and the last
  for (const Level& level : levels) {
    down += 2 * static_cast<int64_t>(level.before.size());
    up += 2 * static_cast<int64_t>(level.after.size());
  }
  around = std::max(down, up);
  film = Layer(1, embedding, film_size);
  each_residual([&](Residual& block, const std::string& name, int64_t) {
    const int64_t C = block.channels;
    const auto column = [&](int64_t o) { return block.film_at + o / C * padded(C) + o % C; };
    film.add(checkpoint, name + ".norm.film", {2 * C, embedding}, column, same);
    for (int64_t c = 0; c < C; ++c) film.bias.data()[block.film_at + c] += 1;
  });
}

}  // namespace udse
