// Where there is no libFuzzer: the target with so many inputs, made from the files that are given by random damage.
// fuzz_loop CASES SEED FILE...
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <random>
#include <vector>

extern "C" int LLVMFuzzerTestOneInput(const unsigned char* bytes, std::size_t size);

using Bytes = std::vector<unsigned char>;

namespace {

std::mt19937_64 generator;

std::size_t below(std::size_t n) { return n ? generator() % n : 0; }

void damage(Bytes& bytes) {
  switch (below(5)) {
    case 0:
      if (!bytes.empty()) bytes[below(bytes.size())] ^= static_cast<unsigned char>(1 << below(8));
      return;
    case 1:
      if (!bytes.empty()) bytes[below(bytes.size())] = static_cast<unsigned char>(generator());
      return;
    case 2:
      bytes.resize(below(bytes.size() + 1));
      return;
    case 3:
      bytes.insert(bytes.begin() + static_cast<std::ptrdiff_t>(below(bytes.size() + 1)), 1 + below(9),
                   static_cast<unsigned char>("0123456789[]{}\",:-e."[below(20)]));
      return;
    default: {
      const std::size_t from = below(bytes.size()), to = below(bytes.size()), n = below(32);
      for (std::size_t i = 0; i < n && from + i < bytes.size() && to + i < bytes.size(); ++i)
        bytes[to + i] = bytes[from + i];
    }
  }
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 4) return 2;
  generator.seed(std::strtoull(argv[2], nullptr, 10));
  std::vector<Bytes> seeds;
  for (int i = 3; i < argc; ++i) {
    std::ifstream file(argv[i], std::ios::binary);
    seeds.emplace_back(std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>());
  }
  const long cases = std::atol(argv[1]);
  for (long i = 0; i < cases; ++i) {
    Bytes bytes = seeds[below(seeds.size())];
    for (std::size_t n = below(6); n > 0; --n) damage(bytes);
    LLVMFuzzerTestOneInput(bytes.data(), bytes.size());
  }
  std::printf("%ld cases of seed %s: no crash\n", cases, argv[2]);
}
