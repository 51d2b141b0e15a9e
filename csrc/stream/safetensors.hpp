// The safetensors format: a length, a header in JSON, and the numbers; sizes and offsets are checked against the file.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <string>
#include <vector>

namespace udse {

struct Tensor {
  std::vector<std::int64_t> shape;
  std::vector<float> values;  // as float32, whatever the file holds
};

struct SafeTensors {
  std::map<std::string, Tensor> tensors;
  std::map<std::string, std::string> metadata;
};

// Arrays of F32, F16 and BF16. Throws Error for anything else, and for a file whose parts do not fit together.
SafeTensors parse_safetensors(const unsigned char* bytes, std::size_t size);

}  // namespace udse
