#!/bin/sh
# Builds the C++ core and the streams for 64-bit ARM and runs their tests in an emulator.
# Needs g++-aarch64-linux-gnu and qemu-user. usage: csrc/run_aarch64.sh [build folder]
set -eu
source_dir=$(dirname "$0")/..
build_dir=${1:-"$source_dir/build/aarch64"}
cmake -S "$source_dir" -B "$build_dir" -DCMAKE_BUILD_TYPE=Release -DUDSE_TESTS=ON -DUDSE_CUDA=OFF \
  -DCMAKE_SYSTEM_NAME=Linux -DCMAKE_SYSTEM_PROCESSOR=aarch64 \
  -DCMAKE_C_COMPILER=aarch64-linux-gnu-gcc -DCMAKE_CXX_COMPILER=aarch64-linux-gnu-g++ \
  "-DCMAKE_CROSSCOMPILING_EMULATOR=qemu-aarch64;-L;/usr/aarch64-linux-gnu"
cmake --build "$build_dir"
ctest --test-dir "$build_dir" --output-on-failure --timeout 10000 # streams take half an hour in the emulator
