// Runs a block through the layers in the order of `Compact`.
#include "compact_network.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <mutex>
#include <utility>

#include "compact_network_kernels.hpp"
#include "compact_weights.hpp"
#include "thread_pool.hpp"

namespace udse {
namespace {

using std::int64_t;

constexpr std::size_t most_levels = 64;  // noise levels whose FiLM numbers are kept
constexpr int64_t fewest_frames = 32;  // of a piece of a signal: fewer look at their neighbours more than at their own
constexpr int64_t most_kept = 1024;    // frames that a team keeps memory for between calls, about 60 KB each

// Of posterior networks, as in `CompactPosterior`
constexpr float quietest = 1e-10f;                    // least noise variance, relative to the power of the loudest bin
constexpr float surest = 1e-7f;                       // least variance of an observation in the compressed domain
constexpr float least_level = 0.03f, most_level = 3;  // of a frame's blur, that the network tells apart
constexpr float surest_logit = 13.8155096f;           // of c_skip = 1 - 1e-6

const NetworkKernels& kernels() {
#ifdef UDSE_X86
  const std::string name = isa();
  if (name == "avx512") return avx512::network_kernels;
  if (name == "avx2") return avx2::network_kernels;
#endif
  return scalar::network_kernels;
}

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

// What EDM's output needs to know of a frame's bins, and what a posterior network makes its noise of, (F) each
struct Told {
  float *own, *unsure;  // logit of c_skip; posterior variance of Gaussian data
  float *log_power, *log_given;
};

// Numbers between noise levels and FiLM
struct Embedding {
  Floats phases, hidden, embedded;

  void hold(int64_t rows, int64_t embedding) {
    phases = Floats(rows * 64);
    hidden = embedded = Floats(rows * padded(embedding));
  }
};

// Variance of a mixture in the compressed domain about the speech in it, whose noise has the variance V in the linear
// one, where the mixture has the power p: V / (1.6 p) where the speech is far above the noise, sqrt(V / 1.273) far
// below
float compressed_variance(float noise_variance, float power) {
  const float above = 1.6f * power;
  return std::max(noise_variance / std::sqrt(above * above + 1.273f * noise_variance + 1e-16f), surest);
}

// The V of which `compressed_variance` makes `blur`
float linear_variance(float blur, float power) {
  const float below = 1.273f * blur * blur, above = 1.6f * power * blur;
  return (below + std::sqrt(below * below + 4 * above * above)) / 2;
}

// Two planes of u, scaled to unit variance, and one of its power
void observe(float x, float y, float* planes) {
  planes[0] = x * 1.41421356f;
  planes[1] = y * 1.41421356f;
  planes[2] = std::log(x * x + y * y + 1e-4f) / 2;
}

}  // namespace

struct CompactNetwork::Network : CompactWeights {
  // What one sample needs while a block runs through the layers.
  struct Item {
    int64_t frames = 0;
    Spectrum u;
    Floats told;  // (frames, 4, padded F)
    Map features;
    struct Maps {
      Map x, first, second;  // what a residual block adds to, and the inputs of its convolutions
    };
    std::vector<Maps> levels;
    // of the call
    const NetworkBlock* block = nullptr;
    int64_t sample = 0, from = 0;  // the frame of the block that is its first
    const float* before = nullptr;
    float* memory = nullptr;
    const float* film = nullptr;  // gains and shifts of the first frame
    int64_t film_frame = 0;       // from there to those of the next frame; 0: they are the same
    std::shared_ptr<const Floats> kept_film;
  };
  // Items that work together, and what they share: side by side in the stack over time, one after the other elsewhere.
  struct Team {
    std::vector<Item> items;
    int64_t frames = 0;
    Floats bands, x, first, second;
    Map numbers;
    Floats sums, products, scratch;  // sums and products: of bands, of `points` kinds
    Floats levels, films;            // by frame, of a posterior network
    Embedding embedding;
    std::vector<Floats> passed;  // of each level, the frames of a piece that its neighbours look at
  };
  // The items of a call, with so many frames each.
  struct Items {
    Item* first;
    int64_t count, frames;
    Item* begin() const { return first; }
    Item* end() const { return first + count; }
  };
  // Frames of a sample that a thread makes an item of: its own, those that the way down or up looks at, and those that
  // the stack over time looks at, too.
  struct Piece {
    int64_t sample;
    struct Frames {
      int64_t begin, end;
      bool has(int64_t t) const { return begin <= t && t < end; }
    } own, around, in_time;
  };

