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

// SiLU(GroupNorm(x + before) * scale + shift); x, out: (B, N, C); before, scale, shift: rows of C or nullptr.
struct GroupNorm {
  const void *x, *weight, *bias, *before, *scale, *shift;
  void* out;
  float* scratch;  // 2 B tiles C + B groups + 2 B C numbers
  int64_t samples, positions, channels, groups, tiles, before_stride, film_stride;
  float eps;
  Dtype dtype;
  bool activate;

  UDSE_HD int64_t length() const { return (positions + tiles - 1) / tiles; }  // positions of a tile, the last has fewer
  UDSE_HD int64_t width() const { return channels / groups; }
  UDSE_HD float* sums() const { return scratch; }                               // (B, tiles, C)
  UDSE_HD float* squares() const { return sums() + samples * tiles * channels; }  // (B, tiles, C), centred
  UDSE_HD float* means() const { return squares() + samples * tiles * channels; }  // (B, groups)
  UDSE_HD float* factor() const { return means() + samples * groups; }            // (B, C)
  UDSE_HD float* offset() const { return factor() + samples * channels; }         // (B, C)
};

// Sum and centred sum of squares of the channels in a tile, by differences to the first position.
template <class T, int V>
struct TileStatistics {
  GroupNorm norm;
  UDSE_HD void operator()(int64_t b, int64_t tile, int64_t pack) const {
    const int64_t packs = norm.channels / V, first = tile * norm.length();
    const int64_t left = norm.positions - first, count = left < norm.length() ? left : norm.length();
    Values<T, V> origin, sum, square_sum;
    if (count > 0) origin = Values<T, V>(norm.x, (b * norm.positions + first) * packs + pack);
    for (int64_t n = 1; n < count; ++n) {
      const Values<T, V> x(norm.x, (b * norm.positions + first + n) * packs + pack);
      for (int k = 0; k < V; ++k) {
        sum.v[k] += x.v[k] - origin.v[k];
        square_sum.v[k] += square(x.v[k] - origin.v[k]);
      }
    }
    const float n = count > 0 ? static_cast<float>(count) : 0.f;
    for (int k = 0; k < V; ++k) {
      const int64_t at = (b * norm.tiles + tile) * norm.channels + pack * V + k;
      norm.sums()[at] = n * origin.v[k] + sum.v[k];
      norm.squares()[at] = n > 0 ? above(square_sum.v[k] - square(sum.v[k]) / n, 0) : 0.f;
    }
  }
};

// Where term j of a group (an item) is. Divisions of 32 bits: those of 64 take a GPU many times as long.
struct Term {
  std::uint32_t sample, tile, channel;
  int64_t position;  // in sums() and squares()
  UDSE_HD Term(const GroupNorm& norm, int64_t item, int64_t j) {
    const auto i = static_cast<std::uint32_t>(item), term = static_cast<std::uint32_t>(j);
    const auto groups = static_cast<std::uint32_t>(norm.groups), width = static_cast<std::uint32_t>(norm.width());
    sample = i / groups;
    tile = term / width;
    channel = i % groups * width + term % width;
    position = (sample * norm.tiles + tile) * norm.channels + channel;
  }
};

// One item: sample b and group g; its terms: the channels of all tiles.
template <class T>
struct GroupMean {
  GroupNorm norm;
  UDSE_HD void term(int64_t item, int64_t j, float* sums) const {
    const Term at(norm, item, j);
    sums[0] += norm.sums()[at.position] / static_cast<float>(norm.positions);
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
    const int64_t left = norm.positions - at.tile * norm.length(), count = left < norm.length() ? left : norm.length();
    if (count <= 0) return;
    const float n = static_cast<float>(count);
    const float before = element<T>(norm.before, at.sample * norm.before_stride + at.channel);
    sums[0] += norm.squares()[at.position] + n * square(norm.sums()[at.position] / n + before - norm.means()[item]);
  }
  UDSE_HD void finish(int64_t item, const float* sums, int part, int parts) const {
    const int64_t b = item / norm.groups;
    const float inverse = 1 / sqrtf(sums[0] / static_cast<float>(norm.positions * norm.width()) + norm.eps);
    for (int64_t k = part; k < norm.width(); k += parts) {
      const int64_t c = item % norm.groups * norm.width() + k, film = b * norm.film_stride + c;
      float a = inverse * element<T>(norm.weight, c);
      float d = (element<T>(norm.before, b * norm.before_stride + c) - norm.means()[item]) * a + element<T>(norm.bias, c);
      if (norm.scale) {
        a *= element<T>(norm.scale, film);
        d = d * element<T>(norm.scale, film) + element<T>(norm.shift, film);
      }
      norm.factor()[b * norm.channels + c] = a;
      norm.offset()[b * norm.channels + c] = d;
    }
  }
};

template <class T, int V>
struct AffineSiLU {
  GroupNorm norm;
  UDSE_HD void operator()(int64_t b, int64_t n, int64_t pack) const {
    const int64_t at = (b * norm.positions + n) * (norm.channels / V) + pack, c = b * norm.channels + pack * V;
    Values<T, V> y(norm.x, at);
    for (int k = 0; k < V; ++k) {
      y.v[k] = norm.factor()[c + k] * y.v[k] + norm.offset()[c + k];
      if (norm.activate) y.v[k] /= 1 + expf(-y.v[k]);
    }
    y.to(norm.out, at);
  }
};

// h + bias + factor x; h, x, out: (N, C)
template <class T, int V>
struct ResidualSum {
  const void *h, *x, *bias;
  void* out;
  int64_t packs;
  float factor;
  UDSE_HD void operator()(int64_t, int64_t n, int64_t pack) const {
    Values<T, V> y(h, n * packs + pack);
    const Values<T, V> other(x, n * packs + pack);
    for (int k = 0; k < V; ++k) y.v[k] += element<T>(bias, pack * V + k) + factor * other.v[k];
    y.to(out, n * packs + pack);
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

template <class T, int V>
static const char* group_norm(const GroupNorm& n, Stream stream) {
  const char* error = for_rows(n.samples, n.tiles, n.channels / V, stream, TileStatistics<T, V>{n});
  const int64_t items = n.samples * n.groups, terms = n.tiles * n.width();
  if (!error) error = reduce<1>(items, terms, stream, GroupMean<T>{n});
  if (!error) error = reduce<1>(items, terms, stream, GroupAffine<T>{n});
  return error ? error : for_rows(n.samples, n.positions, n.channels / V, stream, AffineSiLU<T, V>{n});
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

UDSE_EXPORT const char* udse_cuda_norm_film_silu(const GroupNorm* norm, Stream stream) {
  return typed(norm->dtype, packed(norm->channels, norm->dtype, norm->x, norm->out), [&](auto type, auto pack) {
    using T = decltype(type);
    return group_norm<T, sizeof(pack) / sizeof(T)>(*norm, stream);
  });
}

// h, x, out: (N, C); bias: (C)
UDSE_EXPORT const char* udse_cuda_residual_sum(const void* h, const void* x, const void* bias, float factor, int64_t positions,
                                               int64_t channels, Dtype dtype, void* out, Stream stream) {
  return typed(dtype, packed(channels, dtype, h, x, out), [&](auto type, auto pack) {
    using T = decltype(type);
    constexpr int V = sizeof(pack) / sizeof(T);
    return for_rows(1, positions, channels / V, stream, ResidualSum<T, V>{h, x, bias, out, channels / V, factor});
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
