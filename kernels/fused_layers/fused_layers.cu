// The layers between the convolutions of a U-Net, channels_last: a position of the map is one contiguous vector of
// channels. float32, float16 or bfloat16 in and out, float32 inside. The equations are those of reference.py;
// statistics of a norm are combined from those of tiles (Chan, Golub, LeVeque 1983).
#include "narrow_numbers.hpp"

namespace udse {
namespace gpu {

constexpr int pack_bytes = 16;  // the most that a thread reads at once

// (B, N, C) numbers, and the sums, the centred sums of squares and the counts of their tiles, (3, B, tiles, C). A tile
// is any part of the positions.
struct Map {
  void* values;
  float* statistics;
  int64_t channels, tiles;
  bool measured;  // the statistics are known
};

struct Tiling {
  int64_t samples, positions, tiles, length;  // positions of a tile, the last may have fewer
  UDSE_HD int64_t count(int64_t tile) const {
    const int64_t left = positions - tile * length;
    return left < length ? left : length;
  }
};

// SiLU(GroupNorm([x, skip] + before) * scale + shift); out: (B, N, C); before, scale, shift: rows of C or nullptr.
struct GroupNorm {
  Map x, skip;  // the channels of skip follow those of x; it may have none
  Tiling tiling;
  const void *weight, *bias, *before, *scale, *shift;
  void* out;
  float* scratch;  // 2 B C numbers
  int64_t groups, before_stride, film_stride;
  float eps;
  Dtype dtype;
  bool activate;

  UDSE_HD int64_t channels() const { return x.channels + skip.channels; }
  UDSE_HD int64_t width() const { return channels() / groups; }
  UDSE_HD float* factor() const { return scratch; }                                 // (B, C)
  UDSE_HD float* offset() const { return factor() + tiling.samples * channels(); }  // (B, C)
};

// x of a map: packs[pack](where)
template <class T, int V>
struct Given {
  const void* x;
  struct Channels {
    const void* x;
    UDSE_HD Values<T, V> operator()(int64_t at) const { return Values<T, V>(x, at); }
  };
  UDSE_HD Channels operator[](int64_t) const { return {x}; }
};

// h + bias + factor x; h, x, out: (N, C)
template <class T, int V>
struct ResidualSum {
  const void *h, *x, *bias;
  void* out;
  float factor;
  int64_t packs;

  struct Channels {
    const void* __restrict__ h;
    const void* __restrict__ x;
    void* __restrict__ out;
    float factor, bias[V];
    UDSE_HD Values<T, V> operator()(int64_t at) const {
      Values<T, V> y(h, at);
      const Values<T, V> other(x, at);
      for (int k = 0; k < V; ++k) y.v[k] += bias[k] + factor * other.v[k];
      y.to(out, at);
      for (int k = 0; k < V; ++k) y.v[k] = rounded<T>(y.v[k]);  // as those who read it will see it
      return y;
    }
  };
  UDSE_HD Channels operator[](int64_t pack) const {
    Channels channels{h, x, out, factor, {}};
    for (int k = 0; k < V; ++k) channels.bias[k] = element<T>(bias, pack * V + k);
    return channels;
  }