  std::mutex mutex;  // of what follows
  std::map<std::pair<float, int64_t>, std::shared_ptr<const Floats>> films;
  std::vector<Team> idle;

  using CompactWeights::CompactWeights;

  // Gain (1 + scale) and shift of every residual block at each of these noise levels, (count, film_size)
  void film_at(const NetworkKernels& run, const float* noise_levels, int64_t count, const float* of_label,
               Embedding& rooms, float* out) const {
    const int64_t E = padded(embedding), features = static_cast<int64_t>(frequencies.size());
    for (int64_t i = 0; i < count; ++i) {
      float* const x = rooms.phases.data() + i * 2 * features;
      for (int64_t k = 0; k < features; ++k) {
        const float phase = std::log(noise_levels[i]) * frequencies[index(k)];
        x[k] = std::sin(phase);
        x[features + k] = std::cos(phase);
      }
    }
    float *const hidden = rooms.hidden.data(), *const embedded = rooms.embedded.data();
    over_frames(run, embed[0], rooms.phases.data(), 2 * features, 0, count, hidden, E, Finish::silu);
    over_frames(run, embed[1], hidden, E, 0, count, embedded, E, Finish::silu);
    if (of_label)
      for (int64_t i = 0; i < count * E; ++i) embedded[i] += i % E < embedding ? of_label[i % E] : 0;
    over_frames(run, film, embedded, E, 0, count, out, film_size, Finish::store);
  }

  // The same at one noise level, which many calls are made at.
  std::shared_ptr<const Floats> kept_film(float noise_level, int64_t of_label) {
    const std::pair key{noise_level, of_label};
    {
      const std::lock_guard<std::mutex> lock(mutex);
      const auto found = films.find(key);
      if (found != films.end()) return found->second;
    }
    Embedding rooms;
    rooms.hold(1, embedding);
    const auto numbers = std::make_shared<Floats>(film_size);
    film_at(kernels(), &noise_level, 1, joint ? label.data() + of_label * embedding : nullptr, rooms, numbers->data());
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
    const int64_t edges = longest_before + longest_after;
    team.first = Floats(rows * C + edges * static_cast<int64_t>(team.items.size()) * C);
    team.numbers = Map(levels[0].bands, padded(outputs * stem), 0);
    team.numbers.hold(frames);
    int64_t sums = 0, products = team.numbers.size();
    for (const Level& level : levels) sums = std::max(sums, level.bands * padded(level.channels));
    team.sums = Floats((frames + 1) * points * sums / tile_bands);
    team.products = Floats(frames * points * std::max(sums, products) / tile_bands);
    team.scratch = Floats((outputs + 6) * padded(bins));
    team.levels = Floats(rows);
    if (!posterior) return;
    team.films = Floats(rows * film_size);
    team.embedding.hold(rows, embedding);
  }

  void hold(Item& item, int64_t frames) const {
    item.frames = frames;
    item.u.hold(bins, frames);
    item.told = Floats(frames * 4 * padded(bins));
    item.features = Map(bins, planes, stem / 2, 1);
    item.features.hold(frames);
    item.levels.clear();
    for (const Level& level : levels) {
      const Map map(level.bands, padded(level.channels), 1, 1);
      item.levels.push_back({map, map, map});
    }
    for (auto& maps : item.levels)
      for (Map* map : {&maps.x, &maps.first, &maps.second}) map->hold(frames);
  }

