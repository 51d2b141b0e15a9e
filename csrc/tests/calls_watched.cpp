#include "calls_watched.hpp"

#include <cstddef>

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__) || defined(UDSE_SANITIZED) || !defined(__GLIBC__)
const bool calls_are_watched = false;
void start_watching() {}
WatchedCalls stop_watching() { return {0, 0}; }
#else
#include <dlfcn.h>
#include <pthread.h>

const bool calls_are_watched = true;

namespace {
thread_local bool watching = false;
thread_local WatchedCalls counted{0, 0};
using Lock = int (*)(pthread_mutex_t*);
Lock next_lock() {
  static const Lock next = reinterpret_cast<Lock>(dlsym(RTLD_NEXT, "pthread_mutex_lock"));
  return next;
}
}  // namespace

void start_watching() {
  next_lock();
  counted = {0, 0};
  watching = true;
}

WatchedCalls stop_watching() {
  watching = false;
  return counted;
}

extern "C" {
void* __libc_malloc(std::size_t);
void* __libc_calloc(std::size_t, std::size_t);
void* __libc_realloc(void*, std::size_t);
void __libc_free(void*);

void* malloc(std::size_t size) {
  counted.allocations += watching;
  return __libc_malloc(size);
}
void* calloc(std::size_t n, std::size_t size) {
  counted.allocations += watching;
  return __libc_calloc(n, size);
}
void* realloc(void* p, std::size_t size) {
  counted.allocations += watching;
  return __libc_realloc(p, size);
}
void free(void* p) {
  counted.allocations += watching && p;
  __libc_free(p);
}
int pthread_mutex_lock(pthread_mutex_t* mutex) {
  counted.locks += watching;
  return next_lock()(mutex);
}
}
#endif