  struct Column {
    Channels channels;
    int64_t packs, pack;
    UDSE_HD void operator()(int64_t n) const { channels(n * packs + pack); }
  };
  UDSE_HD Column operator()(int64_t, int64_t pack) const { return {(*this)[pack], packs, pack}; }
};

// Sum and centred sum of squares of the channels in a tile, by differences to the first position.
template <class T, int V, class Source>
struct TileStatistics {
  Source source;
  Tiling tiling;
  float* statistics;
  int64_t channels;
  UDSE_HD void operator()(int64_t b, int64_t tile, int64_t pack) const {
    const int packs = static_cast<int>(channels / V), count = static_cast<int>(tiling.count(tile));
    int64_t at = (b * tiling.positions + tile * tiling.length) * packs + pack;
    const auto values = source[pack];
    const Values<T, V> origin = values(at);
    Values<T, V> sum, square_sum;
    for (int n = 1; n < count; ++n) {
      const Values<T, V> x = values(at += packs);
      for (int k = 0; k < V; ++k) {
        sum.v[k] += x.v[k] - origin.v[k];
        square_sum.v[k] += square(x.v[k] - origin.v[k]);
      }
    }
    const float n = static_cast<float>(count);
    float* const sums = statistics + (b * tiling.tiles + tile) * channels + pack * V;
    float* const squares = sums + tiling.samples * tiling.tiles * channels;
    float* const counts = squares + tiling.samples * tiling.tiles * channels;
    for (int k = 0; k < V; ++k) {
      sums[k] = n * origin.v[k] + sum.v[k];
      squares[k] = above(square_sum.v[k] - square(sum.v[k]) / n, 0);
      counts[k] = n;
    }
  }
};

// Term j of a group (an item): a channel in a tile; of no positions, where its map has fewer tiles than the other.
// Divisions of 32 bits: those of 64 take a GPU many times as long.
struct Term {
  std::uint32_t sample, channel;
  float count = 0, sum = 0, square_sum = 0;
  UDSE_HD Term(const GroupNorm& norm, int64_t item, int64_t j) {
    const auto i = static_cast<std::uint32_t>(item), term = static_cast<std::uint32_t>(j);
    const auto groups = static_cast<std::uint32_t>(norm.groups), width = static_cast<std::uint32_t>(norm.width());
    const std::uint32_t tile = term / width;
    sample = i / groups;
    channel = i % groups * width + term % width;
    const bool second = channel >= norm.x.channels;
    const Map& map = second ? norm.skip : norm.x;
    if (tile >= map.tiles) return;
    const float* statistics = map.statistics + (sample * map.tiles + tile) * map.channels + channel;
    if (second) statistics -= norm.x.channels;
    const int64_t plane = norm.tiling.samples * map.tiles * map.channels;
    sum = statistics[0];
    square_sum = statistics[plane];
    count = statistics[2 * plane];
  }
};

// Norm, bias and FiLM as y = factor x + offset. One item: sample b and group g; its terms: the channels of all tiles,
// whose means and centred squares are combined by their differences to the mean of the first one.
template <class T>
struct GroupAffine {
  GroupNorm norm;
  UDSE_HD float before(int64_t b, int64_t c) const { return element<T>(norm.before, b * norm.before_stride + c); }
  UDSE_HD float mean(const Term& at) const { return at.sum / at.count + before(at.sample, at.channel); }
  UDSE_HD void term(int64_t item, int64_t j, float* sums) const {
    const Term at(norm, item, j);
    if (at.count == 0) return;
    const float distance = mean(at) - mean(Term(norm, item, 0));
    sums[0] += at.count * distance;
    sums[1] += at.square_sum + at.count * square(distance);
  }
  UDSE_HD void finish(int64_t item, const float* sums, int part, int parts) const {
    const int64_t b = item / norm.groups;
    const float count = static_cast<float>(norm.tiling.positions * norm.width()), distance = sums[0] / count;
    const float of_group = mean(Term(norm, item, 0)) + distance;
    const float inverse = 1 / sqrtf(above(sums[1] / count - square(distance), 0) + norm.eps);
    for (int64_t k = part; k < norm.width(); k += parts) {
      const int64_t c = item % norm.groups * norm.width() + k, film = b * norm.film_stride + c;
      float a = inverse * element<T>(norm.weight, c);
      float d = (before(b, c) - of_group) * a + element<T>(norm.bias, c);
      if (norm.scale) {
        a *= element<T>(norm.scale, film);
        d = d * element<T>(norm.scale, film) + element<T>(norm.shift, film);
      }
      norm.factor()[b * norm.channels() + c] = a;
      norm.offset()[b * norm.channels() + c] = d;
    }
  }
};

// Of [x, skip]; a pack is of one of them.
template <class T, int V>
struct AffineSiLU {
  GroupNorm norm;

  struct Column {
    const Pack<T, V>* __restrict__ x;  // of position 0
    Pack<T, V>* __restrict__ out;
    int stride, out_stride;
    bool activate;
    float factor[V], offset[V];
    UDSE_HD void operator()(int64_t n) const {
      const int position = static_cast<int>(n);
      Values<T, V> y(x, int64_t{position} * stride);
      for (int k = 0; k < V; ++k) {
        y.v[k] = factor[k] * y.v[k] + offset[k];
        if (activate) y.v[k] = silu(y.v[k]);
      }
      y.to(out, int64_t{position} * out_stride);
    }
  };

