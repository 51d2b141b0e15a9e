#!/usr/bin/env bash
# Builds the page: the C library as WebAssembly with SIMD (needs Emscripten), and the networks beside it. Then, here:
#     python -m http.server
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
root=$here/../..
build=${1:-$root/build/browser}
emcmake cmake -S "$root" -B "$build" -DCMAKE_BUILD_TYPE=Release -DUDSE_CUDA=OFF \
  "-DCMAKE_CXX_FLAGS=-msimd128 -fwasm-exceptions"
cmake --build "$build" --target udse_browser
cp "$build/udse.wasm" "$root"/udse_fast/priors/{causal,posterior_causal}.safetensors "$here"