  // Puts the frames before the block, of `size` numbers, in front of it and keeps its last ones; zeros without a
  // memory.
  template <class Frame>
  static void remember(Item& item, Frame frame, int64_t size, int64_t before, int64_t frames) {
    const auto bytes = index(size) * sizeof(float);
    if (!item.memory) {
      for (int64_t t = 0; t < before; ++t) std::memset(frame(t - before), 0, bytes);
      return;
    }
    for (int64_t t = 0; t < before; ++t) std::memcpy(frame(t - before), item.before + t * size, bytes);
    for (int64_t t = 0; t < before; ++t) std::memcpy(item.memory + t * size, frame(frames - before + t), bytes);
    item.before += before * size;
    item.memory += before * size;
  }

  static void remember(Item& item, Map& map, int64_t before, int64_t frames) {
    remember(item, [&](int64_t t) { return map.frame(t); }, map.size(), before, frames);
  }

  Told told(Item& item, int64_t t) const {
    const int64_t F = padded(bins);
    float* const rows = item.told.data() + t * 4 * F;
    return {rows, rows + F, rows + 2 * F, rows + 3 * F};
  }

  void prepare(Item& item, int64_t frames) const {
    const NetworkBlock& block = *item.block;
    const int64_t K = block.frames, b = item.sample;
    item.before = item.memory = nullptr;
    if (!centred) {
      item.before = (block.before ? block.before : block.memory) + b * memory_size;
      item.memory = block.memory + b * memory_size;
    }
    const float* const u = reinterpret_cast<const float*>(block.noisy + b * bins * K + item.from);
    for (int64_t k = 0; k < 2; ++k) {
      for (int64_t t = 0; t < frames; ++t)
        for (int64_t f = 0; f < bins; ++f) item.u.part(t, k)[f] = u[2 * (f * K + t) + k];
      remember(item, [&](int64_t t) { return item.u.part(t, k); }, bins, 1, frames);
      std::memset(item.u.part(frames, k), 0, index(bins) * sizeof(float));
    }
    for (int64_t t = 0; t < frames; ++t)
      if (posterior)
        see_mixture(item, t);
      else
        see_state(item, t);
    remember(item, item.features, 1, frames);
  }

  // Input planes of a score network, whose noise level is that of the call
  void see_state(Item& item, int64_t t) const {
    const NetworkBlock& block = *item.block;
    const float scale = data_scale[index(joint && block.label ? block.label[item.sample] : 1)];
    const float a2 = block.noise_level[item.sample] * block.noise_level[item.sample], data2 = scale * scale;
    const float total = a2 + data2, of_u = 1 / std::sqrt(total);
    const float own = std::log(data2 / a2), unsure = data2 * a2 / total;
    const float *const real = item.u.part(t, 0), *const imaginary = item.u.part(t, 1);
    float* const to = item.features.frame(t);
    const Told facts = told(item, t);
    for (int64_t f = 0; f < bins; ++f) {
      observe(real[f] * of_u, imaginary[f] * of_u, to + planes * f);
      facts.own[f] = std::clamp(own, -surest_logit, surest_logit);
      facts.unsure[f] = unsure;
    }
  }

  // Of a posterior network: the mixture is an observation of the speech with an error, whose variance in the compressed
  // domain follows from that of the noise.
  float blur_of(const NetworkBlock& block, int64_t at, float power) const {
    return compressed_variance(std::max(block.noise_variance[at], quietest), power);
  }

  // The root of its mean over a frame of the block
  float level_of(const NetworkBlock& block, int64_t sample, int64_t t) const {
    double sum = 0;
    for (int64_t f = 0; f < bins; ++f) {
      const int64_t at = (sample * bins + f) * block.frames + t;
      const float x = block.noisy[at].real(), y = block.noisy[at].imag();
      sum += static_cast<double>(blur_of(block, at, x * x + y * y));
    }
    return std::clamp(static_cast<float>(std::sqrt(sum / static_cast<double>(bins))), least_level, most_level);
  }