  UDSE_HD Column operator()(int64_t b, int64_t pack) const {
    const int64_t of_x = norm.x.channels / V, of_out = norm.channels() / V, first = b * norm.tiling.positions;
    const Map& map = pack < of_x ? norm.x : norm.skip;
    const int64_t stride = map.channels / V, from = first * stride + pack - (pack < of_x ? 0 : of_x);
    Column column{static_cast<const Pack<T, V>*>(map.values) + from,
                  static_cast<Pack<T, V>*>(norm.out) + first * of_out + pack,
                  static_cast<int>(stride),
                  static_cast<int>(of_out),
                  norm.activate,
                  {},
                  {}};
    for (int k = 0; k < V; ++k) {
      const int64_t at = b * norm.channels() + pack * V + k;
      column.factor[k] = norm.factor()[at];
      column.offset[k] = norm.offset()[at];
    }
    return column;
  }
};

// A line f of a sample: batch b * F_out + f. x: (B, F, T, C); out: (B, F_out, T_out, C).
template <class T, int V, bool up>
struct Resample {
  const void* x;
  void* out;
  int bins, frames, out_bins, out_frames, packs;

  // Inputs of output i on one axis: the near (3/4) and the far one (1/4) upwards, (1, 3, 3, 1)/8 downwards.
  static constexpr int taps = up ? 2 : 4;
  UDSE_HD static int source(int i, int tap) { return up ? i / 2 + tap * (2 * (i % 2) - 1) : 2 * i - 1 + tap; }
  UDSE_HD static float weight(int tap) { return up ? (tap ? 0.25f : 0.75f) : (tap == 1 || tap == 2 ? 0.375f : 0.125f); }

