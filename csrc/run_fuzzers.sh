#!/usr/bin/env bash
# The fuzzers, under AddressSanitizer and UBSan, in a loop of random damage (the targets fit libFuzzer too).
# CASES of the reader of checkpoints (default 1,000,000); STREAMS, which compute (default: a hundredth of them), with the
# networks UDSE_PRIOR and UDSE_POSTERIOR (default: the built-in ones; those of tests/make_small_networks.py make a million
# streams a matter of minutes). SEED: of the damage (default 1).
set -euo pipefail
cd "$(dirname "$0")/.."
cases=${CASES:-1000000}
seed=${SEED:-1}
build=build/fuzz
cmake -S . -B "$build" -DCMAKE_BUILD_TYPE=Release -DUDSE_FUZZ=ON -DUDSE_CUDA=OFF -DUDSE_SANITIZE=address,undefined "$@"
cmake --build "$build" -j "$(nproc)" --target fuzz_safetensors fuzz_process
export UDSE_PRIOR=${UDSE_PRIOR:-$PWD/udse_fast/priors/causal.safetensors}
export UDSE_POSTERIOR=${UDSE_POSTERIOR:-$PWD/udse_fast/priors/posterior_causal.safetensors}
seeds=$build/seeds
mkdir -p "$seeds"
python3 csrc/tests/make_fuzz_seeds.py "$seeds"
"$build/fuzz_safetensors" "$cases" "$seed" "$seeds"/*.safetensors
"$build/fuzz_process" "${STREAMS:-$((cases / 100))}" "$seed" "$seeds"/*.calls
