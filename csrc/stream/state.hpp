// What a stream remembers, as bytes: every part names its fields once, for measuring, saving, checking and restoring.
#pragma once

#include <cstddef>
#include <cstring>
#include <type_traits>
#include <vector>

namespace udse {

class State {
 public:
  enum Purpose { measure, save, check, restore };

  explicit State(Purpose purpose) : purpose_(purpose) {}
  // Room for what is saved
  State(Purpose purpose, unsigned char* bytes) : purpose_(purpose), to_(bytes) {}
  // What is checked or restored
  State(Purpose purpose, const unsigned char* bytes) : purpose_(purpose), from_(bytes) {}

  std::size_t size() const { return size_; }
  bool valid() const { return valid_; }

  // A number that can be from `least` to `most`.
  template <class Number>
  void operator()(Number& number, Number least, Number most) {
    static_assert(std::is_arithmetic_v<Number>);
    Number seen = number;
    if (purpose_ == check) std::memcpy(&seen, from_ + size_, sizeof seen);
    if (!(seen >= least && seen <= most)) valid_ = false;
    exchange(&number, sizeof number);
  }

  template <class Number>
  void operator()(std::vector<Number>& numbers) {  // their count is that of the settings
    static_assert(std::is_trivially_copyable_v<Number>);
    exchange(numbers.data(), numbers.size() * sizeof(Number));
  }

 private:
  void exchange(void* what, std::size_t bytes) {
    if (bytes && purpose_ == save) std::memcpy(to_ + size_, what, bytes);
    if (bytes && purpose_ == restore) std::memcpy(what, from_ + size_, bytes);
    size_ += bytes;
  }

  Purpose purpose_;
  unsigned char* to_ = nullptr;
  const unsigned char* from_ = nullptr;
  std::size_t size_ = 0;
  bool valid_ = true;
};

}  // namespace udse
