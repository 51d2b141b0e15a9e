// Kernels for any functor: over items, over rows and columns, and sums of many terms. Compiled by nvcc for GPUs, by any
// other compiler for the emulation that tests run.
#pragma once

#ifndef __CUDACC__
#include "emulation/cuda_on_cpu.hpp"
#endif
#include "philox_normal.hpp"
#include "udse_core.hpp"

#ifdef _WIN32
#define UDSE_EXPORT extern "C" __declspec(dllexport)
#else
#define UDSE_EXPORT extern "C" __attribute__((visibility("default")))
#endif

namespace udse {
namespace gpu {

using std::int64_t;

struct alignas(8) Complex {
  float re, im;
};
UDSE_HD inline Complex operator+(Complex a, Complex b) { return {a.re + b.re, a.im + b.im}; }
UDSE_HD inline Complex operator-(Complex a, Complex b) { return {a.re - b.re, a.im - b.im}; }
UDSE_HD inline Complex operator*(float a, Complex b) { return {a * b.re, a * b.im}; }
UDSE_HD inline float square(float x) { return x * x; }
UDSE_HD inline float power(Complex z) { return z.re * z.re + z.im * z.im; }
UDSE_HD inline float above(float x, float least) { return x > least ? x : least; }

UDSE_HD inline Complex load(const cfloat* z, int64_t at) { return reinterpret_cast<const Complex*>(z)[at]; }
UDSE_HD inline void store(cfloat* z, int64_t at, Complex value) { reinterpret_cast<Complex*>(z)[at] = value; }
UDSE_HD inline float at_frame(const PerFrame& number, int64_t t) {
  return number.values ? number.values[t] : number.value;
}

#ifdef __CUDACC__

#define UDSE_PRAGMA(words) _Pragma(#words)
#define UDSE_UNROLL UDSE_PRAGMA(unroll)  // before loops over arrays that are to be registers
#define UDSE_UNROLL_BY(count) UDSE_PRAGMA(unroll count)

using Stream = cudaStream_t;

// kernel<<<grid, block, 0, stream>>>(arguments...). Returns what went wrong, nullptr if nothing.
template <class... Parameters>
const char* launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, Stream stream,
                   const Parameters&... arguments) {
  kernel<<<grid, block, 0, stream>>>(arguments...);
  const cudaError_t error = cudaGetLastError();
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

#else

#define UDSE_UNROLL
#define UDSE_UNROLL_BY(count)

using Stream = void*;

template <class... Parameters>
const char* launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, Stream, const Parameters&... arguments) {
  return emulation::launch(grid, block, [&] { kernel(arguments...); });
}

#endif

inline unsigned at_most(int64_t count, int64_t most) { return static_cast<unsigned>(count < most ? count : most); }

template <class Body>
__global__ void each_kernel(int64_t items, Body body) {
  for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < items; i += int64_t{gridDim.x} * blockDim.x)
    body(i);
}

// body(i) for each item
template <class Body>
const char* for_each(int64_t items, Stream stream, const Body& body) {
  constexpr int threads = 256;
  if (!items) return nullptr;
  return launch(each_kernel<Body>, at_most((items + threads - 1) / threads, 65536), threads, stream, items, body);
}

constexpr int most_rows_of_a_thread = 16, enough_blocks = 1024;  // for several on each multiprocessor

template <class Body>
__global__ void columns_kernel(int64_t batches, int64_t rows, int64_t columns, Body body) {
  for (int64_t b = blockIdx.y; b < batches; b += gridDim.y)
    for (int64_t column = threadIdx.x; column < columns; column += blockDim.x) {
      const auto write = body(b, column);
      for (int64_t row = int64_t{blockIdx.x} * blockDim.y + threadIdx.y; row < rows;
           row += int64_t{gridDim.x} * blockDim.y)
        write(row);
    }
}

// body(b, column)(row) for each of (batches, rows, columns); neighbouring threads have neighbouring columns. What
// body(b, column) makes serves many rows, where there are enough for all of a GPU.
template <class Body>
const char* for_columns(int64_t batches, int64_t rows, int64_t columns, Stream stream, const Body& body) {
  if (!batches || !rows || !columns) return nullptr;
  const unsigned width = at_most(columns, 256);
  const dim3 threads(width, 256 / width);
  const int64_t blocks = (rows + threads.y - 1) / threads.y;
  const int64_t most = blocks * batches / enough_blocks,
                of_a_thread = most < 1 ? 1 : at_most(most, most_rows_of_a_thread);
  const dim3 grid(at_most((blocks + of_a_thread - 1) / of_a_thread, 65536), at_most(batches, 65535));
  return launch(columns_kernel<Body>, grid, threads, stream, batches, rows, columns, body);
}

// A body(b, row, column) as for_columns takes it
template <class Body>
struct RowByRow {
  Body body;
  struct Column {
    const Body& body;
    int64_t b, column;
    UDSE_HD void operator()(int64_t row) const { body(b, row, column); }
  };
  UDSE_HD Column operator()(int64_t b, int64_t column) const { return {body, b, column}; }
};

// body(b, row, column) for each of (batches, rows, columns)
template <class Body>
const char* for_rows(int64_t batches, int64_t rows, int64_t columns, Stream stream, const Body& body) {
  return for_columns(batches, rows, columns, stream, RowByRow<Body>{body});
}

constexpr int reduce_threads = 128, warp = 32;

template <int N, class Body>
__global__ void reduce_kernel(int64_t length, Body body) {
  __shared__ float parts[N][reduce_threads / warp];
  float sums[N] = {};
  for (int64_t j = threadIdx.x; j < length; j += reduce_threads) body.term(blockIdx.x, j, sums);
  UDSE_UNROLL
  for (int n = 0; n < N; ++n) {
    for (int step = warp / 2; step; step /= 2) sums[n] += __shfl_xor_sync(0xffffffff, sums[n], step);
    if (threadIdx.x % warp == 0) parts[n][threadIdx.x / warp] = sums[n];
  }
  __syncthreads();
  UDSE_UNROLL
  for (int n = 0; n < N; ++n) {
    sums[n] = 0;
    for (int w = 0; w < reduce_threads / warp; ++w) sums[n] += parts[n][w];
  }
  body.finish(blockIdx.x, sums, threadIdx.x, reduce_threads);
}

// For each item: N sums of term(item, j, sums) over j < length, then finish(item, sums, part, parts) for every part of
// the work
template <int N, class Body>
const char* reduce(int64_t items, int64_t length, Stream stream, const Body& body) {
  if (!items) return nullptr;
  return launch(reduce_kernel<N, Body>, static_cast<unsigned>(items), reduce_threads, stream, length, body);
}

}  // namespace gpu
}  // namespace udse
