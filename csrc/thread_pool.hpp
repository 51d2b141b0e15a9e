// Threads that wait for work. Which thread does which part never changes a result.
#pragma once

#include <cstdint>
#include <functional>

namespace udse {

// body(begin, end) over [0, items) in contiguous parts, on at most `threads` threads including the caller's.
// Serial where the pool is taken by another caller, or a fork has lost its threads.
void parallel_for(std::int64_t items, int threads, const std::function<void(std::int64_t, std::int64_t)>& body);

}  // namespace udse
