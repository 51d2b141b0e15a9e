#!/usr/bin/env bash
# The supervised row beside the unsupervised ones: a compact conditional network (SGMSE+), trained on speech that is mixed
# with noise, and its scores beside those of the default:
#
#     benchmarks/supervised.sh SPEECH NOISE MIXTURES OUT [STEPS]
#
# MIXTURES holds SET/snrN/{clean,noisy}/NAME.wav. A run that was cut goes on.
set -euo pipefail
speech=$1 noise=$2 mixtures=$3 out=$4 steps=${5:-1200}
mkdir -p "$out"
udse-fast train --network compact-conditional --speech "$speech" --noise "$noise" --init speech --steps "$steps" \
    --learning-rate 1.5e-3 --decay-share 0.7 --ema 0.995 --seed 1 --out "$out/conditional.safetensors"
score() { udse-fast evaluate --mixtures "$mixtures" --out "$out" --metrics si pesq estoi "$@"; }
score --checkpoint "$out/conditional.safetensors" # sgmse: 30 steps, one sample
score                                             # ddrm