  void see_mixture(Item& item, int64_t t) const {
    const NetworkBlock& block = *item.block;
    const float data2 = data_scale[1] * data_scale[1];
    const float *const real = item.u.part(t, 0), *const imaginary = item.u.part(t, 1);
    float* const to = item.features.frame(t);
    const Told facts = told(item, t);
    for (int64_t f = 0; f < bins; ++f) {
      const float x = real[f], y = imaginary[f], power = x * x + y * y;
      const float blur = blur_of(block, (item.sample * bins + f) * block.frames + item.from + t, power);
      const float given = linear_variance(blur, power);
      const float total = blur + data2, of_u = 1 / std::sqrt(total), log_blur = std::log(blur / data2);
      observe(x * of_u, y * of_u, to + planes * f);
      to[planes * f + 3] = log_blur / 4;
      to[planes * f + 4] = (std::log(given) - std::log(power * power + 1e-8f)) / 8;
      facts.own[f] = std::clamp(-log_blur, -surest_logit, surest_logit);
      facts.unsure[f] = data2 * blur / total;
      facts.log_power[f] = std::log(power * power + 1e-9f);
      facts.log_given[f] = std::log(given + 1e-9f);
    }
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
    const float* const gain = item.film + block.film_at;
    run.norm_film_silu({frames, bands, block.channels, C, in.frame(0), in.stride(), out.frame(0), out.stride(), gain,
                        gain + C, item.film_frame});
  }

  // Products whose rows are frames
  static void over_frames(const NetworkKernels& run, const Layer& layer, const float* in, int64_t stride, int64_t tap,
                          int64_t frames, float* out, int64_t out_stride, Finish finish) {
    run.convolve(layer.convolution(), {in, 0, stride, tap}, 1, frames, false, {out, 0, out_stride}, finish);
  }

  int64_t wide() const { return levels.back().bands * padded(levels.back().channels); }

  // What the stack over time reads, and adds to, of one item in one frame
  float* frame_of(Team& team, const Items& items, int64_t t, int64_t i) const {
    return team.bands.data() + (t * items.count + i) * wide();
  }

  // body(that, the same in the map of the last level)
  template <class Body>
  void each_frame(Team& team, const Items& items, Body body) const {
    for (int64_t t = 0; t < items.frames; ++t)
      for (int64_t i = 0; i < items.count; ++i)
        body(frame_of(team, items, t, i), items.first[i].levels.back().x.frame(t));
  }

  // The items side by side in every frame: their rows share the weights that are read, which are most of the network.
  // earlier: frames before those that the items' FiLM numbers begin with.
  void stack_over_time(const NetworkKernels& run, Team& team, const Items& items, int64_t earlier = 0) const {
    const int64_t C = padded(frame_channels), frames = items.frames;
    const int64_t rows = frames * items.count, next = items.count * C;  // from frame to frame
    float *const x = team.x.data(), *const first = team.first.data() + longest_before * next;
    over_frames(run, to_frames, team.bands.data(), wide(), 0, rows, x, C, Finish::store);
    for (const Residual& block : over_time) {
      for (int64_t i = 0; i < items.count; ++i) {
        Item& item = items.first[i];
        const float* const gain = item.film - earlier * item.film_frame + block.film_at;
        run.norm_film_silu(
            {frames, 1, block.channels, C, x + i * C, next, first + i * C, next, gain, gain + C, item.film_frame});
        remember(item, [&](int64_t t) { return first + t * next + i * C; }, C, block.before, frames);
      }
      std::memset(first + frames * next, 0, index(block.after * next) * sizeof(float));
      over_frames(run, block.conv1, first - block.before * next, C, (block.before + block.after) / 4 * next, rows,
                  team.second.data(), C, Finish::silu);
      over_frames(run, block.conv2, team.second.data(), C, 0, rows, x, C, Finish::add);
    }
    over_frames(run, from_frames, x, C, 0, rows, team.bands.data(), wide(), Finish::add);
  }

