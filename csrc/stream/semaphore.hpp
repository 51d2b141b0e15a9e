// Wakes a thread without a lock: a real-time thread posts, another one waits.
#pragma once

#if defined(_WIN32)
#ifndef NOMINMAX
#define NOMINMAX
#endif
#include <windows.h>
#elif defined(__APPLE__)
#include <dispatch/dispatch.h>
#else
#include <semaphore.h>
#endif

namespace udse {

class Semaphore {
 public:
  Semaphore(const Semaphore&) = delete;
  Semaphore& operator=(const Semaphore&) = delete;
#if defined(_WIN32)
  Semaphore() : semaphore_(CreateSemaphoreW(nullptr, 0, 0x7fffffff, nullptr)) {}
  ~Semaphore() { CloseHandle(semaphore_); }
  void post() { ReleaseSemaphore(semaphore_, 1, nullptr); }
  void wait() { WaitForSingleObject(semaphore_, INFINITE); }

 private:
  HANDLE semaphore_;
#elif defined(__APPLE__)
  Semaphore() : semaphore_(dispatch_semaphore_create(0)) {}
  ~Semaphore() { dispatch_release(semaphore_); }
  void post() { dispatch_semaphore_signal(semaphore_); }
  void wait() { dispatch_semaphore_wait(semaphore_, DISPATCH_TIME_FOREVER); }

 private:
  dispatch_semaphore_t semaphore_;
#else
  Semaphore() { sem_init(&semaphore_, 0, 0); }
  ~Semaphore() { sem_destroy(&semaphore_); }
  void post() { sem_post(&semaphore_); }
  void wait() {
    while (sem_wait(&semaphore_) != 0) {  // a signal came in between
    }
  }

 private:
  sem_t semaphore_;
#endif
};

}  // namespace udse
