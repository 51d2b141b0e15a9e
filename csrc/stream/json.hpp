// JSON text to a tree of values; what a checkpoint's header is written in.
#pragma once

#include <map>
#include <string>
#include <vector>

namespace udse {

struct Json {
  enum Kind { null, boolean, number, string, array, object } kind = null;
  bool truth = false;
  double value = 0;
  std::string text;
  std::vector<Json> items;
  std::map<std::string, Json> members;

  // The member of an object, or null where there is none.
  const Json* find(const std::string& name) const;
};

// Throws Error for text that is not JSON, or nested deeper than 32 levels.
Json parse_json(const char* begin, const char* end);

}  // namespace udse
