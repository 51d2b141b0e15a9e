#include "thread_pool.hpp"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <mutex>
#include <thread>
#include <vector>

#ifdef _WIN32
#include <process.h>
#define getpid _getpid
#else
#include <unistd.h>
#endif

namespace udse {
namespace {

using Body = std::function<void(std::int64_t, std::int64_t)>;

// How long a thread looks for what it waits for before it sleeps: a few wakings are saved, and a busy neighbour on the
// core is not kept waiting.
constexpr std::chrono::microseconds patience{5};

template <class Condition>
void look_for(const Condition& condition) {
  using clock = std::chrono::steady_clock;
  for (const auto end = clock::now() + patience; !condition() && clock::now() < end;) {
  }
}

class ThreadPool {
 public:
  void run(std::int64_t items, int threads, const Body& body) {
    std::unique_lock<std::mutex> turn(turn_, std::try_to_lock);
    if (threads < 2 || items < 2 || !turn.owns_lock() || process_ != getpid()) return body(0, items);

    {
      std::lock_guard<std::mutex> lock(mutex_);
      while (static_cast<int>(workers_.size()) < threads - 1)
        workers_.emplace_back(&ThreadPool::wait_for_work, this, static_cast<int>(workers_.size()));
      body_ = &body;
      items_ = items;
      parts_ = std::min<std::int64_t>(items, 4 * threads);  // some to spare for threads that start late
      next_ = 0;
      helpers_ = threads - 1;
      ++job_;
    }
    wake_.notify_all();
    work();
    std::unique_lock<std::mutex> lock(mutex_);
    helpers_ = 0;  // who has not come by now is not waited for
    lock.unlock();
    look_for([this] { return active_ == 0; });
    lock.lock();
    done_.wait(lock, [this] { return active_ == 0; });
  }

 private:
  void work() {
    for (std::int64_t part; (part = next_.fetch_add(1)) < parts_;)
      (*body_)(items_* part / parts_, items_ * (part + 1) / parts_);
  }

  void wait_for_work(int index) {
    for (std::uint64_t seen = 0;;) {
      look_for([&] { return job_ != seen; });
      std::unique_lock<std::mutex> lock(mutex_);
      wake_.wait(lock, [&] { return job_ != seen; });
      seen = job_;
      if (index >= helpers_) continue;
      ++active_;
      lock.unlock();
      work();
      lock.lock();
      if (--active_ == 0) done_.notify_one();
    }
  }

  const int process_ = getpid();
  std::mutex turn_, mutex_;
  std::condition_variable wake_, done_;
  std::vector<std::thread> workers_;
  const Body* body_ = nullptr;
  std::int64_t items_ = 0, parts_ = 0;
  std::atomic<std::int64_t> next_{0};
  int helpers_ = 0;
  std::atomic<int> active_{0};
  std::atomic<std::uint64_t> job_{0};
};

}  // namespace

void parallel_for(std::int64_t items, int threads, const Body& body) {
  static ThreadPool* const pool = new ThreadPool;  // never destroyed: its threads wait until the process ends
  pool->run(items, threads, body);
}

}  // namespace udse
