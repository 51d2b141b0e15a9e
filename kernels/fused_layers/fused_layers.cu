// The layers between the convolutions of a U-Net, channels_last: a position of the map is one contiguous vector of
// channels. float32, float16 or bfloat16 in and out, float32 inside. The equations are those of reference.py; statistics
// of a norm are combined from those of tiles (Chan, Golub, LeVeque 1983).
#include "device.hpp"

#ifdef __CUDACC__
#include <cuda_fp16.h>
#endif

namespace udse {
namespace gpu {

enum Dtype : std::int32_t { float32, float16, bfloat16 };

struct Half {
  std::uint16_t word;
};
struct BFloat16 {
  std::uint16_t word;
};

UDSE_HD inline float widened(float x) { return x; }

UDSE_HD inline float widened(BFloat16 x) { return from_bits(static_cast<std::int32_t>(std::uint32_t{x.word} << 16)); }

UDSE_HD inline float widened(Half x) {
#ifdef __CUDA_ARCH__
  return __half2float(__ushort_as_half(x.word));
#else
  const std::int32_t modulus = (x.word & 0x7fff) << 13, sign = static_cast<std::int32_t>(std::uint32_t{x.word} >> 15 << 31);
  const bool finite = modulus < 0x7c00 << 13;
  return from_bits(sign | (finite ? bits(from_bits(modulus) * 0x1p112f) : modulus | 0x7f800000));
#endif
}

// To nearest, ties to even.
UDSE_HD inline void narrow(float x, float& y) { y = x; }

UDSE_HD inline void narrow(float x, BFloat16& y) {
  const std::uint32_t b = static_cast<std::uint32_t>(bits(x));
  y.word = x == x ? static_cast<std::uint16_t>((b + 0x7fff + (b >> 16 & 1)) >> 16) : 0x7fc0;
}

UDSE_HD inline void narrow(float x, Half& y) {
#ifdef __CUDA_ARCH__
  y.word = __half_as_ushort(__float2half_rn(x));
#else
  const std::int32_t modulus = bits(x) & 0x7fffffff, sign = bits(x) < 0 ? 0x8000 : 0;
  std::int32_t word;
  if (modulus > 0x7f800000) word = 0x7e00;        // NaN
  else if (modulus >= 0x477ff000) word = 0x7c00;  // 65520 and more
  else if (modulus < 0x38800000) word = bits(from_bits(modulus) + 0.5f) - 0x3f000000;  // below 2^-14: multiples of 2^-24
  else word = (modulus - (112 << 23) + 0xfff + (modulus >> 13 & 1)) >> 13;
  y.word = static_cast<std::uint16_t>(sign | word);
#endif
}

template <class T>
UDSE_HD inline float rounded(float x) {
  T y;
  narrow(x, y);
  return widened(y);
}

// V neighbouring channels, read and written at once
template <class T, int V>
struct alignas(sizeof(T) * V) Pack {
  T values[V];
};

template <class T, int V>
struct Values {
  float v[V];

  UDSE_HD Values() : v{} {}
  UDSE_HD Values(const void* from, int64_t at) {
    const Pack<T, V> pack = static_cast<const Pack<T, V>*>(from)[at];
    for (int k = 0; k < V; ++k) v[k] = widened(pack.values[k]);
  }
  UDSE_HD void to(void* target, int64_t at) const {
    Pack<T, V> pack;
    for (int k = 0; k < V; ++k) narrow(v[k], pack.values[k]);
    static_cast<Pack<T, V>*>(target)[at] = pack;
  }
};

template <class T>
UDSE_HD inline float element(const void* from, int64_t at) {
  return from ? widened(static_cast<const T*>(from)[at]) : 0.f;
}

// (B, N, C) numbers, and the sums and centred sums of squares of their tiles, (2, B, tiles, C).
struct Map {
  void* values;
  float* statistics;
  int64_t channels;
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
  float* scratch;  // B groups + 2 B C numbers
  int64_t groups, before_stride, film_stride;
  float eps;
  Dtype dtype;
  bool activate;