  UDSE_HD void operator()(int64_t line, int64_t t, int64_t pack) const {
    const int b = static_cast<int>(line) / out_bins, f = static_cast<int>(line) % out_bins;
    Values<T, V> y;
    for (int u = 0; u < taps; ++u) {
      const int row = source(f, u);
      if (row < 0 || row >= bins) continue;
      for (int v = 0; v < taps; ++v) {
        const int column = source(static_cast<int>(t), v);
        if (column < 0 || column >= frames) continue;
        const Values<T, V> near(x, ((int64_t{b} * bins + row) * frames + column) * packs + pack);
        for (int k = 0; k < V; ++k) y.v[k] += weight(u) * weight(v) * near.v[k];
      }
    }
    y.to(out, (line * out_frames + t) * packs + pack);
  }
};

// Whether channels can be read and written `pack_bytes` at a time.
inline bool packed(int64_t channels, Dtype dtype, const void* a, const void* b, const void* c = nullptr) {
  const auto together =
      reinterpret_cast<std::uintptr_t>(a) | reinterpret_cast<std::uintptr_t>(b) | reinterpret_cast<std::uintptr_t>(c);
  return channels * (dtype == float32 ? 4 : 2) % pack_bytes == 0 && together % pack_bytes == 0;
}

template <class T, int V, class Source>
static const char* tile_statistics(const Source& source, const Map& map, const Tiling& tiling, Stream stream) {
  const TileStatistics<T, V, Source> body{source, tiling, map.statistics, map.channels};
  return for_rows(tiling.samples, tiling.tiles, map.channels / V, stream, body);
}

// factor and offset of the norm, from the statistics of its maps
template <class T, int V>
static const char* fold_norm(const GroupNorm& n, Stream stream) {
  const char* error = nullptr;
  for (const Map* map : {&n.x, &n.skip})
    if (!error && !map->measured) error = tile_statistics<T, V>(Given<T, V>{map->values}, *map, n.tiling, stream);
  const int64_t tiles = n.x.tiles > n.skip.tiles ? n.x.tiles : n.skip.tiles;
  return error ? error : reduce<2>(n.tiling.samples * n.groups, tiles * n.width(), stream, GroupAffine<T>{n});
}

template <class T, int V>
static const char* group_norm(const GroupNorm& n, Stream stream) {
  if (const char* error = fold_norm<T, V>(n, stream)) return error;
  return for_columns(n.tiling.samples, n.tiling.positions, n.channels() / V, stream, AffineSiLU<T, V>{n});
}

template <class T, int V>
static const char* resample(const void* x, const Shape& shape, int64_t channels, bool up, void* out, Stream stream) {
  const int bins = static_cast<int>(shape.bins), frames = static_cast<int>(shape.frames);
  const int out_bins = up ? 2 * bins : bins / 2, out_frames = up ? 2 * frames : frames / 2;
  const int packs = static_cast<int>(channels / V);
  const int64_t lines = shape.samples * out_bins;
  if (up)
    return for_rows(lines, out_frames, packs, stream,
                    Resample<T, V, true>{x, out, bins, frames, out_bins, out_frames, packs});
  return for_rows(lines, out_frames, packs, stream,
                  Resample<T, V, false>{x, out, bins, frames, out_bins, out_frames, packs});
}

template <class T, class Call>
static const char* of_type(bool packs, const Call& call) {
  return packs ? call(T{}, Pack<T, pack_bytes / sizeof(T)>{}) : call(T{}, Pack<T, 1>{});
}

// call(T, Pack<T, V>) for the dtype and the number of channels read at once
template <class Call>
static const char* typed(Dtype dtype, bool packs, const Call& call) {
  if (dtype == float32) return of_type<float>(packs, call);
  return dtype == float16 ? of_type<Half>(packs, call) : of_type<BFloat16>(packs, call);
}

UDSE_EXPORT const char* udse_cuda_tile_statistics(const Map* x, const Tiling* tiling, Dtype dtype, Stream stream) {
  return typed(dtype, packed(x->channels, dtype, x->values, nullptr), [&](auto type, auto pack) {
    using T = decltype(type);
    constexpr int V = sizeof(pack) / sizeof(T);
    return tile_statistics<T, V>(Given<T, V>{x->values}, *x, *tiling, stream);
  });
}

static bool packed(const GroupNorm& norm) {
  return packed(norm.x.channels, norm.dtype, norm.x.values, norm.skip.values, norm.out) &&
         packed(norm.skip.channels, norm.dtype, nullptr, nullptr);
}

UDSE_EXPORT const char* udse_cuda_fold_norm(const GroupNorm* norm, Stream stream) {
  return typed(norm->dtype, packed(*norm), [&](auto type, auto pack) {
    using T = decltype(type);
    return fold_norm<T, sizeof(pack) / sizeof(T)>(*norm, stream);
  });
}

UDSE_EXPORT const char* udse_cuda_norm_film_silu(const GroupNorm* norm, Stream stream) {
  return typed(norm->dtype, packed(*norm), [&](auto type, auto pack) {
    using T = decltype(type);
    return group_norm<T, sizeof(pack) / sizeof(T)>(*norm, stream);
  });
}

// h, x, out: (B, N, C); bias: (C); with the statistics of out, where they are wanted
UDSE_EXPORT const char* udse_cuda_residual_sum(const void* h, const void* x, const void* bias, float factor,
                                               const Map* out, const Tiling* tiling, Dtype dtype, Stream stream) {
  return typed(dtype, packed(out->channels, dtype, h, x, out->values), [&](auto type, auto pack) {
    using T = decltype(type);
    constexpr int V = sizeof(pack) / sizeof(T);
    const ResidualSum<T, V> sum{h, x, bias, out->values, factor, out->channels / V};
    if (out->statistics) return tile_statistics<T, V>(sum, *out, *tiling, stream);
    return for_columns(1, tiling->samples * tiling->positions, out->channels / V, stream, sum);
  });
}

// x: (B, F, T, C); out: (B, 2 F, 2 T, C) or (B, F/2, T/2, C)
UDSE_EXPORT const char* udse_cuda_resample(const void* x, const Shape* shape, int64_t channels, int up, Dtype dtype,
                                           void* out, Stream stream) {
  return typed(dtype, packed(channels, dtype, x, out), [&](auto type, auto pack) {
    using T = decltype(type);
    return resample<T, sizeof(pack) / sizeof(T)>(x, *shape, channels, up, out, stream);
  });
}

UDSE_EXPORT int64_t udse_cuda_size_of_group_norm() { return sizeof(GroupNorm); }

}  // namespace gpu
}  // namespace udse
