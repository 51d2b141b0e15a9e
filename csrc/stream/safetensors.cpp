#include "stream/safetensors.hpp"

#include <algorithm>
#include <cstring>
#include <limits>
#include <utility>

#include "stream/json.hpp"
#include "udse_core.hpp"

namespace udse {
namespace {

using std::size_t;

constexpr size_t longest_header = 100'000'000;  // bytes, a limit of the format
constexpr size_t most_dimensions = 8;
constexpr double most_exact = 9007199254740992.0;  // 2^53: whole numbers up to here are exact

[[noreturn]] void fail(const std::string& what) { throw Error("expected a safetensors file; " + what); }

size_t whole_number(const Json& json, const std::string& name) {
  if (json.kind != Json::number || json.value < 0 || json.value > most_exact ||
      json.value != static_cast<double>(static_cast<std::uint64_t>(json.value)))
    fail(name + " has a size or an offset that is not a whole number");
  return static_cast<size_t>(json.value);
}

float of_bits(std::uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}

std::uint32_t bits_of(float x) {
  std::uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return bits;
}

// Without branches: the exponent's offset is a factor, which denormals need as well
float of_half(std::uint32_t h) {
  const std::uint32_t sign = (h & 0x8000) << 16, magnitude = (h & 0x7fff) << 13;
  const std::uint32_t finite = bits_of(of_bits(magnitude) * 0x1p112f), special = magnitude | 0x7f800000;
  return of_bits(sign | ((h & 0x7c00) == 0x7c00 ? special : finite));
}

template <int bytes>
std::uint32_t little_endian(const unsigned char* p) {
  std::uint32_t value = 0;
  for (int i = 0; i < bytes; ++i) value |= static_cast<std::uint32_t>(p[i]) << (8 * i);
  return value;
}

float of_float32(std::uint32_t bits) { return of_bits(bits); }
float of_bfloat16(std::uint32_t bits) { return of_bits(bits << 16); }

template <int bytes, float (*value)(std::uint32_t)>
void read_values(const unsigned char* p, std::vector<float>& values) {
  for (float& each : values) {
    each = value(little_endian<bytes>(p));
    p += bytes;
  }
}

struct Format {
  const char* name;
  size_t bytes;
  void (*read)(const unsigned char*, std::vector<float>&);
};

constexpr Format formats[] = {
    {"F32", 4, read_values<4, of_float32>},
    {"F16", 2, read_values<2, of_half>},
    {"BF16", 2, read_values<2, of_bfloat16>},
};

const Format& find_format(const Json& entry, const std::string& name) {
  const Json* const dtype = entry.find("dtype");
  if (!dtype || dtype->kind != Json::string) fail(name + " has no dtype");
  for (const Format& format : formats)
    if (dtype->text == format.name) return format;
  fail(name + " is " + dtype->text.substr(0, 16) + ", not F32, F16 or BF16");
}

struct Place {
  size_t begin, end;
};

Place find_place(const Json& entry, const std::string& name) {
  const Json* const offsets = entry.find("data_offsets");
  if (!offsets || offsets->kind != Json::array || offsets->items.size() != 2) fail(name + " has no data_offsets");
  return {whole_number(offsets->items[0], name), whole_number(offsets->items[1], name)};
}

// Shape and number of values; the place has as many bytes as they take.
size_t read_shape(const Json& entry, const std::string& name, const Format& format, Place place, Tensor& tensor) {
  const Json* const shape = entry.find("shape");
  if (!shape || shape->kind != Json::array || shape->items.size() > most_dimensions) fail(name + " has no shape");
  size_t count = 1;
  for (const Json& item : shape->items) {
    const size_t n = whole_number(item, name);
    if (n != 0 && count > std::numeric_limits<size_t>::max() / 16 / n) fail(name + " is too large");
    count *= n;
    tensor.shape.push_back(static_cast<std::int64_t>(n));
  }
  if (place.end < place.begin || place.end - place.begin != count * format.bytes)
    fail(name + " has a shape that does not fit its bytes");
  return count;
}

}  // namespace

SafeTensors parse_safetensors(const unsigned char* bytes, size_t size) {
  constexpr size_t prefix = 8;
  if (size < prefix) fail("it has " + std::to_string(size) + " bytes");
  const std::uint64_t length = little_endian<4>(bytes) | static_cast<std::uint64_t>(little_endian<4>(bytes + 4)) << 32;
  if (length > longest_header || length > size - prefix) fail("its header is longer than the file");
  const char* const header = reinterpret_cast<const char*>(bytes + prefix);
  const Json json = parse_json(header, header + length);
  if (json.kind != Json::object) fail("its header is no object");
  const unsigned char* const data = bytes + prefix + length;
  const size_t data_size = size - prefix - static_cast<size_t>(length);

  SafeTensors result;
  std::vector<Place> places;
  for (const auto& [name, entry] : json.members) {
    if (entry.kind != Json::object) fail(name + " is no object");
    if (name == "__metadata__") {
      for (const auto& [key, value] : entry.members) result.metadata[key] = value.text;
      continue;
    }
    const Format& format = find_format(entry, name);
    const Place place = find_place(entry, name);
    if (place.end > data_size) fail(name + " reaches beyond its end");
    places.push_back(place);
    Tensor& tensor = result.tensors[name];
    const size_t count = read_shape(entry, name, format, place, tensor);
    tensor.values.resize(count);
    format.read(data + place.begin, tensor.values);
  }
  std::sort(places.begin(), places.end(),
            [](Place a, Place b) { return std::pair(a.begin, a.end) < std::pair(b.begin, b.end); });
  size_t covered = 0;
  for (const Place& place : places) {
    if (place.begin != covered) fail("its arrays overlap, or leave bytes out");
    covered = place.end;
  }
  if (covered != data_size) fail("it has bytes that belong to no array");
  return result;
}

}  // namespace udse
