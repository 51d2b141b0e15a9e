// Loops that nvcc makes kernels of and any other compiler plain loops: the same functors, tested without a GPU.
#pragma once

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

#define UDSE_UNROLL _Pragma("unroll")  // before loops over arrays that are to be registers

using Stream = cudaStream_t;

// What went wrong, nullptr if nothing.
inline const char* launch_error() {
  const cudaError_t error = cudaGetLastError();
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

template <class Body>
__global__ void each_kernel(int64_t items, Body body) {
  for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < items; i += int64_t{gridDim.x} * blockDim.x)
    body(i);
}

// body(i) for each item
template <class Body>
const char* for_each(int64_t items, Stream stream, const Body& body) {
  constexpr int threads = 256;
  const int64_t blocks = (items + threads - 1) / threads;
  if (blocks) each_kernel<<<static_cast<unsigned>(blocks < 65536 ? blocks : 65536), threads, 0, stream>>>(items, body);
  return launch_error();
}

template <class Body>
__global__ void rows_kernel(int64_t batches, int64_t rows, int64_t columns, Body body) {
  for (int64_t b = blockIdx.y; b < batches; b += gridDim.y)
    for (int64_t row = int64_t{blockIdx.x} * blockDim.y + threadIdx.y; row < rows;
         row += int64_t{gridDim.x} * blockDim.y)
      for (int64_t column = threadIdx.x; column < columns; column += blockDim.x) body(b, row, column);
}

// body(b, row, column) for each of (batches, rows, columns); no divisions, neighbouring threads have neighbouring
// columns
template <class Body>
const char* for_rows(int64_t batches, int64_t rows, int64_t columns, Stream stream, const Body& body) {
  if (!batches || !rows || !columns) return nullptr;
  const unsigned width = static_cast<unsigned>(columns < 256 ? columns : 256);
  const dim3 threads(width, 256 / width);
  const int64_t blocks = (rows + threads.y - 1) / threads.y;
  const dim3 grid(static_cast<unsigned>(blocks < 65536 ? blocks : 65536),
                  static_cast<unsigned>(batches < 65535 ? batches : 65535));
  rows_kernel<<<grid, threads, 0, stream>>>(batches, rows, columns, body);
  return launch_error();
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
  if (items) reduce_kernel<N><<<static_cast<unsigned>(items), reduce_threads, 0, stream>>>(length, body);
  return launch_error();
}

#else

#define UDSE_UNROLL

using Stream = void*;

template <class Body>
const char* for_each(int64_t items, Stream, const Body& body) {
  for (int64_t i = 0; i < items; ++i) body(i);
  return nullptr;
}

template <class Body>
const char* for_rows(int64_t batches, int64_t rows, int64_t columns, Stream, const Body& body) {
  for (int64_t b = 0; b < batches; ++b)
    for (int64_t row = 0; row < rows; ++row)
      for (int64_t column = 0; column < columns; ++column) body(b, row, column);
  return nullptr;
}

template <int N, class Body>
const char* reduce(int64_t items, int64_t length, Stream, const Body& body) {
  for (int64_t i = 0; i < items; ++i) {
    float sums[N] = {};
    for (int64_t j = 0; j < length; ++j) body.term(i, j, sums);
    body.finish(i, sums, 0, 1);
  }
  return nullptr;
}

#endif

}  // namespace gpu
}  // namespace udse