  UDSE_HD int64_t channels() const { return x.channels + skip.channels; }
  UDSE_HD int64_t width() const { return channels() / groups; }
  UDSE_HD float* means() const { return scratch; }                                 // (B, groups)
  UDSE_HD float* factor() const { return means() + tiling.samples * groups; }      // (B, C)
  UDSE_HD float* offset() const { return factor() + tiling.samples * channels(); }  // (B, C)
};

// x of a map
template <class T, int V>
struct Given {
  const void* x;
  UDSE_HD Values<T, V> operator()(int64_t at, int64_t) const { return Values<T, V>(x, at); }
};

// h + bias + factor x; h, x, out: (N, C)
template <class T, int V>
struct ResidualSum {
  const void *h, *x, *bias;
  void* out;
  float factor;
  int64_t packs;
  UDSE_HD Values<T, V> operator()(int64_t at, int64_t pack) const {
    Values<T, V> y(h, at);
    const Values<T, V> other(x, at);
    for (int k = 0; k < V; ++k) y.v[k] += element<T>(bias, pack * V + k) + factor * other.v[k];
    y.to(out, at);
    for (int k = 0; k < V; ++k) y.v[k] = rounded<T>(y.v[k]);  // as those who read it will see it
    return y;
  }
  UDSE_HD void operator()(int64_t, int64_t n, int64_t pack) const { (*this)(n * packs + pack, pack); }
};

// Sum and centred sum of squares of the channels in a tile, by differences to the first position.
template <class T, int V, class Source>
struct TileStatistics {
  Source source;  // (where, pack of channels) -> values
  Tiling tiling;
  float* statistics;
  int64_t channels;
  UDSE_HD void operator()(int64_t b, int64_t tile, int64_t pack) const {
    const int64_t packs = channels / V, count = tiling.count(tile);
    const int64_t start = (b * tiling.positions + tile * tiling.length) * packs + pack;
    const Values<T, V> origin = source(start, pack);
    Values<T, V> sum, square_sum;
    for (int64_t n = 1; n < count; ++n) {
      const Values<T, V> x = source(start + n * packs, pack);
      for (int k = 0; k < V; ++k) {
        sum.v[k] += x.v[k] - origin.v[k];
        square_sum.v[k] += square(x.v[k] - origin.v[k]);
      }
    }
    const float n = static_cast<float>(count);
    for (int k = 0; k < V; ++k) {
      const int64_t at = (b * tiling.tiles + tile) * channels + pack * V + k;
      statistics[at] = n * origin.v[k] + sum.v[k];
      statistics[tiling.samples * tiling.tiles * channels + at] = above(square_sum.v[k] - square(sum.v[k]) / n, 0);
    }
  }
};

// Term j of a group (an item): a channel in a tile. Divisions of 32 bits: those of 64 take a GPU many times as long.
struct Term {
  std::uint32_t sample, tile, channel;
  float sum, square_sum;
  UDSE_HD Term(const GroupNorm& norm, int64_t item, int64_t j) {
    const auto i = static_cast<std::uint32_t>(item), term = static_cast<std::uint32_t>(j);
    const auto groups = static_cast<std::uint32_t>(norm.groups), width = static_cast<std::uint32_t>(norm.width());
    sample = i / groups;
    tile = term / width;
    channel = i % groups * width + term % width;
    const bool second = channel >= norm.x.channels;
    const float* statistics = second ? norm.skip.statistics : norm.x.statistics;
    const int64_t channels = second ? norm.skip.channels : norm.x.channels;
    const int64_t at = (sample * norm.tiling.tiles + tile) * channels + channel - (second ? norm.x.channels : 0);
    sum = statistics[at];
    square_sum = statistics[norm.tiling.samples * norm.tiling.tiles * channels + at];
  }
};

// One item: sample b and group g; its terms: the channels of all tiles.
template <class T>
struct GroupMean {
  GroupNorm norm;
  UDSE_HD void term(int64_t item, int64_t j, float* sums) const {
    const Term at(norm, item, j);
    sums[0] += at.sum / static_cast<float>(norm.tiling.positions);
    if (at.tile == 0) sums[0] += element<T>(norm.before, at.sample * norm.before_stride + at.channel);
  }
  UDSE_HD void finish(int64_t item, const float* sums, int part, int) const {
    if (part == 0) norm.means()[item] = sums[0] / static_cast<float>(norm.width());
  }
};

// Norm, bias and FiLM as y = factor x + offset.
template <class T>
struct GroupAffine {
  GroupNorm norm;
  UDSE_HD void term(int64_t item, int64_t j, float* sums) const {
    const Term at(norm, item, j);
    const float n = static_cast<float>(norm.tiling.count(at.tile));
    const float before = element<T>(norm.before, at.sample * norm.before_stride + at.channel);
    sums[0] += at.square_sum + n * square(at.sum / n + before - norm.means()[item]);
  }
  UDSE_HD void finish(int64_t item, const float* sums, int part, int parts) const {
    const int64_t b = item / norm.groups;
    const float inverse = 1 / sqrtf(sums[0] / static_cast<float>(norm.tiling.positions * norm.width()) + norm.eps);
    for (int64_t k = part; k < norm.width(); k += parts) {
      const int64_t c = item % norm.groups * norm.width() + k, film = b * norm.film_stride + c;
      float a = inverse * element<T>(norm.weight, c);
      float d = (element<T>(norm.before, b * norm.before_stride + c) - norm.means()[item]) * a + element<T>(norm.bias, c);
      if (norm.scale) {
        a *= element<T>(norm.scale, film);
        d = d * element<T>(norm.scale, film) + element<T>(norm.shift, film);
      }
      norm.factor()[b * norm.channels() + c] = a;
      norm.offset()[b * norm.channels() + c] = d;
    }
  }
};

// The channels of one map, from `first` on in out.
template <class T, int V>
struct AffineSiLU {
  GroupNorm norm;
  const void* x;
  int64_t width, first;
  UDSE_HD void operator()(int64_t b, int64_t n, int64_t pack) const {
    const int64_t position = b * norm.tiling.positions + n, c = first + pack * V;
    Values<T, V> y(x, position * (width / V) + pack);
    for (int k = 0; k < V; ++k) {
      const int64_t at = b * norm.channels() + c + k;
      y.v[k] = norm.factor()[at] * y.v[k] + norm.offset()[at];
      if (norm.activate) y.v[k] /= 1 + expf(-y.v[k]);
    }
    y.to(norm.out, (position * norm.channels() + c) / V);
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
  UDSE_HD static float weight(int tap) {
    return up ? (tap ? 0.25f : 0.75f) : (tap == 1 || tap == 2 ? 0.375f : 0.125f);
  }

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

// Whether 4 channels can be read and written at once.
inline bool packed(int64_t channels, Dtype dtype, const void* a, const void* b, const void* c = nullptr) {
  const auto together = reinterpret_cast<std::uintptr_t>(a) | reinterpret_cast<std::uintptr_t>(b) |
                        reinterpret_cast<std::uintptr_t>(c);
  return channels % 4 == 0 && together % (dtype == float32 ? 16 : 8) == 0;
}

template <class T, int V, class Source>
static const char* tile_statistics(const Source& source, const Map& map, const Tiling& tiling, Stream stream) {
  const TileStatistics<T, V, Source> body{source, tiling, map.statistics, map.channels};
  return for_rows(tiling.samples, tiling.tiles, map.channels / V, stream, body);
}

template <class T, int V>
static const char* group_norm(const GroupNorm& n, Stream stream) {
  const Tiling& tiling = n.tiling;
  const char* error = nullptr;
  for (const Map* map : {&n.x, &n.skip})
    if (!error && !map->measured) error = tile_statistics<T, V>(Given<T, V>{map->values}, *map, tiling, stream);
  const int64_t items = tiling.samples * n.groups, terms = tiling.tiles * n.width();
  if (!error) error = reduce<1>(items, terms, stream, GroupMean<T>{n});
  if (!error) error = reduce<1>(items, terms, stream, GroupAffine<T>{n});
  int64_t first = 0;
  for (const Map* map : {&n.x, &n.skip}) {
    const AffineSiLU<T, V> body{n, map->values, map->channels, first};
    if (!error) error = for_rows(tiling.samples, tiling.positions, map->channels / V, stream, body);
    first += map->channels;
  }
  return error;
}

template <class T, int V>
static const char* resample(const void* x, const Shape& shape, int64_t channels, bool up, void* out, Stream stream) {
  const int bins = static_cast<int>(shape.bins), frames = static_cast<int>(shape.frames);
  const int out_bins = up ? 2 * bins : bins / 2, out_frames = up ? 2 * frames : frames / 2;
  const int packs = static_cast<int>(channels / V);
  const int64_t lines = shape.samples * out_bins;
  if (up) return for_rows(lines, out_frames, packs, stream, Resample<T, V, true>{x, out, bins, frames, out_bins, out_frames, packs});
  return for_rows(lines, out_frames, packs, stream, Resample<T, V, false>{x, out, bins, frames, out_bins, out_frames, packs});
}

// call(T, Pack<T, V>) for the dtype and the number of channels read at once
template <class Call>
static const char* typed(Dtype dtype, bool four, const Call& call) {
  if (dtype == float32) return four ? call(float{}, Pack<float, 4>{}) : call(float{}, Pack<float, 1>{});
  if (dtype == float16) return four ? call(Half{}, Pack<Half, 4>{}) : call(Half{}, Pack<Half, 1>{});
  return four ? call(BFloat16{}, Pack<BFloat16, 4>{}) : call(BFloat16{}, Pack<BFloat16, 1>{});
}

UDSE_EXPORT const char* udse_cuda_tile_statistics(const Map* x, const Tiling* tiling, Dtype dtype, Stream stream) {
  return typed(dtype, packed(x->channels, dtype, x->values, nullptr), [&](auto type, auto pack) {
    using T = decltype(type);
    constexpr int V = sizeof(pack) / sizeof(T);
    return tile_statistics<T, V>(Given<T, V>{x->values}, *x, *tiling, stream);
  });
}

UDSE_EXPORT const char* udse_cuda_norm_film_silu(const GroupNorm* norm, Stream stream) {
  const bool four = norm->skip.channels % 4 == 0 &&
                    packed(norm->x.channels, norm->dtype, norm->x.values, norm->skip.values, norm->out);
  return typed(norm->dtype, four, [&](auto type, auto pack) {
    using T = decltype(type);
    return group_norm<T, sizeof(pack) / sizeof(T)>(*norm, stream);
  });
}

// h, x, out: (B, N, C); bias: (C); with the statistics of out, where they are wanted
UDSE_EXPORT const char* udse_cuda_residual_sum(const void* h, const void* x, const void* bias, float factor, const Map* out,
                                               const Tiling* tiling, Dtype dtype, Stream stream) {
  return typed(dtype, packed(out->channels, dtype, h, x, out->values), [&](auto type, auto pack) {
    using T = decltype(type);
    constexpr int V = sizeof(pack) / sizeof(T);
    const ResidualSum<T, V> sum{h, x, bias, out->values, factor, out->channels / V};
    if (out->statistics) return tile_statistics<T, V>(sum, *out, *tiling, stream);
    return for_rows(1, tiling->samples * tiling->positions, out->channels / V, stream, sum);
  });
}

// x: (B, F, T, C); out: (B, 2 F, 2 T, C) or (B, F/2, T/2, C)
UDSE_EXPORT const char* udse_cuda_resample(const void* x, const Shape* shape, int64_t channels, int up, Dtype dtype, void* out,
                                           Stream stream) {
  return typed(dtype, packed(channels, dtype, x, out), [&](auto type, auto pack) {
    using T = decltype(type);
    return resample<T, sizeof(pack) / sizeof(T)>(x, *shape, channels, up, out, stream);
  });
}

UDSE_EXPORT int64_t udse_cuda_size_of_group_norm() { return sizeof(GroupNorm); }

}  // namespace gpu
}  // namespace udse