  // Of its frames from `begin` to `end`
  void answer(const NetworkKernels& run, Team& team, Item& item, int64_t begin, int64_t end) const {
    const NetworkBlock& block = *item.block;
    for (int64_t t = begin; t < end; ++t) {
      const int64_t at = item.sample * bins * block.frames + item.from + t;
      const Told facts = told(item, t);
      run.answer({bins, padded(bins), stem, outputs, team.numbers.frame(t), padded(outputs * stem), item.u.part(t, 0),
                  item.u.part(t, 1), 2 * item.u.plane, facts.own, facts.unsure, facts.log_power, facts.log_given,
                  block.clean + at, block.variance + at, posterior ? block.believed + at : nullptr,
                  posterior ? block.heard + at : nullptr, block.frames, team.scratch.data()});
    }
  }

  // Of a posterior network: FiLM numbers by the noise levels of frames; `earlier` of them before the first of the
  // items.
  void tell_levels(const NetworkKernels& run, Team& team, const Items& items, int64_t earlier, int64_t frames) const {
    if (!posterior) return;
    float* level = team.levels.data();
    for (const Item& item : items)
      for (int64_t t = 0; t < frames; ++t) *level++ = level_of(*item.block, item.sample, item.from - earlier + t);
    film_at(run, team.levels.data(), items.count * frames, nullptr, team.embedding, team.films.data());
    for (int64_t i = 0; i < items.count; ++i) {
      items.first[i].film = team.films.data() + (i * frames + earlier) * film_size;
      items.first[i].film_frame = film_size;
    }
  }

  // From the input to the last level
  void way_down(const NetworkKernels& run, Team& team, const Items& items) const {
    const int64_t K = items.frames;
    for (Item& item : items) {
      prepare(item, K);
      Map& h = item.levels[0].x;
      for (int64_t t = 0; t < K; ++t) std::memcpy(h.frame(t), band.data(), band.size() * sizeof(float));
      Map& features = item.features;
      run.convolve(input.convolution(), {features.with_border(-1), features.stride(), planes * stem, features.stride()},
                   K, levels[0].bands, true, {h.frame(0), h.stride(), padded(levels[0].channels)}, Finish::add);
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
  }

  // From the last level to the answers about frames from `begin` to `end`
  void way_up(const NetworkKernels& run, Team& team, const Items& items, int64_t begin, int64_t end) const {
    const int64_t K = items.frames;
    for (std::size_t i = levels.size(); i-- > 0;) {
      for (Item& item : items) {
        if (i == levels.size() - 1) break;
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
      answer(run, team, item, begin, end);
    }
  }

  // The first `count` items of a team, which know their block, their sample of it, and the film.
  void step(Team& team, int64_t count) const {
    const NetworkKernels& run = kernels();
    const Items items{team.items.data(), count, team.items[0].block->frames};
    tell_levels(run, team, items, 0, items.frames);
    way_down(run, team, items);
    const std::size_t bytes = index(wide()) * sizeof(float);
    each_frame(team, items, [bytes](float* row, const float* map) { std::memcpy(row, map, bytes); });
    stack_over_time(run, team, items);
    each_frame(team, items, [bytes](const float* row, float* map) { std::memcpy(map, row, bytes); });
    way_up(run, team, items, 0, items.frames);
  }

  void tell(Item& item, const NetworkBlock& block, int64_t sample, int64_t from) {
    if (!posterior) {
      item.kept_film = kept_film(block.noise_level[sample], joint && block.label ? block.label[sample] : 1);
      item.film = item.kept_film->data();
    }
    item.block = &block;
    item.sample = sample;
    item.from = from;
  }

  void give_back(Team&& team) {
    if (team.frames > most_kept) return;
    const std::lock_guard<std::mutex> lock(mutex);
    idle.push_back(std::move(team));
  }

  void step(const NetworkBlock& block, int64_t begin, int64_t end) {
    Team team = take(end - begin, block.frames);
    for (int64_t b = begin; b < end; ++b) tell(team.items[index(b - begin)], block, b, 0);
    step(team, end - begin);
    give_back(std::move(team));
  }

  // Pieces of equally many frames of every sample
  std::vector<Piece> pieces_of(const NetworkBlock& block, int64_t of_each) const {
    std::vector<Piece> pieces;
    const int64_t T = block.frames;
    const auto wider = [T](Piece::Frames frames, int64_t by) {
      return Piece::Frames{std::max<int64_t>(0, frames.begin - by), std::min(T, frames.end + by)};
    };
    for (int64_t sample = 0; sample < block.samples; ++sample)
      for (int64_t i = 0; i < of_each; ++i) {
        const Piece::Frames own{T * i / of_each, T * (i + 1) / of_each};
        pieces.push_back({sample, own, wider(own, around), wider(own, around + around_time)});
      }
    return pieces;
  }

  // A centred network, whose threads meet once, before the stack over time: there each piece takes from its neighbours
  // the frames around its own. What the edge of a piece spoils before and after is computed and cut off.
  void step_in_pieces(const NetworkBlock& block, int64_t of_each, int threads) {
    const NetworkKernels& run = kernels();
    const std::vector<Piece> pieces = pieces_of(block, of_each);
    const auto count = static_cast<int64_t>(pieces.size());
    std::vector<Team> teams(index(count));
    const auto items_of = [](Team& team, const Piece::Frames& frames) {
      return Items{team.items.data(), 1, frames.end - frames.begin};
    };
    const auto each = [&](auto body) {
      parallel_for(count, threads, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) body(teams[index(i)], pieces[index(i)], index(i));
      });
    };
    each([&](Team& team, const Piece& piece, std::size_t) {
      team = take(1, piece.in_time.end - piece.in_time.begin);
      tell(team.items[0], block, piece.sample, piece.around.begin);
      const Items items = items_of(team, piece.around);
      tell_levels(run, team, items, piece.around.begin - piece.in_time.begin, piece.in_time.end - piece.in_time.begin);
      way_down(run, team, items);
      pass(team, piece);
    });
    each([&](Team& team, const Piece& piece, std::size_t number) {
      const int64_t earlier = piece.around.begin - piece.in_time.begin;
      const Items items = items_of(team, piece.around), in_time = items_of(team, piece.in_time);
      take_around(teams, pieces, number);
      stack_over_time(run, team, in_time, earlier);
      for (int64_t t = 0; t < items.frames; ++t)
        std::memcpy(team.items[0].levels.back().x.frame(t), frame_of(team, in_time, earlier + t, 0),
                    index(wide()) * sizeof(float));
      way_up(run, team, items, piece.own.begin - piece.around.begin, piece.own.end - piece.around.begin);
    });
    for (Team& team : teams) give_back(std::move(team));
  }

