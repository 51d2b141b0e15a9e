#!/usr/bin/env bash
# Scores of every sampler on a folder of mixtures: benchmarks/quality.sh MIXTURES OUT [PEER_SCORES.csv ...]
# MIXTURES holds SET/snrN/{clean,noisy}/NAME.wav. OUT gets scores.csv, table.md and plots; a run that was cut goes on.
set -euo pipefail
mixtures=$1 out=$2
shift 2
for sampler in diffuseen udiffse_plus depse_il depse_tl paradiffuse_in paradiffuse_en udiffse; do
    udse-fast evaluate --mixtures "$mixtures" --out "$out" --sampler "$sampler" ${1:+--compare "$@"}
done
