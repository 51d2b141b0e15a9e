#!/usr/bin/env bash
# Builds the page: the C library by Emscripten with SIMD, and the prior beside it. Then, in this folder:
#     python -m http.server
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
root=$here/../..
functions=_malloc,_free
for name in parse_prior open_with close process most flush remaining reset latency default_options; do
  functions+=,_udse_$name
done
cd "$root/csrc"
em++ -O3 -msimd128 -std=c++17 -fwasm-exceptions -fno-math-errno -fno-trapping-math -Wno-unknown-pragmas \
  -DUDSE_ISA=scalar -DUDSE_VERSION='"browser"' -I. \
  dispatch.cpp thread_pool.cpp causal_network.cpp causal_network_kernels.cpp kernels_*.cpp stream/*.cpp capi.cpp \
  -sMODULARIZE -sEXPORT_NAME=makeUdse -sENVIRONMENT=web,worker,node -sALLOW_MEMORY_GROWTH -sWASM_BIGINT -sFILESYSTEM=0 \
  -sEXPORTED_FUNCTIONS="$functions" -o "$here/udse.js"
cp "$root/udse_fast/priors/causal.safetensors" "$here/prior.safetensors"