  // Puts down the piece's own frames of every level, where its neighbours find them.
  void pass(Team& team, const Piece& piece) const {
    team.passed.resize(levels.size());
    for (std::size_t i = 0; i < levels.size(); ++i) {
      Map& map = team.items[0].levels[i].x;
      const int64_t frames = piece.own.end - piece.own.begin;
      Floats& passed = team.passed[i];
      if (passed.size() < frames * map.size()) passed = Floats(frames * map.size());
      for (int64_t t = 0; t < frames; ++t)
        std::memcpy(passed.data() + t * map.size(), map.frame(piece.own.begin - piece.around.begin + t),
                    index(map.size()) * sizeof(float));
    }
  }

  // Takes what others passed of the frames around a piece: of every level, and of the last one for the stack over time.
  void take_around(std::vector<Team>& teams, const std::vector<Piece>& pieces, std::size_t number) const {
    const Piece& piece = pieces[number];
    Team& team = teams[number];
    const auto passed = [&](std::size_t level, int64_t t) {
      std::size_t owner = number;
      while (t < pieces[owner].own.begin) --owner;
      while (t >= pieces[owner].own.end) ++owner;
      return teams[owner].passed[level].data() + (t - pieces[owner].own.begin) * team.items[0].levels[level].x.size();
    };
    const std::size_t last = levels.size() - 1;
    for (std::size_t i = 0; i < last; ++i) {
      Map& map = team.items[0].levels[i].x;
      for (int64_t t = piece.around.begin; t < piece.around.end; ++t)
        if (!piece.own.has(t))
          std::memcpy(map.frame(t - piece.around.begin), passed(i, t), index(map.size()) * sizeof(float));
    }
    for (int64_t t = piece.in_time.begin; t < piece.in_time.end; ++t)
      std::memcpy(team.bands.data() + (t - piece.in_time.begin) * wide(), passed(last, t),
                  index(wide()) * sizeof(float));
  }

