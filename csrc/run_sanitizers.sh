#!/bin/sh
# Builds the C++ tests with AddressSanitizer + UndefinedBehaviorSanitizer, then with ThreadSanitizer, and runs them.
# usage: csrc/run_sanitizers.sh [build folder]
set -eu
source_dir=$(dirname "$0")/..
build_dir=${1:-"$source_dir/build/sanitizers"}
for sanitizers in address,undefined thread; do
  cmake -S "$source_dir" -B "$build_dir/$sanitizers" -DCMAKE_BUILD_TYPE=RelWithDebInfo -DUDSE_TESTS=ON \
    -DUDSE_CUDA=OFF -DUDSE_SANITIZE="$sanitizers"
  cmake --build "$build_dir/$sanitizers" --parallel 2
  UBSAN_OPTIONS=halt_on_error=1 ctest --test-dir "$build_dir/$sanitizers" --output-on-failure --parallel 2
done
