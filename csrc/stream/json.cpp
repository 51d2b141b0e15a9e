#include "stream/json.hpp"

#include <cctype>
#include <cstdint>
#include <cstdlib>
#include <utility>

#include "udse_core.hpp"

namespace udse {
namespace {

constexpr int most_levels = 32;
constexpr std::ptrdiff_t longest_number = 64;  // characters

class Parser {
 public:
  Parser(const char* begin, const char* end) : begin_(begin), at_(begin), end_(end) {}

  Json whole() {
    Json value = parse(0);
    skip_spaces();
    if (at_ != end_) fail();
    return value;
  }

 private:
  [[noreturn]] void fail() const {
    throw Error("expected JSON; it breaks at character " + std::to_string(at_ - begin_));
  }

  void skip_spaces() {
    while (at_ != end_ && (*at_ == ' ' || *at_ == '\t' || *at_ == '\n' || *at_ == '\r')) ++at_;
  }

  bool take(char c) {
    skip_spaces();
    if (at_ == end_ || *at_ != c) return false;
    ++at_;
    return true;
  }

  void expect(char c) {
    if (!take(c)) fail();
  }

  void expect_word(const char* word) {
    for (; *word; ++word, ++at_)
      if (at_ == end_ || *at_ != *word) fail();
  }

  Json parse(int level) {
    if (level > most_levels) fail();
    skip_spaces();
    if (at_ == end_) fail();
    Json json;
    switch (*at_) {
      case '{':
        return parse_object(level);
      case '[':
        return parse_array(level);
      case '"':
        json.kind = Json::string;
        json.text = parse_string();
        return json;
      case 't':
      case 'f':
        json.kind = Json::boolean;
        json.truth = *at_ == 't';
        expect_word(json.truth ? "true" : "false");
        return json;
      case 'n':
        expect_word("null");
        return json;
      default:
        json.kind = Json::number;
        json.value = parse_number();
        return json;
    }
  }

  Json parse_object(int level) {
    Json json;
    json.kind = Json::object;
    expect('{');
    if (take('}')) return json;
    do {
      skip_spaces();
      std::string name = parse_string();
      expect(':');
      if (!json.members.emplace(std::move(name), parse(level + 1)).second) fail();
    } while (take(','));
    expect('}');
    return json;
  }

  Json parse_array(int level) {
    Json json;
    json.kind = Json::array;
    expect('[');
    if (take(']')) return json;
    do json.items.push_back(parse(level + 1));
    while (take(','));
    expect(']');
    return json;
  }

  double parse_number() {
    std::string text;
    while (at_ != end_ && (std::isdigit(static_cast<unsigned char>(*at_)) || *at_ == '-' || *at_ == '+' ||
                           *at_ == '.' || *at_ == 'e' || *at_ == 'E')) {
      text += *at_++;
      if (static_cast<std::ptrdiff_t>(text.size()) > longest_number) fail();
    }
    char* parsed = nullptr;
    const double value = std::strtod(text.c_str(), &parsed);
    if (text.empty() || *parsed) fail();
    return value;
  }

  std::string parse_string() {
    if (at_ == end_ || *at_ != '"') fail();
    ++at_;
    std::string text;
    while (true) {
      if (at_ == end_ || static_cast<unsigned char>(*at_) < 0x20) fail();
      const char c = *at_++;
      if (c == '"') return text;
      if (c != '\\')
        text += c;
      else
        add_escaped(text);
    }
  }

  void add_escaped(std::string& text) {
    if (at_ == end_) fail();
    const char c = *at_++;
    switch (c) {
      case '"':
      case '\\':
      case '/':
        text += c;
        return;
      case 'b':
        text += '\b';
        return;
      case 'f':
        text += '\f';
        return;
      case 'n':
        text += '\n';
        return;
      case 'r':
        text += '\r';
        return;
      case 't':
        text += '\t';
        return;
      case 'u':
        return add_utf8(text, parse_code());
      default:
        fail();
    }
  }

  // Four hexadecimal digits, and those of the second half of a pair.
  std::uint32_t parse_code() {
    const std::uint32_t code = parse_hexadecimal();
    if (code < 0xd800 || code > 0xdfff) return code;
    if (code > 0xdbff) fail();
    expect_word("\\u");
    const std::uint32_t low = parse_hexadecimal();
    if (low < 0xdc00 || low > 0xdfff) fail();
    return 0x10000 + ((code - 0xd800) << 10) + (low - 0xdc00);
  }

  std::uint32_t parse_hexadecimal() {
    std::uint32_t code = 0;
    for (int i = 0; i < 4; ++i, ++at_) {
      if (at_ == end_ || !std::isxdigit(static_cast<unsigned char>(*at_))) fail();
      const char c = *at_;
      code = code * 16 + static_cast<std::uint32_t>(c <= '9' ? c - '0' : (c | 0x20) - 'a' + 10);
    }
    return code;
  }

  static void add_utf8(std::string& text, std::uint32_t code) {
    const auto add = [&](std::uint32_t byte) { text += static_cast<char>(static_cast<unsigned char>(byte)); };
    if (code < 0x80) return add(code);
    if (code < 0x800) {
      add(0xc0 | code >> 6);
    } else if (code < 0x10000) {
      add(0xe0 | code >> 12);
      add(0x80 | (code >> 6 & 0x3f));
    } else {
      add(0xf0 | code >> 18);
      add(0x80 | (code >> 12 & 0x3f));
      add(0x80 | (code >> 6 & 0x3f));
    }
    add(0x80 | (code & 0x3f));
  }

  const char *begin_, *at_, *end_;
};

}  // namespace

const Json* Json::find(const std::string& name) const {
  const auto found = members.find(name);
  return found == members.end() ? nullptr : &found->second;
}

Json parse_json(const char* begin, const char* end) { return Parser(begin, end).whole(); }

}  // namespace udse