  // A whole signal each
  void step_whole(const NetworkBlock& block, int threads) {
    const int64_t pieces =
        std::clamp<int64_t>(threads / block.samples, 1, std::max<int64_t>(1, block.frames / fewest_frames));
    if (pieces > 1) return step_in_pieces(block, pieces, threads);
    parallel_for(block.samples, threads, [&](int64_t begin, int64_t end) {
      for (int64_t b = begin; b < end; ++b) step(block, b, b + 1);
    });
  }
};

struct CompactNetwork::Workspace::Parts {
  Network::Team team;
  std::vector<std::pair<float, std::shared_ptr<const Floats>>> films;  // by noise level
};

CompactNetwork::Workspace::Workspace(std::unique_ptr<Parts> parts) : parts_(std::move(parts)) {}
CompactNetwork::Workspace::Workspace(Workspace&&) noexcept = default;
CompactNetwork::Workspace& CompactNetwork::Workspace::operator=(Workspace&&) noexcept = default;
CompactNetwork::Workspace::~Workspace() = default;

CompactNetwork::CompactNetwork(const Weights& weights, const std::vector<int64_t>& dilations, bool centred)
    : network_(std::make_unique<Network>(weights, dilations, centred)) {
  // a block of a stream is a few rows, which wait for the weights
  if (!centred && kernels().reads_halves) network_->keep_in_halves();
}

CompactNetwork::~CompactNetwork() = default;

int64_t CompactNetwork::bins() const { return network_->bins; }
bool CompactNetwork::tells_noise() const { return network_->posterior; }
bool CompactNetwork::centred() const { return network_->centred; }
int64_t CompactNetwork::memory_size() const { return network_->memory_size; }

CompactNetwork::Workspace CompactNetwork::workspace(int64_t samples, int64_t frames,
                                                    const std::vector<float>& noise_levels) const {
  auto parts = std::make_unique<Workspace::Parts>();
  network_->hold(parts->team, samples, frames);
  for (const float level : noise_levels) parts->films.emplace_back(level, network_->kept_film(level, 1));
  return Workspace(std::move(parts));
}

void CompactNetwork::step(const NetworkBlock* blocks, std::size_t count, Workspace& workspace) const {
  Workspace::Parts& parts = *workspace.parts_;
  int64_t samples = 0;
  for (std::size_t i = 0; i < count; ++i)
    for (int64_t b = 0; b < blocks[i].samples; ++b) {
      Network::Item& item = parts.team.items[index(samples++)];
      for (const auto& [level, film] : parts.films)
        if (level == blocks[i].noise_level[b]) item.film = film->data();
      item.block = blocks + i;
      item.sample = b;
      item.from = 0;
    }
  network_->step(parts.team, samples);
}

void CompactNetwork::step(const NetworkBlock& block, int threads) const {
  require(block.samples >= 0 && block.frames >= 1, "expected B >= 0 samples of K >= 1 frames; got " +
                                                       std::to_string(block.samples) + " of " +
                                                       std::to_string(block.frames));
  require(
      !tells_noise() || (block.noise_variance && block.believed && block.heard),
      "expected the variance of the noise, and where a posterior network says its own and the estimate for the ear");
  for (int64_t b = 0; b < block.samples && !tells_noise(); ++b) {
    require(block.noise_level[b] > 0 && std::isfinite(block.noise_level[b]),
            "noise_level must be positive and finite; got " + std::to_string(block.noise_level[b]));
    require(!block.label || block.label[b] == 0 || block.label[b] == 1,
            "label must be 0 (noise) or 1 (speech); got " + std::to_string(block.label ? block.label[b] : 0));
  }
  if (block.samples == 0) return;
  if (centred())
    network_->step_whole(block, threads);
  else
    parallel_for(block.samples, threads, [&](int64_t begin, int64_t end) { network_->step(block, begin, end); });
}

}  // namespace udse
