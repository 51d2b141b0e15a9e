#!/usr/bin/env bash
# Scores of every sampler, and of causal streams, on a folder of mixtures: benchmarks/quality.sh MIXTURES OUT [PEERS.csv ...]
# MIXTURES holds SET/snrN/{clean,noisy}/NAME.wav. OUT gets scores.csv, table.md and plots; a run that was cut goes on.
set -euo pipefail
mixtures=$1 out=$2
shift 2
score() { udse-fast evaluate --mixtures "$mixtures" --out "$out" "$@"; }
score # the default
score --causal
for sampler in diffuseen udiffse_plus depse_il depse_tl paradiffuse_en paradiffuse_in udiffse; do
    score --metrics si pesq estoi --sampler "$sampler"
done
score ${1:+--compare "$@"} # the table of all of them
# a stream has to get to know the noise: without the first second
udse-fast evaluate --mixtures "$mixtures" --out "$out/after_1s" --metrics si pesq estoi --skip-seconds 1
udse-fast evaluate --mixtures "$mixtures" --out "$out/after_1s" --metrics si pesq estoi --skip-seconds 1 --causal
